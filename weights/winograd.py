"""3x3 convolution by Winograd's method."""

import torch
from torch import Tensor
from torch.nn import functional as F

# 3x3 convolution by a quarter of the multiplications: minimal filtering F(4x4, 3x3).
#
# Winograd 1980, as Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, use
# it: Y = A' [(G w G') * (B' d B)] A makes a block of 4x4 outputs of a window of 6x6 inputs. Every
# factor is a matrix product here, over all channels of many windows at once, so that the arithmetic
# runs at the processor's full rate. The way back is the same steps transposed, in reverse.
#
# Relative errors are 1.3e-6 in float32, those of a direct convolution 0.6e-6. Blocks of 2x2 and 3x3
# are as exact as that, but save half as much: a step through conv4_1 takes 0.87 and 0.85 of its
# time by direct convolutions, with 4x4 0.74.

BLOCK, WINDOW = 4, 6  # px, sides of what is computed at once and of what that depends on
# Where the polynomials are evaluated, beside infinity. Barabasz et al. 2020, "Error analysis and
# improving the accuracy of Winograd convolution": 1.5 times as exact as 0, 1, -1, 2, -2.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
WINDOWS_AT_ONCE = 256  # enough for products at full rate; what they hold stays in a cache


def _powers(columns: int) -> Tensor:
    """(6, columns): the powers 0, 1, ... of each point; of infinity the highest is all there is."""
    powers = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(columns)
    infinity = torch.zeros(1, columns, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat((powers, infinity))


def _winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A' (16, 36), B' (36, 36) and G (36, 9), of windows, blocks and filters row by row.

    Multiplying polynomials is multiplying their values at six points (Toom and Cook); filtering
    is the transpose of that. Rows of B' are brought near to 1 by powers of two, which G takes back.
    """
    values, filters, inputs = _powers(BLOCK), _powers(3), torch.linalg.inv(_powers(WINDOW)).T
    scale = inputs.abs().sum(1, keepdim=True).log2().round().exp2()
    inputs, filters = inputs / scale, filters * scale
    a, b, g = (torch.kron(matrix, matrix) for matrix in (values, inputs, filters))
    return a.T.contiguous(), b, g


OF_PRODUCTS, OF_INPUTS, OF_FILTERS = _winograd_matrices()


def transform_filters(weight: Tensor) -> Tensor:
    """The filters of a convolution, (K, C, 3, 3) -> (36, C, K)."""
    filters = weight.double().permute(2, 3, 1, 0).flatten(0, 1)
    return (OF_FILTERS @ filters.flatten(1)).view(-1, *filters.shape[1:]).to(weight.dtype)


def conv2d(bordered: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """(B, C, H + 2, W + 2) -> (B, K, H, W), channels_last, as `F.conv2d` without padding.

    Args:
        filters: (36, C, K), from `transform_filters`.
        bias: (K,).
    """
    B, C, height, width = bordered.shape
    down, across = _blocks_over(height - 2, width - 2)
    to_inputs, to_outputs = OF_INPUTS.to(bordered.dtype), OF_PRODUCTS.to(bordered.dtype)
    output = bordered.new_empty(B, down, BLOCK, across, BLOCK, len(bias))
    for rows in _rows_at_once(down, across):
        part = _rows_of(bordered, rows, BLOCK * across + 2, 2)
        windows = part.unfold(1, WINDOW, BLOCK).unfold(2, WINDOW, BLOCK).permute(4, 5, 0, 1, 2, 3)
        inputs = to_inputs @ windows.reshape(WINDOW**2, -1)
        products = torch.bmm(inputs.view(WINDOW**2, -1, C), filters)
        blocks = to_outputs @ products.view(WINDOW**2, -1)
        blocks = blocks.view(BLOCK, BLOCK, B, -1, across, len(bias)).permute(2, 3, 0, 4, 1, 5)
        torch.add(blocks, bias, out=output[:, rows])
    maps = output.view(B, BLOCK * down, BLOCK * across, -1).permute(0, 3, 1, 2)
    return maps[..., : height - 2, : width - 2].contiguous(memory_format=torch.channels_last)


def conv2d_input(gradient: Tensor, filters: Tensor) -> Tensor:
    """The gradient by what `conv2d` was given: (B, K, H, W) -> (B, C, H + 2, W + 2)."""
    B, K, height, width = gradient.shape
    down, across = _blocks_over(height, width)
    C = filters.shape[1]
    of_outputs, of_inputs = (m.to(gradient.dtype).T for m in (OF_PRODUCTS, OF_INPUTS))
    # Windows overlap: by two rows and columns they reach into the blocks below and to the right.
    # From the last rows up, what they add to is there already.
    total = gradient.new_empty(B, down + 1, BLOCK, across + 1, BLOCK, C)
    total[:, -1], total[..., -1, :, :] = 0, 0
    for rows in reversed(_rows_at_once(down, across)):
        part = _rows_of(gradient, rows, BLOCK * across)
        blocks = part.reshape(B, -1, BLOCK, across, BLOCK, K).permute(2, 4, 0, 1, 3, 5)
        products = of_outputs @ blocks.reshape(BLOCK**2, -1)
        inputs = torch.bmm(products.view(WINDOW**2, -1, K), filters.mT)
        windows = (of_inputs @ inputs.view(WINDOW**2, -1)).view(WINDOW, WINDOW, B, -1, across, C)
        windows = windows.permute(2, 3, 0, 4, 1, 5)
        below = slice(rows.start + 1, rows.stop + 1)
        total[:, rows, :, :-1] = windows[:, :, :BLOCK, :, :BLOCK]
        total[:, rows, :, 1:, :2] += windows[:, :, :BLOCK, :, BLOCK:]
        total[:, below, :2, :-1] += windows[:, :, BLOCK:, :, :BLOCK]
        total[:, below, :2, 1:, :2] += windows[:, :, BLOCK:, :, BLOCK:]
    maps = total.view(B, BLOCK * (down + 1), BLOCK * (across + 1), C).permute(0, 3, 1, 2)
    return maps[..., : height + 2, : width + 2]


def _blocks_over(height: int, width: int) -> tuple[int, int]:
    """How many blocks, down and across, cover outputs of that size."""
    return -(-height // BLOCK), -(-width // BLOCK)


def _rows_at_once(down: int, across: int) -> list[slice]:
    """Rows of windows that are taken at once."""
    step = -(-WINDOWS_AT_ONCE // across)
    return [slice(top, min(top + step, down)) for top in range(0, down, step)]


def _rows_of(maps: Tensor, rows: slice, width: int, more: int = 0) -> Tensor:
    """(B, C, h, w) -> (B, ., width, C): rows of blocks, and some more below them. With zeros below
    and to the right where sides are no multiples of a block, in these few rows alone."""
    height = BLOCK * (rows.stop - rows.start) + more
    part = maps[:, :, BLOCK * rows.start : BLOCK * rows.start + height]
    if part.shape[2:] != (height, width):
        part = F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
    return part.permute(0, 2, 3, 1)
