"""Picture files with more than 8 bits per channel, read and written by OpenImageIO.

Pillow supports 16 bits and floats only for grey pictures, and does not report missing data in a
JPEG. OpenImageIO is imported when first needed, since the import takes 0.1 s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from command.files import open_regular
from command.profiles import Space, gamma_curve, space_of
from utils import LEVELS, LEVELS_16_BIT, size_text

if TYPE_CHECKING:
    from OpenImageIO import ImageInput, ImageSpec

# First bytes of files that Pillow may not read -> OpenImageIO's names of their formats.
_BEGINNINGS = {
    b"\x76\x2f\x31\x01": "openexr",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "tiff"),
}
# Pillow's names of formats, and EXR, which Pillow does not read -> OpenImageIO's names.
FORMATS = {"PNG": "png", "TIFF": "tiff", "PPM": "pnm", "JPEG2000": "jpeg2000", "EXR": "openexr"}
FLOAT_BITS = 32
PHOTOMETRIC, WHITE_IS_ZERO, PALETTE = "tiff:PhotometricInterpretation", 0, 3
# Values of the EXIF tag Orientation -> functions that turn a picture upright.
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class Deep(NamedTuple):
    """The values of a picture file, upright."""

    # (H, W, 1) or (H, W, 3), float32: integers divided by 255 or 65535, floats unchanged
    values: np.ndarray
    alpha: np.ndarray | None  # (H, W) in [0, 1]
    bits: int  # per channel: 8, 16, or 32 for floats
    profile: bytes | None  # ICC
    space: Space | None  # linear light with the chromaticities of an EXR; None without them


def format_of(path: Path) -> str | None:
    """Return OpenImageIO's name of the format of an EXR or TIFF by its first bytes, else None."""
    with open_regular(path) as file:
        return _BEGINNINGS.get(file.read(4))


def _library() -> ModuleType:
    """Return OpenImageIO, set to print nothing and use no threads, which do not survive forks."""
    import OpenImageIO

    OpenImageIO.attribute("threads", 1)
    OpenImageIO.attribute("exr_threads", -1)
    OpenImageIO.attribute("oiio:print_uncaught_errors", 0)
    return OpenImageIO


@contextmanager
def opened(path: Path, format: str) -> Iterator[tuple[ImageInput, ImageSpec]]:
    """Open a file for reading.

    Args:
        format: OpenImageIO's name of the format.

    Raises:
        OSError: The file cannot be opened or has another format.
    """
    oiio = _library()
    hints = oiio.ImageSpec()
    hints["oiio:UnassociatedAlpha"] = 1  # colours are not multiplied by alpha
    try:
        file = oiio.ImageInput.open(str(path), hints)
    except TypeError as error:
        raise OSError("its name is not valid UTF-8, rename it") from error
    if file is None:
        raise OSError(oiio.geterror().partition("\n")[0])
    try:
        if file.format_name() != format:
            raise OSError(f"damaged, or not in the format {format}")
        yield file, file.spec()
    finally:
        file.close()


def read(path: Path, format: str, notes: list[str], straight: bool) -> Deep:
    """Read a picture.

    Args:
        format: OpenImageIO's name of the format.
        notes: Lines for the user are appended.
        straight: Divide premultiplied colours by alpha.

    Raises:
        OSError: The file cannot be read.
        ValueError: The channels or values are not supported.
    """
    with opened(path, format) as (file, spec):
        channels = _channels(spec, notes)
        alphas = [spec.alpha_channel] if spec.alpha_channel >= 0 else []
        first, end = min(channels + alphas), max(channels + alphas) + 1
        levels = file.read_image(first, end, spec.format)
        if levels is None or file.has_error:
            raise OSError(file.geterror().partition("\n")[0])
        if file.seek_subimage(1, 0):
            notes.append("holds several pictures, only the first is used")
    photometric = spec.get_int_attribute(PHOTOMETRIC, 1)
    turn = _TURNS.get(spec.get_int_attribute("Orientation"), lambda a: a)
    values, bits = values_of(levels[..., [i - first for i in channels]], photometric)
    alpha = None
    for i in alphas:
        alpha, _ = values_of(levels[..., i - first])
        own = spec.get_int_attribute("oiio:UnassociatedAlpha")
        if straight and (format == "openexr" or (format == "tiff" and not own)):
            values = values / np.where(alpha > 0, alpha, 1)[..., None]
        alpha = np.ascontiguousarray(turn(alpha.clip(0, 1)))
    profile = spec.getattribute("ICCProfile")
    return Deep(
        np.ascontiguousarray(turn(values)),
        alpha,
        bits,
        None if profile is None else bytes(profile),
        _light(spec, notes),
    )


def _light(spec: ImageSpec, notes: list[str]) -> Space | None:
    found = spec.getattribute("chromaticities")
    if found is None:
        return None
    xy = tuple(float(v) for v in found)  # of red, green, blue and white
    try:
        return space_of((*xy[6:], *xy[:6]), gamma_curve(1))
    except ValueError as error:
        notes.append(f"unusable chromaticities ({error}), ignored")
        return None


