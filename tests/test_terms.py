"""Known answers and invariances of the texture terms."""

import math

import numpy as np
import pytest
import torch
from conftest import built, fast_first, in_threads, noise, regional
from torch.nn import functional as F

from command.files import TEXTURES
from command.pictures import read_picture
from losses import TERMS
from terms import autocorrelation as autocorrelation_file
from terms import base
from terms import spectrum as spectrum_file
from terms.autocorrelation import (
    PERIODIC,
    Autocorrelation,
    autocorrelation,
    luminance_autocorrelation,
    pearson_autocorrelation,
    period,
    remove_shading,
)
from terms.base import (
    TINY,
    Canvas,
    Exemplar,
    QuantileMixture,
    View,
    equal_weights,
    interpolate_quantiles,
    relative_error,
    sort_with_indices,
    squared_wasserstein,
)
from terms.crosscorrelation import COMPONENTS, CrossCorrelation
from terms.gram import Gram, gram
from terms.histogram import Histogram
from terms.moments import Moments
from terms.patches import PATCH_DIRECTIONS, Patches
from terms.process_group import SINGLE_PROCESS
from terms.sliced import Sliced
from terms.spectrum import Spectrum
from terms.variation import TotalVariation

# ------------------------------------------------------------------------------- all the terms


@pytest.mark.parametrize("name", TERMS)
def test_term_keeps_nothing_of_one_size_for_another(name, tiny):
    source = tiny(noise(1, 3, 20, 18))
    term = built(TERMS[name].kind, source, tiny.layers)
    for size in [(12, 30), (9, 9), (20, 18), (12, 30)]:
        output = tiny(noise(1, 3, *size, seed=1))
        expected = built(TERMS[name].kind, source, tiny.layers)(output)
        torch.testing.assert_close(term(output), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "name", ["spectrum", "autocorrelation", "crosscorrelation", "patches", "tv"]
)
@pytest.mark.parametrize("wrap, dim", [("x", 3), ("y", 2)])
def test_term_looks_across_the_border(name, wrap, dim):
    # Stripes that meet themselves at the border, and others that break there.
    length = torch.arange(64.0)
    found = []
    for periods in (8, 8.5):
        stripes = (0.5 + 0.5 * (length * periods * 2 * math.pi / 64).cos()).expand(1, 3, 64, 64)
        features = {"image": stripes if dim == 3 else stripes.mT}
        features["relu1_1"] = features["image"]
        tiled, other, plain = (
            built(TERMS[name].kind, features, ["relu1_1"], wrap=axes)(features).item()
            for axes in (wrap, "yx".replace(wrap, ""), "")
        )
        assert other == pytest.approx(plain, abs=2e-3)
        found.append(abs(tiled - plain))
    assert found[1] > 5e-3 and found[1] > 1.5 * found[0]


# ---------------------------------------------------------------------------------------- gram


def test_gram_by_hand():
    # Two maps of 1x2: [1, 2] and [3, 4]; products 1+4, 3+8, 9+16, over 2 positions.
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert gram(features).mean.tolist() == [[[2.5, 5.5], [5.5, 12.5]]]


def test_gram_has_the_gradient_of_the_plain_product():
    features = noise(2, 5, 3, 4).requires_grad_()
    weights = noise(2, 5, 5, seed=1)  # not symmetric
    flat = features.flatten(2)
    (expected,) = torch.autograd.grad((weights * (flat @ flat.mT) / 12).sum(), features)
    (found,) = torch.autograd.grad((weights * gram(features).mean).sum(), features)
    torch.testing.assert_close(found, expected)


def test_gram_error_in_closed_form_is_what_autograd_makes_of_it(tiny):
    source, output = noise(1, 3, 8, 6), noise(2, 3, 5, 7, seed=1).requires_grad_()
    term = built(Gram, tiny(source), tiny.layers)
    found, expected = (
        one(tiny(output)) for one in (term, lambda x: term.distance(term.measure(x)))
    )
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, -3.0])
    gradients = (torch.autograd.grad((weights * x).sum(), output)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients)


def test_relative_error_by_hand():
    output, source = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3.0, 4.0]])
    # ((1-3)^2 + (2-4)^2) / (9 + 16), and 0 for the picture that is the source
    assert relative_error(output, source).tolist() == pytest.approx([8 / 25, 0])


def test_relative_error_of_a_flat_source_is_finite():
    error = relative_error(torch.full((1, 4), 1e-4), torch.zeros(1, 4))
    assert error.item() == pytest.approx(4e-8 / TINY)


def test_gram_term_averages_layers_by_hand():
    source = {"a": torch.ones(1, 1, 2, 2), "b": torch.full((1, 1, 2, 2), 2.0)}
    output = {"a": torch.full((1, 1, 2, 2), 2.0), "b": torch.full((1, 1, 2, 2), 2.0)}
    # Grams 4 against 1: (4-1)^2 / 1 = 9; layer b is met: (9 + 0) / 2
    assert built(Gram, source, ["a", "b"])(output).tolist() == [4.5]
    assert built(Gram, source, ["b"])(output).tolist() == [0]


