"""Further maps of an exemplar's material (--maps, --alpha): their kinds, reading and saving."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from command.canvas import Pictures, channels_of
from command.deep import FLOAT_BITS
from command.flags import Request
from command.kinds import GIVEN, green_up_by_name, kind_and_name, kind_by_name
from command.outputs import map_path
from command.pictures import Picture, check_save_path, holds_alpha
from engine import maps
from engine.guides import MOST_REGIONS
from terms.base import Exemplar
from utils import COLOUR, DATA, LABELS, NORMALS, UserError, prefixed, size_of, size_text

MOST_LABELS = 256  # distinct colours among 4096 pixels; more suggest lossy compression
TOLD = {NORMALS: "normals", LABELS: "labels", COLOUR: "a colour map", DATA: "data"}
BY_PIXELS = "its pixels"


@dataclass(frozen=True)
class CarriedMap:
    """A map that is synthesised with the result."""

    path: Path  # where the map of the result is saved
    kind: str  # a name in `utils.KINDS`
    # (1, C, h, w) each: the map, then its copies, rotated and resized as those of the exemplar.
    # Normals are encoded in [0, 1] with green up, and include blue.
    copies: list[Tensor]
    bits: int  # per channel in the file
    green_down: bool = False  # normals: whether green points down in the file (DirectX)
    blue: float | None = None  # normals: constant that the file has instead of a blue component
    signed: bool = False  # normals: whether the file holds values in [-1, 1]
    # (1, C, H, W), encoded as in `copies`: the map of the --edges_of tile, whose values the result
    # has outside the cut (see `engine.edges`); None: no --edges_of
    edges: Tensor | None = None

    def of_file(self, channels: Tensor) -> Tensor:
        """Convert channels of the file, (1, C, H, W), to those of `copies`."""
        channels = channels.clone()
        if self.signed:
            channels[:, :3] = (channels[:, :3] + 1) / 2
        if self.green_down:
            channels[:, 1] = 1 - channels[:, 1]
        return channels if self.blue is None else maps.with_blue(channels)

    def as_file(self, channels: Tensor) -> Tensor:
        """Convert channels as in `copies`, (1, C, H, W), to those of the file."""
        channels = channels.clone()
        if self.blue is not None:
            channels[:, 2] = self.blue
        if self.green_down:
            channels[:, 1] = 1 - channels[:, 1]
        if self.signed:
            channels[:, :3] = 2 * channels[:, :3] - 1
        return channels


def read_map(
    text: str, exemplar: Exemplar, request: Request, save_path: Path, pictures: Pictures
) -> CarriedMap:
    """Read a map of --maps, with copies rotated and resized as the exemplar's are.

    Args:
        text: KIND:FILE or FILE.
        request: Its --edges_of names the tile whose map the result gets outside the cut.
        save_path: Path of the result.
        pictures: Reads the file; a line on the kind of the map is appended to its notes.

    Raises:
        UserError: The file is missing or differs in size from the exemplar, normals are grey, or
            the map beside the tile of --edges_of is missing or has another size or other channels.
    """
    word, name = kind_and_name(text)
    path = _find_map(text, word, name, pictures)
    kind, by = _kind_of(word, name, pictures)
    picture = pictures.read(name, kind)
    _check_map(text, kind, picture, exemplar)
    goes = map_path(save_path, path, floats=picture.bits == FLOAT_BITS)
    check_save_path(goes)
    channels = channels_of(picture)
    line = f"taken for {TOLD[kind]} by {by}"
    if kind == DATA and not word and _count_of_tuples(channels) <= MOST_REGIONS:
        # For example a black and white mask, or a number for each material.
        kind, line = LABELS, f"{line}, carried as labels as it has few values"
    found = CarriedMap(goes, kind, [], picture.bits)
    if kind == NORMALS:
        found, more = _normals(found, channels, word, path)
        line += more + ("; turned with the exemplar" if any(exemplar.rotations) else "")
    if kind == LABELS and _count_of_tuples(channels) > MOST_LABELS:
        line += f", but has more than {MOST_LABELS} colours, perhaps from lossy compression"
    if by == BY_PIXELS:
        line += f"; otherwise give --maps KIND:{path.name}, KIND one of {', '.join(GIVEN)}"
    pictures.notes.append(f"{path.name}: {line}")
    channels = found.of_file(channels)
    copies = maps.rotated(channels, exemplar.rotations, exemplar.factors, kind)
    edges = None
    if request.edges_of:
        edges = found.of_file(_map_of_edges(request.edges_of, path, kind, picture, pictures))
    return replace(found, copies=[channels, *copies], edges=edges)


def _map_of_edges(
    tile: str, path: Path, kind: str, of_exemplar: Picture, pictures: Pictures
) -> Tensor:
    """Return the channels of a map of the --edges_of tile, (1, C, H, W), from the file beside the
    tile where the run that made the tile saves it.

    Args:
        tile: the picture of --edges_of.
        path: of the map of the exemplar.
        kind: of both maps, a name in `utils.KINDS`.
        of_exemplar: the map of the exemplar.
    """
    beside = str(map_path(Path(tile), path, of_exemplar.bits == FLOAT_BITS))
    with prefixed(f"--maps {path}: with --edges_of {tile}, its map is required: "):
        found = channels_of(pictures.read(beside, kind))
        size, count = size_of(pictures.read(tile).pixels), channels_of(of_exemplar).shape[1]
        if found.shape[1:] != (count, *size):
            has = f"{size_text(size_of(found))} with {found.shape[1]} channels"
            raise UserError(f"{beside}: {has}, give {size_text(size)} with {count} channels")
    return found


def _find_map(text: str, word: str | None, name: str, pictures: Pictures) -> Path:
    """Return the path of a map; for an unknown prefix, the error lists the known ones."""
    try:
        return pictures.find(name)
    except UserError as error:
        if word or ":" not in text:
            raise
        raise UserError(f"--maps {error}; allowed before a colon: {', '.join(GIVEN)}") from error


def _check_map(text: str, kind: str, picture: Picture, exemplar: Exemplar) -> None:
    """Raise UserError if a map differs in size from the exemplar, or normals are grey."""
    if size_of(picture.pixels) != size_of(exemplar.image):
        raise UserError(
            f"--maps {text}: {size_text(size_of(picture.pixels))}, but the exemplar is "
            f"{size_text(size_of(exemplar.image))}"
        )
    if kind == NORMALS and picture.grey:
        raise UserError(
            f"--maps {text}: grey, but normals need red and green, or red, green and blue"
        )


def alpha_map(
    path: Path, exemplar: Exemplar, request: Request, save_path: Path, pictures: Pictures
) -> CarriedMap:
    """Return the alpha channel of the exemplar as a map, from which that of the result is made.

    Raises:
        UserError: The exemplar is opaque, or the format of the result has no alpha.
    """
    picture = pictures.read(path)
    if picture.alpha is None or picture.opaque:
        raise UserError(f"--alpha: {path} has no transparent pixel")
    if not holds_alpha(save_path):
        raise UserError(f"--alpha: {save_path} holds no alpha; .png, .tif and .webp do")
    copies = maps.rotated(picture.alpha, exemplar.rotations, exemplar.factors, DATA)
    edges = None
    if request.edges_of:
        tile = pictures.read(request.edges_of)
        edges = torch.ones_like(tile.pixels[:, :1]) if tile.alpha is None else tile.alpha
    return CarriedMap(save_path, DATA, [picture.alpha, *copies], picture.bits, edges=edges)


def _kind_of(word: str | None, name: str, pictures: Pictures) -> tuple[str, str]:
    """Return the kind of a map and what it follows from: the prefix, the name or the pixels."""
    if word:
        return GIVEN[word], f"{word}:"
    kind = kind_by_name(Path(name).stem)
    if kind and not (kind == NORMALS and pictures.read(name, DATA).grey):
        return kind, "its name"
    picture = pictures.read(name, DATA)
    channels = channels_of(picture)
    if maps.holds_normals(channels):
        return NORMALS, BY_PIXELS
    if _count_of_tuples(channels) <= MOST_REGIONS:
        return LABELS, BY_PIXELS
    return DATA if picture.grey or picture.bits == FLOAT_BITS else COLOUR, BY_PIXELS


def _count_of_tuples(channels: Tensor) -> int:
    """Return the number of distinct pixels of (1, C, H, W); if a sample of about 4096 pixels has
    more than MOST_REGIONS, the number within the sample."""
    flat = channels[0].flatten(1)
    some = len(flat[:, :: max(1, flat.shape[1] // 4096)].unique(dim=1)[0])
    return some if some > MOST_REGIONS else len(flat.unique(dim=1)[0])


def _normals(
    found: CarriedMap, channels: Tensor, word: str | None, path: Path
) -> tuple[CarriedMap, str]:
    """Return the map with the encoding of its normals set, and the end of the note on its kind."""
    signed = channels[:, :3].min().item() < -0.1
    plain = replace(found, signed=signed).of_file(channels)
    lacks_blue = maps.lacks_blue(plain)
    blue = channels[0, 2].median().item() if lacks_blue else None
    up, by = green_up_by_name(path.stem), "its name"
    if word in ("normal_gl", "normal_dx"):
        up, by = word == "normal_gl", f"{word}:"
    if up is None:
        up, by = maps.green_up(maps.with_blue(plain) if lacks_blue else plain), BY_PIXELS
    green = "green is assumed to be up (normal_dx: if it is down)"
    if up is not None:
        green = f"green is {'up' if up else 'down'} by {by}"
    line = f", {green}{'' if blue is None else ', blue is computed'}"
    if not maps.holds_normals(plain):
        line += ", but most pixels are not of length 1"
    return replace(found, green_down=up is False, blue=blue, signed=signed), line
