"""Picture files: finding, reading and saving them, and the records embedded in them."""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from command import deep
from command.files import TEXTURES, check_writable, open_regular, save_bytes
from command.profiles import LINEAR, Space, converted, space_in, space_of_icc, srgb_curve
from command.streams import copy_of_stderr
from utils import COLOUR, LEVELS, Size, UserError, available_bytes, reason_of, size_text

ROWS = 256  # rows quantised at a time, which bounds memory
# Suffixes -> formats and options of Pillow, which has no EXR. JPEG keeps full chroma, since
# subsampling smears fine texture. WebP is lossless, since its lossy mode always subsamples.
_JPEG = ("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ("TIFF", {"compression": "tiff_adobe_deflate"})
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".exr": ("EXR", {}),
}
SUFFIXES = tuple(_FORMATS)
FLOAT_SUFFIXES = (".tif", ".tiff", ".exr")
_RECORDED = {*SUFFIXES, ".gif"}  # suffixes of files that may hold a record
# Bits per channel by format; the others hold 8.
_BITS = {"PNG": (8, 16), "TIFF": (8, 16, deep.FLOAT_BITS), "EXR": (deep.FLOAT_BITS,)}
# Longest side by format, in px; PNG itself allows longer ones.
MAX_SIDES = {"JPEG": 65500, "PNG": 65500, "WEBP": 16383, "TIFF": 65500, "EXR": 65500}
_ANY_SIZE = ("JPEG", "PNG")  # for others Pillow checks its limit on pixels again when decoding
MAX_SIDE = max(MAX_SIDES.values())
# EXIF tags, and the maximum size of a record: a JPEG holds 64 KB of EXIF in all.
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 0x0102, 0x0153, 2
_RECORD_KEY = "synthesis"
_RECORD_BYTES = 60_000
# Formats that Pillow recognises but reads only with another program, on some systems, or never.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "IPTC", "MPEG"}
NAMED = 3  # maximum number of skipped files that a note names
MOST_BYTES = 2**30  # maximum size of a file, except for formats in _ANY_SIZE
# Bytes per pixel at the peak of reading, with Pillow and with OpenImageIO.
READ_BYTES, DEEP_READ_BYTES = 24, 64
JPEG_END = b"\xff\xd9"
_UNUSABLE = "unusable colour profile, ignored"


# ------------------------------------------------------------------------------------- reading


def find_picture(name: str | Path) -> Path:
    """Return the path of a picture, searched at `name` and then in `textures/`.

    Raises:
        UserError: It is in neither place, is a folder or cannot be opened.
    """
    for path in (Path(name), TEXTURES / name):
        try:
            open_regular(path).close()
            return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = "a folder, not a picture" if os.path.isdir(path) else reason_of(error)
            raise UserError(f"{str(name)!r}: {reason}") from error
    pictures = {p.stem.lower(): p.name for p in TEXTURES.glob("*") if p.suffix.lower() in SUFFIXES}
    close = difflib.get_close_matches(Path(name).stem.lower(), pictures)
    hint = f"; nearest there: {', '.join(pictures[stem] for stem in close)}" if close else ""
    raise UserError(f"{str(name)!r}: no such picture here or in {TEXTURES}{hint}")


def find_pictures(name: str | Path) -> tuple[list[Path], list[str]]:
    """Return the pictures that a name stands for, sorted, and notes on skipped files.

    Args:
        name: A picture, searched as by `find_picture`, a folder, or a pattern with *, ? or [. In
            folders and patterns, files in other formats and pictures made by this program are
            skipped.

    Raises:
        UserError: No picture is found.
    """
    path, folders = Path(name), []
    if os.path.isdir(path):
        found = files_in(path)
        folders = [one for one in found if one.is_dir()]
    elif set("*?[") & set(str(name)) and not os.path.exists(path):
        # Only the part below an existing folder is a pattern; the folder's name may contain a [.
        there = next(one for one in path.parents if os.path.isdir(one))
        pattern = str(path.relative_to(there))
        names: list[str] = []
        with suppress(ValueError):  # a null character in the pattern
            names = glob.glob(pattern, root_dir=there, recursive=True)
        found = sorted(one for one in map(there.joinpath, names) if not one.is_dir())
    else:
        return [find_picture(name)], []
    pictures = [one for one in found if one.suffix.lower() in _read_suffixes() and one.is_file()]
    ours = [one for one in pictures if one.suffix.lower() in _RECORDED and record_at(one)]
    others = set(found) - set(pictures) - set(folders)
    left = [
        f"{_some(files)} ({why})"
        for files, why in (
            (sorted(others), "not a picture format that is read"),
            (ours, "made by this program; used only if named one by one"),
            (folders, "a folder; a pattern with '**' includes subfolders"),
        )
        if files
    ]
    pictures = sorted(set(pictures) - set(ours))
    lines = [f"left out {', '.join(left)}"] if left else []
    if not pictures:
        raise UserError("; ".join([f"{str(name)!r}: no picture there", *lines]))
    return pictures, [f"{str(name)!r}: {line}" for line in lines]


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder, sorted, without hidden ones.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        return sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({reason_of(error)})") from error