def test_gram_term_is_the_same_for_any_scale_of_a_layer(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard.flip(1))
    scaled = [{k: 7 * v for k, v in features.items()} for features in (source, output)]
    torch.testing.assert_close(
        built(Gram, source, tiny.layers)(output), built(Gram, scaled[0], tiny.layers)(scaled[1])
    )


@pytest.mark.parametrize(
    "name", [name for name, entry in TERMS.items() if not entry.kind.needs_whole]
)
def test_statistics_of_parts_add_up_to_those_of_the_whole(name, tiny):
    """What evaluation by blocks and over several machines stands on."""
    term = built(TERMS[name].kind, tiny(noise(1, 3, 16, 16)), tiny.layers)
    output = tiny(noise(2, 3, 24, 20, seed=1))
    top, bottom = ({k: part(v) for k, v in output.items()} for part in (_upper, _lower))
    one, other, both = map(term.measure, (top, bottom, output))
    added = {k: one[k] + other[k] for k in both}
    assert [sums.count for sums in added.values()] == [sums.count for sums in both.values()]
    torch.testing.assert_close(term.distance(added), term(output))
    assert not torch.allclose(term(top), term(output))


def _upper(maps):
    """The first third of the rows."""
    return maps[..., : maps.shape[2] // 3, :]


def _lower(maps):
    return maps[..., maps.shape[2] // 3 :, :]


# ----------------------------------------------------------------------- histogram and moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_sort_with_indices_is_what_torch_sorts(threads, dtype, monkeypatch):
    monkeypatch.setattr(base, "SERIAL_SORT_BELOW", 1)
    values = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, 0, ::7], values[0, 1, :9], values[1, 2, 3] = 0.25, -2.5, -math.inf
    values[1, 0, 4], values[1, 1, 5] = math.inf, 1e-40
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ascending, order = sort_with_indices(values.transpose(0, 1))  # not contiguous
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ascending, values.transpose(0, 1).sort(-1).values)
    assert torch.equal(values.transpose(0, 1).gather(-1, order), ascending)


def test_squared_wasserstein_by_hand():
    """3, 0, 2 go to 1, 1, 4: by 0 -> 1, 2 -> 1 and 3 -> 4, each of them 1 off; 5, 5, 5 to the same
    by 4, 4 and 1."""
    values = torch.tensor([[[3.0, 0.0, 2.0]], [[5.0, 5.0, 5.0]]], requires_grad=True)
    distance = squared_wasserstein(values, torch.tensor([[1.0, 1.0, 4.0]]))
    assert distance.tolist() == pytest.approx([1, 11])
    (3 * distance[0] + distance[1]).backward()
    assert values.grad[0, 0].tolist() == pytest.approx([-2, -2, 2])
    assert sorted(values.grad[1, 0].tolist()) == pytest.approx([2 / 3, 8 / 3, 8 / 3])


@pytest.mark.parametrize(
    "kind, build, count",
    [
        *((kind, build, 2) for kind in (Sliced, Patches) for build in (built, regional)),
        # Of fewer directions than 80 each sorts all.
        *((Sliced, built, 80), (Patches, regional, 80)),
    ],
)
def test_several_processes_share_what_is_sorted(kind, build, count, tiny, monkeypatch):
    source, output = tiny(noise(1, 3, 24, 24, seed=1)), noise(1, 3, 24, 20, seed=2)
    halves = torch.zeros(1, 1, 24, 24, dtype=torch.int64)
    halves[..., 12:] = 1
    regions = {"regions": ([halves], halves[..., 2:22])} if build is regional else {}
    sorted_rows, sort_with_indices = [], base.sort_with_indices

    def counted(values):
        sorted_rows.append(values[..., 0].numel())
        return sort_with_indices(values)

    def seen(group=SINGLE_PROCESS):
        term = build(kind, source, ["relu1_1"], group=group, **regions)
        term.rematch(tiny(output))
        image = output.clone().requires_grad_()
        loss = term(tiny(image))
        return loss.detach(), *torch.autograd.grad(loss.sum(), image)

    monkeypatch.setattr(base, "sort_with_indices", counted)
    loss, gradient = seen()
    alone = sum(sorted_rows)
    for shared_loss, shared_gradient in in_threads(count, seen):
        torch.testing.assert_close(shared_loss, loss)
        torch.testing.assert_close(shared_gradient, gradient)
    shared = sum(sorted_rows) - alone
    assert shared == alone if count == 2 else shared == alone * count


def test_quantiles_by_hand():
    # Four quantiles of two values lie at -0.25, 0.25, 0.75 and 1.25 of the way from 0 to 1.
    assert interpolate_quantiles(torch.tensor([0.0, 1.0]), 4).tolist() == [0, 0.25, 0.75, 1]
    # Two quantiles of four values lie between the first two, and between the last two.
    assert interpolate_quantiles(torch.tensor([0.0, 2.0, 4.0, 8.0]), 2).tolist() == [1, 6]
    assert interpolate_quantiles(torch.tensor([5.0, 7.0]), 2).tolist() == [5, 7]


