"""3x3 convolution by Winograd's minimal filtering, F(4x4, 3x3): a quarter of the multiplications.

Winograd, "Arithmetic Complexity of Computations", 1980; applied to convolutional networks by Lavin
and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, whose notation is used here.

In one dimension F(m, 3) computes m outputs of a filter of 3 taps from m + 2 inputs with m + 2
multiplications instead of 3 m:

    y = A' [(G g) * (B' d)]                 d (m + 2) inputs, g (3) filter, y (m) outputs

F(2, 3) with the points 0, 1, -1 and infinity, small enough to check by hand:

    d = (1, 2, 3, 4)   g = (1, 0, 2)   y = (1*1 + 0*2 + 2*3, 1*2 + 0*3 + 2*4) = (7, 10)

         [1  0 -1  0]        [-2]         [ 1    0    0 ]       [  1 ]
    B' = [0  1  1  0]  B'd = [ 5]    G  = [1/2  1/2  1/2]  Gg = [ 3/2]
         [0 -1  1  0]        [ 1]         [1/2 -1/2  1/2]       [ 3/2]
         [0  1  0 -1]        [-2]         [ 0    0    1 ]       [  2 ]

    A' = [1  1  1  0]   (Gg) * (B'd) = (-2, 15/2, 3/2, -4)
         [0  1 -1 -1]   y = (-2 + 15/2 + 3/2, 15/2 - 3/2 + 4) = (7, 10)

In two dimensions every matrix is applied to rows and columns, Y = A' [(G g G') * (B' d B)] A, which
is its Kronecker square applied to the flattened window. A 4x4 block of outputs depends on a 6x6
window of inputs. Every factor is one matrix product over all channels of many windows, so that the
arithmetic runs at the processor's full rate:

    filters = (G x G) g             (36, C, K)   once
    inputs = (B' x B') windows      (36, N, C)   N windows
    products = inputs @ filters     (36, N, K)   36 independent matrix products
    blocks = (A' x A') products     (16, N, K)

Relative errors are 1.3e-6 in float32, those of a direct convolution 0.6e-6. Blocks of 2x2 and 3x3
are as accurate as a direct convolution but save less: a step through conv4_1 takes 0.87 and 0.85 of
its time by direct convolutions, with 4x4 0.74.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK, WINDOW = 4, 6  # px: sides of a block of outputs and of the window that it depends on
# Interpolation points beside infinity. Barabasz et al., "Error analysis and improving the accuracy
# of Winograd convolution for deep neural networks", 2020: 1.5 times as accurate as 0, 1, -1, 2, -2.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
ONE = POINTS.index(1.0)
CENTRE = WINDOW * ONE + ONE  # the product at (1, 1), which is a term of all outputs with weight 1
WINDOWS_PER_PASS = 256  # enough for products at full rate, few enough to stay in the cache


def _powers(columns: int) -> Tensor:
    """Return the powers 0, 1, ... of each point, (6, columns); of infinity: 0, ..., 0, 1."""
    powers = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(columns)
    infinity = torch.zeros(1, columns, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat((powers, infinity))


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return A' x A' (16, 36), B' x B' (36, 36) and G x G (36, 9).

    The Toom-Cook algorithm multiplies polynomials by their values at six points; filtering is its
    transpose. Powers of two scale the rows of B' to an absolute sum of about 1, and those of G
    inversely.
    """
    values, filters, inputs = _powers(BLOCK), _powers(3), torch.linalg.inv(_powers(WINDOW)).T
    scale = inputs.abs().sum(1, keepdim=True).log2().round().exp2()
    inputs, filters = inputs / scale, filters * scale
    a, b, g = (torch.kron(matrix, matrix) for matrix in (values, inputs, filters))
    return a.T.contiguous().to(dtype), b.to(dtype), g.to(dtype)


def transform_filters(weight: Tensor) -> Tensor:
    """Return G g G' of each filter g: (K, C, 3, 3) -> (36, C, K)."""
    _, _, to_filters = _matrices(torch.float64)
    filters = weight.double().permute(2, 3, 1, 0).flatten(0, 1)
    return (to_filters @ filters.flatten(1)).view(-1, *filters.shape[1:]).to(weight.dtype)