@cache
def _read_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that are read."""
    Image.init()
    kinds = Image.OPEN.keys() - _NOT_READ
    known = (suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds)
    return frozenset({*SUFFIXES, *known})


def _some(files: list[Path]) -> str:
    """Return the names of the first files, and how many more there are."""
    more = len(files) - NAMED
    named = [one.name for one in files[:NAMED]]
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


class Picture(NamedTuple):
    """A picture read from a file or from memory, with straight alpha."""

    pixels: Tensor  # (1, 3, H, W) in [0, 1]: sRGB for COLOUR, else the values of the file
    alpha: Tensor | None  # (1, 1, H, W) in [0, 1]; None without an alpha channel
    bits: int  # per channel in the file: 8, 16, or 32 for floats
    grey: bool  # whether the file has a single channel besides alpha
    notes: list[str]  # for the user, each beginning with the name of the file

    @property
    def opaque(self) -> bool:
        """Whether alpha is 1 everywhere."""
        return self.alpha is None or bool((self.alpha == 1).all())

    @property
    def over_mean(self) -> Tensor:
        """The pixels (1, 3, H, W) composited over their mean colour weighted by alpha."""
        if self.alpha is None:
            return self.pixels
        alpha = self.alpha.double()
        mean = (self.pixels * alpha).sum((2, 3), True) / alpha.sum().clamp(min=1e-12)
        return (self.pixels * alpha + mean * (1 - alpha)).float()


def read_picture(path: Path, kind: str = COLOUR) -> Picture:
    """Read a picture.

    Pillow reads 8 bits per channel: grey, palette, transparency and CMYK, with EXIF orientation and
    colour profile applied. OpenImageIO reads 16 bits and floats, EXR included.

    Args:
        kind: A name in `utils.KINDS`; only COLOUR is colour managed.

    Raises:
        UserError: The file cannot be read, is damaged, exceeds Pillow's limit on pixels or holds
            values that are not finite; for COLOUR, also if it is entirely transparent or holds
            floats outside [0, 1].
    """
    notes: list[str] = []
    with _opened(path) as picture:
        format = _format_of_deep(picture, path)
        size = deep.size(path, format) if picture is None else picture.size
        needed = (DEEP_READ_BYTES if format else READ_BYTES) * math.prod(size)
        free = available_bytes(torch.device("cpu"))
        if needed > free:
            raise OSError(f"reading it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        with _libraries_silent():
            if format:
                values, alpha, bits = _deep_values(path, format, picture, kind, notes)
            else:
                assert picture is not None  # files that Pillow does not read are deep
                values, alpha, bits = _shallow_values(path, picture, kind, notes)
    if kind == COLOUR and alpha is not None and alpha.max() == 0:
        raise UserError(f"{path}: every pixel is transparent")
    image = torch.from_numpy(values).permute(2, 0, 1)[None].expand(1, 3, -1, -1).contiguous()
    whole = None if alpha is None else torch.from_numpy(alpha)[None, None]
    notes = [f"{path.name}: {note}" for note in notes]
    return Picture(image, whole, bits, values.shape[2] == 1, notes)


def read_levels(path: Path) -> Image.Image:
    """Read a picture for display: 8 bits per channel, composited over its mean colour."""
    return Image.fromarray(_levels_of(read_picture(path).over_mean, 8))


def read_vectors(path: Path) -> Tensor:
    """Read an array of vectors from a .npy file of shape (2, H, W) as (1, 2, H, W).

    Raises:
        UserError: The file cannot be read, or its array has another shape or type.
    """
    try:
        open_regular(path).close()
        # Memory-mapped, since a header may claim any size.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
    except Exception as error:  # a damaged header raises errors of many types
        raise UserError(f"{path}: not a .npy file of numbers") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: an archive, not a .npy file of numbers")
    if found.ndim != 3 or len(found) != 2 or found.dtype.kind not in "fiu" or not found.size:
        raise UserError(f"{path}: {found.dtype} of {found.shape}, needed: numbers of (2, H, W)")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{path}: holds values that are not finite in float32")
    return torch.from_numpy(found)[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image | None]:
    """Open a picture and yield it, or None if only OpenImageIO reads it.

    Raises:
        UserError: The file cannot be opened, or the block raised an error.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's warnings are about files that it reads correctly, except the one for more
            # pixels than its limit: it raises an error only for more than twice the limit.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open_picture(path) or nullcontext() as picture:
                yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{path}: too large, the limit is {limit} pixels") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture in a format that is read") from error
    except Exception as error:
        # Damaged bytes come back as OSError, SyntaxError, struct.error, IndexError and more.
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