def test_quantiles_of_a_mixture_by_hand():
    """Of four quantiles one exemplar has a share of 1 of 4, the other of 3; one without values has
    none, so that 2 of 8 remain 1 of 4."""
    zeros, ones = torch.zeros(5), torch.tensor([1.0, 2.0, 3.0])
    assert QuantileMixture([(0.25, zeros), (0.75, ones)])(4).tolist() == [0, 1, 2, 3]
    parts = [(0.125, zeros), (0.375, ones), (0.5, torch.zeros(0))]
    assert QuantileMixture(parts)(4).tolist() == [0, 1, 2, 3]


def test_exemplar_and_canvas_move_to_a_device_with_all_their_tensors():
    maps = torch.zeros(1, 1, 4, 4)
    view = View({"image": maps, "a": maps}, maps, maps, maps)
    canvas = Canvas((4, 4), init=maps, mask=maps, content=maps, guide=maps, regions=maps)
    (moved,) = Exemplar((view,)).to(torch.device("meta")).views
    assert all(x.is_meta for x in moved.features.values())
    for one in (moved, canvas.to(torch.device("meta"))):
        tensors = [x for x in vars(one).values() if isinstance(x, torch.Tensor)]
        assert len(tensors) == (3 if one is moved else 5) and all(x.is_meta for x in tensors)


def test_histogram_by_hand():
    # Half 0, half 1 in each channel: variance 0.25, covariance 0.25 everywhere.
    source = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    brighter = {"image": source / 2 + 0.5}  # half 0.5, half 1: covariance 0.0625
    transport = (0.5**2 + 0**2) / 2 / 0.25
    covariance = 9 * (0.25 - 0.0625) ** 2 / (9 * 0.25**2)
    term = built(Histogram, {"image": source}, [])
    assert term(brighter).item() == pytest.approx(transport + covariance)
    assert term({"image": source.flip(3)}).item() == 0


def test_histogram_of_two_flat_exemplars_by_hand():
    """Half 0 and half 1: the variance, 0.25, is that between the exemplars. A flat 0.5 is 0.5 off
    everywhere, and all of the covariance is missing."""
    zeros, ones = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    term = built(Histogram, {"image": zeros}, [], others=({"image": ones},), shares=(0.5, 0.5))
    assert term({"image": (zeros + ones) / 2}).item() == pytest.approx(0.25 / 0.25 + 1)


def test_rounding_makes_no_negative_variance():
    term = built(Moments, {"a": torch.tensor([[[[-1.0, 1.0]]]])}, ["a"])
    moments = term._moments(torch.tensor([[[3.0], [8.9]]]), "a")  # a mean square below 3 squared
    assert moments.flatten().tolist() == pytest.approx([3, TINY**0.5])


def test_moments_by_hand():
    def maps(*values):
        return torch.tensor(values).view(1, 1, 1, 2)

    source = {"a": maps(1.0, 3.0), "b": maps(1.0, 3.0)}
    output = {"a": maps(6.0, 2.0), "b": maps(3.0, 1.0)}
    # Means 4 against 2, deviations 2 against 1: (2^2 + 1^2) / (2^2 + 1^2); layer b is met.
    assert built(Moments, source, ["a"])(output).item() == pytest.approx(1)
    assert built(Moments, source, ["a", "b"])(output).item() == pytest.approx(0.5)


# ------------------------------------------------------------------------------------ spectrum


@pytest.fixture
def wrapped(monkeypatch):
    """Frequencies of the window itself, which a circular shift leaves alone."""
    monkeypatch.setattr(spectrum_file, "SPECTRUM_PADDING", 1)


def spectrum(source):
    term = built(Spectrum, {"image": source}, [])
    return lambda image: term({"image": image}).item()


def test_spectrum_sees_no_circular_shift(wrapped):
    source = noise(1, 3, 15, 18)
    assert spectrum(source)(source.roll((4, 7), (2, 3))) == pytest.approx(0, abs=1e-9)


def test_spectrum_sees_the_seam_of_a_circular_shift():
    source = noise(1, 3, 15, 18)
    assert spectrum(source)(source.roll((4, 7), (2, 3))) > 0.1


def test_spectrum_sees_no_sign_of_the_whole():
    source = noise(1, 3, 15, 18)
    distance = spectrum(source)
    negative = 2 * source.mean((2, 3), keepdim=True) - source  # every phase turned by pi
    assert distance(negative) == pytest.approx(0, abs=1e-9)


def test_spectrum_sees_blur_and_channels_that_part():
    source = noise(1, 3, 16, 18)
    distance = spectrum(source)
    assert distance(F.avg_pool2d(source, 3, 1, 1)) > 0.1
    parted = source.clone()
    parted[:, 0] = parted[:, 0].roll(3, 2)  # the modulus of each channel is still the source's
    assert distance(parted) > 0.1


def test_spectrum_leads_to_the_nearest_picture_of_that_spectrum(wrapped):
    source, image = noise(1, 3, 12, 14), noise(1, 3, 12, 14, seed=1).requires_grad_()
    term = built(Spectrum, {"image": source}, [])
    value = term({"image": image})
    (gradient,) = torch.autograd.grad(value.sum(), image)
    norm = (source - source.mean((2, 3), keepdim=True)).square().sum()
    # The gradient of |x - p|^2 / n is 2 (x - p) / n, which tells the projection p.
    nearest = image - gradient * norm / 2
    assert term({"image": nearest}).item() == pytest.approx(0, abs=1e-9)
    assert (image - nearest).square().sum().item() / norm.item() == pytest.approx(value.item())
    # No shift of the source, all of which have its spectrum, is nearer than that.
    shifts = [source.roll((y, x), (2, 3)) for y in range(12) for x in range(14)]
    assert min((image - s).square().sum().item() for s in shifts) / norm.item() > value.item()


