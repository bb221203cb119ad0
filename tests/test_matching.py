"""Matching of patches against brute force, and what bounded memory does to it: nothing."""

import math
import weakref

import pytest
import torch
from torch.nn import functional as F

from terms import matching
from terms.matching import (
    BANDWIDTH,
    EPSILON,
    ContextualScore,
    ExtraDistance,
    chunk_rows,
    eager_gradient,
    nearest_patches,
    overlap_patches,
    share_offsets,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def columns(maps, patch):
    """(C, H, W) -> (N, C patch^2), patches in reading order."""
    return F.unfold(maps[None], patch)[0].T


# ------------------------------------------------------------------------------------- matching

SHAPES = [  # output, source, patch
    ((3, 6, 9), (3, 8, 5), 3),
    ((4, 11, 12), (4, 5, 7), 3),
    ((2, 4, 5), (2, 9, 13), 2),
    ((5, 3, 3), (5, 3, 8), 3),
    ((6, 5, 4), (6, 3, 6), 1),
]


def brute_force(output, source, patch):
    wanted = F.normalize(columns(source, patch), dim=1)
    correlation, nearest = (columns(output, patch) @ wanted.T).max(1)
    across = source.shape[2] - patch + 1
    index = nearest // across * source.shape[2] + nearest % across
    shape = output.shape[1] - patch + 1, output.shape[2] - patch + 1
    return index.view(shape), correlation.view(shape)


@pytest.mark.parametrize("chunk_bytes", [matching.CHUNK_BYTES, 1])
@pytest.mark.parametrize("output, source, patch", SHAPES)
def test_nearest_patches_is_brute_force(output, source, patch, chunk_bytes, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK_BYTES", chunk_bytes)
    output, source = noise(*output), noise(*source, seed=1)
    found, expected = nearest_patches(output, source, patch), brute_force(output, source, patch)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_nearest_patches_of_flat_features_is_finite():
    index, height = nearest_patches(torch.zeros(2, 4, 4), torch.zeros(2, 5, 5), 3)
    assert height.abs().max() == 0 and index.max() < 13  # the last patch begins at 2 * 5 + 2


def test_nearest_patches_holds_as_much_as_it_may(monkeypatch):
    held = []
    plain = matching._diagonal_sums

    def watched(x, *rest):
        held.append(x.numel() * 4)
        return plain(x, *rest)

    monkeypatch.setattr(matching, "_diagonal_sums", watched)
    output, source = noise(2, 12, 5), noise(2, 6, 7, seed=1)
    row = 5 * 6 * 7 * 4  # bytes of the products of one row of the output
    monkeypatch.setattr(matching, "CHUNK_BYTES", 3 * 4 * row)
    nearest_patches(output, source, 3)
    # Products and both sums of a strip fit when it has 4 rows, 2 of them patches: 10 in 5 strips.
    assert len(held) == 2 * 5 and max(held) == 4 * row


def test_nearest_patches_splits_a_large_source_too(monkeypatch):
    held = []
    plain = matching._nearest

    def watched(output, source, *rest):
        held.append((output.shape[1], source.shape[1]))
        return plain(output, source, *rest)

    monkeypatch.setattr(matching, "_nearest", watched)
    output, source = noise(2, 6, 5), noise(2, 12, 7, seed=1)
    # Three rows of the output, as few as hold a patch, against four of the source.
    monkeypatch.setattr(matching, "CHUNK_BYTES", 3 * 4 * (3 * 5) * (4 * 7))
    index, _ = nearest_patches(output, source, 3)
    assert held == 4 * (5 * [(3, 4)])  # two rows of patches each: 10 of the source in 5 strips
    assert torch.equal(index, brute_force(output, source, 3)[0])


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.9), (0.2, 0.3, 0.5)])
def test_offset_rows_are_highest_at_their_share(shares):
    heights = noise(len(shares), 2000) * torch.arange(1.0, 1 + len(shares))[:, None]
    added = share_offsets(heights, shares)
    found = (heights + added[:, None]).argmax(0).bincount() / 2000
    torch.testing.assert_close(found, torch.tensor(shares), atol=0.01, rtol=0)


