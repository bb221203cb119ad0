"""Tiles of a picture against the whole, in float64."""

import pytest
import torch
from conftest import fast_first, in_threads

from engine import synthesis
from engine.spec import Spec, exemplar_of
from engine.synthesis import criterion_at, frames
from engine.tiling import WHOLE, Span, TiledExtractor, Tiling, spans
from losses import TERMS
from models import NETS, Extractor, halos, layer_table, middle_pooling, resolve_layers, stride
from terms.base import Canvas

LAYERS = ["conv1_1", "conv2_1", "conv3_1"]
CHANNELS = 4
SOURCE, SIZE = (32, 36), (48, 60)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def narrow(net, layers=LAYERS, pool="avg"):
    """That net with few random filters, in float64."""
    generator, weights, channels = torch.Generator().manual_seed(0), {}, 3
    for index in layer_table(NETS[net]).values():
        if index is not None:
            shape = CHANNELS, channels, 3, 3
            weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) / 3
            weights[f"features.{index}.bias"] = torch.randn(CHANNELS, generator=generator) / 3
            channels = CHANNELS
    return Extractor(weights, net, resolve_layers(layers, net), pool).double()


def judged(look, criterion, image, wrap=""):
    """Losses and gradient."""
    leaf = image.clone().requires_grad_()
    losses = criterion(look(leaf, wrap))
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def both(trunk, spec, size, side, exemplar=SOURCE):
    """Loss and gradient of noise, the whole at once and by blocks."""
    criterion = criterion_at(spec, trunk, exemplar, size)
    image, wrap = noise(2, 3, *size, seed=1), spec.canvas.wrap
    criterion.rematch(trunk(image, wrap))
    looks = trunk, TiledExtractor(trunk, criterion, Tiling(side))
    return [judged(look, criterion, image, wrap) for look in looks]


def assert_same(whole, tiles):
    torch.testing.assert_close(tiles[0], whole[0], rtol=1e-12, atol=0)
    assert (tiles[1] - whole[1]).norm() < 1e-12 * whole[1].norm()


def spec_of(size, method="gram", weights=None, wrap="", **told):
    exemplars = told.pop("exemplars", (exemplar_of(noise(1, 3, *SOURCE)),))
    canvas = Canvas(size, wrap, **told.pop("canvas", {}))
    return Spec(exemplars, canvas, method, weights=weights or {}, **told)


def test_spans_by_hand():
    # 80 px at a stride of 8 are 10 steps; of 4 steps at most are 3, 3 and 4, with 16 px around
    assert spans(83, 32, 16, 8, False) == [
        Span(0, 24, 0, 16, 83),
        Span(24, 56, 16, 16, 83),
        Span(56, 83, 16, 0, 83),
    ]
    assert spans(64, 16, 8, 8, True)[0] == Span(0, 16, 8, 8, 64)
    assert spans(64, 16, 8, 8, True)[0].positions(torch.device("cpu")).tolist() == [
        *range(56, 64),
        *range(24),
    ]
    assert spans(64, 64, 8, 8, True) == [Span(0, 64, 0, 0, 64)]
    # 24 px and 24 around them on either side are more than all 64
    assert spans(64, 24, 24, 8, True) == [Span(0, 64, 0, 0, 64)]


@pytest.mark.parametrize(
    ("pool", "wrap", "side"),
    fast_first(
        [("max", "x", 24), ("avg", "y", 8), ("avg", "", 24), ("max", "", 8), ("max", "xy", 8)], 2
    ),
)
def test_gradient_by_blocks_is_that_of_the_whole(pool, wrap, side):
    spec = spec_of(SIZE, "gram", dict.fromkeys(TERMS, 0.5), wrap)
    assert_same(*both(narrow("vgg16-caffe", pool=pool), spec, SIZE, side))


@pytest.mark.parametrize("method", ["swd", "cnnmrf", "guided"])
@pytest.mark.parametrize("wrap", ["", "xy"])
def test_every_method_is_the_same_by_blocks(method, wrap):
    spec = spec_of(SIZE, method, {"gram": 1.0}, wrap)
    assert_same(*both(narrow("vgg16-caffe"), spec, SIZE, 16))