def test_spectrum_beside_a_mask_counts_what_is_made():
    """By hand: the nearest picture of all pixels, the distance of those in the region alone."""
    source, image = noise(1, 3, 12, 10), noise(1, 3, 12, 10, seed=1).requires_grad_()
    region = torch.full((1, 1, 12, 10), -1)
    region[..., 3:7, 2:8] = 0
    term = built(Spectrum, {"image": source}, [], regions=((torch.zeros_like(region),), region))
    value = term({"image": image})
    mean = source.mean((2, 3), keepdim=True)
    wanted, drawn = (torch.fft.rfft2(x.detach() - mean, (24, 20)) for x in (source, image))
    common = (drawn * wanted.conj()).sum(1, keepdim=True)
    nearest = mean + torch.fft.irfft2(common / common.abs() * wanted, (24, 20))[..., :12, :10]
    squares = (image - nearest).square()[..., 3:7, 2:8].mean()
    torch.testing.assert_close(value[0], squares / (source - mean).square().mean())
    assert term({"image": source}).item() == pytest.approx(0, abs=1e-9)


def test_spectrum_beside_a_mask_has_the_gradient_of_its_loss():
    """What may change also moves the phases that all pixels have in common."""
    source, image = noise(1, 3, 12, 10).double(), noise(1, 3, 12, 10, seed=1).double()
    region = torch.full((1, 1, 12, 10), -1)
    region[..., 3:7, 2:8] = 0
    term = built(Spectrum, {"image": source}, [], regions=((torch.zeros_like(region),), region))
    assert torch.autograd.gradcheck(lambda x: term({"image": x}), image.requires_grad_())


def test_spectrum_beside_a_mask_goes_by_windows():
    """Of a picture of two exemplars side by side, the half that may change is the exemplar."""
    source = noise(1, 3, 12, 12)
    image = torch.cat((source, 3 * noise(1, 3, 12, 12, seed=1)), 3)
    region = torch.zeros(1, 1, 12, 24, dtype=torch.int64)
    region[..., 6:] = -1  # the left half of the first window of three
    settings = dict(regions=((region[..., :12],), region))
    assert built(Spectrum, {"image": source}, [], **settings)({"image": image}).item() < 1e-9
    assert built(Spectrum, {"image": source}, [])({"image": image}).item() > 1
    settings = dict(regions=((region[..., :12],), torch.full_like(region, -1)))
    assert built(Spectrum, {"image": source}, [], **settings)({"image": image}).tolist() == [0]


def test_spectrum_compares_windows_of_other_sizes(wrapped):
    source = noise(1, 3, 8, 8)
    # Windows of a larger output begin at 0, 4 and 8, and 0, 4 ... 16: all of them shifted sources.
    assert spectrum(source)(source.repeat(1, 1, 2, 3)) == pytest.approx(0, abs=1e-9)
    # Of a source that is larger the middle is taken: windows begin at 0, 2 and 4.
    assert spectrum(source)(source[..., 2:6, 2:6]) == pytest.approx(0, abs=1e-9)
    half = source.repeat(1, 1, 1, 2)
    half[..., 8:] = source.mean((2, 3), keepdim=True)
    # Three windows: the source, half of it, and a flat one, at the distance 1.
    assert 1 / 3 < spectrum(source)(half) < 2 / 3


# ------------------------------------------------------------------------- cross-correlation


def mean_products(maps, dy, dx, wrap=""):
    """Mean over positions of the products of all pairs of channels at a lag, (K, K), by loops."""
    _, _, height, width = maps.shape
    products = []
    for y in range(height):
        for x in range(width):
            below, right = y + dy, x + dx
            below = below % height if "y" in wrap else below
            right = right % width if "x" in wrap else right
            if below < height and right < width:
                products.append(torch.outer(maps[0, :, y, x], maps[0, :, below, right]))
    return torch.stack(products).mean(0)


@pytest.mark.parametrize("wrap", ["", "x", "xy"])
def test_cross_correlation_is_the_mean_over_pairs(wrap):
    # At a stride of 2, the lags are 4, 8 and 16 positions; 16 is longer than a quarter of 34.
    # With 3 channels the projection is orthogonal and preserves norms.
    source, output = noise(1, 3, 34, 40).double(), noise(1, 3, 36, 35, seed=1).double().square()
    term = built(CrossCorrelation, {"relu2_1": source}, ["relu2_1"], wrap=wrap)
    mean = source.mean((2, 3), keepdim=True)
    here, there = source - mean, output - mean
    lags = [(4, 0), (0, 4), (8, 0), (0, 8)]
    errors = [
        (mean_products(there, *lag, wrap) - mean_products(here, *lag)).square().sum()
        for lag in lags
    ]
    expected = torch.stack(errors).mean() / mean_products(here, 0, 0).square().sum()
    torch.testing.assert_close(term({"relu2_1": output})[0], expected)


