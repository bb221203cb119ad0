"""The trunk's own way back against autograd's, through plain operations one by one."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models
from models import POOLS, Convolution, Trunk
from weights import winograd

CHANNELS = {"relu1_1": (3, 5), "relu1_2": (5, 6), "relu2_1": (6, 8), "relu3_1": (8, 7)}
STAGES = ["relu1_1", "relu1_2", "pool1", "relu2_1", "pool2", "relu3_1"]
SIDES = (13, 22)  # px, then 6x11, of which pooling leaves something out again, and 3x5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_trunk(pool: str = "avg", dtype: torch.dtype = torch.float64) -> Trunk:
    net = Trunk()
    for seed, stage in enumerate(STAGES):
        if stage.startswith("pool"):
            net[stage] = POOLS[pool]()
        else:
            few, many = CHANNELS[stage]
            net[stage] = Convolution(random(many, few, 3, 3, seed=seed) / 3, random(many) / 3)
    return net.to(dtype)


def by_autograd(net: Trunk, x: Tensor, wrap: str, pool: str) -> dict[str, Tensor]:
    """Every stage of `small_trunk` by an operation of its own."""
    features = {}
    for layer, stage in net.items():
        if layer.startswith("pool"):
            x = (F.avg_pool2d if pool == "avg" else F.max_pool2d)(x, 2)
        else:
            plain = "replicate" if layer == "relu1_1" else "reflect"
            x = F.pad(x, (1, 1, 0, 0), "circular" if "x" in wrap else plain)
            x = F.pad(x, (0, 0, 1, 1), "circular" if "y" in wrap else plain)
            x = F.conv2d(x, stage.weight, stage.bias).relu()
        features[layer] = x
    return features


def gradient_of(features: dict[str, Tensor], x: Tensor) -> Tensor:
    """By the pixels, of a sum in which every feature has a weight of its own."""
    weights = {
        k: random(*v.shape, seed=len(k) + v.shape[1]).to(v.dtype) for k, v in features.items()
    }
    total = sum((weights[k] * features[k]).sum() for k in features)
    (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
    return gradient


@pytest.fixture(params=["direct", "by Winograd"])
def convolving(request, monkeypatch):
    monkeypatch.setattr(models, "LEAST_CHANNELS", 1 if request.param == "by Winograd" else 1000)
    monkeypatch.setattr(winograd, "WINDOWS_PER_PASS", 7)  # so that small maps take several passes


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
@pytest.mark.parametrize("pool", POOLS)
def test_features_and_gradients_are_autograds(wrap, pool, convolving):
    net = small_trunk(pool)
    x = random(2, 3, *SIDES).requires_grad_()
    expected = by_autograd(net, x, wrap, pool)
    for layers in (*([layer] for layer in STAGES), STAGES, ["pool1", "relu3_1"]):
        found = net(x, layers, wrap)
        assert list(found) == layers
        for layer in layers:
            torch.testing.assert_close(found[layer], expected[layer], rtol=1e-10, atol=1e-10)
        gradients = gradient_of(found, x), gradient_of({k: expected[k] for k in layers}, x)
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-9)


def test_features_and_gradients_are_autograds_in_float32(convolving):
    net = small_trunk(dtype=torch.float32)
    x = random(2, 3, *SIDES).float().requires_grad_()
    found, expected = net(x, STAGES), by_autograd(net, x, "", "avg")
    for layer in STAGES:
        assert found[layer].dtype == torch.float32
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-4, atol=1e-4)
    gradients = gradient_of(found, x), gradient_of(expected, x)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("wrap", ["", "xy"])
def test_another_layout_changes_nothing(wrap, monkeypatch):
    """That of Apple's GPUs, and all that is kept on the way is in it."""
    net, x = small_trunk(), random(2, 3, *SIDES).requires_grad_()
    wanted = net(x, STAGES, wrap)
    gradient = gradient_of(wanted, x)
    monkeypatch.setattr(models, "memory_format_for", lambda device: torch.contiguous_format)
    monkeypatch.setattr(models.Convolution, "_uses_winograd", lambda *_: False)  # as on a GPU
    net = small_trunk()
    found, kept = net.run(x.detach(), STAGES, wrap, torch.float64, keep=True, cut=models.WHOLE)
    assert all(maps.is_contiguous() for maps in kept)
    for layer, maps in zip(STAGES, found, strict=True):
        torch.testing.assert_close(maps, wanted[layer])
    torch.testing.assert_close(gradient_of(net(x, STAGES, wrap), x), gradient)


