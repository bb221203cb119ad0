"""Optimisers on problems whose minimum is known, and their honesty about steps and the box."""

import math
import weakref

import pytest
import torch
from conftest import criterion_of, fast_first, optimize

from engine import objective, optimizers
from engine.objective import Evaluator, Objective
from engine.optimizers import LINE_SEARCH_TRIALS, OPTIMIZERS
from losses import METHODS
from terms.base import Term


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


@pytest.mark.parametrize("short_of_one, third", [(5e-5, 0.5), (2e-4, 0.0)])
def test_lbfgs_asks_for_a_sufficient_decrease(short_of_one, third):
    """Armijo: at least 1e-4 of what the slope at the start promises.

    From 0 to 1 - e, (x - 0.5)^2 falls by e - e^2 where its slope promises 1 - e. Too little leads
    to the minimum of the parabola, 0.5; enough is accepted, and the next step, as long as all of
    them, ends at the bound on the other side.
    """
    seen = []

    def extractor(image):
        seen.append(image.item())
        return identity(image)

    lr = (1 - short_of_one) / optimizers.LBFGS_FIRST_MOVE
    optimize(torch.zeros(1, 1, 1, 1), extractor, quadratic(0.5), 3, "LBFGS", lr=lr)
    assert seen == pytest.approx([0, 1 - short_of_one, third], abs=1e-4)


def test_lbfgs_ends_where_no_trial_of_a_line_search_decreases_the_loss(start):
    """The gradient points downhill everywhere, but the loss grows by each move."""
    seen = []

    def criterion(features):
        image = features["image"]
        seen.append(1)
        moved = (image.detach() - start).abs() + image - image.detach()
        return 1 + moved.flatten(1).sum(1)

    found = optimize(start, identity, criterion, 100, "LBFGS")
    assert torch.equal(found, start) and len(seen) == 1 + LINE_SEARCH_TRIALS


def test_lbfgs_remembers_so_many_steps(start, monkeypatch):
    lengths, plain = [], optimizers.quasi_newton

    def watched(gradient, history):
        lengths.append(len(history))
        return plain(gradient, history)

    monkeypatch.setattr(optimizers, "quasi_newton", watched)
    curvature = torch.logspace(0, 3, start.numel()).view_as(start)
    criterion = quadratic(torch.full_like(start, 0.3), curvature)
    optimize(start, identity, criterion, 30, "LBFGS", memory=3)
    assert max(lengths) == 3