def test_cross_correlation_ignores_minor_components():
    features = noise(1, COMPONENTS + 1, 32, 32)
    features[:, -1] *= 0.01
    term = built(CrossCorrelation, {"relu2_1": features}, ["relu2_1"])
    changed = features.clone()
    changed[:, -1] = changed[:, -1].flip(1)
    assert term({"relu2_1": changed}).item() < 1e-6
    changed[:, 0] = changed[:, 0].flip(1)
    assert term({"relu2_1": changed}).item() > 1e-4


def test_cross_correlation_of_layers_with_many_dead_channels(monkeypatch):
    """Solvers in float32 may fail for the covariance of such features; a dark grating has them."""
    solved, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (solved.append(x.dtype), eigh(x))[1])
    draws = torch.Generator().manual_seed(0)
    scale, bias, alive = torch.rand(3, 1, 512, 1, 1, generator=draws)
    features = 1000 * scale**8 * torch.randn(1, 512, 8, 8, generator=draws) - 200 * bias
    features = features.relu() * (alive > 0.3)
    term = built(CrossCorrelation, {"relu4_1": features}, ["relu4_1"])
    assert solved == [torch.float64]
    assert term({"relu4_1": features}).item() == pytest.approx(0, abs=1e-9)
    assert term({"relu4_1": features.flip(2)}).item() > 0


