"""Nearest patches and contextual similarity of patches, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from utils import available_bytes

GUIDE_WEIGHT = 10.0  # of squared distances of guides, relative to cosines of features
CHUNK_BYTES = 2**27  # largest chunk of similarities
CHUNKS_IN_MEMORY = 8  # at least as many chunks must fit into the available memory
BANDWIDTH = 0.5  # h of the contextual similarity
EPSILON = 1e-3  # added to cosine distances, of resolution 1e-7; gradients grow as 1 / EPSILON


def chunk_rows(row_bytes: int, device: torch.device) -> int:
    """Return the number of rows of `row_bytes` bytes that fit into a chunk, at least 1."""
    return max(1, int(min(CHUNK_BYTES, available_bytes(device) / CHUNKS_IN_MEMORY)) // row_bytes)


def row_slices(count: int, rows: int) -> Iterator[slice]:
    """Split `count` rows into slices of at most `rows`."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def resize_guide(guide: Tensor | None, size: Sequence[int]) -> Tensor:
    """Resize a guide to the size of a layer: (1, G, H, W) -> (1, G, h, w)."""
    assert guide is not None  # if the canvas has a guide, all views have one
    return F.interpolate(guide, tuple(size), mode="bilinear", antialias=True)


def gather_patches(maps: Tensor, starts: Tensor, patch: int) -> Tensor:
    """Return some of the columns of `F.unfold`, without copying the others.

    Args:
        maps: (1, C, H, W).
        starts: (N,), positions y * W + x of the patches' upper left corners.
        patch: side of a patch.

    Returns:
        (C patch^2, N)
    """
    C, _, W = maps.shape[1:]
    steps = torch.arange(patch, device=maps.device)
    positions = (steps[:, None] * W + steps).view(-1, 1) + starts  # (patch^2, N)
    flat = maps.movedim(1, -1).reshape(-1, C)
    return flat[positions].permute(2, 0, 1).flatten(0, 1)


