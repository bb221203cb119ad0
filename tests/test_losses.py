"""Known answers and invariances of the texture models, and of the sum that is minimised."""

import math

import pytest
import torch
from conftest import TinyExtractor, built, criterion_of
from test_matching import columns, noise, plain_scores
from torch.nn import functional as F

import utils
from command.weights import BUNDLED_NET, load_weights
from losses import METHODS, TERMS
from models import FILTER, LAYER, Extractor, resolve_layers
from terms import cnnmrf
from terms.autocorrelation import Autocorrelation
from terms.base import Exemplar, TermInputs, View
from terms.cnnmrf import CNNMRF
from terms.content import Content
from terms.gram import GRAM_LAYERS, Gram
from terms.guided import Guided, _Sample
from terms.histogram import Histogram
from terms.moments import Moments
from terms.sliced import Sliced
from terms.spectrum import Spectrum


def picture(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------- all the methods and terms


KINDS = {name: entry.kind for name, entry in (TERMS | METHODS).items()}


@pytest.mark.parametrize("name", KINDS)
def test_zero_at_the_source_and_gradients_elsewhere(name, tiny, every_patch):
    source, output = picture(1, 3, 40, 40), picture(1, 3, 48, 44, seed=1).requires_grad_()
    term = built(KINDS[name], tiny(source), tiny.layers)
    term.rematch(tiny(source))
    if name == "tv":
        assert term(tiny(source)).item() > 0.3  # of noise: 1/3 down and 1/3 across
    else:
        assert term(tiny(source)).item() == pytest.approx(0, abs=1e-9 if name in TERMS else 1e-6)
    term.rematch(tiny(output))
    value = term(tiny(output))
    assert value.item() > 1e-3
    value.backward()
    assert output.grad.isfinite().all()
    # The slopes of a pixel towards its neighbours often cancel in the total variation.
    assert (output.grad != 0).float().mean() > (0.5 if name == "tv" else 0.99)


@pytest.mark.parametrize("name", KINDS)
def test_batches_never_mix(name, tiny, checkerboard, every_patch):
    def fresh(images):
        term = built(KINDS[name], tiny(checkerboard), tiny.layers)
        term.rematch(tiny(images))
        return term

    batch = picture(3, 3, 24, 20, seed=2).requires_grad_()
    values = fresh(batch)(tiny(batch))
    assert values.shape == (3,)
    (together,) = torch.autograd.grad(values.sum(), batch)
    for i in range(3):
        single = batch[i : i + 1].detach().requires_grad_()
        value = fresh(single)(tiny(single))
        (alone,) = torch.autograd.grad(value.sum(), single)
        torch.testing.assert_close(value[0], values[i])
        torch.testing.assert_close(alone, together[i : i + 1])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(12, 30), (16, 16), (40, 17)])
def test_any_size_and_flat_pictures_are_finite(name, size, tiny, checkerboard):
    for source in (checkerboard, torch.full((1, 3, 16, 16), 0.5)):
        term = built(KINDS[name], tiny(source), tiny.layers)
        for output in (picture(2, 3, *size), torch.full((1, 3, *size), 0.5)):
            output.requires_grad_()
            term.rematch(tiny(output))
            value = term(tiny(output))
            value.sum().backward()
            assert value.isfinite().all() and output.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"spectrum", "autocorrelation"}))
def test_a_seam_is_not_seen_where_there_is_none(name, tiny, every_patch):
    # Blocks of 4 px keep patches of halves and quarters in step.
    tiled, image, values = TinyExtractor("circular"), picture(1, 3, 28, 32, seed=1), []
    for shift in ((0, 0), (8, 12)):
        term = built(KINDS[name], tiny(picture(1, 3, 20, 24)), tiny.layers, wrap="xy")
        output = tiled(image.roll(shift, (2, 3)))
        term.rematch(output)
        values.append(term(output))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_stays_until_it_is_rematched(method, tiny):
    source, output = tiny(picture(1, 3, 32, 32)), tiny(picture(1, 3, 30, 34, seed=1))
    criterion = criterion_of(source, tiny.layers, method, {})
    criterion.rematch(tiny(picture(1, 3, 30, 34, seed=2)))
    before = criterion(output)
    # Other directions, matches or samples change the value by percents.
    torch.testing.assert_close(criterion(output), before, rtol=1e-4, atol=0)
    criterion.rematch(output)
    assert torch.isclose(criterion(output), before, rtol=1e-4, atol=0) == (method == "gram")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_holds_the_same(method, tiny):
    source, output = tiny(picture(1, 3, 24, 24)), tiny(picture(1, 3, 24, 24, seed=1))

    def value(seed):
        settings = dict(seed=seed, max_patches=3)
        criterion = criterion_of(source, tiny.layers, method, {}, **settings)
        criterion.rematch(output)
        first = criterion(output).item()
        criterion.rematch(output)
        return first, criterion(output).item()

    assert value(3) == value(3)
    assert (value(3) != value(4)) == (method in ("swd", "guided"))


