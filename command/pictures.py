"""Pictures in files: found, read, saved, and the record inside them."""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from utils import (
    LEVELS,
    LEVELS_16_BIT,
    TEXTURES,
    Size,
    UserError,
    available_bytes,
    check_writable,
    open_regular,
    reason_of,
    save_bytes,
    told,
)

# What a file holds, which decides how it is read, resized, carried and saved.
COLOUR, NORMALS, DATA, LABELS, MASK, AXES = "colour", "normal", "data", "id", "mask", "axes"
KINDS = (COLOUR, NORMALS, DATA, LABELS, MASK, AXES)
ROWS = 256  # of a picture that are rounded at a time
# What each suffix means to Pillow. JPEG keeps the full chroma: halving it smears fine texture.
# WebP is lossless because its lossy mode always halves the chroma.
_JPEG = ("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ("TIFF", {"compression": "tiff_adobe_deflate"})
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
SUFFIXES = tuple(_FORMATS)
_RECORDED = {*SUFFIXES, ".gif"}  # suffixes of files that may hold a record
MAX_SIDES = {"JPEG": 65500, "PNG": 65500, "WEBP": 16383, "TIFF": 65500}  # px; PNG's are larger
_ANY_SIZE = ("JPEG", "PNG")  # of others Pillow looks at the size once more when it decodes them
MAX_SIDE = max(MAX_SIDES.values())
# EXIF tags, and the room for a record: a JPEG holds 64 KB of EXIF in all.
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
_RECORD_KEY = "synthesis"
_RECORD_BYTES = 60_000
# What Pillow recognises, but reads by another program, on one system or not at all.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "IPTC", "MPEG"}
NAMED = 3  # files that a line names, of those that are left out of a folder
MOST_BYTES = 2**30  # of a file, unless it is of a kind that may be of any size
READ_BYTES = 24  # a pixel at the peak of reading: as Pillow decodes and converts it, and as floats


# ------------------------------------------------------------------------------------- reading


def find_picture(name: str | Path) -> Path:
    """Return where the picture is: as given, or in the `textures/` folder beside this file.

    Raises UserError when it is in neither place, is a folder or may not be read.
    """
    for path in (Path(name), TEXTURES / name):
        try:
            open_regular(path).close()
            return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a character 0 in it
            reason = "a folder, not a picture" if os.path.isdir(path) else reason_of(error)
            raise UserError(f"{str(name)!r}: {reason}") from error
    pictures = {p.stem.lower(): p.name for p in TEXTURES.glob("*") if p.suffix.lower() in SUFFIXES}
    close = difflib.get_close_matches(Path(name).stem.lower(), pictures)
    hint = f"; nearest there: {', '.join(pictures[stem] for stem in close)}" if close else ""
    raise UserError(f"{str(name)!r}: no such picture here or in {TEXTURES}{hint}")


def find_pictures(name: str | Path) -> tuple[list[Path], list[str]]:
    """Return the pictures of that name, in order: one, as `find_picture` has it, or those of a
    folder or of a pattern with *, ? or [. And what the user should hear: what was left out, which
    is what Pillow does not read, and what this program has made.

    Raises UserError when there is none.
    """
    path, folders = Path(name), []
    if os.path.isdir(path):
        found = files_in(path)
        folders = [one for one in found if one.is_dir()]
    elif set("*?[") & set(str(name)) and not os.path.exists(path):
        there = next(one for one in path.parents if os.path.isdir(one))  # may have a [ in its name
        pattern = str(path.relative_to(there))
        try:
            found = sorted(
                there / one for one in glob.glob(pattern, root_dir=there, recursive=True)
            )
        except ValueError:  # a character 0 in it
            found = []
        found = [one for one in found if not one.is_dir()]
    else:
        return [find_picture(name)], []
    pictures = [one for one in found if one.suffix.lower() in _read_suffixes() and one.is_file()]
    ours = [one for one in pictures if one.suffix.lower() in _RECORDED and record_at(one)]
    others = set(found) - set(pictures) - set(folders)
    left = [
        f"{_some(files)} ({why})"
        for files, why in (
            (sorted(others), "not a kind of picture that Pillow reads"),
            (ours, "made by this program; taken where named one by one"),
            (folders, "a folder; '**' in a pattern takes folders too"),
        )
        if files
    ]
    pictures = sorted(set(pictures) - set(ours))
    lines = [f"left out {', '.join(left)}"] if left else []
    if not pictures:
        raise UserError("; ".join([f"{str(name)!r}: no picture there", *lines]))
    return pictures, [f"{str(name)!r}: {line}" for line in lines]


def files_in(folder: Path) -> list[Path]:
    """Return what is in a folder, in order, but what is hidden; UserError where it may not be
    read."""
    try:
        return sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({reason_of(error)})") from error


@cache
def _read_suffixes() -> frozenset[str]:
    """Return the suffixes of all pictures that Pillow reads."""
    Image.init()
    kinds = Image.OPEN.keys() - _NOT_READ
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds)


