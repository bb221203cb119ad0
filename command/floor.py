"""Floors of --tile_set: the tiles of a set, and their maps, in random order as one picture."""

from pathlib import Path

import torch
from torch import Tensor

from command.canvas import channels_of
from command.flags import Request
from command.outputs import map_paths
from command.pictures import read_picture, save_picture
from utils import COLOUR, DATA, Size, size_of

FLOOR = "floor"  # key in the record of a floor, which identifies it
MOST_ACROSS, LEAST_ACROSS = 4, 2  # tiles along each side
LONGEST_SIDE = 4096  # px; a floor that would be longer has fewer tiles, but at least LEAST_ACROSS


def floor_size(tile: Size) -> Size:
    """Return (height, width) of the floor of tiles of that size."""
    across = max(LEAST_ACROSS, min(MOST_ACROSS, LONGEST_SIDE // max(tile)))
    return across * tile[0], across * tile[1]


def write_floors(tiles: list[Path], path: Path, request: Request) -> None:
    """Save a floor of the tiles of a set, and one of each map that all tiles have, in the same
    order.

    Raises:
        UserError: a tile cannot be read, or a floor cannot be written.
    """
    _write_floor(tiles, path, request.seed, COLOUR)
    maps = [map_paths(tile, request) for tile in tiles]
    for floor, *parts in zip(map_paths(path, request), *maps, strict=True):
        if all(part.exists() for part in parts):
            _write_floor(parts, floor, request.seed, DATA)


def _write_floor(tiles: list[Path], path: Path, seed: int, kind: str) -> None:
    """Save a floor of pictures of a kind, see `utils.KINDS`, that have the same size."""
    pictures = [read_picture(tile, kind) for tile in tiles]
    channels = [channels_of(picture) for picture in pictures]
    size = size_of(channels[0])
    rows, columns = (whole // side for whole, side in zip(floor_size(size), size, strict=True))
    order = random_order(len(tiles), (rows, columns), torch.Generator().manual_seed(seed))
    floor = torch.cat([torch.cat([channels[i] for i in row], 3) for row in order.tolist()], 2)
    save_picture(floor, path, {FLOOR: [tile.name for tile in tiles]}, pictures[0].bits, kind)


def random_order(count: int, size: Size, generator: torch.Generator) -> Tensor:
    """Return a random tile, 0 ... count - 1, for each place of a floor, (rows, columns) of int64.

    No tile is beside or below itself. Two tiles therefore alternate, and only the first is random.
    """
    order = torch.full(size, -1)
    for y in range(size[0]):
        for x in range(size[1]):
            beside = {int(order[y, x - 1]) if x else -1, int(order[y - 1, x]) if y else -1}
            allowed = [i for i in range(count) if i not in beside]
            drawn = int(torch.randint(len(allowed), (1,), generator=generator))
            order[y, x] = allowed[drawn]
    return order