# ------------------------------------------------------------------------------- the criterion


def test_criterion_adds_weighted_terms(tiny, checkerboard, monkeypatch):
    source, output = tiny(checkerboard), tiny(checkerboard * 0.9)
    plain = built(Gram, source, tiny.layers)(output)
    histogram = built(Histogram, source, tiny.layers)(output)
    tv = built(TERMS["tv"].kind, source, tiny.layers)(output)
    assert histogram.item() > 0.01 and tv.item() > 0.01
    weights = {"histogram": 0.5, "tv": 3.0}
    criterion = criterion_of(source, tiny.layers, "gram", weights)
    torch.testing.assert_close(criterion(output), plain + 0.5 * histogram + 3 * tv)
    with_tv = METHODS["gram"]._replace(weights={"tv": 2.0})
    monkeypatch.setitem(METHODS, "gram", with_tv)
    torch.testing.assert_close(criterion_of(source, tiny.layers)(output), plain + 2 * tv)


def test_terms_look_at_every_layer_and_models_at_theirs(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard.flip(1))
    model, term = (built(Gram, source, layers)(output) for layers in (["relu2_1"], tiny.layers))
    assert model.item() != term.item()
    criterion = criterion_of(source, ["relu2_1"], "gram", {"gram": 2.0})
    torch.testing.assert_close(criterion(output), model + 2 * term)


@pytest.mark.parametrize("method", METHODS)
def test_layers_weigh_as_much_as_is_said(method, tiny, checkerboard, every_patch):
    """Weights 3 and 1: three quarters of the first layer's loss, a quarter of the second's."""
    source, output = tiny(checkerboard), tiny(picture(1, 3, 16, 16, seed=1))

    def value(**layer_weights):
        criterion = criterion_of(source, tiny.layers, method, {}, layer_weights=layer_weights)
        criterion.rematch(output)
        return criterion(output)

    first, second = (value(**{layer: 1e9}) for layer in tiny.layers)
    assert first.item() != pytest.approx(second.item(), rel=1e-2)
    torch.testing.assert_close(value(**{tiny.layers[0]: 3.0}), 0.75 * first + 0.25 * second)
    torch.testing.assert_close(value(), (first + second) / 2)


@pytest.mark.slow
def test_rescaled_layers_change_no_loss():
    """Losses are relative to the exemplar's features; a rescaled filter changes them."""
    layers = {name: resolve_layers(METHODS[name].layers, BUNDLED_NET) for name in METHODS}
    every = resolve_layers([*sum(layers.values(), []), *GRAM_LAYERS], BUNDLED_NET)
    weights = load_weights(BUNDLED_NET, None, every).weights
    source, output = picture(1, 3, 24, 24), picture(1, 3, 24, 32, seed=1)
    losses = {}
    for per in (None, LAYER, FILTER):
        trunk = Extractor(weights, BUNDLED_NET, every)
        if per is not None:
            trunk.rescale(source, per)
        of_source, of_output = trunk(source), trunk(output)
        for method in METHODS:
            criterion = criterion_of(of_source, layers[method], method)
            criterion.rematch(of_output)
            losses[method, per] = criterion(of_output).item()
    for method in METHODS:
        plain = losses[method, None]
        assert losses[method, LAYER] == pytest.approx(plain, rel=1e-4), method
        assert losses[method, FILTER] != pytest.approx(plain, rel=1e-2), method