def _some(files: list[Path]) -> str:
    """Return the names of the first files, and how many more there are."""
    more = len(files) - NAMED
    named = [one.name for one in files[:NAMED]]
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


class Picture(NamedTuple):
    """A picture as it was read from a file."""

    pixels: Tensor  # (1, 3, H, W) in [0, 1]: sRGB if it is of COLOUR, else the file's own values
    alpha: Tensor | None  # (1, 1, H, W) in [0, 1]; None where all of it is opaque
    bits: int  # of a channel in the file: 8, 16, or 32 for floats
    grey: bool  # whether the file has one channel for all three
    notes: list[str]  # what had to be done to it, one line each, beginning with the file's name


def read_picture(path: Path, kind: str = COLOUR) -> Picture:
    """Read a picture of a kind, a name in `KINDS`; only COLOUR is colour managed.

    Takes whatever Pillow reads: grey, palette, transparent, CMYK, 16-bit, rotated, with a colour
    profile.

    Raises UserError when the file cannot be read, is damaged, is beyond Pillow's limit on
    pixels, is wholly transparent, or holds floats outside [0, 1].
    """
    notes: list[str] = []
    with _opened(path) as picture:
        needed, free = READ_BYTES * math.prod(picture.size), available_bytes(torch.device("cpu"))
        if needed > free:
            raise OSError(f"reading it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
        with _libraries_silent():
            picture.load()
        if getattr(picture, "is_animated", False):
            notes.append("several frames, only the first is used")
        picture = _upright(picture, notes)
        alpha = None
        bits = {"I": 16, "F": 32}.get(picture.mode[0], 8)
        grey = picture.mode[0] in "1LIF"
        if picture.mode[0] in "IF":
            pixels = _deep_grey(picture, notes)
        else:
            if picture.has_transparency_data:
                alpha = np.asarray(picture.convert("RGBA").getchannel("A"), np.float32) / 255
            pixels = np.array(_srgb(picture, notes), np.float32)
            pixels /= 255
    if alpha is not None and alpha.min() < 1:
        if alpha.max() == 0:
            raise UserError(f"{path}: every pixel is transparent")
        pixels = _over_mean(pixels, alpha)
        notes.append("transparent pixels painted over the mean colour")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    whole = None if alpha is None else torch.from_numpy(alpha)[None, None]
    notes = [f"{path.name}: {note}" for note in notes]
    return Picture(image, whole, bits, grey, notes)


def read_levels(path: Path) -> Image.Image:
    """What `read_picture` reads, at 8 bits, to be looked at; raises as that does."""
    pixels = read_picture(path).pixels[0].movedim(0, 2)
    return Image.fromarray(pixels.mul(LEVELS).round().byte().numpy())


def read_vectors(path: Path) -> Tensor:
    """Return vectors, .npy of (2, H, W), as (1, 2, H, W); UserError for anything else."""
    try:
        open_regular(path).close()
        # Mapped, as a header may claim to be of any size.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
    except Exception as error:  # as many kinds as there are ways to damage a header
        raise UserError(f"{path}: not a .npy file of numbers") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: an archive, not a .npy file of numbers")
    if found.ndim != 3 or len(found) != 2 or found.dtype.kind not in "fiu" or not found.size:
        raise UserError(f"{path}: {found.dtype} of {found.shape}, needed are numbers of (2, H, W)")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{path}: holds values that are not finite in float32")
    return torch.from_numpy(found)[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow raises inside the block becomes a UserError."""
    try:
        with warnings.catch_warnings():
            # Pillow grumbles about files that it then reads well; but between one and two times
            # its limit on pixels it only warns, and that we refuse.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _of_any_size_of_ours(path) as picture:
                yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{path}: too large, at most {limit} pixels are read") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture of a kind that Pillow reads") from error
    except Exception as error:
        # Damaged bytes come back as OSError, SyntaxError, struct.error, IndexError and more.
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


@contextmanager
def _libraries_silent() -> Iterator[None]:
    """Without the lines that libtiff writes past Python to stderr: what matters is an error too."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(null)
        os.close(stderr)


def _of_any_size_of_ours(path: Path) -> Image.Image:
    """Open a picture, beyond Pillow's limit on pixels too if its record says that it is ours, of
    that very size, and there is memory for it: a few bytes may claim to be any picture."""
    kind, _ = _FORMATS.get(path.suffix.lower(), ("", {}))
    with open_regular(path) as file:
        bytes_ = os.fstat(file.fileno()).st_size
    if bytes_ > MOST_BYTES and kind not in _ANY_SIZE:  # of a TIFF all tags are read when it opens
        raise OSError(f"a file of {bytes_ / 1e9:.1f} GB, at most {MOST_BYTES / 1e9:.1f} are read")
    try:
        with _libraries_silent():
            return Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        if kind not in _ANY_SIZE:
            raise
        Image.init()
        opener: Any = Image.OPEN[kind][0]  # which does not look
        picture: Image.Image = opener(path, path.name)
        ours = _record_of(picture).get("size") == told(picture.size[::-1])
        if ours and READ_BYTES * math.prod(picture.size) <= available_bytes(torch.device("cpu")):
            return picture
        picture.close()
        raise


def _upright(picture: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # as many kinds as there are ways to write EXIF wrongly
        notes.append("unreadable EXIF, orientation ignored")
        return picture


def _deep_grey(picture: Image.Image, notes: list[str]) -> np.ndarray:
    """Return grey of 16 bits or float as (H, W, 3); ValueError when it is out of range."""
    if "icc_profile" in picture.info:
        notes.append("colour profile of a grey picture of more than 8 bits, ignored")
    # Pillow calls a 32-bit integer file "I" as well as some 16-bit ones; only the latter have a
    # white that we know.
    white = 1 if picture.mode == "F" else LEVELS_16_BIT
    grey = np.asarray(picture).astype(np.float64)
    if not (grey.min() >= 0 and grey.max() <= white):  # so that NaN is refused
        raise ValueError(f"values {grey.min():g} to {grey.max():g}, allowed are 0 to {white}")
    return np.repeat(grey[..., None] / white, 3, axis=2).astype(np.float32)


def _srgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Return an 8-bit picture as RGB in sRGB, through its own colour profile if it has one."""
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
    plain = picture.convert("RGB")
    profile = picture.info.get("icc_profile")
    if not profile:
        return plain
    try:
        srgb = ImageCms.createProfile("sRGB")
        managed = ImageCms.profileToProfile(picture, BytesIO(profile), srgb, outputMode="RGB")
        assert managed is not None  # it is, where the picture is not changed in place
    except ImageCms.PyCMSError:
        notes.append("unusable colour profile, ignored")
        return plain
    # One level is rounding: the profile is sRGB under any of its names, so keep the exact pixels.
    difference = np.asarray(ImageChops.difference(plain, managed))
    return managed if difference.max() > 1 else plain


def _over_mean(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite (H, W, 3) by alpha (H, W) over the picture's own alpha-weighted mean colour."""
    alpha = alpha[..., None]
    mean = (pixels * alpha).sum((0, 1), np.float64) / alpha.sum(dtype=np.float64)
    return (pixels * alpha + mean * (1 - alpha)).astype(np.float32)


# -------------------------------------------------------------------------------------- saving


def check_suffix(path: Path) -> None:
    """Raise UserError when the suffix is not one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}, use one of {' '.join(SUFFIXES)}")


def check_save_path(path: Path) -> None:
    """See that a picture can be saved there: raises UserError when the suffix is not one of
    SUFFIXES, or as `check_writable` does."""
    check_suffix(path)
    check_writable(path)


def check_format(path: Path, size: Size) -> None:
    """Raise UserError where the format cannot hold a picture of (height, width), or could not be
    read again."""
    kind, _ = _FORMATS[path.suffix.lower()]
    if max(size) > MAX_SIDES[kind]:
        raise UserError(
            f"{path}: {told(size)}, sides of {kind} have at most {MAX_SIDES[kind]} pixels"
        )
    most = Image.MAX_IMAGE_PIXELS
    if kind not in _ANY_SIZE and most is not None and math.prod(size) > most:
        raise UserError(f"{path}: {told(size)}, at most {most} pixels of {kind} are read again")


def save_picture(image: Tensor, path: Path, record: dict[str, Any], bits: int = 8) -> None:
    """Save (1, 3, H, W) in [0, 1] as the suffix says, with `record` inside the file.

    With 16 `bits` it is grey, the first channel, which .png and .tif hold.

    The file appears whole or not at all. Raises UserError when it cannot be written, ValueError
    for another shape or for values that are not finite.
    """
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"expected a picture of shape (1, 3, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("the picture holds values that are not finite")
    # The clamp keeps 1.0000001 from wrapping round to black.
    most = LEVELS_16_BIT if bits == 16 else LEVELS
    pixels = image.detach()[0].movedim(0, 2)  # (H, W, 3)
    levels = np.empty(pixels.shape, np.uint16 if bits == 16 else np.uint8)
    for top in range(0, len(levels), ROWS):
        rows = slice(top, top + ROWS)
        levels[rows] = pixels[rows].cpu().double().mul(most).round().clamp(0, most).numpy()
    picture = Image.fromarray(levels[..., 0] if bits == 16 else levels)
    kind, options = _FORMATS[path.suffix.lower()]
    try:
        # Encoded in memory because libtiff writes complaints of its own to stderr.
        encoded = BytesIO()
        picture.save(encoded, kind, **options, **record_options(kind, record))
    except (OSError, ValueError) as error:  # ValueError: too many pixels a side for the format
        raise UserError(f"{path}: cannot be saved ({reason_of(error)})") from error
    save_bytes(encoded.getbuffer(), path)


def read_record(path: Path) -> dict[str, Any]:
    """Return what `save_picture` recorded in the file, {} when it carries no record.

    Raises UserError when the file cannot be read as a picture.
    """
    with _opened(path) as picture:
        return _record_of(picture)


def read_size(path: Path) -> Size:
    """Return (height, width) of a picture as it is stored; raises as `read_record` does."""
    with _opened(path) as picture:
        return picture.height, picture.width


def record_at(path: Path) -> dict[str, Any]:
    """The record of a picture, {} where there is no picture."""
    try:
        return read_record(path)
    except UserError:  # no picture
        return {}


def _record_of(picture: Image.Image) -> dict[str, Any]:
    text = picture.info.get("comment" if picture.format == "GIF" else _RECORD_KEY, "")
    if picture.format != "PNG":  # which decodes all of the picture to look for EXIF at its end
        with suppress(Exception):  # somebody else's broken EXIF is no record
            exif = picture.getexif()
            if exif.get(_SOFTWARE) == _RECORD_KEY:
                text = exif.get(_DESCRIPTION)
    try:
        record = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def record_options(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments to Pillow's `save` that put a record inside the file."""
    record = {str(key): value for key, value in record.items()}
    # JSON escapes to ASCII, all that EXIF descriptions hold, and so keeps any file name.
    dump = partial(json.dumps, default=str, skipkeys=True)
    while len(text := dump(record)) > _RECORD_BYTES:
        del record[max(record, key=lambda key: len(dump(record[key])))]
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(_RECORD_KEY, text)
        return {"pnginfo": chunks}
    if kind == "GIF":
        return {"comment": text}
    exif = Image.Exif()
    exif[_SOFTWARE], exif[_DESCRIPTION] = _RECORD_KEY, text
    return {"exif": exif}