def test_cross_correlation_constrains_the_arrangement_that_gram_matrices_leave_free():
    # Stripes of 8 px, and the same rows in random order.
    stripes = ((torch.arange(64) // 8) % 2).float().view(1, 1, 64, 1).expand(1, 2, 64, 64)
    shuffled = stripes[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    source, output = {"relu1_1": stripes}, {"relu1_1": shuffled}
    assert built(Gram, source, ["relu1_1"])(output).item() < 1e-9
    assert built(CrossCorrelation, source, ["relu1_1"])(output).item() > 0.1


def test_cross_correlation_takes_the_first_layer_of_each_coarser_resolution():
    layers = ["relu1_1", "relu1_2", "relu2_1", "relu2_2", "pool2", "relu3_1", "relu5_1"]
    used = CrossCorrelation.layers_used(equal_weights(layers))
    assert used == ["relu2_1", "pool2", "relu5_1"]  # pool2 has the stride of relu3_1
    assert CrossCorrelation.layers_used({"relu1_2": 1.0}) == ["relu1_2"]


# ----------------------------------------------------------------------------- autocorrelation


@pytest.mark.parametrize("shape, reach", [((5, 7), 2), ((6, 4), 2), ((8, 8), 4), ((3, 9), 1)])
def test_autocorrelation_is_the_mean_over_pairs(shape, reach):
    maps = noise(2, *shape).double()
    found = autocorrelation(maps, reach)
    assert found.shape == (2, 2 * reach + 1, 2 * reach + 1)
    height, width = shape
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            products = [
                maps[:, y, x] * maps[:, y + dy, x + dx]
                for y in range(height)
                for x in range(width)
                if 0 <= y + dy < height and 0 <= x + dx < width
            ]
            expected = torch.stack(products).mean(0)
            torch.testing.assert_close(found[:, reach + dy, reach + dx], expected)


def test_luminance_autocorrelation_by_hand(checkerboard):
    # Squares of 4 px, 0.1 above and below the mean: one square on is the opposite colour.
    lags = luminance_autocorrelation(checkerboard, 8)
    assert lags.shape == (17, 17)
    assert lags[8, 8] == 1
    # Two px on, 8 of the 14 pairs of a row are alike and 6 are not.
    known = {(0, 4): -1, (4, 4): 1, (-8, 0): 1, (8, -4): -1, (0, 2): 2 / 14}
    for (y, x), expected in known.items():
        assert lags[8 + y, 8 + x].item() == pytest.approx(expected, abs=1e-6)
    flat = luminance_autocorrelation(torch.full((1, 3, 9, 9), 0.3), 4)
    assert flat.isfinite().all()


def test_autocorrelation_term_by_hand():
    # About the mean 2, [1, 3] is [-1, 1] and [0, 4] is [-2, 2]: lag 0 has the mean square.
    # Lags reach to half of the shorter side, 1 px, which is no lag at all.
    source = {"a": torch.tensor([[[[1.0, 3.0]]]])}
    output = {"a": torch.tensor([[[[0.0, 4.0]]]])}
    assert built(Autocorrelation, source, ["a"])(output).item() == pytest.approx((4 - 1) ** 2 / 1)


def test_autocorrelation_term_sees_repetition_and_no_shift_of_it():
    wrap = noise(1, 4, 6, 6)
    source = {"a": wrap.repeat(1, 1, 4, 4)}
    term = built(Autocorrelation, source, ["a"])
    shifted = term({"a": source["a"].roll((2, 3), (2, 3))}).item()
    larger = term({"a": wrap.repeat(1, 1, 5, 6)}).item()
    other = term({"a": noise(1, 4, 24, 24, seed=1)}).item()
    # Not 0: pairs a part of a period apart are not all there, and others after the shift.
    assert shifted < 0.05 and larger < 0.05 and other > 0.5


def test_autocorrelation_term_looks_at_the_middle_layer(tiny, checkerboard):
    source = tiny(checkerboard)
    output = {k: v if k == "relu2_1" else v + 1 for k, v in source.items()}
    assert built(Autocorrelation, source, ["relu1_1", "relu2_1", "image"])(output).item() < 1e-9
    assert built(Autocorrelation, source, ["relu1_1"])(output).item() > 0.1


def test_self_correlation_is_pearsons_of_what_overlaps():
    maps = noise(1, 1, 9, 11).double()
    found = pearson_autocorrelation(maps, 5)
    for dy, dx in ((0, 0), (3, 0), (2, -4), (-5, 1)):
        moved = maps[0, 0, max(dy, 0) : 9 + min(dy, 0), max(dx, 0) : 11 + min(dx, 0)]
        under = maps[0, 0, max(-dy, 0) : 9 + min(-dy, 0), max(-dx, 0) : 11 + min(-dx, 0)]
        expected = torch.stack((moved.flatten(), under.flatten())).corrcoef()[0, 1]
        assert found[5 + dy, 5 + dx].item() == pytest.approx(expected.item(), abs=0.01)
    # A trace of the left quarter in the right one, too faint to see, is no likeness.
    maps = torch.cat((maps, torch.zeros(1, 1, 9, 22), maps / 10_000), 3).double()
    assert pearson_autocorrelation(maps[..., :40].repeat(1, 1, 5, 1), 33)[33, 66] < 0.3


def test_a_shade_is_a_quadratic_surface():
    plain = noise(1, 3, 20, 30).double()
    y, x = torch.arange(20).double()[:, None] / 20, torch.arange(30).double() / 15
    lit = plain + 3 - y + 0.5 * x + 2 * x * y - 0.7 * y * y + x * x
    torch.testing.assert_close(remove_shading(lit), remove_shading(plain))
    torch.testing.assert_close(remove_shading(lit - plain), torch.zeros(1, 1, 20, 30).double())


def stripes(period, degrees, side=128, bars=False):
    """Stripes across the direction at so many degrees from the rows towards the columns."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    turn = math.radians(degrees)
    wave = (2 * math.pi / period * (x * math.cos(turn) + y * math.sin(turn))).sin()
    return (0.5 + 0.3 * (wave.sign() if bars else wave)).expand(1, 3, side, side)


def shaded(image, degrees, strength):
    """Light that falls off by so much from one side of the picture to the other."""
    ramps = (torch.linspace(-0.5, 0.5, side) for side in image.shape[2:])
    y, x = torch.meshgrid(*ramps, indexing="ij")
    turn = math.radians(degrees)
    return (image + strength * (x * math.cos(turn) + y * math.sin(turn))).clamp(0, 1)


def exemplar(name):
    return read_picture(TEXTURES / name)[0]


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize("degrees", [0, 23, 61, 90, 135])
@pytest.mark.parametrize("wanted", [10, 26.5])
def test_period_of_stripes(wanted, degrees, bars):
    plain = stripes(wanted, degrees, bars=bars)
    grain = 0.1 * (noise(*plain.shape) - 0.5)
    for image in (plain, shaded(plain * 0.5 + 0.25, degrees + 50, 0.5), plain + grain):
        clear, y, x = period(image)
        turn = math.radians(degrees)
        # A lag of any length along the stripes, and of one period across them, to 1 px.
        across = x * math.cos(turn) + y * math.sin(turn)
        assert clear > 0.6 and abs(across) == pytest.approx(wanted, abs=1)


def test_period_of_tiles():
    clear, y, x = period(noise(1, 3, 10, 14).repeat(1, 1, 6, 5))
    assert clear > 0.95 and (abs(y), abs(x)) in ((10, 0), (0, 14))
    squares = torch.arange(96) // 6
    board = ((squares[:, None] + squares) % 2).float().expand(1, 3, 96, 96)
    clear, y, x = period(board)  # of squares of 6 px, the next of the same colour is diagonal
    assert clear > 0.95 and (abs(y), abs(x)) == (6, 6)


# Both shortest steps of the drawn patterns, as textures/README.md has them; of the wall, whose
# courses lie as they were laid, the length of its bricks and the height of a course.
STEPS = {
    "cloth.png": ((160 / 3, 0), (0, 160 / 3)),
    "weave.png": ((160 / 9, 160 / 9), (160 / 9, -160 / 9)),
    "tiles.png": ((160 / 7, 160 / 7), (160 / 7, -160 / 7)),
    "brick.png": ((0, 57), (21.4, 14.25)),
}


@pytest.mark.parametrize("name", STEPS)
def test_period_of_regular_exemplars(name):
    whole = exemplar(name)
    steps = torch.tensor(STEPS[name]).T
    for y, x, side in ((0, 0, 256), (0, 0, 128), (0, 128, 128), (64, 64, 128), (128, 30, 128)):
        clear, *lag = period(whole[..., y : y + side, x : x + side])
        lag = torch.tensor(lag).float()
        beside = lag - steps @ torch.linalg.solve(steps, lag).round()
        assert clear > 1.5 * PERIODIC and beside.norm() < 1 and lag.norm() < 60
    assert name != "brick.png" or period(whole)[1:] in ((0, 57), (0, -57))


def test_period_of_a_large_picture_is_in_its_own_pixels():
    wrap = noise(1, 3, 10, 20).repeat_interleave(4, 2).repeat_interleave(4, 3)
    clear, y, x = period(wrap.repeat(1, 1, 26, 13))  # 1040x1040, looked at in a third of it
    assert clear > 0.8
    assert min(abs(abs(y) - 40) + abs(x), abs(y) + abs(abs(x) - 80)) <= 3
    assert period(wrap.repeat(1, 1, 26, 13), 15) == (0, 0, 0)  # in a third, lags of 5 px


@pytest.mark.parametrize("name", fast_first("wood pebbles grass gravel lichen".split()))
def test_a_shade_of_light_is_no_period(name):
    whole = exemplar(f"{name}.png")
    for image in (whole, whole[..., 64:192, 64:192]):
        for degrees in (0, 45, 290):
            assert period(shaded(image, degrees, 0.8))[0] < PERIODIC


@pytest.mark.slow
def test_clouds_are_no_period():
    """Noise of a spectrum that falls as frequency to a power, which photographs have."""
    down, across = torch.fft.fftfreq(192)[:, None], torch.fft.rfftfreq(192)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / 192)
    for power in (1, 2):
        called = 0
        for seed in range(10):
            spectrum = torch.fft.rfft2(noise(192, 192, seed=seed) - 0.5) * frequency**-power
            clouds = torch.fft.irfft2(spectrum, (192, 192))[:128, :128]
            clouds = 0.5 + 0.18 * (clouds - clouds.mean()) / clouds.std()
            called += period(clouds.clamp(0, 1).expand(1, 3, 128, 128))[0] > PERIODIC
        assert called <= 1, power


def test_one_edge_one_band_and_one_disc_are_no_period():
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    grain = 0.05 * noise(96, 96)
    for degrees in (0, 30, 80):
        turn = math.radians(degrees)
        across = (x - 45) * math.cos(turn) + (y - 50) * math.sin(turn)
        for shape in (across > 0, across.abs() < 9, (x - 40).hypot(y - 50) < 10 + degrees / 4):
            assert period((0.2 + 0.6 * shape + grain).expand(1, 3, 96, 96))[0] < PERIODIC


def test_a_plateau_of_the_correlation_is_no_period(monkeypatch):
    """It rises at 20 px and does not fall before 40 px."""

    def plateau(grey, reach):
        lags = torch.arange(-reach, reach + 1).abs()
        return torch.where(lags < 20, 0.0, 0.8).expand(len(lags), -1)

    monkeypatch.setattr(autocorrelation_file, "pearson_autocorrelation", plateau)
    assert period(noise(1, 3, 100, 100)) == (0, 0, 0)


def test_what_comes_only_twice_is_no_period():
    once, other = noise(1, 3, 128, 40), noise(1, 3, 128, 48, seed=1)
    assert period(torch.cat((once, once, other), 3))[0] < PERIODIC / 2
    assert period(torch.cat((once, once, once), 3))[0] > PERIODIC


def test_period_of_what_has_none():
    assert 0 < period(noise(1, 3, 64, 48))[0] < PERIODIC / 2
    smooth = F.avg_pool2d(noise(1, 3, 70, 70), 7, 1)  # neighbours are alike, which is no period
    assert 0 < period(smooth)[0] < PERIODIC
    assert period(torch.full((1, 3, 32, 32), 0.4)) == (0, 0, 0)
    assert period(noise(1, 3, 10, 10)) == (0, 0, 0)  # no lag of more than 8 px
    assert period(noise(1, 3, 1, 1)) == (0, 0, 0)


# ------------------------------------------------------------------------------ total variation


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 0.7]]).expand(2, 3, 2, 3)
    # Across: (0.5 + 0.5 + 0.5 + 0.2) / 4; down: (0 + 0 + 0.3) / 3
    value = built(TotalVariation, {}, [])({"image": image})
    torch.testing.assert_close(value, torch.tensor([0.525, 0.525]))
    assert built(TotalVariation, {}, [])({"image": torch.full((1, 3, 4, 4), 0.3)}).item() == 0


# ------------------------------------------------------------------------------------- patches


def mirrored(image, mode="symmetric"):
    """3 px more on every side, the outermost coming twice; "wrap": those of the other end."""
    return torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode))


def test_patches_by_loops():
    """Every pixel is the middle of one patch, those at the border of mirrored ones."""
    source, output = noise(1, 3, 9, 8), noise(1, 3, 9, 8, seed=1)
    term = built(Patches, {"image": source}, [])
    ((factor, directions, _),) = term.levels  # too small for patches of its half
    assert factor == 1 and directions.shape == (PATCH_DIRECTIONS, 3, 7, 7)
    distance = variance = 0
    for direction in directions:
        assert direction.norm().item() == pytest.approx(1)
        drawn, wanted = (
            sorted((direction * image[0, :, y : y + 7, x : x + 7]).sum().item()
                   for y in range(9) for x in range(8))
            for image in (mirrored(output), mirrored(source))
        )  # fmt: skip
        distance += sum((a - b) ** 2 for a, b in zip(drawn, wanted, strict=True)) / 72
        variance += sum((b - sum(wanted) / 72) ** 2 for b in wanted) / 72
    expected = distance / variance / 3  # of three levels two count as met
    assert term({"image": output}).item() == pytest.approx(expected, rel=1e-4)


def test_patches_of_regions_by_loops():
    """Every patch counts in the region of its middle, and every region as its patches are many."""
    torch.manual_seed(0)
    sources = [noise(1, 3, 13, 12), noise(1, 3, 11, 12, seed=1)]
    output = noise(1, 3, 12, 13, seed=2)
    shapes = [tuple(image.shape[2:]) for image in (*sources, output)]
    *regions, region = (torch.randint(-1, 2, (1, 1, *shape)) for shape in shapes)
    settings = dict(variants=({"image": sources[1]},), regions=(tuple(regions), region))
    ((_, directions, _),) = built(Patches, {"image": sources[0]}, [], **settings).levels

    def projections(image, region, mode, skipped=0):
        """{region: [a row for every patch]}"""
        found, around = {0: [], 1: []}, mirrored(image, mode)
        for y in range(skipped, image.shape[2] - skipped):
            for x in range(skipped, image.shape[3] - skipped):
                patch = around[0, :, y : y + 7, x : x + 7]
                k = int(region[0, 0, y, x])
                if k >= 0:
                    found[k].append((directions * patch).sum((1, 2, 3)))
        return {k: torch.stack(rows).T for k, rows in found.items()}

    # An exemplar has no patches across its border to give to an output that has no border.
    for wrap, mode, skipped in (("", "symmetric", 0), ("xy", "wrap", 3)):
        pairs = zip(sources, regions, strict=True)
        parts = [projections(image, r, "symmetric", skipped) for image, r in pairs]
        drawn, distance, wanted = projections(output, region, mode), 0, []
        for k in (0, 1):
            count = drawn[k].shape[1]
            both = torch.cat([part[k] for part in parts], 1).sort(1).values
            wanted.append(interpolate_quantiles(both, count))
            distance += (drawn[k].sort(1).values - wanted[k]).square().mean() * count
        total = torch.cat(wanted, 1)
        expected = distance / total.shape[1] / total.var(1, correction=0).mean() / 3
        term = built(Patches, {"image": sources[0]}, [], wrap=wrap, **settings)
        assert term({"image": output}).item() == pytest.approx(expected.item(), rel=1e-4)


def test_patches_of_one_region_are_those_of_the_picture():
    source, output = noise(1, 3, 30, 28), {"image": noise(1, 3, 32, 36, seed=1)}
    whole = torch.zeros(1, 1, 32, 36, dtype=torch.int64)
    for wrap in ("", "xy"):
        plain, regional = (
            built(Patches, {"image": source}, [], wrap=wrap, regions=regions)
            for regions in (None, ((whole,), whole))
        )
        torch.testing.assert_close(regional(output), plain(output))


def test_patches_beside_what_has_none():
    """A region without a patch in source or output asks for nothing."""
    image = noise(1, 3, 9, 9)
    none, some = torch.full((1, 1, 9, 9), -1), torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    for regions in (((none,), some), ((some,), none)):
        term = built(Patches, {"image": image}, [], regions=regions)
        assert term({"image": image * 0.5}).item() == 0


def test_an_exemplar_smaller_than_a_patch_has_no_share_of_patches():
    source, output = (noise(1, 3, 16, 16, seed=seed) for seed in (0, 1))
    small = noise(1, 3, 6, 6, seed=2)
    others = ({"image": small},)
    both = built(Patches, {"image": source}, [], others=others, shares=(0.5, 0.5))
    assert both({"image": output}) == built(Patches, {"image": source}, [])({"image": output})


def test_patches_on_as_many_sizes_as_have_one():
    source = noise(1, 3, 28, 28)
    assert [factor for factor, _, _ in built(Patches, {"image": source}, []).levels] == [1, 2, 4]
    assert [f for f, _, _ in built(Patches, {"image": source[..., :27]}, []).levels] == [1, 2]


@pytest.mark.slow
def test_patches_of_few_places_have_few_directions_unless_they_repeat():
    stripes = (torch.arange(200.0) * 2 * math.pi / 20).sin().expand(1, 3, 200, 200)
    for side, counts, repeating in (
        (168, [16, 64, 256], [16, 64, 256]),
        (167, [16, 64, 16], [16, 64, 256]),
        (83, [16, 16, 16], [16, 64, 256]),
    ):
        for image, expected in ((noise(1, 3, side, 200), counts), (stripes[..., :side], repeating)):
            levels = built(Patches, {"image": image}, []).levels
            assert [len(directions) for _, directions, _ in levels] == expected


def test_patches_draw_other_directions_at_rematch():
    source, output = noise(1, 3, 16, 16), {"image": noise(1, 3, 16, 16, seed=1)}
    first, second = (built(Patches, {"image": source}, []) for _ in range(2))
    before = first(output)
    torch.testing.assert_close(before, second(output), rtol=1e-5, atol=0)
    first.rematch(output)
    assert not torch.isclose(first(output), before, rtol=1e-4, atol=0)
    assert first({"image": source}).item() == pytest.approx(0, abs=1e-10)
    second.rematch(output)
    torch.testing.assert_close(first(output), second(output), rtol=1e-5, atol=0)