def test_weights_of_layers_are_the_models_alone(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard.flip(1))
    weights = {"gram": 1.0, "moments": 1.0}
    plain, weighted = (
        criterion_of(source, tiny.layers, "gram", weights, layer_weights=layer_weights)
        for layer_weights in (None, {tiny.layers[0]: 3.0})
    )
    assert plain.terms[0][1](output) != weighted.terms[0][1](output)
    for (_, one), (_, other) in zip(plain.terms[1:], weighted.terms[1:], strict=True):
        assert torch.equal(one(output), other(output))


def test_a_term_of_weight_0_is_not_built(monkeypatch, tiny, checkerboard):
    class Forbidden(Gram):
        def __init__(self, *arguments):
            raise AssertionError("built")

    source, output = tiny(checkerboard), tiny(checkerboard * 0.9)
    for name in TERMS:
        monkeypatch.setitem(TERMS, name, TERMS[name]._replace(kind=Forbidden))
    criterion = criterion_of(source, tiny.layers, "gram", dict.fromkeys(TERMS, 0.0))
    assert len(criterion.terms) == 1  # the model
    torch.testing.assert_close(criterion(output), built(Gram, source, tiny.layers)(output))
    with pytest.raises(AssertionError, match="built"):
        criterion_of(source, tiny.layers, "gram", {"tv": 1e-9})


def test_content_by_hand():
    content = {"a": torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), "b": torch.ones(1, 1, 1, 1)}
    term = built(Content, content, ["a", "b"])
    assert term(content).item() == 0
    moved = {"a": torch.tensor([2.0, 1.0]).view(1, 1, 1, 2), "b": torch.zeros(1, 1, 1, 1)}
    assert term(moved).item() == pytest.approx((2 / 5 + 1) / 2)  # a texture would not see it


def test_added_terms_weigh_against_all_others(tiny, checkerboard):
    source, output = tiny(checkerboard), tiny(checkerboard.flip(3) * 0.9)
    criterion = criterion_of(source, tiny.layers, "gram", {"histogram": 2.0, "tv": 0.5})
    before = criterion(output)
    criterion.add(0.1, lambda output: torch.ones(1), ["relu2_1"])
    assert "relu2_1" in criterion.whole_layers
    torch.testing.assert_close(criterion(output), before + 0.1 * 3.5)


def test_terms_are_rematched_beside_a_model_that_is_not(tiny, checkerboard):
    source = tiny(checkerboard)
    criterion = criterion_of(source, tiny.layers, "gram", {"patches": 1.0, "gram": 1.0})
    (term,) = (term for _, term in criterion.terms if term.rematches)
    before = term.levels[0][1]
    criterion.rematch(source)
    assert criterion.match_every > 1
    assert not torch.equal(term.levels[0][1], before)


def test_what_is_held_is_rematched_as_often_as_told(tiny, checkerboard):
    source = tiny(checkerboard)
    for method in METHODS:
        held = method != "gram"  # which has nothing to rematch
        assert (criterion_of(source, tiny.layers, method).match_every is not None) == held
        told = criterion_of(source, tiny.layers, method, match_every=3)
        assert told.match_every == (3 if held else None)
    criterion_of(source, tiny.layers).rematch(source)  # and takes no harm


@pytest.mark.parametrize("method", ["gram", "swd"])
def test_neither_gram_nor_slices_see_where_things_are(method):
    source = {"a": noise(1, 5, 6, 7)}
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    shuffled = {"a": source["a"].flatten(2)[..., order].view(1, 5, 7, 6)}
    criterion = criterion_of(source, ["a"], method, {})
    criterion.rematch(shuffled)
    assert criterion(shuffled).item() == pytest.approx(0, abs=1e-10)
    criterion.rematch({"a": source["a"] * 1.1})
    assert criterion({"a": source["a"] * 1.1}).item() > 5e-3


# -------------------------------------------------------------------------------------- sliced


def test_sliced_is_brute_force():
    source = {"a": noise(1, 3, 4, 5), "b": noise(1, 6, 2, 3, seed=1)}
    output = {"a": noise(1, 3, 5, 4, seed=2), "b": noise(1, 6, 3, 2, seed=3)}
    model = built(Sliced, source, ["a", "b"])
    model.rematch(output)
    expected = 0.0
    for layer in ("a", "b"):
        directions = model.slices[layer][0]
        assert len(directions) == source[layer].shape[1]  # as many as channels
        distance = square = 0.0
        for direction in directions.tolist():
            assert math.hypot(*direction) == pytest.approx(1)
            found, wanted = (
                sorted(
                    sum(d * f for d, f in zip(direction, feature, strict=True))
                    for feature in features[layer][0].flatten(1).T.tolist()
                )
                for features in (output, source)
            )
            distance += sum((f - w) ** 2 for f, w in zip(found, wanted, strict=True))
            square += sum(w**2 for w in wanted)
        expected += distance / square / 2  # the mean of two layers
    assert model(output).item() == pytest.approx(expected, rel=1e-5)


