"""Optimisers on problems whose minimum is known, and their honesty about steps and the box."""

import math

import pytest
import torch

from losses import Criterion
from optimizers import LEARNING_RATES, OPTIMIZERS, optimize


def identity(image):
    return {"image": image}


def quadratic(wanted, curvature=1.0):
    """A loss whose minimum within the box is `wanted`, clamped to it."""

    def criterion(features):
        return (curvature * (features["image"] - wanted).square()).flatten(1).sum(1) + 1e-6

    return criterion


@pytest.fixture
def start():
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_every_optimizer_has_a_learning_rate():
    assert set(OPTIMIZERS) == set(LEARNING_RATES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finds_the_minimum_within_the_box(optimizer, start):
    # Half of the minima lie outside [0, 1], where the best picture is at the bound.
    wanted = torch.linspace(-0.5, 1.5, start.numel()).view_as(start)
    found = optimize(start, identity, quadratic(wanted), 300, optimizer)
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found, wanted.clamp(0, 1), atol=5e-3, rtol=0)


def test_lbfgs_is_quick_where_curvatures_differ(start):
    curvature = torch.logspace(0, 3, start.numel()).view_as(start)
    criterion = quadratic(torch.full_like(start, 0.3), curvature)
    found = optimize(start, identity, criterion, 150, "LBFGS")
    assert (found - 0.3).abs().max() < 0.01


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_steps_are_evaluations(optimizer, steps, start, tiny, checkerboard):
    seen, reported = [], []

    def extractor(image):
        seen.append(image)
        return tiny(image)

    criterion = Criterion("gram", tiny(checkerboard), tiny.layers)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimize(start, extractor, criterion, steps, optimizer, report=lambda *r: reported.append(r))
    assert len(seen) == steps
    assert [step for step, _, _ in reported] == list(range(1, steps + 1))
    assert all(image.min() >= 0 and image.max() <= 1 for image in seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_returns_the_best_and_leaves_the_start_alone(optimizer, tiny, checkerboard):
    criterion = Criterion("gram", tiny(checkerboard), tiny.layers)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, losses = start.clone(), []
    found = optimize(
        start, tiny, criterion, 30, optimizer, lr=0.5, report=lambda *r: losses.append(r[2])
    )
    assert torch.equal(start, before)
    assert losses == sorted(losses, reverse=True)
    assert criterion(tiny(found)).item() == pytest.approx(losses[-1])
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rolls_back_from_values_that_are_not_finite(optimizer, bad, start):
    # Beyond 0.6 the loss is not a number; the minimum, 0.55, lies just before.
    wanted = quadratic(torch.full_like(start, 0.55))

    def criterion(features):
        losses = wanted(features)
        return torch.where(features["image"].flatten(1).amax(1) > 0.6, bad, losses)

    found = optimize(start * 0.5, identity, criterion, 200, optimizer)
    assert (found - 0.55).abs().max() < 0.02


def test_rolls_back_from_a_gradient_that_is_not_finite(start):
    # sqrt has an infinite slope at 0, where the clamp brings the first long step.
    def criterion(features):
        return (features["image"].sqrt() - 0.5).square().flatten(1).sum(1)

    found = optimize(start, identity, criterion, 100, "LBFGS", lr=1000.0)
    assert (found - 0.25).abs().max() < 0.01


def test_a_start_without_a_finite_loss_is_a_bug(start):
    with pytest.raises(FloatingPointError, match="nan"):
        optimize(start, identity, lambda f: f["image"].flatten(1).sum(1) * math.nan, 3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stays_where_the_loss_is_zero(optimizer, tiny, checkerboard):
    criterion = Criterion("gram", tiny(checkerboard), tiny.layers)
    found = optimize(checkerboard, tiny, criterion, 10, optimizer)
    assert torch.equal(found, checkerboard)


def test_adam_does_not_mind_the_scale_of_the_loss(tiny, checkerboard):
    criterion = Criterion("gram", tiny(checkerboard), tiny.layers)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = optimize(start, tiny, criterion, 20)
    scaled = optimize(start, tiny, lambda features: 1024 * criterion(features), 20)
    torch.testing.assert_close(plain, scaled, atol=1e-3, rtol=0)


def test_a_batch_of_adam_is_its_single_runs(tiny, checkerboard):
    criterion = Criterion("gram", tiny(checkerboard), tiny.layers)
    batch = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = []
    optimize(batch, tiny, criterion, 5, report=lambda _, image, __: images.append(image))
    for i in range(2):
        single = optimize(batch[i : i + 1], tiny, criterion, 5)
        torch.testing.assert_close(images[-1][i : i + 1], single, atol=1e-4, rtol=0)