def conv2d_relu(padded: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """Return `F.conv2d` without padding, followed by ReLU: (B, C, H + 2, W + 2) -> (B, K, H, W) in
    channels_last.

    Args:
        filters: (36, C, K), from `transform_filters`.
        bias: (K,).
    """
    B, C, height, width = padded.shape
    down, across = _block_counts(height - 2, width - 2)
    to_outputs, to_inputs, _ = _matrices(padded.dtype)
    output = padded.new_empty(B, down, BLOCK, across, BLOCK, len(bias))
    for rows in _passes(down, across):
        part = _rows_of(padded, rows, BLOCK * across + 2, 2)
        windows = part.unfold(1, WINDOW, BLOCK).unfold(2, WINDOW, BLOCK).permute(4, 5, 0, 1, 2, 3)
        inputs = to_inputs @ windows.reshape(WINDOW**2, -1)  # (36, N C)
        products = torch.bmm(inputs.view(WINDOW**2, -1, C), filters)  # (36, N, K)
        products[CENTRE] += bias
        blocks = to_outputs @ products.view(WINDOW**2, -1)  # (16, N K)
        blocks = blocks.view(BLOCK, BLOCK, B, -1, across, len(bias)).permute(2, 3, 0, 4, 1, 5)
        torch.clamp_min(blocks, 0, out=output[:, rows])
    maps = output.view(B, BLOCK * down, BLOCK * across, -1).permute(0, 3, 1, 2)
    return maps[..., : height - 2, : width - 2].contiguous(memory_format=torch.channels_last)


def conv2d_backward(gradient: Tensor, filters: Tensor) -> Tensor:
    """Return the gradient of the convolution with respect to its padded input: (B, K, H, W) ->
    (B, C, H + 2, W + 2). The steps are those of `conv2d_relu`, transposed and in reverse order.

    Args:
        filters: (36, C, K), from `transform_filters`. A transposed copy would save 3 % of a step at
            64 px and take 46 MB.
    """
    B, K, height, width = gradient.shape
    down, across = _block_counts(height, width)
    C = filters.shape[1]
    to_outputs, to_inputs, _ = _matrices(gradient.dtype)
    # Windows overlap: they reach two rows and columns into the blocks below and to the right. The
    # last rows come first, so that the blocks below are written before they are added to.
    total = gradient.new_empty(B, down + 1, BLOCK, across + 1, BLOCK, C)
    total[:, -1], total[..., -1, :, :] = 0, 0
    for rows in reversed(_passes(down, across)):
        part = _rows_of(gradient, rows, BLOCK * across)
        blocks = part.reshape(B, -1, BLOCK, across, BLOCK, K).permute(2, 4, 0, 1, 3, 5)
        products = to_outputs.T @ blocks.reshape(BLOCK**2, -1)  # (36, N K)
        inputs = torch.bmm(products.view(WINDOW**2, -1, K), filters.mT)  # (36, N, C)
        windows = (to_inputs.T @ inputs.view(WINDOW**2, -1)).view(WINDOW, WINDOW, B, -1, across, C)
        windows = windows.permute(2, 3, 0, 4, 1, 5)
        below = slice(rows.start + 1, rows.stop + 1)
        total[:, rows, :, :-1] = windows[:, :, :BLOCK, :, :BLOCK]
        total[:, rows, :, 1:, :2] += windows[:, :, :BLOCK, :, BLOCK:]
        total[:, below, :2, :-1] += windows[:, :, BLOCK:, :, :BLOCK]
        total[:, below, :2, 1:, :2] += windows[:, :, BLOCK:, :, BLOCK:]
    maps = total.view(B, BLOCK * (down + 1), BLOCK * (across + 1), C).permute(0, 3, 1, 2)
    return maps[..., : height + 2, : width + 2]


def _block_counts(height: int, width: int) -> tuple[int, int]:
    """Return the numbers of blocks, down and across, that cover an output."""
    return -(-height // BLOCK), -(-width // BLOCK)


def _passes(down: int, across: int) -> list[slice]:
    """Split the rows of blocks into passes of at least WINDOWS_PER_PASS windows."""
    step = -(-WINDOWS_PER_PASS // across)
    return [slice(top, min(top + step, down)) for top in range(0, down, step)]


def _rows_of(maps: Tensor, rows: slice, width: int, more: int = 0) -> Tensor:
    """Return rows of blocks and `more` rows below them: (B, C, h, w) -> (B, n, width, C).

    Padded with zeros below and to the right where sides are not multiples of a block.
    """
    height = BLOCK * (rows.stop - rows.start) + more
    part = maps[:, :, BLOCK * rows.start : BLOCK * rows.start + height]
    if part.shape[2:] != (height, width):
        part = F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
    return part.permute(0, 2, 3, 1)