@pytest.mark.parametrize(
    ("net", "layers"),
    [("vgg16-caffe", ["conv5_1"]), ("vgg19", ["conv3_4", "conv4_2"]), ("vgg19", ["pool2"])],
)
@pytest.mark.slow
def test_as_much_around_a_block_as_its_deepest_layer_sees(net, layers):
    trunk = narrow(net, layers)
    assert_same(*both(trunk, spec_of((224, 48)), (224, 48), 32))
    # And no more: a position in the middle sees all of that.
    image = noise(1, 3, 224, 48).requires_grad_()
    step, halo = stride(layers), trunk.halos["image"]
    (gradient,) = torch.autograd.grad(trunk(image)[trunk.layers[-1]][0, :, 96 // step].sum(), image)
    rows = gradient[0].abs().amax((0, 2)).nonzero()
    assert (rows[0].item(), rows[-1].item()) == (96 - halo, 96 + step + halo - 1)


@pytest.mark.parametrize("graphs", [1, 3, 9])
def test_a_tile_whose_graph_is_kept_is_evaluated_once(graphs):
    spec, trunk = spec_of((64, 64), weights={"moments": 1.0}), narrow("vgg16-caffe")
    criterion, image = criterion_at(spec, trunk, SOURCE, (64, 64)), noise(1, 3, 64, 64)
    looked = []
    trunk.register_forward_hook(lambda *_: looked.append(1))
    found = []
    for look in (trunk, TiledExtractor(trunk, criterion, Tiling(24, graphs))):
        looked.clear()
        found.append(judged(look, criterion, image))
    assert_same(*found)
    assert len(looked) == 9 + 9 - graphs


def test_halos_by_hand():
    # From the deepest up, a convolution asks for one position more, a pooling for twice as many.
    assert halos(["conv3_1"], "vgg16") == {
        "image": 10, "relu1_1": 9, "relu1_2": 8, "pool1": 4, "relu2_1": 3, "relu2_2": 2,
        "pool2": 1, "relu3_1": 0,
    }  # fmt: skip


def test_halos_by_hand_of_what_is_exchanged_in_the_middle():
    """What comes before knows its own part alone."""
    assert middle_pooling(["conv4_1"], "vgg16") == "pool2"
    assert halos(["conv4_1"], "vgg16", "pool2") == {
        "image": 6, "relu1_1": 5, "relu1_2": 4, "pool1": 2, "relu2_1": 1, "relu2_2": 0,
        "pool2": 5, "relu3_1": 4, "relu3_2": 3, "relu3_3": 2, "pool3": 1, "relu4_1": 0,
    }  # fmt: skip
    assert middle_pooling(["conv5_1"], "vgg19") == "pool3"
    assert middle_pooling(["pool2"], "vgg19") == "pool1"
    assert middle_pooling(["conv1_2"], "vgg19") == ""


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("method", "pool", "wrap"),
    [("gram", "avg", ""), ("gram", "max", "y"), ("cnnmrf", "avg", "xy"), ("swd", "max", "x")],
)
def test_processes_that_exchange_rows_see_the_whole(method, pool, wrap, count):
    """Of three, the one in the middle has both neighbours; in a ring of two they are the same."""
    size = (104, 48) if "y" in wrap else (103, 50)
    spec = spec_of(size, method, {"moments": 1.0}, wrap)
    trunk = narrow("vgg16-caffe", [*LAYERS, "conv4_1"], pool)
    criterion = criterion_at(spec, trunk, SOURCE, size)
    image = noise(1, 3, *size, seed=1)
    criterion.rematch(trunk(image, wrap))
    whole, rows = judged(trunk, criterion, image, wrap), []
    trunk.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[2]))

    def work(group):
        return judged(TiledExtractor(trunk, criterion, group=group), criterion, image, wrap)

    for found in in_threads(count, work):
        assert_same(whole, found)
    edges = [104 // 8 * i // count * 8 for i in range(count)] + [size[0]]
    assert sorted(rows) == sorted(
        stop - start + 6 * (("y" in wrap or start > 0) + ("y" in wrap or stop < size[0]))
        for start, stop in zip(edges, edges[1:], strict=False)
    )


def test_odd_sides_leave_out_what_the_whole_leaves_out():
    assert_same(*both(narrow("vgg16-caffe"), spec_of((63, 78)), (63, 78), 16))


@pytest.mark.slow
def test_regions_mixes_and_content_are_the_same_by_tiles():
    size = SIZE
    regions = torch.zeros(1, 1, *size, dtype=torch.int64)
    mask = torch.ones(1, 1, *size, dtype=torch.bool)
    mask[..., :30] = False
    masked = {"init": noise(1, 3, *size, seed=3), "mask": mask, "regions": regions}
    two = tuple(exemplar_of(noise(1, 3, *SOURCE, seed=n), share=s) for n, s in ((0, 0.3), (4, 0.7)))
    photo = {"content": noise(1, 3, *size, seed=5)}
    weights, trunk = {"histogram": 0.5, "moments": 1.0}, narrow("vgg16-caffe")
    for told in (
        {"canvas": masked},
        {"exemplars": two},
        {"canvas": photo, "content_layers": ("relu3_1",), "content_weight": 1.0},
    ):
        assert_same(*both(trunk, spec_of(size, "gram", weights, **told), size, 16))


@pytest.mark.slow
def test_each_scale_has_its_tiling(monkeypatch, brief_painting):
    """A picture that fits is evaluated whole."""
    tilings = []

    def tiled(net, criterion, tiling, group):
        tilings.append(tiling)
        return TiledExtractor(net, criterion, tiling, group)

    monkeypatch.setattr(synthesis, "TiledExtractor", tiled)
    trunk, exemplar = narrow("vgg16-caffe").float(), exemplar_of(noise(1, 3, 64, 64).float())
    told = {"exemplars": (exemplar,), "steps": 6, "tilings": (WHOLE, Tiling(24, 2), Tiling(16, 1))}
    for _ in frames(spec_of((64, 64), scales=3, **told), trunk):
        pass
    assert tilings == [(24, 2), (16, 1)]
    tilings.clear()
    for _ in frames(spec_of((64, 64), scales=3, repaint=0.5, **told), trunk):
        pass
    assert tilings == [(24, 2), (16, 1)]


def test_tiles_have_no_second_derivative():
    trunk, size = narrow("vgg16-caffe"), (64, 64)
    tiled = TiledExtractor(trunk, criterion_at(spec_of(size), trunk, SOURCE, size), Tiling(32))
    image = noise(1, 3, *size).requires_grad_()
    loss = tiled.criterion(tiled(image)).sum()
    (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