def size(path: Path, format: str) -> tuple[int, int]:
    """Return (width, height) of a picture; raise OSError if the file cannot be read."""
    with opened(path, format) as (_, spec):
        return spec.width, spec.height


def has_more_than_8_bits(path: Path, format: str) -> bool:
    """Return whether a channel has more than 8 bits; False if OpenImageIO cannot read the file."""
    with suppress(OSError), opened(path, format) as (_, spec):
        return str(spec.format) != "uint8"
    return False


def record(path: Path, format: str) -> tuple[str, str]:
    """Return (Software, ImageDescription) of a file; raise OSError if it cannot be read."""
    with opened(path, format) as (_, spec):
        return spec.get_string_attribute("Software"), spec.get_string_attribute("ImageDescription")


def lacks_data(path: Path) -> bool:
    """Return whether data are missing at the end of a JPEG, which Pillow silently fills with grey;
    False if OpenImageIO cannot read the file."""
    with suppress(OSError), opened(path, "jpeg") as (file, _):
        file.read_image("uint8")
        return "premature end" in file.geterror().lower()
    return False


def _channels(spec: ImageSpec, notes: list[str]) -> list[int]:
    """Return the indices of the channels to use: red, green and blue, or the only one.

    Raises:
        ValueError: There are neither R, G and B nor one or three other channels.
    """
    names = list(spec.channelnames)
    alpha = spec.alpha_channel
    others = [i for i in range(len(names)) if i != alpha]
    if not set("RGB") <= set(names):
        listed = ", ".join(names[i] for i in others[:8])
        if len(others) not in (1, 3) or "RY" in names:  # luminance and chroma
            raise ValueError(f"channels {listed}, one channel or R, G and B are needed")
        if len(others) == 3:
            notes.append(f"channels {listed} are taken for red, green and blue")
        return others
    if len(others) > 3:
        notes.append("has more channels than R, G and B, the others are ignored")
    return [names.index(name) for name in "RGB"]


def values_of(levels: np.ndarray, photometric: int = 1) -> tuple[np.ndarray, int]:
    """Return the levels of a file as float32 and the bits per channel; integers are divided by 255
    or, with more than 8 bits, by 65535.

    Args:
        photometric: Value of the TIFF tag PhotometricInterpretation.

    Raises:
        ValueError: The type or range of the levels is not supported.
    """
    if photometric > PALETTE:
        raise ValueError(
            f"{levels.dtype} with PhotometricInterpretation {photometric}, which is not supported"
        )
    if levels.dtype == np.uint8:  # OpenImageIO has inverted it already
        return levels.astype(np.float32) / LEVELS, 8
    inverted = photometric == WHITE_IS_ZERO
    if levels.dtype.kind == "f":
        if inverted:
            raise ValueError("floats whose 0 is white, which are not supported")
        with np.errstate(over="ignore"):
            return levels.astype(np.float32), FLOAT_BITS
    # The white of wider and of signed integers is unknown unless all values fit into 16 bits.
    if levels.dtype == np.int8:
        raise ValueError("signed integers of 8 bits, which are not supported")
    if not (levels.min() >= 0 and levels.max() <= LEVELS_16_BIT):
        least, most = levels.min(), levels.max()
        raise ValueError(f"values from {least} to {most}, allowed are 0 to {LEVELS_16_BIT}")
    values = levels.astype(np.float32) / LEVELS_16_BIT
    return 1 - values if inverted else values, 16


def encoded(levels: np.ndarray, format: str, texts: dict[str, str]) -> memoryview:
    """Return the bytes of a picture file.

    Args:
        levels: (H, W, C) of uint16 or float32 with C of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4
            (RGB, alpha).
        format: OpenImageIO's name of the format.
        texts: Attributes of the file, by name.

    Raises:
        OSError: OpenImageIO cannot write the file.
    """
    oiio = _library()
    height, width, channels = levels.shape
    kind = oiio.UINT16 if levels.dtype == np.uint16 else oiio.FLOAT
    spec = oiio.ImageSpec(width, height, channels, kind)
    spec.channelnames = tuple({1: "Y", 2: "YA", 3: "RGB", 4: "RGBA"}[channels])
    spec.alpha_channel = channels - 1 if channels in (2, 4) else -1
    # Straight alpha; no date, so that equal pictures give equal files; no colour space, as in files
    # of 8 bits.
    spec["oiio:UnassociatedAlpha"] = 1
    spec["DateTime"] = ""
    spec["oiio:ColorSpace"] = "data"
    spec["compression"] = "zip"
    for name, text in texts.items():
        spec[name] = text
    with tempfile.TemporaryDirectory(prefix="synthesis-") as folder:
        path = Path(folder) / "picture"
        file = oiio.ImageOutput.create(format)
        assert file is not None  # every build has these formats
        written = file.open(str(path), spec) and file.write_image(levels)
        if not (file.close() and written):
            reason = file.geterror().partition("\n")[0]
            raise OSError(f"{size_text((height, width))} as {format}: {reason}")
        return memoryview(path.read_bytes())
