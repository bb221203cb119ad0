"""The trunk against plain operations, rescaling, borders, and where weights come from."""

import errno
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.error import URLError

import conftest
import pytest
import torch
from torch import nn

import models
from command.weights import BUNDLE, CAFFE_KERNELS, likely_net, load_weights
from models import NETS, Extractor, layer_table, resolve_layers
from utils import UserError, resize

LAYERS = ["relu1_1", "relu2_1", "pool2", "relu3_1"]


@pytest.fixture(scope="module")
def bundle():
    return load_weights("vgg16-caffe", None, ["relu4_1"]).weights


@pytest.fixture
def picture():
    return torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty weight cache and a network that is not there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*arguments):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "checkpoints"


def small_weights(net: str, last: int) -> dict[str, torch.Tensor]:
    """Weights of the right shapes and constant values, through torchvision's index `last`."""
    channels, weights = 3, {}
    for layer, index in layer_table(NETS[net]).items():
        if index is not None and index <= last:
            wide = models.WIDTHS[int(layer[4]) - 1]
            weights[f"features.{index}.weight"] = torch.full((wide, channels, 3, 3), 0.01)
            weights[f"features.{index}.bias"] = torch.zeros(wide)
            channels = wide
    return weights


def assert_same_features(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To rounding, which is relative to the sums that features are made of: 1e-6 of the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.max().item())


refusal = partial(conftest.refusal, load_weights)


# --------------------------------------------------------------------------------------- layers


@pytest.mark.slow
def test_nets_are_torchvisions():
    """Imported here, since it takes 2 s and every process of xdist collects all files."""
    import torchvision

    for name in ("vgg19", "vgg16"):
        with torch.device("meta"):
            trunk = getattr(torchvision.models, name)().features
        convs = [i for i, module in enumerate(trunk) if isinstance(module, nn.Conv2d)]
        assert [i for i in layer_table(NETS[name]).values() if i is not None] == convs
        assert len(layer_table(NETS[name])) == sum(not isinstance(m, nn.ReLU) for m in trunk)
        weights = torchvision.models.get_weight(f"{name.upper()}_Weights.IMAGENET1K_V1")
        assert NETS[name].url == weights.url


def test_resolve_layers():
    names = ["pool4", "conv1_1", "relu3_4", "RELU1_1"]
    assert resolve_layers(names, "vgg19") == ["relu1_1", "relu3_4", "pool4"]


@pytest.mark.parametrize("typo, nearest", [("conv4-1", "relu4_1"), ("pool6", "pool5")])
def test_a_typo_gets_the_nearest_names(typo, nearest):
    with pytest.raises(UserError, match=f"{typo}.*{nearest}"):
        resolve_layers(["conv1_1", typo], "vgg19")
    with pytest.raises(UserError, match="vgg16 has no"):
        resolve_layers(["conv3_4"], "vgg16")
    with pytest.raises(UserError, match="vgg16-caffe has no.*relu5_1"):
        resolve_layers(["conv5_2"], "vgg16-caffe")


def test_least_side_is_the_least_that_runs(bundle):
    for layer in ("relu1_2", "pool1", "relu2_1", "relu3_1", "pool3", "relu4_1"):
        side = models.least_side([layer])
        extractor = Extractor(bundle, "vgg16-caffe", [layer])
        assert layer in extractor(torch.rand(1, 3, side, side))
        with pytest.raises(RuntimeError, match="[Pp]adding"):
            extractor(torch.rand(1, 3, side - 1, side - 1))


# ------------------------------------------------------------------------------------ extractor