def test_chunk_rows_by_hand(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(matching, "available_bytes", lambda device: 8 * 1000)
    monkeypatch.setattr(matching, "CHUNK_BYTES", 700)
    assert chunk_rows(200, cpu) == 3  # 700 bytes of it
    monkeypatch.setattr(matching, "CHUNK_BYTES", 5000)
    assert chunk_rows(200, cpu) == 5  # an eighth of what is free
    assert chunk_rows(2000, cpu) == 1  # there is no less


def test_chunks_where_the_system_does_not_say_what_is_free(monkeypatch):
    monkeypatch.setattr(matching, "available_bytes", lambda device: math.inf)
    assert chunk_rows(2**20, torch.device("cpu")) == matching.CHUNK_BYTES // 2**20


# ---------------------------------------------------------------------------------- overlapping


def test_overlapping_patches_by_hand():
    source = torch.tensor([[1.0, 2, 3, 4, 5, 6]])  # rows 1 2 3 and 4 5 6
    stride = torch.tensor([[3, 3]])
    # Both 2x2 patches where they are: the source itself, its middle column covered twice.
    mean, count, spread = overlap_patches(source, torch.tensor([[0, 1]]), stride, 2)
    assert mean.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert count.tolist() == [[1, 2, 1], [1, 2, 1]] and spread == 0
    # Exchanged, 2 3 over 5 6 comes first: the middle is (3 + 1) / 2 over (6 + 4) / 2, and all four
    # values are 1 away from it.
    mean, _, spread = overlap_patches(source, torch.tensor([[1, 0]]), stride, 2)
    assert mean.tolist() == [[[2, 2, 2], [5, 5, 5]]] and spread == 4


def test_each_patch_is_overlapped_at_its_own_stride():
    # Rows 1 2 3 and 4 5 6 of one map, then 7 8 and 9 10 of another one, from position 6 on.
    source = torch.arange(1.0, 11)[None]
    starts, stride = torch.tensor([[1], [6]]), torch.tensor([[3], [2]])
    mean, count, spread = overlap_patches(source, starts, stride, 2)
    # 2 3 over 5 6, and one row below 7 8 over 9 10.
    assert mean.tolist() == [[[2, 3], [6, 7], [9, 10]]]
    assert count.tolist() == [[1, 1], [2, 2], [1, 1]] and spread == 4


@pytest.mark.parametrize("patch", [2, 3])
def test_distance_from_the_mean_is_the_sum_over_patches(patch):
    source = noise(3, 7, 9).double()
    h, w = 6, 4
    maps = noise(3, h + patch - 1, w + patch - 1, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    ys = torch.randint(8 - patch, (h, w), generator=generator)
    xs = torch.randint(10 - patch, (h, w), generator=generator)
    stride = torch.full((h, w), 9)
    mean, count, spread = overlap_patches(source.flatten(1), ys * 9 + xs, stride, patch)
    found = ((maps - mean).square() * count).sum() + spread
    expected = 0
    for i in range(h):
        for j in range(w):
            y, x = ys[i, j], xs[i, j]
            wanted = source[:, y : y + patch, x : x + patch]
            expected += (maps[:, i : i + patch, j : j + patch] - wanted).square().sum()
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------------- contextual scores


def plain_scores(distance):
    """The formula, as the papers write it; the gradient through the minimum is autograd's."""
    least = distance.min(1, keepdim=True).values
    similarity = (1 - distance / (least + EPSILON)) / BANDWIDTH
    return -similarity.log_softmax(1).max(1).values


@pytest.fixture
def rows():
    """7 vectors and 11 unit vectors, a penalty of each unit vector, and guides of both."""
    output = noise(7, 4).double()
    source = F.normalize(noise(11, 4, seed=1).double(), dim=1)
    penalty = noise(11, seed=2).double().abs() / 4
    return output, source, penalty, (noise(7, 2, seed=3).double() / 9, noise(11, 2).double() / 9)


def test_contextual_score_by_hand():
    output = torch.tensor([[1.0, 0.0]])
    source = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    penalty = torch.tensor([1.0 - EPSILON, 1.0])
    # Distances 1 - EPSILON and 1 + 1, so that d_min + EPSILON is 1: the exponents are 2 (1 - d),
    # 2 EPSILON and -2.
    score = ContextualScore.apply(output, source, ExtraDistance(penalty))
    expected = torch.tensor([-2.0 - 2 * EPSILON]).exp().log1p()
    torch.testing.assert_close(score, expected)
    # One patch alone fits for certain, and so does one that is much nearer than the other.
    none = ExtraDistance(torch.zeros(1))
    assert ContextualScore.apply(output, source[1:], none).item() == 0
    assert ContextualScore.apply(output, source, none).item() == 0
    # Two that are as near: one half each.
    torch.testing.assert_close(
        ContextualScore.apply(output, source[[0, 0]], none), torch.tensor([2.0]).log()
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("chunk_bytes", [matching.CHUNK_BYTES, 8 * 11 * 3, 1])
def test_contextual_score_is_the_formula(guided, chunk_bytes, rows, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK_BYTES", chunk_bytes)
    output, source, penalty, (ours, theirs) = rows
    extra = penalty.expand(7, 11)
    if guided:
        extra = extra + 10 * (ours[:, None] - theirs).square().sum(2)
    output.requires_grad_()
    upstream = torch.linspace(-1, 2, 7).double()
    expected = plain_scores(1 - F.normalize(output, dim=1) @ source.T + extra)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), output)
    sizes, of_rows = [], ExtraDistance.of_rows

    def watched(held, rows):
        sizes.append(rows.stop - rows.start)
        return of_rows(held, rows)

    monkeypatch.setattr(ExtraDistance, "of_rows", watched)
    held = ExtraDistance(penalty, ours, theirs) if guided else ExtraDistance(penalty)
    scores = ContextualScore.apply(output, source, held)
    (gradient,) = torch.autograd.grad((scores * upstream).sum(), output)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(gradient, wanted)
    # 8 bytes a source row: all rows, three rows and one row at a time.
    assert sizes == {1: [1] * 7, 8 * 11 * 3: [3, 3, 1]}.get(chunk_bytes, [7])


def test_contextual_score_of_what_is_met_has_a_finite_gradient():
    source = F.normalize(noise(6, 3), dim=1)
    output = source.clone().requires_grad_()
    scores = ContextualScore.apply(output, source, ExtraDistance(torch.zeros(6)))
    scores.sum().backward()
    assert scores.abs().max() < 1e-6 and output.grad.isfinite().all()


def test_eager_gradient_is_that_of_the_function_and_frees_what_it_saves():
    x = noise(5, 4).requires_grad_()
    kept = []

    def function(x):
        cubes = x**3
        kept.append(weakref.ref(cubes))
        return (cubes * x.detach().abs()).sum()

    value = eager_gradient(function, x)
    assert kept[0]() is None
    torch.testing.assert_close(value, (x**3 * x.abs()).sum())
    (gradient,) = torch.autograd.grad(2 * value, x)
    torch.testing.assert_close(gradient, 6 * x**2 * x.abs())
    with torch.no_grad():
        torch.testing.assert_close(eager_gradient(function, x), value)