def test_sliced_compares_other_sizes_by_quantiles():
    maps = noise(1, 5, 32, 32)
    tiled = maps.repeat(1, 1, 2, 2)

    def value(source, output):
        model = built(Sliced, {"a": source}, ["a"])
        model.rematch({"a": output})
        return model({"a": output}).item()

    # Every value of the larger source comes four times: its quantiles are those of the smaller.
    assert value(tiled, maps) == pytest.approx(0, abs=1e-10)
    assert value(maps, tiled) < 1e-3  # between two values, quantiles are interpolated
    assert value(maps, 0.8 * tiled) > 0.03


# -------------------------------------------------------------------------------------- cnnmrf

# Three sources of different widths, as features of rotated and resized exemplars have.
SOURCES = [noise(1, 4, 8, 10), noise(1, 4, 7, 6, seed=1), noise(1, 4, 5, 9, seed=2)]
VARIANTS = dict(variants=tuple({"a": maps} for maps in SOURCES[1:]))


@pytest.mark.parametrize("settings", [dict(), VARIANTS])
def test_cnnmrf_is_the_sum_over_patches(settings):
    output = {"a": noise(2, 4, 6, 11, seed=3)}
    model = built(CNNMRF, {"a": SOURCES[0]}, ["a"], **settings)
    model.rematch(output)
    taken = SOURCES[: 1 + len(settings.get("variants", ()))]
    wanted = torch.cat([columns(maps[0], 3) for maps in taken])
    origin = torch.cat([torch.full((len(columns(m[0], 3)),), i) for i, m in enumerate(taken)])
    for i in range(2):
        drawn = columns(output["a"][i], 3)
        nearest = (drawn @ F.normalize(wanted, dim=1).T).argmax(1)
        assert len(origin[nearest].unique()) == len(taken)  # every source has its share
        # Mean over 4 x 9 patches of 9 positions, over the mean squared norm of a position.
        energy = (drawn - wanted[nearest]).square().sum() / (4 * 9 * 9)
        expected = energy / SOURCES[0].square().sum(1).mean()
        assert model(output)[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_guided_takes_patches_across_the_border(every_patch):
    source, output = ({"a": noise(1, 2, 9, 9, seed=s)} for s in (0, 1))
    model = built(Guided, source, ["a"], wrap="x")
    model.rematch(output)
    (held,) = model.held["a"]
    assert held.sample.columns(utils.wrapped(output["a"], "x", 6, 6)).shape[1] == 3 * 9
    maps = output["a"].requires_grad_()
    (gradient,) = torch.autograd.grad(model({"a": maps}), maps)
    assert (gradient != 0).all()


def test_cnnmrf_of_maps_smaller_than_a_patch():
    # Single positions, matched by direction: (3, 0) goes to (1, 0), at a squared distance of 4.
    model = built(CNNMRF, positions((1, 0), (0, 2)), ["a"])
    output = positions((3, 0), (0, 2))
    model.rematch(output)
    # Two positions, 4 + 0; the source's mean square norm is (1 + 4) / 2.
    assert model(output).item() == pytest.approx((4 + 0) / 2 / 2.5)


def pooled(*pictures, shares):
    """What is told of several exemplars, after the first."""
    return dict(others=tuple({"a": maps} for maps in pictures), shares=shares)


def found_by(model, output, monkeypatch):
    """Where the patches begin that a CNNMRF lays over an output."""
    starts = []
    plain = cnnmrf.overlap_patches

    def watched(flat, start, *rest):
        starts.append(start)
        return plain(flat, start, *rest)

    monkeypatch.setattr(cnnmrf, "overlap_patches", watched)
    model.rematch(output)
    return starts[0]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.8)])