@pytest.mark.parametrize("height, width", [(4, 8), (5, 3), (10, 23), (1, 1)])
def test_winograds_method_is_a_convolution(height, width, convolving):
    padded, weight, bias = random(2, 5, height + 2, width + 2), random(7, 5, 3, 3), random(7)
    filters = winograd.transform_filters(weight)
    found, expected = (
        winograd.conv2d_relu(padded, filters, bias),
        F.conv2d(padded, weight, bias).relu(),
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found = winograd.conv2d_backward(expected, filters)
    expected = F.conv_transpose2d(expected, weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_winograds_method_is_as_exact_as_float32_allows():
    """Relative errors of 256 channels: 1.3e-6, and half of that directly."""
    padded, weight = random(1, 256, 18, 18).relu(), random(256, 256, 3, 3) / 48
    expected, bias = F.conv2d(padded, weight).relu(), torch.zeros(256)
    found = winograd.conv2d_relu(padded.float(), winograd.transform_filters(weight.float()), bias)
    assert (found - expected).norm() < 3e-6 * expected.norm()


def test_layers_that_no_loss_looks_at_cost_no_gradient(monkeypatch):
    net, x = small_trunk(), random(1, 3, *SIDES).requires_grad_()
    deeper, called = net["relu3_1"].back, []
    monkeypatch.setattr(
        net["relu3_1"], "back", lambda *arguments: called.append(1) or deeper(*arguments)
    )
    found, alone = net(x, STAGES)["relu2_1"], net(x, ["relu2_1"])["relu2_1"]
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, alone)))
    assert not called


def test_the_way_back_changes_nothing_and_can_be_gone_again(convolving):
    net, x = small_trunk(), random(1, 3, *SIDES).requires_grad_()
    features = net(x, ["relu1_2", "relu3_1"])
    kept = {layer: maps.detach().clone() for layer, maps in features.items()}
    upstream = [random(*maps.shape, seed=7) for maps in features.values()]
    given = [gradient.clone() for gradient in upstream]
    passes = [
        torch.autograd.grad(list(features.values()), x, upstream, retain_graph=True)[0]
        for _ in range(2)
    ]
    assert torch.equal(*passes)
    assert all(torch.equal(*pair) for pair in zip(upstream, given, strict=True))
    assert all(torch.equal(features[layer], kept[layer]) for layer in kept)


def test_a_second_derivative_is_refused():
    net, x = small_trunk(), random(1, 3, *SIDES).requires_grad_()
    value = net(x, ["relu2_1"])["relu2_1"].square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, x, create_graph=True)


@pytest.mark.parametrize("grad", [False, True])
def test_maps_are_kept_for_a_gradient_alone(grad):
    net, x, maps, alive = small_trunk(), random(1, 3, *SIDES), [], []

    def count(stage, inputs, output):
        maps.append(weakref.ref(output))
        alive.append(sum(one() is not None for one in maps))

    for stage in net.values():
        stage.register_forward_hook(count)
    with torch.set_grad_enabled(grad):
        features = net(x.requires_grad_(), ["relu3_1"])
    assert features["relu3_1"].requires_grad == grad
    # A stage has what it is given beside what it gives; of those before only convolutions are kept.
    assert alive == ([1, 2, 3, 4, 4, 5] if grad else [1, 2, 2, 2, 2, 2])


def test_another_precision_inside(convolving):
    """bfloat16 has 8 bits: features are 0.4 % off at most, and gradients more."""
    net, x = small_trunk(dtype=torch.float32), random(1, 3, *SIDES).float().requires_grad_()
    found, expected = net(x, STAGES, dtype=torch.bfloat16), net(x, STAGES)
    for layer in STAGES:
        assert found[layer].dtype == torch.float32
        off = (found[layer] - expected[layer]).norm() / expected[layer].norm()
        assert 1e-4 < off < 1e-2
    gradient, wanted = gradient_of(found, x), gradient_of(expected, x)
    assert gradient.dtype == torch.float32
    assert (gradient - wanted).norm() < 0.1 * wanted.norm()