def test_one_extractor_serves_many_threads(bundle):
    """Features that were kept on the net itself ended up in each other's dictionaries."""
    extractor = Extractor(bundle, "vgg16-caffe", ["relu1_1", "relu2_1"])
    pictures = [torch.full((1, 3, 24 + 2 * k, 32), k / 8) for k in range(8)]
    alone = [extractor(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(extractor, pictures * 4))
    for one, other in zip(alone * 4, together, strict=True):
        for layer, features in one.items():
            torch.testing.assert_close(features, other[layer], rtol=1e-4, atol=1e-4)


def test_an_extractor_keeps_nothing_of_a_picture(bundle):
    extractor = Extractor(bundle, "vgg16-caffe", ["relu1_1", "relu3_1"])
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    features = weakref.ref(extractor(image)["relu1_1"])
    with pytest.raises(RuntimeError):
        extractor(torch.rand(1, 3, 2, 2, requires_grad=True))  # too small to be reflected
    left = weakref.ref(extractor)
    del extractor
    assert features() is None and left() is None


def test_features_are_those_of_plain_operations(bundle, picture):
    mean, std = torch.tensor(models.IMAGENET_MEAN), torch.tensor(models.IMAGENET_STD)
    x = (picture - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    expected = []
    for index in (0, 2, "pool", 5, 7, "pool", 10):  # of VGG-16, which has ReLUs between
        if index == "pool":
            x = nn.functional.max_pool2d(x, 2)
        else:
            x = nn.functional.pad(x, [1] * 4, "reflect" if expected else "replicate")
            weight, bias = (bundle[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            x = nn.functional.conv2d(x, weight.float(), bias.float()).relu()
        expected.append(x)
    features = Extractor(bundle, "vgg16-caffe", LAYERS, pool="max")(picture)
    assert list(features) == ["image", *LAYERS]
    for layer, position in zip(LAYERS, (0, 3, 5, 6), strict=True):
        assert_same_features(features[layer], expected[position])


def test_cut_after_the_deepest_layer_and_frozen(bundle):
    extractor = Extractor(bundle, "vgg16-caffe", ["relu1_1", "relu2_1"])
    assert list(extractor.trunk) == ["relu1_1", "relu1_2", "pool1", "relu2_1"]
    assert not any(p.requires_grad for p in extractor.parameters())


def test_grey_is_three_equal_channels(bundle, picture):
    extractor = Extractor(bundle, "vgg16-caffe", ["relu2_1"])
    grey = picture[:, :1]
    repeated = extractor(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(
        extractor(grey)["relu2_1"], repeated["relu2_1"], rtol=1e-4, atol=1e-4
    )
    assert extractor(grey)["image"].shape == picture.shape


def test_batch_is_stacked_singles(bundle):
    extractor = Extractor(bundle, "vgg16-caffe", LAYERS)
    batch = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    singles = [extractor(batch[i : i + 1]) for i in range(2)]
    for layer, features in extractor(batch).items():
        assert_same_features(features, torch.cat([single[layer] for single in singles]))


def test_circular_extractor_commutes_with_roll(bundle, picture):
    extractor = Extractor(bundle, "vgg16-caffe", LAYERS)
    rolled = extractor(picture.roll((8, 16), (2, 3)), wrap="xy")
    for layer, features in extractor(picture, wrap="xy").items():
        stride = picture.shape[-1] // features.shape[-1]
        assert_same_features(rolled[layer], features.roll((8 // stride, 16 // stride), (2, 3)))


def test_tile_wraps_round_along_its_axis_alone(bundle, picture):
    extractor = Extractor(bundle, "vgg16-caffe", LAYERS)
    features = {wrap: extractor(picture, wrap)["relu1_1"] for wrap in ("", "x", "y", "xy")}
    for wrap in ("x", "y"):
        inside, plain = (features[axes][..., 1:-1, 1:-1] for axes in (wrap, ""))
        torch.testing.assert_close(inside, plain, rtol=1e-4, atol=1e-4)
    rolled = extractor(picture.roll(16, 3), "x")["relu1_1"]
    torch.testing.assert_close(rolled, features["x"].roll(16, 3), rtol=1e-4, atol=1e-4)
    rolled = extractor(picture.roll(16, 2), "y")["relu1_1"]
    torch.testing.assert_close(rolled, features["y"].roll(16, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer, stride", [("relu1_2", 1), ("pool1", 2), ("relu4_1", 8)])
def test_stride_is_that_of_the_deepest_layer(bundle, picture, layer, stride):
    assert models.stride(["relu1_1", layer]) == stride
    features = Extractor(bundle, "vgg16-caffe", [layer])(picture)[layer]
    assert picture.shape[3] // features.shape[3] == stride


@pytest.mark.parametrize("pool", models.POOLS)
def test_rescaling_filters_changes_the_scale_of_each_and_nothing_else(bundle, picture, pool):
    plain = Extractor(bundle, "vgg16-caffe", LAYERS, pool)
    scaled = Extractor(bundle, "vgg16-caffe", LAYERS, pool)
    scaled.rescale(picture, models.FILTER)
    other = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    gains = {}
    for layer in ("relu1_1", "relu2_1", "relu3_1"):
        means = plain(picture)[layer].mean((0, 2, 3))
        gains[layer] = 1 / means.clamp(min=means.mean() / models.RESCALE_CAP)
        gain = gains[layer].view(1, -1, 1, 1)
        torch.testing.assert_close(
            scaled(other)[layer], plain(other)[layer] * gain, rtol=1e-3, atol=1e-3
        )
        common = means > means.mean() / models.RESCALE_CAP
        assert 0 < common.sum() < len(common)
        unit = scaled(picture)[layer].mean((0, 2, 3))[common]
        torch.testing.assert_close(unit, torch.ones_like(unit), rtol=1e-3, atol=1e-3)


def test_rescaling_layers_keeps_their_filters_in_proportion(bundle, picture):
    plain, scaled = (Extractor(bundle, "vgg16-caffe", LAYERS) for _ in range(2))
    scaled.rescale(picture)
    other = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    for layer in ("relu1_1", "relu2_1", "relu3_1"):
        mean = plain(picture)[layer].mean()
        assert_same_features(scaled(other)[layer], plain(other)[layer] / mean)
        torch.testing.assert_close(scaled(picture)[layer].mean(), torch.tensor(1.0))


@pytest.mark.parametrize("per", [models.LAYER, models.FILTER])
def test_rescaling_survives_dead_filters_and_dead_layers(per, bundle, picture):
    weights = dict(bundle)
    weights["features.0.bias"] = bundle["features.0.bias"].clone()
    weights["features.0.bias"][5] = -1e4  # never fires
    weights["features.5.bias"] = torch.full_like(bundle["features.5.bias"], -6e4)  # nor do these
    extractor = Extractor(weights, "vgg16-caffe", LAYERS)
    extractor.rescale(picture, per)
    for layer, features in extractor(picture).items():
        assert features.isfinite().all(), layer
    assert (extractor(picture)["relu2_1"] == 0).all()


@pytest.mark.slow
def test_rescaling_looks_at_no_more_pixels_than_it_needs(bundle):
    """A large exemplar gives what the same one of `RESCALE_SIDE` does, a smaller one its own."""
    large = torch.rand(1, 3, 300, 450, generator=torch.Generator().manual_seed(0))
    small = resize(large, (256, 384))
    seen, found = [], []
    for picture in (large, small):
        extractor = Extractor(bundle, "vgg16-caffe", ["relu1_1", "relu2_1"])
        first = extractor.trunk["relu1_1"]
        first.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        extractor.rescale(picture)
        found.append(torch.cat([p.flatten() for p in extractor.parameters()]))
    assert seen == [(1, 64, 256, 384)] * 2 and torch.equal(*found)
    extractor.rescale(large[..., :40, :300])
    assert seen[-1] == (1, 64, 40, 300)


# -------------------------------------------------------------------------------------- weights


def test_bundle_is_used_where_nothing_else_can_be_had_and_said(cache):
    weights, net, _, notes = load_weights(None, None, ["relu4_1"])
    assert net == "vgg16-caffe" and len(notes) == 1
    assert "vgg19" in notes[0] and "no route to host" in notes[0] and "vgg16-caffe" in notes[0]
    assert weights["features.0.weight"].shape == (64, 3, 3, 3)


def test_a_net_asked_for_is_never_replaced(cache):
    line = refusal("vgg19", None, ["relu4_1"])
    assert "network" in line and "--weights PATH" in line and "--model vgg16-caffe" in line


def test_bundle_needs_no_network_and_no_note(cache):
    assert load_weights("vgg16-caffe", None, ["relu4_1"])[1:] == ("vgg16-caffe", "torchvision", [])


def test_a_layer_beyond_the_bundle_is_the_users_to_fix(cache):
    assert "relu5_2" in refusal("vgg16-caffe", None, ["relu5_2"])
    assert "relu3_4" in refusal(None, None, ["relu3_4"])
    line = refusal(None, None, ["relu5_2"])
    assert "no route to host" in line and "relu5_2" in line


def test_torchvisions_file_is_read_once_and_then_its_copy(cache):
    cache.mkdir()
    full = small_weights("vgg19", 19) | {"classifier.0.weight": torch.zeros(3)}
    file = cache / "vgg19-dcbb9e9d.pth"
    torch.save(full, file)
    weights, net, _, notes = load_weights(None, None, ["relu4_1"])
    assert (net, notes) == ("vgg19", []) and "classifier.0.weight" not in weights
    file.unlink()
    again, net, *_ = load_weights("vgg19", None, ["relu4_1"])
    assert net == "vgg19" and again.keys() == weights.keys()
    assert all(torch.equal(again[k], weights[k]) for k in weights)
    assert len(list(cache.iterdir())) == 1  # no temporary files


@pytest.mark.parametrize("is_zip", [False, True])
def test_both_formats_of_state_dicts_are_read(is_zip, cache, tmp_path):
    """torchvision serves VGG in the format from before PyTorch 1.6."""
    cache.mkdir()
    full = small_weights("vgg19", 5) | {"classifier.0.weight": torch.zeros(3)}
    for path in (cache / "vgg19-dcbb9e9d.pth", tmp_path / "w.pth"):
        torch.save(full, path, _use_new_zipfile_serialization=is_zip)
    for model, path in (("vgg19", None), (None, tmp_path / "w.pth")):
        weights, net, *_ = load_weights(model, path, ["relu2_1"])
        assert net == "vgg19" and weights.keys() == full.keys() - {"classifier.0.weight"}
        assert all(torch.equal(weights[name], full[name]) for name in weights)


def downloads(monkeypatch, last: int) -> None:
    """A network that serves VGG-19 through torchvision's index `last`, in the old format."""

    def download(url, path, hash_prefix, progress):
        torch.save(small_weights("vgg19", last), path, _use_new_zipfile_serialization=False)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)


@pytest.fixture(params=["zip", "old"])
def half_a_file(request, cache):
    """What an interrupted download leaves under torchvision's own name."""
    cache.mkdir()
    path = cache / "vgg19-dcbb9e9d.pth"
    weights = small_weights("vgg19", 5)
    torch.save(weights, path, _use_new_zipfile_serialization=request.param == "zip")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_half_a_file_is_downloaded_again(half_a_file, monkeypatch):
    downloads(monkeypatch, 5)
    _, net, _, (note,) = load_weights(None, None, ["relu2_1"])
    assert net == "vgg19" and str(half_a_file) in note and note.endswith("downloaded again")
    assert load_weights("vgg19", None, ["relu2_1"])[1:] == ("vgg19", "torchvision", [])
    assert "features.5.bias" in torch.load(half_a_file, weights_only=True)


def test_half_a_file_and_no_network(half_a_file):
    """Never a dead end, and what cannot be replaced is left as it is."""
    before = half_a_file.read_bytes()
    _, net, _, (note,) = load_weights(None, None, ["relu2_1"])
    assert net == "vgg16-caffe" and str(half_a_file) in note and "no route to host" in note
    assert len(note.splitlines()) == 1 and "using the bundled vgg16-caffe" in note
    line = refusal("vgg19", None, ["relu2_1"])
    assert str(half_a_file) in line and "no route to host" in line
    assert "network" in line and "--weights PATH" in line and "--model vgg16-caffe" in line
    assert half_a_file.read_bytes() == before


@pytest.mark.parametrize("fault", ["damaged", "lacks a layer"])
def test_a_copy_of_no_use_is_made_again(fault, cache, monkeypatch):
    """Out of the whole file, or, where that is missing, of a new download."""
    cache.mkdir()
    whole = cache / "vgg19-dcbb9e9d.pth"
    copy = whole.with_suffix(".features.pth")

    def spoil() -> None:
        torch.save(small_weights("vgg19", 2), copy)
        if fault == "damaged":
            copy.write_bytes(copy.read_bytes()[:1000])

    spoil()
    assert load_weights(None, None, ["relu1_1"]).net == (
        "vgg16-caffe" if fault == "damaged" else "vgg19"
    )
    _, net, _, (note,) = load_weights(None, None, ["relu2_1"])
    assert net == "vgg16-caffe" and str(copy) in note and copy.exists()

    torch.save(small_weights("vgg19", 5), whole, _use_new_zipfile_serialization=False)
    _, net, _, (note,) = load_weights("vgg19", None, ["relu2_1"])
    assert net == "vgg19" and str(copy) in note and note.endswith(f"using {whole.name} instead")
    assert "features.5.bias" in torch.load(copy, weights_only=True)
    assert load_weights("vgg19", None, ["relu2_1"]).notes == []

    spoil()
    whole.unlink()
    downloads(monkeypatch, 5)
    _, net, _, (note,) = load_weights("vgg19", None, ["relu2_1"])
    assert net == "vgg19" and str(copy) in note and note.endswith("downloaded again")
    assert "features.5.bias" in torch.load(copy, weights_only=True)


def test_a_cache_that_cannot_be_written_costs_only_the_copy(cache, monkeypatch):
    cache.mkdir()
    torch.save(small_weights("vgg19", 19), cache / "vgg19-dcbb9e9d.pth")

    def full_disk(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert load_weights("vgg19", None, ["relu1_1"]).net == "vgg19"


def test_download_checks_the_hash(cache, monkeypatch):
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url.rsplit("/")[-1], hash_prefix))
        torch.save(small_weights("vgg19", 19), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert load_weights(None, None, ["relu4_1"])[1:] == ("vgg19", "torchvision", [])
    assert load_weights(None, None, ["relu4_1"]).net == "vgg19"
    assert calls == [("vgg19-dcbb9e9d.pth", "dcbb9e9d")]


def test_any_state_dict_tells_its_own_net(tmp_path):
    for net, last in (("vgg19", 19), ("vgg16", 17)):
        path = tmp_path / f"{net}.pth"
        torch.save(small_weights(net, last), path)
        assert load_weights(None, path, ["relu4_1"]).net == net
    assert load_weights(None, BUNDLE, ["relu4_1"])[1:] == ("vgg16", "torchvision", [])
    assert load_weights("vgg16-caffe", BUNDLE, ["relu4_1"]).net == "vgg16-caffe"
    assert "features.16" in refusal("vgg19", BUNDLE, ["relu4_1"])


# ------------------------------------------------------------------------- layouts of weights


def caffe_weights(dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A VGG-16 through conv1_2 for Caffe's pixels, its first kernel beginning as the authors'."""
    weights = small_weights("vgg16", 2)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 3, 3, 3, generator=generator)
    first[0, 0, 0] = torch.tensor(CAFFE_KERNELS[0])
    weights["features.0.weight"] = first
    weights["features.0.bias"] = torch.randn(64, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def in_names_of(weights, naming, net="vgg16") -> dict[str, torch.Tensor]:
    if naming == "features":
        return weights
    if naming == "indices":
        return {name.removeprefix("features."): tensor for name, tensor in weights.items()}
    layers = {str(index): layer for layer, index in layer_table(NETS[net]).items()}
    names = {name: name.split(".") for name in weights}
    return {
        f"{layers[index].replace('relu', 'conv')}.{kind}": weights[name]
        for name, (_, index, kind) in names.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("naming", ["features", "indices", "gatys"])
def test_caffes_weights_are_recognised_and_take_caffes_pixels(naming, dtype, tmp_path, picture):
    """The first layer is what Caffe computes of BGR from 0 to 255 less the mean."""
    path, weights = tmp_path / "w.pth", caffe_weights(dtype)
    torch.save(in_names_of(weights, naming), path)
    found = load_weights(None, path, ["relu1_1"])
    assert found.layout == "caffe"
    (note,) = found.notes
    assert str(path) in note and "Caffe" in note and "converted" in note
    pixels = 255 * picture.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    pixels = nn.functional.pad(pixels, [1] * 4, "replicate")
    first, bias = (weights[f"features.0.{kind}"].float() for kind in ("weight", "bias"))
    expected = nn.functional.conv2d(pixels, first, bias).relu()
    features = Extractor(found.weights, found.net, ["relu1_1"])(picture)["relu1_1"]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * expected.max().item())
    assert torch.equal(found.weights["features.2.weight"], weights["features.2.weight"])


def test_what_layout_is_taken_for_is_said_and_the_user_decides(tmp_path):
    weights = small_weights("vgg19", 19)
    features, gatys, named = (tmp_path / f"{name}.pth" for name in ("f", "g", "vgg19-d01eb7cb"))
    torch.save(weights, features)
    torch.save(weights, named)
    torch.save({"conv1_1.weight": weights["features.0.weight"]} | {
        "conv1_1.bias": weights["features.0.bias"], "conv3_4.weight": torch.zeros(256, 256, 3, 3)
    }, gatys)  # fmt: skip
    for path, layout, other in (
        (features, "torchvision", "caffe"),
        (gatys, "caffe", "torchvision"),
    ):
        found = load_weights(None, path, ["relu1_1"])
        assert (found.net, found.layout) == ("vgg19", layout)
        (note,) = found.notes
        assert f"assumed {layout}'s" in note and f"--weights_layout {other}" in note
        said = load_weights(None, path, ["relu1_1"], layout=other)
        assert said.layout == other and not said.notes
        first = [one.weights["features.0.weight"] for one in (found, said)]
        assert not torch.equal(*first)
    assert load_weights(None, named, ["relu1_1"]).layout == "caffe"
    assert load_weights(None, named, ["relu1_1"], layout="torchvision").layout == "torchvision"


def test_caffes_weights_in_the_cache_are_said_in_every_run(cache):
    """A copy of the features does not tell their layout, and the next run would not say it."""
    cache.mkdir()
    torch.save(caffe_weights(), cache / "vgg16-397923af.pth")
    for _ in range(2):
        found = load_weights("vgg16", None, ["relu1_2"])
        assert found.layout == "caffe" and "converted" in " ".join(found.notes)


@pytest.mark.parametrize("shape", [(0,), (2,), (64, 3), (64, 1, 3, 3)])
def test_a_first_kernel_of_another_shape_is_told_in_any_layout(shape, tmp_path):
    for name in ("w.pth", "vgg19-d01eb7cb.pth"):
        torch.save(
            small_weights("vgg19", 19) | {"features.0.weight": torch.zeros(shape)}, tmp_path / name
        )
        line = refusal(None, tmp_path / name, ["relu1_1"])
        assert "features.0.weight" in line


def test_gatys_names_tell_the_net(tmp_path):
    for net, last in (("vgg19", 34), ("vgg16", 28)):
        torch.save(in_names_of(small_weights(net, last), "gatys", net), tmp_path / "w.pth")
        found = load_weights(None, tmp_path / "w.pth", ["relu5_3"])
        assert found.net == net and found.weights.keys() == small_weights(net, last).keys()


@pytest.mark.parametrize("layout", [None, "caffe"])
def test_a_file_is_read_once_for_its_net_and_its_weights(layout, tmp_path, monkeypatch):
    path, reads, load = tmp_path / "w.pth", [], torch.load
    torch.save(small_weights("vgg19", 19), path)
    monkeypatch.setattr(models.torch, "load", lambda *a, **k: reads.append(a) or load(*a, **k))
    assert likely_net(None, path, layout) == "vgg19"
    assert load_weights(None, path, ["relu1_1"], layout=layout).net == "vgg19"
    assert len(reads) == 1


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(small_weights("vgg19", 19), path)
    assert likely_net(None, path) == "vgg19"
    torch.save(small_weights("vgg16", 17), path)
    assert likely_net(None, path) == "vgg16"


def test_the_likely_net(cache):
    assert likely_net("vgg16", None) == "vgg16"
    assert likely_net(None, None) == "vgg16-caffe"  # the other one is not here
    cache.mkdir()
    torch.save(small_weights("vgg19", 19), cache / "vgg19-dcbb9e9d.pth")
    assert likely_net(None, None) == "vgg19"


@pytest.mark.parametrize("content", [b"", b"not weights", BUNDLE.read_bytes()[:5000]])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert str(path) in refusal(None, path, ["relu1_1"])


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pth"
    assert "No such file" in refusal(None, path, ["relu1_1"])
    assert str(tmp_path) in refusal(None, tmp_path, ["relu1_1"])
    torch.save({"conv.weight": torch.zeros(1)}, path)
    assert "conv1_1.weight" in refusal(None, path, ["relu1_1"])
    torch.save([1, 2], path)
    assert "state dict" in refusal(None, path, ["relu1_1"])
    wrong = small_weights("vgg19", 19)
    wrong["features.5.weight"] = torch.zeros(128, 64, 5, 5)
    torch.save(wrong, path)
    line = refusal(None, path, ["relu2_1"])
    assert "features.5.weight" in line and "(128, 64, 5, 5)" in line and "relu2_1" in line
    assert load_weights(None, path, ["relu1_2"]).net == "vgg19"  # needs no deeper layer


def test_bundle_is_there():
    assert Path(BUNDLE).stat().st_size < 25e6
