"""Patches of feature maps: finding the nearest ones in bounded memory, and how well they fit."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import available_bytes

GUIDE_WEIGHT = 10.0  # of squared distances of guides, beside cosines of features
CHUNK_BYTES = 2**27  # of similarities held at a time, where there is room for them
FREE_SHARE = 8  # and at most this part of the memory that is available
BANDWIDTH = 0.5
EPSILON = 1e-3  # of a cosine distance; float32 resolves 1e-7, and gradients grow as its inverse


def chunk_rows(row_bytes: int, device: torch.device) -> int:
    """How many rows of that many bytes may be held at a time, at least one."""
    return max(1, int(min(CHUNK_BYTES, available_bytes(device) / FREE_SHARE)) // row_bytes)


def row_slices(count: int, rows: int) -> Iterator[slice]:
    """Slices of at most that many rows, which cover `count` of them."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def resize_guide(guide: Tensor | None, size: Sequence[int]) -> Tensor:
    """(1, G, H, W) -> (1, G, h, w): a guide in the size of a layer."""
    assert guide is not None  # a canvas that is guided has exemplars that are
    return F.interpolate(guide, tuple(size), mode="bilinear", antialias=True)


def gather_patches(maps: Tensor, starts: Tensor, patch: int) -> Tensor:
    """(1, C, H, W), (N,) positions y * W + x of the first pixels -> (C patch^2, N), as `F.unfold`
    orders them: all patches of a large layer would not fit, only those that are asked for are
    ever copied."""
    C, _, W = maps.shape[1:]
    steps = torch.arange(patch, device=maps.device)
    positions = (steps[:, None] * W + steps).view(-1, 1) + starts  # (patch^2, N)
    flat = maps.movedim(1, -1).reshape(-1, C)
    return flat[positions].permute(2, 0, 1).flatten(0, 1)