def test_lbfgs_learns_nothing_where_there_is_no_positive_curvature(monkeypatch):
    """-x^2 has none; a step learnt from -2 would lead uphill, from 0.45 to 0."""
    directions, plain = [], optimizers.quasi_newton

    def watched(gradient, history):
        direction = plain(gradient, history)
        directions.append(direction.mean().item())
        return direction

    def criterion(features):
        return 10 - features["image"].square().flatten(1).sum(1)

    monkeypatch.setattr(optimizers, "quasi_newton", watched)
    found = optimize(torch.full((1, 3, 4, 4), 0.4), identity, criterion, 6, "LBFGS")
    assert directions == pytest.approx([optimizers.LBFGS_FIRST_MOVE] * len(directions))
    assert found.mean().item() == pytest.approx(0.4 + 5 * optimizers.LBFGS_FIRST_MOVE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "method, steps", [*(("gram", n) for n in (0, 1, 40)), *((method, 7) for method in METHODS)]
)
def test_steps_are_evaluations(method, optimizer, steps, tiny, checkerboard):
    seen, reported = [], []

    def extractor(image):
        seen.append(image)
        return tiny(image)

    settings = dict(match_every=3)
    criterion = criterion_of(tiny(checkerboard), tiny.layers, method, **settings)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    optimize(start, extractor, criterion, steps, optimizer, report=reported.append)
    assert len(seen) == steps
    assert [step.number for step in reported] == list(range(1, steps + 1))
    assert all(image.min() >= 0 and image.max() <= 1 for image in seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_returns_the_best_and_leaves_the_start_alone(optimizer, tiny, checkerboard):
    criterion = criterion_of(tiny(checkerboard), tiny.layers)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, steps, lr = start.clone(), [], 10 * optimizers.LEARNING_RATES[optimizer]
    found = optimize(start, tiny, criterion, 30, optimizer, steps.append, lr=lr)
    losses = [step.loss for step in steps]
    assert torch.equal(start, before)
    assert losses == sorted(losses, reverse=True)
    assert criterion(tiny(found)).item() == pytest.approx(losses[-1])
    assert losses[-1] < losses[0] / 2


def looking(seen, name, shift=0.0):
    """An extractor that notes its name, and makes each pixel too bright by a shift."""

    def extractor(image):
        seen.append(name)
        return {"image": image + shift}

    return extractor


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_last_steps_are_exact(optimizer, start):
    """The rough extractor would lead to 0.28."""
    seen = []
    exact, rough = looking(seen, "exact"), looking(seen, "rough", 0.02)
    criterion = quadratic(torch.full_like(start, 0.3))
    found = optimize(start, exact, criterion, 60, optimizer, rough=rough, exact_steps=20)
    first = seen.index("exact")
    assert set(seen[:first]) == {"rough"} and set(seen[first:]) == {"exact"}
    # L-BFGS finishes its line search first, or finds a minimum before.
    assert first == 40 if optimizer == "Adam" else first <= 40 + LINE_SEARCH_TRIALS
    assert (found - 0.3).abs().max() < 0.01
    seen.clear()
    optimize(start, exact, criterion, 20, optimizer, rough=rough, exact_steps=20)
    assert set(seen) == {"exact"}


class Falling:
    """A criterion whose losses are given, whatever it is shown."""

    def __init__(self, losses, match_every=None):
        self.losses, self.match_every = iter(losses), match_every

    def __call__(self, features):
        return next(self.losses) + 0 * features["image"].flatten(1).sum(1)

    def rematch(self, features):
        pass


def losses_seen(losses, *arguments, match_every=None, **options):
    """How many steps Adam takes while the loss falls like that, and how many of them exactly."""
    seen, start = [], torch.full((1, 3, 2, 2), 0.5)
    exact, rough = looking(seen, "exact"), looking(seen, "rough")
    optimize(start, exact, Falling(losses, match_every), *arguments, rough=rough, **options)
    return len(seen), seen.count("exact")


def test_tolerance_ends_a_loss_that_hardly_falls():
    falling = [0.9**k for k in range(1000)]
    assert losses_seen(falling[:200], 200, tolerance=0.1) == (200, 0)
    # 60 steps down, then level: the median of the 20 steps before the last 20 is less than a tenth
    # above that once ten of them are there, after 90 steps. An eighth of 90 more are the last ones.
    level = falling[:60] + [falling[60]] * 500
    assert losses_seen(level, 200, tolerance=0.1) == (102, 12)
    assert losses_seen(level, 100, tolerance=0.1, exact_steps=5) == (100, 10)
    assert losses_seen(level, 200, tolerance=0.0, exact_steps=5) == (200, 5)


def test_tolerance_minds_neither_leaps_nor_rematches():
    falling = [0.9**k for k in range(1000)]
    leaps = [loss if k % 3 else math.inf for k, loss in enumerate(falling, 1)]
    assert losses_seen(leaps[:200], 200, tolerance=0.1) == (200, 0)
    # Every 50 steps a new objective, ten times as high, and no step that lowers it: by whole
    # rounds of 50, as long as matches are held, the loss falls by half.
    rounds = [0.5**r * (1 if k else 10) for r in range(4) for k in range(50)]
    assert losses_seen(rounds, 200, tolerance=0.1, match_every=50) == (200, 0)


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


def test_steps_after_which_adam_goes_back_say_so(start):
    """The third picture seen has no loss, and neither has the fifth."""
    seen, told = [], []

    def criterion(features):
        seen.append(1)
        losses = quadratic(torch.full_like(start, 0.55))(features)
        return losses * (math.nan if len(seen) in (3, 5) else 1)

    optimize(start * 0.5, identity, criterion, 10, "Adam", told.append)
    assert [step.number for step in told if step.went_back] == [3, 5]


def test_rolls_back_from_a_gradient_that_is_not_finite(start):
    # sqrt has an infinite slope at 0, where the clamp brings the first long step.
    def criterion(features):
        return (features["image"].sqrt() - 0.5).square().flatten(1).sum(1)

    found = optimize(start, identity, criterion, 100, "LBFGS", lr=1000.0)
    assert (found - 0.25).abs().max() < 0.01


@pytest.fixture(params=[0, 3])
def late(request, monkeypatch):
    """Losses that are read so many steps later, as those of a GPU are."""
    monkeypatch.setattr(optimizers, "CUDA", "cpu")
    monkeypatch.setattr(optimizers, "LATE", request.param)
    monkeypatch.setattr(objective, "graphed", lambda measure, image: measure)
    for module in (objective, optimizers):
        monkeypatch.setattr(module, "start_reading", lambda values: values.tolist)
    return request.param


@pytest.mark.parametrize("every", [None, 4])
def test_losses_that_are_read_late_tell_the_same(late, every, start, monkeypatch):
    criterion, told = quadratic(torch.full_like(start, 0.3)), []
    criterion.match_every, criterion.rematch = every, lambda features: None

    def report(step):
        told.append((step.number, step.image.clone(), step.loss))

    found = optimize(start, identity, criterion, 30, report=report, exact_steps=5, rough=identity)
    monkeypatch.setattr(optimizers, "LATE", 0)
    at_once = []
    wanted = optimize(
        start, identity, criterion, 30, report=at_once.append, exact_steps=5,
        rough=identity,
    )  # fmt: skip
    assert torch.equal(found, wanted)
    assert [step for step, _, _ in told] == list(range(1, 31))
    for (_, image, loss), (_, other, same, *_) in zip(told, at_once, strict=True):
        assert torch.equal(image, other) and loss == same


def test_a_state_is_that_of_its_step_though_losses_are_read_late(late, start):
    criterion = quadratic(torch.full_like(start, 0.3))
    criterion.match_every, criterion.generators = None, []
    objective = Objective(identity, criterion)
    resumable = []
    for step in optimizers.minimize(start, objective, optimizers.Settings(70)):
        if step.state is not None:
            resumable.append(step.number)
            assert step.state()["evaluator"]["taken"] == step.number
    assert resumable == ([64] if late else list(range(1, 70)))


def test_what_is_not_finite_is_left_though_it_is_read_late(late, start):
    """From the 10th step on, for two steps; the best picture is that of the 9th or a later one."""
    plain, calls = quadratic(torch.full_like(start, 0.3)), []

    def criterion(features):
        calls.append(features["image"].detach())
        return plain(features) * (math.nan if len(calls) in (10, 11) else 1)

    found = optimize(start, identity, criterion, 60)
    assert len(calls) == 60
    assert plain({"image": found}).sum() <= plain({"image": calls[8]}).sum()
    torch.testing.assert_close(calls[10 + late], calls[8], atol=0.1, rtol=0)


def test_a_start_without_a_finite_loss_is_a_bug(start):
    with pytest.raises(FloatingPointError, match="nan"):
        optimize(start, identity, lambda f: f["image"].flatten(1).sum(1) * math.nan, 3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stays_where_the_loss_is_zero(optimizer, tiny, checkerboard):
    criterion = criterion_of(tiny(checkerboard), tiny.layers)
    found = optimize(checkerboard, tiny, criterion, 10, optimizer)
    assert torch.equal(found, checkerboard)


def test_adam_does_not_mind_the_scale_of_the_loss(tiny, checkerboard):
    criterion = criterion_of(tiny(checkerboard), tiny.layers)
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = optimize(start, tiny, criterion, 20)
    scaled = optimize(start, tiny, lambda features: 1024 * criterion(features), 20)
    torch.testing.assert_close(plain, scaled, atol=1e-3, rtol=0)


def test_a_batch_of_adam_is_its_single_runs(tiny, checkerboard):
    criterion = criterion_of(tiny(checkerboard), tiny.layers)
    batch = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = []
    optimize(batch, tiny, criterion, 5, report=lambda step: images.append(step.image))
    for i in range(2):
        single = optimize(batch[i : i + 1], tiny, criterion, 5)
        torch.testing.assert_close(images[-1][i : i + 1], single, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------ rematches


class Moving:
    """A criterion whose minimum and height change at every rematch; keeps a diary of all."""

    def __init__(self, match_every, objectives=((0.5, 1e-6),), curvature=1.0):
        self.match_every, self.objectives, self.curvature = match_every, objectives, curvature
        self.pictures, self.reported = [], []  # of every forward pass, of every step
        self.rematched = []  # after how many steps
        self.seen = []  # since the last rematch, pictures and losses

    def minimise(self, start, steps, optimizer, lr=None):
        return optimize(start, self.extract, self, steps, optimizer, self.report, lr=lr)

    def extract(self, image):
        self.pictures.append(image.detach())
        return {"image": image}

    def report(self, step):
        self.reported.append(step.loss)

    def rematch(self, features):
        self.rematched.append(len(self.reported))
        self.wanted, self.height = self.objectives[(len(self.rematched) - 1) % len(self.objectives)]
        self.seen = []

    def __call__(self, features):
        distance = self.curvature * (features["image"] - self.wanted).square()
        losses = distance.flatten(1).sum(1) + self.height
        self.seen.append((features["image"].detach(), losses.sum().item()))
        return losses


@pytest.mark.parametrize("every, expected", [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (7, [0])])
def test_adam_rematches_every_so_many_steps(every, expected, start):
    criterion = Moving(every)
    criterion.minimise(start, 7, "Adam")
    assert criterion.rematched == expected and len(criterion.pictures) == 7


@pytest.mark.parametrize("every", [1, 5, 20])
def test_lbfgs_sees_another_picture_in_every_step(every, start):
    """A rematch works on the features that are there: neither a step nor a forward pass."""
    curvature = torch.logspace(0, 3, start.numel()).view_as(start)
    criterion = Moving(every, ((0.3, 1e-6), (0.7, 1e-6)), curvature)
    criterion.minimise(start, 120, "LBFGS")
    assert len(criterion.reported) == len(criterion.pictures) == 120
    distinct = len({picture.numpy().tobytes() for picture in criterion.pictures})
    assert distinct == 120
    assert len(criterion.rematched) > 80 / every


@pytest.mark.parametrize("every", [1, 5, 20])
def test_a_rematch_judges_by_the_features_of_the_last_step(every, start):
    """What another forward pass for the same picture would give."""
    criterion = Moving(every, ((0.3, 1e-6), (0.7, 1e-6)))
    evaluate = Evaluator(Objective(identity, criterion), steps=2 * every)
    for step in range(every):
        evaluate(start, rematch=step == 0, keep=True)
    again = evaluate.rematch_last(start)
    assert evaluate.taken == every and criterion.wanted == 0.7
    losses, gradient, total = evaluate(start)
    torch.testing.assert_close(again, (losses, gradient, total))
    torch.testing.assert_close(gradient, 2 * (start - 0.7))  # of (x - 0.7)^2


def test_features_are_freed_where_no_rematch_is_due(start, tiny):
    held = []

    def extractor(image):
        assert not any(features() is not None for features in held), "two graphs at once"
        features = tiny(image)
        held.append(weakref.ref(features["relu2_1"]))
        return features

    def criterion(features):
        return features["relu2_1"].square().flatten(1).sum(1)

    criterion.match_every, criterion.rematch = 3, lambda features: None
    evaluate = Evaluator(Objective(extractor, criterion), steps=6)
    start = start.repeat(1, 1, 2, 2)
    found = []
    for keep in (True, True, True, False, True, True):
        evaluate(start, rematch=evaluate.rematched is None, keep=keep)
        found.append(held[-1]() is not None)
    # Due from the third step on, after the last of which nothing comes.
    assert found == [False, False, True, False, True, False]


@pytest.mark.parametrize("every", [1, 5, 20])
def test_lbfgs_rematches_in_time_and_between_line_searches(every, start, monkeypatch):
    searches, plain = [0], optimizers.LBFGS._try

    def watched(self, evaluate, search, gradient):
        rematched = len(criterion.rematched)
        plain(self, evaluate, search, gradient)
        searches.append(search.trials + 1)
        assert len(criterion.rematched) == rematched

    monkeypatch.setattr(optimizers.LBFGS, "_try", watched)
    curvature = torch.logspace(0, 3, start.numel()).view_as(start)
    # A thousand times too long a step: most line searches need several trials.
    criterion = Moving(every, ((0.3, 1e-6), (0.7, 1e-6)), curvature)
    criterion.minimise(start, 120, "LBFGS", lr=1000.0)
    assert len(criterion.pictures) == 120 and max(searches) > 1
    gaps = [
        b - a for a, b in zip(criterion.rematched, [*criterion.rematched[1:], 120], strict=True)
    ]
    assert criterion.rematched[0] == 0 and len(gaps) > 2
    assert min(gaps[:-1]) >= every and max(gaps) <= every + LINE_SEARCH_TRIALS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("height", fast_first([0.1, 1e-6, 10]))
def test_follows_an_objective_that_moves(optimizer, height, start):
    # Of small height the loss jumps by orders of magnitude, and what Adam remembers is stale.
    criterion = Moving(100, ((0.2, height), *[(0.8, height)] * 100))
    found = criterion.minimise(start, 300, optimizer)
    assert (found - 0.8).abs().max() < 0.05


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [21, 22, 30])
def test_the_best_is_the_best_of_the_last_objective(optimizer, steps, start):
    # From the second one on, no loss is as small as those before.
    criterion = Moving(20, ((0.2, 1e-6), *[(0.8, 1e3)] * 10))
    found, reported = criterion.minimise(start, steps, optimizer), criterion.reported
    assert len(criterion.rematched) > 1 or optimizer == "LBFGS"
    best, loss = min(criterion.seen, key=lambda pair: pair[1])
    assert torch.equal(found, best) and reported[-1] == loss
    for a, b in zip(criterion.rematched, [*criterion.rematched[1:], steps], strict=True):
        assert reported[a:b] == sorted(reported[a:b], reverse=True)
    assert len(reported) == steps


def test_lbfgs_rematches_where_it_is_done(start):
    # At the minimum from the first step on; only another objective can lead on.
    criterion = Moving(1000, ((0.5, 0.0), (0.5, 0.0), (0.7, 0.0)))
    found = criterion.minimise(torch.full_like(start, 0.5), 20, "LBFGS")
    # One trial each is in vain.
    assert criterion.rematched[:3] == [0, 2, 4] and len(criterion.pictures) == 20
    assert len(criterion.rematched) > 2 and found.isfinite().all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loss_that_is_not_finite_after_a_rematch_keeps_the_best_before(optimizer, start):
    criterion = Moving(10, ((0.5, 1e-6), *[(0.5, math.nan)] * 100))
    found = criterion.minimise(start, 40, optimizer)
    assert found.isfinite().all() and len(criterion.rematched) > 1


def test_a_function_is_never_rematched(start):
    def criterion(features):
        return features["image"].square().flatten(1).sum(1)

    criterion.rematch = None  # would raise when called
    criterion.match_every = None
    for optimizer in OPTIMIZERS:
        assert optimize(start, identity, criterion, 100, optimizer).max() < 0.05


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "method", fast_first([m for m in METHODS if METHODS[m].kind.rematch is not Term.rematch])
)
def test_methods_that_are_rematched_get_nearer(method, optimizer, tiny):
    source = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    start = torch.full((1, 3, 16, 16), 0.5) + 0.1 * (source.flip(2, 3) - 0.5)
    criterion = criterion_of(tiny(source), tiny.layers, method)

    def loss(image):
        criterion.rematch(tiny(image))
        return criterion(tiny(image)).item()

    found = optimize(start, tiny, criterion, 25, optimizer)
    assert loss(found) < loss(start) / 2