@contextmanager
def _libraries_silent() -> Iterator[None]:
    """Discard what libraries write to stderr; they report their errors by exceptions as well."""
    stderr = copy_of_stderr()
    if stderr is None:
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


def _open_picture(path: Path) -> Image.Image | None:
    """Open a picture; return None if only OpenImageIO reads it.

    A picture beyond Pillow's limit on pixels is opened only if this program recorded its size in it
    and it fits into memory, since a file of a few bytes may claim any size.
    """
    kind, _ = _FORMATS.get(path.suffix.lower(), ("", {}))
    with open_regular(path) as file:
        bytes_ = os.fstat(file.fileno()).st_size
    if bytes_ > MOST_BYTES and kind not in _ANY_SIZE:  # opening a TIFF reads all tags
        raise OSError(f"{bytes_ / 1e9:.1f} GB, files of at most {MOST_BYTES / 1e9:.1f} GB are read")
    try:
        with _libraries_silent():
            return Image.open(path)
    except UnidentifiedImageError:
        format = deep.format_of(path)
        if format is None:
            raise
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and math.prod(deep.size(path, format)) > limit:
            raise Image.DecompressionBombError from None
        return None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        if kind not in _ANY_SIZE:
            raise
        Image.init()
        opener: Any = Image.OPEN[kind][0]  # skips the check of the limit
        picture: Image.Image = opener(path, path.name)
        ours = _record_of(picture).get("size") == size_text(picture.size[::-1])
        if ours and READ_BYTES * math.prod(picture.size) <= available_bytes(torch.device("cpu")):
            return picture
        picture.close()
        raise