def nearest_patches(
    output: Tensor,
    source: Tensor,
    patch: int,
    guides: tuple[Tensor, Tensor] | None = None,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the source patch of highest normalised correlation for every output patch.

    The correlation of two patches is the sum of the inner products of the features at corresponding
    positions. The inner products are computed once for each pair of positions and summed along the
    diagonals, which takes a ninth of the arithmetic of matching unfolded 3x3 patches. Rows of both
    maps are processed in chunks, so that the products of all pairs are never in memory.

    Args:
        output: (C, H, W).
        source: (C, h, w).
        patch: side of a patch.
        guides: of the patches of output and source, (G, H - patch + 1, W - patch + 1) and
            (G, h - patch + 1, w - patch + 1); their squared distance is subtracted from the
            correlation.
        usable: (h - patch + 1, w - patch + 1) of bool, the source patches to search; None: all.

    Returns:
        Both (H - patch + 1, W - patch + 1): the position y * w + x of the upper left corner of the
        source patch, and its correlation multiplied by the norm of the output patch.
    """
    (_, H, W), (_, h, w) = output.shape, source.shape
    # n rows of patches need the products of n + patch - 1 rows, in three buffers; five with guides.
    pairs = chunk_rows((3 if guides is None else 5) * 4, output.device)
    source_rows = min(h - patch + 1, max(1, pairs // (patch * W * w) - patch + 1))
    rows = max(1, pairs // (W * w * (source_rows + patch - 1)) - patch + 1)
    best: list[Sequence[Tensor]] = []
    for top in range(0, H - patch + 1, rows):
        strip = output[:, top : top + rows + patch - 1]
        found: list[Sequence[Tensor]] = []
        for y in range(0, h - patch + 1, source_rows):
            part, there = source[:, y : y + source_rows + patch - 1], slice(y, y + source_rows)
            near = guides and (guides[0][:, top : top + rows], guides[1][:, there])
            some = None if usable is None else usable[there]
            start, similarity = _nearest(strip, part, patch, near, some)
            found.append((start + y * w, similarity))
        best.append(reduce(elementwise_best, found))
    return torch.cat([start for start, _ in best]), torch.cat([found for _, found in best])


def elementwise_best(one: Sequence[Tensor], other: Sequence[Tensor]) -> Sequence[Tensor]:
    """Select, at each position, from the tuple (start, similarity, ...) of higher similarity."""
    return tuple(torch.where(other[1] > one[1], b, a) for a, b in zip(one, other, strict=True))


def share_offsets(similarities: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the offsets of rows with which each row has the highest similarity in its share of the
    columns.

    They are the dual variables of an optimal transport of columns to rows, found by subgradient
    ascent.

    Args:
        similarities: (K, N).
        shares: K numbers with sum 1.

    Returns:
        (K,), to add to the rows.
    """
    wanted = torch.tensor(shares, device=similarities.device, dtype=similarities.dtype)
    added = torch.zeros_like(wanted)
    step = similarities.std().clamp(min=1e-6)
    for i in range(200):
        best = (similarities + added[:, None]).argmax(0)
        found = best.bincount(minlength=len(wanted)) / similarities.shape[1]
        added += step / (1 + i / 10) * (wanted - found)
    return added


def _nearest(
    output: Tensor,
    source: Tensor,
    patch: int,
    guides: tuple[Tensor, Tensor] | None = None,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same as `nearest_patches`, with the products of all pairs of positions in memory."""
    (C, H, W), (_, h, w) = output.shape, source.shape
    norms = F.avg_pool2d(source.square().sum(0)[None, None], patch, 1)[0, 0] * patch**2
    products = (output.reshape(C, -1).T @ source.reshape(C, -1)).view(H, W, h, w)
    sums = _diagonal_sums(_diagonal_sums(products, 0, 2, patch), 1, 3, patch)
    similarities = sums.mul_(norms.clamp(min=1e-12).rsqrt()).flatten(2)
    if guides is not None:
        sizes = F.avg_pool2d(output.square().sum(0)[None], patch, 1)[0].mul(patch**2).sqrt()
        output_guide, source_guide = (guide.flatten(1).T for guide in guides)
        distances = torch.cdist(output_guide, source_guide).square()
        similarities -= sizes[..., None] * distances.view(similarities.shape)
    if usable is not None:
        similarities.masked_fill_(~usable.flatten(), -torch.inf)
    similarity, found = similarities.max(2)
    across = w - patch + 1
    return found // across * w + found % across, similarity


def _diagonal_sums(x: Tensor, a: int, b: int, window: int) -> Tensor:
    """Return the sums of `window` consecutive elements along the diagonals of dimensions a and b;
    both dimensions become shorter by window - 1."""
    counts = x.shape[a] - window + 1, x.shape[b] - window + 1
    total = x.narrow(a, 0, counts[0]).narrow(b, 0, counts[1]).clone()
    for i in range(1, window):
        total += x.narrow(a, i, counts[0]).narrow(b, i, counts[1])
    return total


def overlap_patches(
    source: Tensor, starts: Tensor, stride: Tensor, patch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Place the matched source patches at the positions of the output patches, and average them
    where they overlap.

    Args:
        source: (C, n), features of all source positions.
        starts: (h, w), index in `source` of the upper left position of each patch.
        stride: (h, w), difference of index between consecutive rows of each patch.
        patch: side of a patch.

    Returns:
        mean: (C, h + patch - 1, w + patch - 1), of the patches that cover each position.
        count: (h + patch - 1, w + patch - 1), number of these patches.
        spread: (), sum over positions of the squared distances of these patches from their mean.
    """
    h, w = starts.shape
    total = source.new_zeros(len(source), h + patch - 1, w + patch - 1)
    count = source.new_zeros(h + patch - 1, w + patch - 1)
    squares = source.new_zeros(())
    for y in range(patch):
        for x in range(patch):
            part = source[:, (starts + y * stride + x).flatten()].view(-1, h, w)
            total[:, y : y + h, x : x + w] += part
            count[y : y + h, x : x + w] += 1
            squares += part.square().sum()
    mean = total / count
    return mean, count, (squares - (mean.square() * count).sum()).clamp(min=0)


def eager_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the scalar `function(x)`, and compute its gradient immediately.

    Tensors that the function saves for its backward pass, such as copies of all patches, are freed
    on return.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach() + ((x - leaf.detach()) * gradient).sum()


class ExtraDistance(NamedTuple):
    """Terms that are added to the cosine distances of N output patches from M source patches."""

    penalty: Tensor  # (M,)
    output_guide: Tensor | None = None  # (N, G)
    source_guide: Tensor | None = None  # (M, G)

    def of_rows(self, rows: slice) -> Tensor:
        """Return the extra distance of n output patches, (n, M), or (M,) without guides."""
        if self.output_guide is None or self.source_guide is None:
            return self.penalty
        distance = torch.cdist(self.output_guide[rows], self.source_guide).square()
        return self.penalty + GUIDE_WEIGHT * distance


class ContextualScore(torch.autograd.Function):
    """Negative logarithm of the contextual similarity of each output row and its nearest source
    row: `-log(softmax((1 - d / (min(d) + EPSILON)) / BANDWIDTH))` at the nearest, where d is the
    distance from each source row, 1 - cosine + extra (Mechrez, Talmi and Zelnik-Manor, "The
    Contextual Loss for Image Transformation with Non-Aligned Data", 2018; Zhou et al., 2023). It is
    near 0 if one source row is much nearer than all others.

    Value and gradient are computed together, in chunks of rows, so that the N x M matrix of
    distances is never in memory.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, source: Tensor, extra: ExtraDistance) -> Tensor:
        """
        Args:
            output: (N, D).
            source: (M, D), unit vectors.
            extra: added to the cosine distances.

        Returns:
            (N,)
        """
        scores, gradient = [], torch.empty_like(output)
        for rows in row_slices(len(output), chunk_rows(8 * len(source), output.device)):
            norm = output[rows].norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit = output[rows] / norm
            distance = (unit @ source.T).neg_().add_(1).clamp_(min=0)
            distance += extra.of_rows(rows)
            least, nearest = distance.min(1, keepdim=True)
            least_safe = least + EPSILON
            scale = 1 / (BANDWIDTH * least_safe)
            exponent = distance.sub_(least).mul_(-scale)  # 0 at the nearest row, else negative
            share = exponent.exp()
            total = share.sum(1, keepdim=True)
            share /= total
            # The derivative with respect to d_j is -scale share_j. The minimum is part of every
            # exponent and of the scale:
            by_least = scale - (share * exponent).sum(1, keepdim=True) / least_safe
            # With respect to the inner products the signs are opposite, as d_j is 1 - product.
            by_product = share.mul_(scale).scatter_add_(1, nearest, -by_least)
            scores.append(total.log()[:, 0])
            by_unit = by_product @ source
            # The component along the row has no effect, as rows are normalised.
            by_unit -= (by_unit * unit).sum(1, keepdim=True) * unit
            gradient[rows] = by_unit.div_(norm)
        ctx.save_for_backward(gradient)
        return torch.cat(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None], None, None