def nearest_patches(
    output: Tensor,
    source: Tensor,
    patch: int,
    here: Tensor | None = None,
    there: Tensor | None = None,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(C, H, W), (C, h, w) -> for every output patch the source patch of highest normalised
    correlation, as the (H - patch + 1, W - patch + 1) index y * w + x of its first position, and
    that correlation times the norm of the output patch.

    Guides of output and source patches, (G, H - patch + 1, W - patch + 1) and (G, h - patch + 1,
    w - patch + 1), take their squared distance off the correlation. Only source patches
    that are `usable`, (h - patch + 1, w - patch + 1) of bool, are found; None: all.

    The correlation of two patches is a sum of products of positions, so the products are computed
    once per pair of positions and summed along the diagonals: a ninth of the arithmetic that
    matching unfolded 3x3 patches takes. Streams over strips of rows of both; never holds all pairs.
    """
    (_, H, W), (_, h, w) = output.shape, source.shape
    # Strips of n rows of patches need the products of n + patch - 1 rows, and three buffers.
    pairs = chunk_rows((3 if here is None else 5) * 4, output.device)
    source_rows = min(h - patch + 1, max(1, pairs // (patch * W * w) - patch + 1))
    rows = max(1, pairs // (W * w * (source_rows + patch - 1)) - patch + 1)
    starts: list[Tensor] = []
    similarities: list[Tensor] = []
    for top in range(0, H - patch + 1, rows):
        strip = output[:, top : top + rows + patch - 1]
        found: list[Sequence[Tensor]] = []
        for y in range(0, h - patch + 1, source_rows):
            part = source[:, y : y + source_rows + patch - 1]
            guides = None
            if here is not None and there is not None:
                guides = here[:, top : top + rows], there[:, y : y + source_rows]
            among = None if usable is None else usable[y : y + source_rows]
            start, similarity = _nearest(strip, part, patch, guides, among)
            found.append((start + y * w, similarity))
        start, similarity = reduce(elementwise_best, found)
        starts.append(start)
        similarities.append(similarity)
    return torch.cat(starts), torch.cat(similarities)


def elementwise_best(one: Sequence[Tensor], other: Sequence[Tensor]) -> Sequence[Tensor]:
    """(found, similarity, ...) twice -> position by position what is more similar."""
    return tuple(torch.where(other[1] > one[1], b, a) for a, b in zip(one, other, strict=True))


def share_offsets(similarities: Tensor, shares: Sequence[float]) -> Tensor:
    """(K, N), K shares of sum 1 -> (K,): what to add to each row for it to be the highest one at
    its share of the N places.

    The dual of an optimal transport of places to rows, by subgradients.
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
    """What `nearest_patches` returns, holding the products of all pairs of positions."""
    (C, H, W), (_, h, w) = output.shape, source.shape
    norms = F.avg_pool2d(source.square().sum(0)[None, None], patch, 1)[0, 0] * patch**2
    products = (output.reshape(C, -1).T @ source.reshape(C, -1)).view(H, W, h, w)
    sums = _diagonal_sums(_diagonal_sums(products, 0, 2, patch), 1, 3, patch)
    similarities = sums.mul_(norms.clamp(min=1e-12).rsqrt()).flatten(2)
    if guides is not None:
        sizes = F.avg_pool2d(output.square().sum(0)[None], patch, 1)[0].mul(patch**2).sqrt()
        here, there = (guide.flatten(1).T for guide in guides)
        similarities -= sizes[..., None] * torch.cdist(here, there).square().view(
            similarities.shape
        )
    if usable is not None:
        similarities.masked_fill_(~usable.flatten(), -torch.inf)
    similarity, found = similarities.max(2)
    across = w - patch + 1
    return found // across * w + found % across, similarity


def _diagonal_sums(x: Tensor, a: int, b: int, window: int) -> Tensor:
    """Sums of `window` steps along two axes at once, each of which gets shorter accordingly."""
    counts = x.shape[a] - window + 1, x.shape[b] - window + 1
    total = x.narrow(a, 0, counts[0]).narrow(b, 0, counts[1]).clone()
    for i in range(1, window):
        total += x.narrow(a, i, counts[0]).narrow(b, i, counts[1])
    return total


def overlap_patches(
    source: Tensor, starts: Tensor, stride: Tensor, patch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Source patches laid where they were found to fit, overlapping.

    Args:
        source: (C, n) features of all positions that patches are taken from.
        starts: (h, w) the index in `source` of each patch's first position.
        stride: (h, w) how many positions further the next row of that patch begins.

    Returns:
        (C, h + patch - 1, w + patch - 1): their mean at every position; how many overlap there,
        (h + patch - 1, w + patch - 1); and the sum of the squared distances of what overlaps from
        its mean, over all positions.
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
    """`function(x)`, a single number, with its gradient computed now instead of on the way back.

    All that the function keeps for its gradient, copies of every patch for one, is free again
    before the next function is called.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach() + ((x - leaf.detach()) * gradient).sum()


class ContextualScore(torch.autograd.Function):
    """How well each row of `output` fits one row of `source`, and that one alone.

    `-log softmax((1 - d / (d_min + epsilon)) / BANDWIDTH)` at the nearest row (Mechrez et al.,
    "The Contextual Loss", 2018; Zhou et al. 2023): 0 where one source patch is much nearer than
    all others. d is 1 - cosine plus what `extra` adds; the rows of `source` are unit vectors.

    Value and gradient are computed together, strip by strip: neither the N x M matrix nor the
    output's unit vectors ever exist whole.
    """

    @staticmethod
    def forward(ctx, output: Tensor, source: Tensor, extra: Callable):
        """(N, D), (M, D), function of a slice of rows that gives what to add to (n, M) -> (N,)."""
        scores, gradient = [], torch.empty_like(output)
        for rows in row_slices(len(output), chunk_rows(8 * len(source), output.device)):
            norm = output[rows].norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit = output[rows] / norm
            distance = (unit @ source.T).neg_().add_(1).clamp_(min=0)
            distance += extra(rows)
            least, nearest = distance.min(1, keepdim=True)
            least_safe = least + EPSILON
            scale = 1 / (BANDWIDTH * least_safe)
            exponent = distance.sub_(least).mul_(-scale)  # 0 at the nearest, negative elsewhere
            share = exponent.exp()
            total = share.sum(1, keepdim=True)
            share /= total
            # Along d_j: -scale share_j. Along d_min, which is in every exponent and in the scale:
            along_least = scale - (share * exponent).sum(1, keepdim=True) / least_safe
            # Distances fall as products rise: the gradient by products has the other sign.
            along = share.mul_(scale).scatter_add_(1, nearest, -along_least)
            scores.append(total.log()[:, 0])
            by_unit = along @ source
            # What points along the row itself would only change its norm.
            by_unit -= (by_unit * unit).sum(1, keepdim=True) * unit
            gradient[rows] = by_unit.div_(norm)
        ctx.save_for_backward(gradient)
        return torch.cat(scores)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return ctx.saved_tensors[0] * upstream[:, None], None, None