def test_cnnmrf_gives_every_exemplar_its_share(shares, monkeypatch):
    # The second exemplar is like the output, the first is not.
    output = {"a": noise(1, 6, 24, 24)}
    other = output["a"] + 0.5 * noise(1, 6, 24, 24, seed=1)
    model = built(CNNMRF, {"a": noise(1, 6, 24, 24, seed=2)}, ["a"], **pooled(other, shares=shares))
    starts = found_by(model, output, monkeypatch)
    assert (starts >= 24 * 24).float().mean().item() == pytest.approx(shares[1], abs=0.02)


def test_the_shares_of_cnnmrf_are_those_of_places_not_of_their_norms(monkeypatch):
    """Half of the output is a hundred times as strong; the second exemplar has half of each."""
    strong = torch.ones(1, 1, 12, 24)
    strong[..., 12:] = 0.01
    output = {"a": strong * noise(1, 6, 12, 24)}
    near = [output["a"] / strong + factor * noise(1, 6, 12, 24, seed=1) for factor in (0.1, 0.5)]
    told = pooled(near[1], shares=(0.5, 0.5))
    model = built(CNNMRF, {"a": near[0]}, ["a"], **told)
    starts = found_by(model, output, monkeypatch)
    for half in (starts[:, :10], starts[:, 12:]):  # of patches of 3 positions
        assert (half >= 12 * 24).float().mean().item() == pytest.approx(0.5, abs=0.1)


def laid_out(*pictures):
    """Pictures (1, 3, h, w) side by side, as features of pixels and of a layer."""
    image = torch.cat(pictures, 3)
    return {"image": image, "a": torch.cat((image, image.square()), 1)}


@pytest.mark.parametrize("kind, near", [(Gram, 0), (Moments, 0), (Histogram, 0.02), (Sliced, 0.2)])
@pytest.mark.parametrize("factor", [1, 10], ids=["of the same norm", "of another"])
def test_seven_of_one_and_three_of_the_other_is_their_mixture(kind, near, factor):
    """Whatever their norms: what is relative to its own exemplar's would be met by less of one.
    Distributions of so few values are interpolated."""
    one, two = noise(1, 3, 24, 24), factor * noise(1, 3, 24, 24, seed=1).square()
    told = dict(others=(laid_out(two),), shares=(0.7, 0.3))
    term = built(kind, laid_out(one), ["a"], **told)
    distances = []
    for count in (7, 6, 9):
        output = laid_out(*[one] * count, *[two] * (10 - count))
        term.rematch(output)
        distances.append(term(output).item())
    assert distances[0] == pytest.approx(0, abs=max(1e-9, near * min(distances[1:])))


def test_orders_of_exemplars_are_mixed():
    """Spectrum: squared distances and energies add up; autocorrelation: mean products do."""
    one, two, output = ({"image": noise(1, 3, 8, 8, seed=s)} for s in range(3))
    two["image"] = 3 * two["image"]
    energies = [(x["image"] - x["image"].mean((2, 3), True)).square().sum() for x in (one, two)]
    alone = [built(Spectrum, x, [])(output) for x in (one, two)]
    term = built(Spectrum, one, [], others=(two,), shares=(0.7, 0.3))
    weighed = [share * energy for share, energy in zip((0.7, 0.3), energies, strict=True)]
    expected = (weighed[0] * alone[0] + weighed[1] * alone[1]) / sum(weighed)
    torch.testing.assert_close(term(output), expected)
    # Twice the same exemplar is that exemplar.
    settings = dict(others=({"a": one["image"]},), shares=(0.2, 0.8))
    lags = built(Autocorrelation, {"a": one["image"]}, ["a"], **settings)
    assert lags({"a": one["image"]}).item() == pytest.approx(0, abs=1e-10)


# -------------------------------------------------------------------------------------- guided


def positions(*vectors):
    """Features of one row of positions, where patches are single positions."""
    return {"a": torch.tensor(vectors, dtype=torch.float32).T.view(1, -1, 1, len(vectors))}


RIGHT, UP = (1, 0), (0, 1)