def _upright(picture: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # malformed EXIF raises errors of many types
        notes.append("unreadable EXIF, orientation ignored")
        return picture


def _format_of_deep(picture: Image.Image | None, path: Path) -> str:
    """Return OpenImageIO's name of the format of a file that Pillow cannot read or would reduce to
    8 bits; "" for other files."""
    if picture is None:
        return deep.format_of(path) or ""
    tiles: Any = getattr(picture, "tile", [])
    raw = str(tiles[0].args) if tiles else ""  # 'RGB;16B' of a PNG, ('RGB', 65535) of a PPM
    is_deep = {
        "PNG": ";16" in raw,
        "PPM": any(int(number) > LEVELS for number in re.findall(r"[0-9]+", raw)),
        "TIFF": _bits_of_tiff(picture) > 8 and picture.mode not in ("CMYK", "LAB"),
    }
    name = picture.format or ""
    if name == "JPEG2000":  # Pillow does not expose its bits
        is_deep[name] = deep.has_more_than_8_bits(path, deep.FORMATS[name])
    return deep.FORMATS[name] if is_deep.get(name) else ""


def _bits_of_tiff(picture: Image.Image) -> int:
    """Return the bits per channel of a TIFF; 16 if signed, which Pillow would read as unsigned."""
    tags: Any = getattr(picture, "tag_v2", {})
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    return 16 if signed else max(tags.get(_BITS_PER_SAMPLE, (8,)))


Values = tuple[np.ndarray, np.ndarray | None, int]  # (H, W, 1 or 3), alpha (H, W), bits


def _deep_values(
    path: Path, format: str, picture: Image.Image | None, kind: str, notes: list[str]
) -> Values:
    """Read values with OpenImageIO: those of the file or, for COLOUR, converted to sRGB."""
    found = deep.read(path, format, notes, straight=kind == COLOUR)
    values, bits = found.values, found.bits
    if kind == COLOUR and bits < deep.FLOAT_BITS:
        values = values.clip(0, 1)  # division by alpha may exceed 1
    _check_values(values, kind)
    if kind != COLOUR:
        return values, found.alpha, bits
    space: Space | None = None
    if format == "openexr":
        space = found.space or LINEAR  # EXR holds linear light
    elif picture is not None:
        space = space_in(picture, path, bits, notes)
    # Taken from Pillow if it opened the file, as libpng drops profiles that it considers invalid.
    profile = picture.info.get("icc_profile") if picture else found.profile
    if space is None and profile:
        try:
            space = space_of_icc(profile, values.shape[2])
        except ValueError:
            notes.append(_UNUSABLE)
        else:
            if space is None:
                notes.append("its colour profile consists of tables and is applied at 8 bits")
                return _by_tables(values, profile, notes), found.alpha, 8
    elif space is None and bits == deep.FLOAT_BITS:
        notes.append("floats without a colour profile, read as sRGB")
    return values if space is None else converted(values, space), found.alpha, bits


def _check_values(values: np.ndarray, kind: str) -> None:
    """Raise ValueError if values are not finite, or for COLOUR, outside [0, 1]."""
    least, most = values.min(), values.max()
    if not np.isfinite((least, most)).all():
        raise ValueError("holds values that are not finite")
    if kind == COLOUR and (least < 0 or most > 1):
        raise ValueError(
            f"floats from {least:.3g} to {most:.3g}, colours are from 0 to 1: scale them first; "
            "only --maps takes other values"
        )


def _by_tables(values: np.ndarray, profile: bytes, notes: list[str]) -> np.ndarray:
    levels = (values * LEVELS).round().astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    picture.info["icc_profile"] = profile
    return np.asarray(_srgb(picture, notes), np.float32)[..., : values.shape[2]] / LEVELS


def _shallow_values(path: Path, picture: Image.Image, kind: str, notes: list[str]) -> Values:
    """Read values with Pillow: those of the file or, for COLOUR, converted to sRGB."""
    picture = _loaded(path, picture, notes)
    if getattr(picture, "is_animated", False):
        notes.append("several frames, only the first is used")
    upright = _upright(picture, notes)  # before space_in, so that unreadable EXIF is noted first
    space = space_in(picture, path, 8, notes) if kind == COLOUR else None
    if _bits_of_tiff(picture) > 8:
        notes.append(f"{picture.mode} of more than 8 bits a channel, read with 8")
    picture = upright
    if picture.mode[0] in "IF":
        values, bits = deep.values_of(np.asarray(picture)[..., None])
        _check_values(values, kind)
        return values, None, bits
    alpha = None
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"), np.float32) / LEVELS
    grey = picture.mode in ("1", "L", "LA", "La")
    if kind == COLOUR and space is None:
        levels = np.asarray(_srgb(picture, notes))[..., : 1 if grey else 3]
    else:
        levels = np.asarray(picture.convert("L" if grey else "RGB"))
    values = levels.reshape(*levels.shape[:2], -1).astype(np.float32)
    values /= LEVELS
    return values if space is None else converted(values, space), alpha, 8


def _loaded(path: Path, picture: Image.Image, notes: list[str]) -> Image.Image:
    """Decode a picture. A JPEG without its end marker is accepted if no data are missing."""
    try:
        picture.load()
    except OSError:
        if picture.format != "JPEG":
            raise
        with open_regular(path) as file:
            whole = file.read() + JPEG_END
        with TemporaryDirectory(prefix="synthesis-") as folder:
            repaired = Path(folder) / "picture.jpg"
            repaired.write_bytes(whole)
            if deep.lacks_data(repaired):
                raise
        picture = Image.open(BytesIO(whole))
        picture.load()
    else:
        if picture.format == "JPEG" and _may_end_early(picture) and deep.lacks_data(path):
            notes.append("damaged: data are missing at the end, where the picture is grey")
    return picture


def _may_end_early(picture: Image.Image) -> bool:
    """Return whether data may be missing at the end of a decoded JPEG, unreported by Pillow.

    Blocks without data are decoded as luma 128, so a sequential JPEG whose last pixel has another
    luma is complete, up to damage within its last block.
    """
    if "progressive" in picture.info or picture.mode not in ("L", "RGB"):
        return True
    last = picture.crop((picture.width - 1, picture.height - 1, *picture.size)).convert("L")
    return abs(last.tobytes()[0] - 128) <= 2


def _srgb(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Convert an 8-bit picture to RGB in sRGB, by its colour profile if it has one."""
    profile = picture.info.get("icc_profile")
    if picture.mode == "LAB":  # an embedded profile describes the printer
        return _through(picture, ImageCms.createProfile("LAB"))
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")
    plain = picture.convert("RGB")
    if not profile:
        return plain
    try:
        managed = _through(picture, BytesIO(profile))
    except ImageCms.PyCMSError:
        notes.append(_UNUSABLE)
        return plain
    # If the difference is rounding, at most one level, the profile is sRGB: keep the exact pixels.
    difference = np.asarray(ImageChops.difference(plain, managed))
    return managed if difference.max() > 1 else plain


def _through(picture: Image.Image, profile: Any) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    managed = ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB")
    assert managed is not None  # None is returned only for changes in place
    return managed


# -------------------------------------------------------------------------------------- saving


def check_suffix(path: Path) -> None:
    """Raise UserError unless the suffix is one of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}, use one of {' '.join(SUFFIXES)}")


def check_save_path(path: Path) -> None:
    """Raise UserError unless the suffix is one of SUFFIXES and the file can be written."""
    check_suffix(path)
    check_writable(path)


def check_format(path: Path, size: Size) -> None:
    """Raise UserError if the format cannot hold a picture of size (height, width), or if Pillow
    would refuse to read it again."""
    kind, _ = _FORMATS[path.suffix.lower()]
    if max(size) > MAX_SIDES[kind]:
        raise UserError(
            f"{path}: {size_text(size)}, sides of a {kind} have at most {MAX_SIDES[kind]} pixels"
        )
    most = Image.MAX_IMAGE_PIXELS
    if kind not in _ANY_SIZE and most is not None and math.prod(size) > most:
        raise UserError(
            f"{path}: {size_text(size)}, a {kind} of more than {most} pixels cannot be read again"
        )


def save_picture(
    image: Tensor, path: Path, record: dict[str, Any], bits: int = 8, kind: str = COLOUR
) -> None:
    """Save a picture atomically, encoded by `encoded`.

    Raises:
        UserError: The file cannot be written; also as `encoded`.
    """
    save_bytes(encoded(image, path, record, bits, kind), path)


def encoded(
    image: Tensor, path: Path, record: dict[str, Any], bits: int = 8, kind: str = COLOUR
) -> memoryview:
    """Return the bytes of a picture file.

    Args:
        image: (1, C, H, W) in [0, 1] with C of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
            All formats but JPEG hold alpha.
        path: Its suffix sets the format.
        record: Values to embed in the file, for `read_record`.
        bits: Bits per channel: 8, 16, or 32 for floats, which may have any value; reduced to what
            the format holds by `bits_saved`.
        kind: A name in `utils.KINDS`; an EXR of COLOUR holds linear light.

    Raises:
        UserError: The format cannot hold the picture.
        ValueError: `image` has another shape or values that are not finite.
    """
    if image.ndim != 4 or len(image) != 1 or not 1 <= image.shape[1] <= 4:
        raise ValueError(f"expected a picture of shape (1, 1 to 4, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("the picture holds values that are not finite")
    format, options = _FORMATS[path.suffix.lower()]
    bits = bits_saved(path, bits)
    levels = _levels_of(image, bits)
    try:
        if bits == 8:
            # Encoded in memory, as libtiff writes errors about files to stderr.
            file = BytesIO()
            picture = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
            picture.save(file, format, **options, **record_options(format, record))
            return file.getbuffer()
        colours = 3 if levels.shape[2] > 2 else 1
        if format == "EXR" and kind == COLOUR:
            levels[..., :colours] = srgb_curve(levels[..., :colours])
        text = record_text(record)
        in_exif = {"Software": _RECORD_KEY, "ImageDescription": text}
        texts = {_RECORD_KEY: text} if format == "PNG" else in_exif
        with _libraries_silent():
            return deep.encoded(levels, deep.FORMATS[format], texts)
    except (OSError, ValueError) as error:  # ValueError: a side is too long for the format
        raise UserError(f"{path}: cannot be saved ({reason_of(error)})") from error


def check_bits(path: Path, bits: int) -> None:
    """Raise UserError if files with that suffix cannot have this number of bits per channel."""
    if bits_saved(path, bits) != bits:
        held = bits_saved(path, 8)
        raise UserError(
            f"--bits {bits}: {path} holds {held} bits per channel; .png and .tif hold 8 or 16"
        )


def holds_alpha(path: Path) -> bool:
    """Return whether files of that suffix can have an alpha channel."""
    return _FORMATS[path.suffix.lower()] is not _JPEG


def bits_saved(path: Path, bits: int) -> int:
    """Return the largest number of bits per channel, up to `bits`, that files with that suffix can
    have; the smallest if all are above `bits`."""
    held = _BITS.get(_FORMATS[path.suffix.lower()][0], (8,))
    return max((one for one in held if one <= bits), default=held[0])


def _levels_of(image: Tensor, bits: int) -> np.ndarray:
    """Quantise (1, C, H, W) in [0, 1] to (H, W, C) of uint8 or uint16, or of float32 for 32
    bits."""
    pixels = image.detach()[0].movedim(0, 2)
    levels = np.empty(pixels.shape, {8: np.uint8, 16: np.uint16}.get(bits, np.float32))
    for top in range(0, len(levels), ROWS):
        rows = slice(top, top + ROWS)
        found = pixels[rows].cpu().double()
        if bits < deep.FLOAT_BITS:
            most = 2**bits - 1
            # The clamp keeps values like 1.0000001 from wrapping around to 0.
            found = found.mul(most).round().clamp(0, most)
        levels[rows] = found.numpy()
    return levels


def as_saved(image: Tensor, path: Path, bits: int = 8) -> Tensor:
    """Return the pixels that a file saved at that path would give when read.

    Args:
        image: (1, 1, H, W) or (1, 3, H, W) in [0, 1].

    Returns:
        (1, 3, H, W), with the losses of 8 bits and of JPEG.

    Raises:
        UserError: As `encoded`.
    """
    if bits_saved(path, bits) > 8:
        return image.expand(-1, 3, -1, -1)  # rounding to 16 bits is negligible
    Image.init()
    opener: Any = Image.OPEN[_FORMATS[path.suffix.lower()][0]][0]  # does not check the limit
    with opener(BytesIO(encoded(image, path, {}, bits)), "") as picture, _libraries_silent():
        levels = np.array(picture.convert("RGB"))
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / LEVELS


def read_record(path: Path) -> dict[str, Any]:
    """Return the record that `save_picture` embedded in a file; {} if there is none.

    Raises:
        UserError: The file cannot be read as a picture.
    """
    with _opened(path) as picture:
        if picture is not None:
            return _record_of(picture)
        software, text = deep.record(path, _format_of_deep(None, path))
        return _parsed(text) if software == _RECORD_KEY else {}


def read_size(path: Path) -> Size:
    """Return (height, width) of a picture before EXIF rotation; raise as `read_record`."""
    with _opened(path) as picture:
        if picture is not None:
            return picture.height, picture.width
        width, height = deep.size(path, _format_of_deep(None, path))
        return height, width


def record_at(path: Path) -> dict[str, Any]:
    """Return the record of a picture; {} if there is no picture or no record."""
    try:
        return read_record(path)
    except UserError:  # no picture
        return {}


def _record_of(picture: Image.Image) -> dict[str, Any]:
    text = picture.info.get("comment" if picture.format == "GIF" else _RECORD_KEY, "")
    if picture.format != "PNG":  # its EXIF may follow the pixels, which would be decoded first
        with suppress(Exception):  # malformed EXIF is no record
            exif = picture.getexif()
            if exif.get(_SOFTWARE) == _RECORD_KEY:
                text = exif.get(_DESCRIPTION)
    return _parsed(text)


def _parsed(text: Any) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def record_text(record: dict[str, Any]) -> str:
    """Return a record as JSON of at most _RECORD_BYTES; if it is longer, the longest values are
    left out."""
    record = {str(key): value for key, value in record.items()}
    # EXIF descriptions are ASCII; JSON escapes all other characters of file names.
    dump = partial(json.dumps, default=str, skipkeys=True)
    while len(text := dump(record)) > _RECORD_BYTES:
        del record[max(record, key=lambda key: len(dump(record[key])))]
    return text


def record_options(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `Image.save` that embed a record in the file."""
    text = record_text(record)
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(_RECORD_KEY, text)
        return {"pnginfo": chunks}
    if kind == "GIF":
        return {"comment": text}
    exif = Image.Exif()
    exif[_SOFTWARE], exif[_DESCRIPTION] = _RECORD_KEY, text
    return {"exif": exif}