def test_guided_is_brute_force(every_patch):
    source = {"a": noise(1, 2, 9, 10), "b": noise(1, 3, 8, 8, seed=1)}
    output = {"a": noise(1, 2, 10, 9, seed=2), "b": noise(1, 3, 7, 9, seed=3)}
    model = built(Guided, source, ["a", "b"])
    model.rematch(output)
    expected = 0
    for layer in ("a", "b"):
        mean = source[layer].mean((2, 3), keepdim=True)
        wanted = F.normalize(columns((source[layer] - mean)[0], 7), dim=1)
        drawn = F.normalize(columns((output[layer] - mean)[0], 7), dim=1)
        cosine = drawn @ wanted.T
        used = [sum(int(row.argmax()) == j for row in cosine) for j in range(len(wanted))]
        penalty = 0.05 * torch.tensor(used) * len(wanted) / len(drawn)
        expected += plain_scores(1 - cosine + penalty).mean() / 2  # the mean of two layers
    assert expected > 0.01
    torch.testing.assert_close(model(output)[0], expected)


def test_guided_prefers_what_has_the_same_guide(every_patch):
    source = positions(RIGHT, UP, RIGHT, UP)
    guide = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4)
    output = positions(UP, UP, UP, UP)
    wanted = torch.tensor([1.0, 0.0, 1.0, 0.5]).view(1, 1, 1, 4)
    model = built(Guided, source, ["a"], guide=((guide,), wanted))
    model.rematch(output)
    extra = model.held["a"][0].extra.of_rows(slice(4))
    # A guide counts as 10 times its squared distance, and about the mean (0.5, 0.5) up and right
    # are opposite: the outputs' nearest are the patches 3, 1, 3 and 1, each used twice: 0.05 2.
    expected = torch.tensor(
        [[10, 10.1, 0, 0.1], [0, 0.1, 10, 10.1], [10, 10.1, 0, 0.1], [2.5, 2.6, 2.5, 2.6]]
    )
    torch.testing.assert_close(extra, expected)
    distance = torch.tensor([2.0, 0, 2, 0]) + expected
    torch.testing.assert_close(model(output)[0], plain_scores(distance).mean())
    assert distance[:3].argmin(1).tolist() == [3, 1, 3]


def test_guides_are_resized_and_averaged_over_patches(every_patch):
    source = {"a": noise(2, 4, 10, 9)[:1]}
    output = {"a": noise(2, 4, 9, 12, seed=1)}
    guides = picture(1, 2, 20, 18), picture(1, 2, 18, 24, seed=2)
    model = built(Guided, source, ["a"], guide=((guides[0],), guides[1]))
    model.rematch(output)

    def means(guide, size):
        small = F.interpolate(guide, size, mode="bilinear", antialias=True)
        return F.avg_pool2d(small, 7, 1)[0].flatten(1).T  # (N, G), of every 7x7 patch

    wanted = means(guides[0], (10, 9))
    rows = torch.tensor([0, 5, 17])
    for i in range(2):
        drawn = means(guides[1], (9, 12))[rows]
        distance = torch.stack([10 * (row - wanted).square().sum(1) for row in drawn])
        extra = model.held["a"][i].extra.of_rows(rows)  # and the same penalty in every row
        found, expected = extra - extra[0], distance - distance[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [CNNMRF, Guided])
def test_guides_wrap_with_the_tile(kind, every_patch):
    """A shift of output and guide by the same step along both axes changes nothing."""
    source, output = noise(1, 3, 10, 9), noise(1, 3, 9, 12, seed=1)
    guides = picture(1, 2, 10, 9), picture(1, 2, 9, 12, seed=2)
    values = []
    for shift in ((0, 0), (4, 5)):
        output_guide = guides[1].roll(shift, (2, 3))
        model = built(kind, {"a": source}, ["a"], wrap="xy", guide=((guides[0],), output_guide))
        features = {"a": output.roll(shift, (2, 3))}
        model.rematch(features)
        values.append(model(features))
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)


def test_guided_takes_patches_at_a_stride_from_a_drawn_origin():
    source, output = {"a": noise(1, 3, 15, 20)}, {"a": noise(1, 3, 18, 14, seed=1)}
    model = built(Guided, source, ["a"])
    every = F.normalize(columns((source["a"] - source["a"].mean((2, 3), True))[0], 7), dim=1)
    origins = set()
    for _ in range(30):
        model.rematch(output)
        held = model.held["a"][0]
        top, left = held.sample.origin
        assert 0 <= top < 4 and 0 <= left < 4
        rows = held.sample.columns(torch.arange(18.0 * 14).view(1, 1, 18, 14))[0]
        corners = [y * 14 + x for y in range(top, 12, 4) for x in range(left, 8, 4)]
        assert rows.tolist() == corners
        # Of 9 x 14 source patches every fourth one either way, in reading order.
        found = (held.source @ every.T).argmax(1)
        y0, x0 = divmod(found[0].item(), 14)
        assert y0 < 4 and x0 < 4
        assert found.tolist() == [y * 14 + x for y in range(y0, 9, 4) for x in range(x0, 14, 4)]
        origins.add((top, left, y0, x0))
    assert len(origins) > 15  # of 256


def test_guided_takes_no_more_patches_than_it_may():
    source, output = {"a": noise(1, 2, 20, 30)}, {"a": noise(1, 2, 25, 20, seed=1)}

    def held(seed, max_patches):
        model = built(Guided, source, ["a"], seed=seed, max_patches=max_patches)
        model.rematch(output)
        assert model(output).isfinite().all()
        return model.held["a"][0]

    few = held(0, 10)
    assert few.sample.chosen.unique().numel() == 10 and few.source.shape == (10, 2 * 49)
    assert few.sample.unit_patches(output["a"]).shape == (10, 2 * 49)
    assert held(0, 10_000).sample.chosen is None


def test_guided_takes_invalid_patches_if_the_grid_has_no_valid_one():
    """Of 13x13 positions the first 9x9 are valid: patches of 7 begin at 0 ... 2 along both axes. A
    grid of stride 4 has one of them, or none if it begins at 3: then all of its 1 or 2 are used."""
    valid = torch.zeros(1, 1, 13, 13, dtype=torch.bool)
    valid[..., :10, :10] = True  # the last row and column have invalid neighbours
    features = {"image": picture(1, 3, 13, 13), "a": noise(1, 2, 13, 13)}
    model = Guided(TermInputs((Exemplar((View(features, valid=valid),)),)), {"a": 1.0})
    counts = set()
    for _ in range(20):
        model.rematch(features)
        counts.add(len(model.held["a"][0].source))
        assert model(features).isfinite().all()
    assert counts == {1, 2}


def test_many_pictures_share_the_patches_that_guided_may_take():
    """An exemplar with its turned copies costs as much memory as the exemplar alone."""
    pictures = [{"a": noise(1, 2, 30, 30, seed=seed)} for seed in range(4)]
    model = built(Guided, pictures[0], ["a"], max_patches=20, variants=tuple(pictures[1:]))
    model.rematch(pictures[0])
    (held,) = model.held["a"]
    assert len(held.source) == 20  # 5 of each, of 36
    assert len(held.sample.chosen) == 20  # the output is one picture


def test_chosen_patches_are_those_of_all_patches():
    maps = noise(1, 3, 20, 17).requires_grad_()
    chosen = torch.tensor([7, 0, 14, 3])
    few, every = (_Sample(7, 3, [2, 1], which) for which in (chosen, None))
    expected = every.columns(maps)[:, chosen]
    assert torch.equal(few.columns(maps), expected)
    weights = noise(*expected.shape, seed=1)
    gradients = [
        torch.autograd.grad((weights * columns).sum(), maps)[0]
        for columns in (few.columns(maps), expected)
    ]
    torch.testing.assert_close(*gradients)


def test_guided_takes_smaller_patches_of_smaller_maps(every_patch):
    source, output = {"a": noise(1, 3, 5, 9)}, {"a": noise(1, 3, 8, 4, seed=1)}
    model = built(Guided, source, ["a"])
    model.rematch(output)
    assert model.held["a"][0].source.shape == (2 * 6, 3 * 4 * 4)  # 4, the shortest of all sides
    assert model(output).isfinite().all()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1)])
def test_guided_gives_every_exemplar_its_share(shares, every_patch):
    output = {"a": noise(1, 3, 24, 24) - 0.5}
    other = output["a"] + 0.5 * (noise(1, 3, 24, 24, seed=1) - 0.5)
    source = {"a": noise(1, 3, 24, 24, seed=2) - 0.5}
    model = built(Guided, source, ["a"], **pooled(other, shares=shares))
    model.occurrence_weight = 0.0
    model.rematch(output)
    (held,) = model.held["a"]
    drawn = held.sample.unit_patches(output["a"] - model.mean["a"])
    nearest = (held.extra.of_rows(slice(None)) - drawn @ held.source.T).argmin(1)
    found = (nearest >= len(held.source) // 2).float().mean().item()
    assert found == pytest.approx(shares[1], abs=0.03)
