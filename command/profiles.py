"""Colour spaces of picture files, by ICC profile, PNG chunk, AVIF box or EXIF, converted to sRGB.

A colour space consists of three primaries, a white point and a curve for each channel. ICC profiles
made of tables, such as those of CMYK, are left to Little CMS, which Pillow applies at 8 bits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from command.files import open_regular

Curve = Callable[[np.ndarray], np.ndarray]  # values -> linear light, both in [0, 1]
Chromaticities = tuple[float, ...]  # x and y of white, red, green and blue

ROWS = 256  # rows converted at a time, which bounds memory
SRGB_TOLERANCE = 1 / 255  # a space that differs from sRGB by at most this counts as sRGB
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB_PRIMARIES = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_RGB_GAMMA = 563 / 256
# Code points of ITU-T H.273, used by cICP and AVIF; those left out are rare in pictures.
H273_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB_PRIMARIES,
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
H273_UNSPECIFIED, H273_VIDEO = 2, (1, 6, 14, 15)
# Ranges of gAMA: values that libpng treats as sRGB, and values that are used.
SRGB_GAMMAS = (0.45, 0.46)
GAMMAS = (0.05, 20)
ADOBE_RGB, UNCALIBRATED = 2, 0xFFFF
AVIF_HEAD = 2**16  # bytes read to find the boxes that precede the pixels


class Space(NamedTuple):
    """A colour space."""

    curves: tuple[Curve, ...]  # one for all channels, or three
    to_xyz: np.ndarray  # (3, 3): linear RGB -> XYZ with white D50
    least: float = 0.0  # the value of black
    most: float = 1.0  # the value of white

    def to_srgb(self, values: np.ndarray) -> np.ndarray:
        """Convert values, (..., 1) for grey or (..., 3) in [0, 1], to sRGB, clipping colours that
        are out of gamut."""
        values = np.clip((values - self.least) / (self.most - self.least), 0, 1)
        parts = np.split(values, values.shape[-1], axis=-1)
        curves = self.curves * (len(parts) // len(self.curves))
        pairs = zip(curves, parts, strict=True)
        light = np.concatenate([curve(part) for curve, part in pairs], -1)
        if len(parts) == 3:
            light = light @ (np.linalg.inv(SRGB.to_xyz) @ self.to_xyz).T
        return _srgb_encoded(np.clip(light, 0, 1))

    def is_srgb(self) -> bool:
        """Return whether the space differs from sRGB by at most SRGB_TOLERANCE."""
        steps = np.linspace(0, 1, 9)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
        ramp = np.repeat(np.linspace(0, 1, 256)[:, None], 3, 1)
        probes = np.concatenate((cube, ramp))
        return bool(np.abs(self.to_srgb(probes) - probes).max() <= SRGB_TOLERANCE)


def converted(values: np.ndarray, space: Space) -> np.ndarray:
    """Convert values in a space, (H, W, 1) or (H, W, 3) in [0, 1], to sRGB as float32."""
    if space.is_srgb():
        return values
    found = np.empty(values.shape, np.float32)
    for top in range(0, len(values), ROWS):
        rows = slice(top, top + ROWS)
        found[rows] = space.to_srgb(values[rows].astype(np.float64))
    return found


def gamma_curve(gamma: float) -> Curve:
    """Return the curve that raises values to the power of gamma."""
    return lambda values: values**gamma


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """Decode sRGB values to linear light (IEC 61966-2-1)."""
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def _srgb_encoded(light: np.ndarray) -> np.ndarray:
    return np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, light * 12.92)


def space_of(primaries: Chromaticities, curve: Curve) -> Space:
    """Return the space of the given chromaticities and curve.

    Args:
        primaries: x and y of white, red, green and blue.

    Raises:
        ValueError: A y is 0, or the primaries lie on one line.
    """
    white, *colours = (_xyz(*pair) for pair in zip(primaries[::2], primaries[1::2], strict=True))
    matrix = np.stack(colours, 1)
    with np.errstate(all="ignore"):
        if not (np.isfinite(matrix).all() and np.isfinite(white).all()):
            raise ValueError("a chromaticity has y = 0")
        if abs(np.linalg.det(matrix)) < 1e-6:
            raise ValueError("the primaries lie on one line")
        light = np.linalg.solve(matrix, white)
    return Space((curve,), _adapted_to_d50(white) @ (matrix * light))


def _xyz(x: float, y: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array([x, y, 1 - x - y]) / np.float64(y)


def _adapted_to_d50(white: np.ndarray) -> np.ndarray:
    """Return the Bradford matrix (3, 3) that adapts XYZ from a white to D50, the white of ICC."""
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1, 0.8249])
    return np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford


SRGB = space_of(SRGB_PRIMARIES, srgb_curve)
LINEAR = SRGB._replace(curves=(gamma_curve(1),))
H273_CURVES: dict[int, Curve] = {4: gamma_curve(2.2), 5: gamma_curve(2.8), 8: gamma_curve(1)}
H273_CURVES |= dict.fromkeys((13, *H273_VIDEO), srgb_curve)


# --------------------------------------------------------------------------------- spaces of files


def space_in(picture: Image.Image, path: Path, bits: int, notes: list[str]) -> Space | None:
    """Return the space that a file names by other means than an ICC profile, or None.

    In order of priority: cICP; an ICC profile, for which None is returned; an sRGB chunk; gAMA and
    cHRM, or an AVIF box; EXIF.

    Args:
        picture: The file as opened by Pillow.
        bits: Bits per channel.
        notes: Lines for the user are appended.
    """
    info, is_png = picture.info, picture.format == "PNG"
    chunk = _cicp(path) if is_png else None
    if chunk is not None and (space := _space_of_cicp(chunk, bits, notes)):
        return space
    if info.get("icc_profile"):
        return None
    if is_png and {"srgb", "gamma", "chromaticity"} & info.keys():
        # The value of an ICC profile that cannot be decompressed is None.
        return None if {"srgb", "icc_profile"} & info.keys() else _space_of_gama(info, notes)
    if picture.format == "AVIF":
        with open_regular(path) as file:
            return space_in_avif(file.read(AVIF_HEAD), notes)
    return _space_in_exif(picture, notes)


def _cicp(path: Path) -> bytes | None:
    """Return the content of the cICP chunk of a PNG, which Pillow does not read, or None."""
    with open_regular(path) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == b"cICP":
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)
    return None


def _space_of_gama(info: Mapping[Any, Any], notes: list[str]) -> Space | None:
    """Return the space of the gAMA and cHRM chunks in `Image.info`; None if gAMA is unusable."""
    gamma = info.get("gamma")
    curve: Curve = srgb_curve
    if gamma is not None and not SRGB_GAMMAS[0] <= gamma <= SRGB_GAMMAS[1]:
        if not GAMMAS[0] <= gamma <= GAMMAS[1]:
            notes.append(f"unusable gAMA, {gamma:g}, ignored")
            return None
        curve = gamma_curve(1 / gamma)
    try:
        return space_of(info.get("chromaticity") or SRGB_PRIMARIES, curve)
    except ValueError as error:
        notes.append(f"unusable cHRM ({error}), ignored")
        return space_of(SRGB_PRIMARIES, curve)


def _space_of_cicp(chunk: bytes, bits: int, notes: list[str]) -> Space | None:
    primaries, transfer, matrix, full = chunk if len(chunk) == 4 else (0, 0, 0, 0)
    space = None if matrix or full > 1 else _space_of_h273(primaries, transfer, notes)
    if space is None:
        notes.append(f"cICP {list(chunk)}: unsupported colour space, ignored")
        return None
    if full:
        return space
    white = 2**bits - 1  # narrow range is 16 to 235 for 8 bits
    return space._replace(least=16 * 2 ** (bits - 8) / white, most=235 * 2 ** (bits - 8) / white)


def _space_of_h273(primaries: int, transfer: int, notes: list[str]) -> Space | None:
    """Return the space of code points of ITU-T H.273; None if they are not supported."""
    if primaries not in H273_PRIMARIES or transfer not in H273_CURVES:
        return None
    if transfer in H273_VIDEO:
        notes.append(f"transfer function {transfer} of H.273 (video), read as sRGB's")
    return space_of(H273_PRIMARIES[primaries], H273_CURVES[transfer])


def space_in_avif(head: bytes, notes: list[str]) -> Space | None:
    """Return the space of an AVIF by its code points of H.273, which Pillow does not read; None
    without these.

    Args:
        head: First bytes of the file, up to its pixels.
        notes: Lines for the user are appended.
    """
    bits = head.find(b"pixi") + 9  # after the version, flags and the number of channels
    if bits > 9 and max(head[bits : bits + 1], default=8) > 8:
        notes.append(f"{head[bits]} bits a channel, read with 8")
    named = head.find(b"colrnclx")
    if named < 0 or len(head) < named + 12:
        return None
    primaries, transfer = struct.unpack_from(">2H", head, named + 8)
    if H273_UNSPECIFIED in (primaries, transfer):
        return None
    space = _space_of_h273(primaries, transfer, notes)
    if space is None:
        notes.append(f"nclx {primaries}, {transfer}: unsupported colour space, ignored")
    return space


def _space_in_exif(picture: Image.Image, notes: list[str]) -> Space | None:
    """Return Adobe RGB if EXIF names it (DCF 2.0), else None, which means sRGB. A line is appended
    to `notes` if EXIF names another space."""
    with suppress(Exception):  # malformed EXIF raises errors of many types
        exif = picture.getexif()
        colour_space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = str(exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, ""))
        if index.strip("\0 ") == "R03" or colour_space == ADOBE_RGB:
            return space_of(ADOBE_RGB_PRIMARIES, gamma_curve(ADOBE_RGB_GAMMA))
        told = tuple(map(float, exif.get(ExifTags.Base.PrimaryChromaticities, SRGB_PRIMARIES[2:])))
        foreign = not np.allclose(told, SRGB_PRIMARIES[2:], rtol=0, atol=0.01)
        if colour_space == UNCALIBRATED or foreign:
            notes.append(
                "EXIF names a colour space other than sRGB without describing it, and there is no "
                "colour profile: read as sRGB"
            )
    return None


def space_of_icc(profile: bytes, channels: int) -> Space | None:
    """Return the space of an ICC profile, None if the profile consists of tables.

    Args:
        channels: Number of channels of the picture, 1 or 3.

    Raises:
        ValueError: The profile is damaged or has another number of channels.
    """
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        tags = {}
        for i in range(min(count, 100)):
            name, start, size = struct.unpack_from(">4s2I", profile, 132 + 12 * i)
            tags[name] = profile[start : start + size]
        if b"A2B0" in tags:
            return None
        if profile[16:20] != {1: b"GRAY", 3: b"RGB "}[channels]:
            raise ValueError(f"a profile of {profile[16:20]!r}")
        if channels == 1:
            return SRGB._replace(curves=(_icc_curve(tags[b"kTRC"]),))
        columns = [np.array(struct.unpack_from(">3i", tags[c + b"XYZ"], 8)) for c in _RGB]
        curves = tuple(_icc_curve(tags[c + b"TRC"]) for c in _RGB)
    except (struct.error, KeyError) as error:
        raise ValueError("a profile that lacks tags") from error
    return Space(curves, np.stack(columns, 1) / 65536)


_RGB = (b"r", b"g", b"b")


def _icc_curve(tag: bytes) -> Curve:
    kind, count = struct.unpack_from(">4s4xI", tag)
    if kind == b"curv":
        if count == 0:
            return gamma_curve(1)
        if count == 1:
            return gamma_curve(struct.unpack_from(">H", tag, 12)[0] / 256)
        table = np.array(struct.unpack_from(f">{count}H", tag, 12)) / 65535
        places = np.linspace(0, 1, count)
        return lambda values: np.interp(values, places, table)
    if kind != b"para":
        raise ValueError(f"a curve of kind {kind!r}")
    function = count >> 16
    if function > 4:
        raise ValueError(f"a curve by function {function}")
    parameters = struct.unpack_from(f">{(1, 3, 4, 5, 7)[function]}i", tag, 12)
    return _parametric(function, [value / 65536 for value in parameters])


def _parametric(function: int, parameters: Sequence[float]) -> Curve:
    """Return a parametric curve of ICC.1, 10.18: (a x + b) ** g + e for x >= d, c x + f below d.

    Args:
        function: Function type of ICC.1, 0 to 4.
        parameters: g, a, b, c, d, e and f, as many of them as the function type has.
    """
    g, a, b, c, d, e, f = (*parameters, *(1.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0)[len(parameters) :])
    if function == 2:  # its fourth parameter is the offset e, and it has no lower part
        c, e = 0.0, c

    def curve(values: np.ndarray) -> np.ndarray:
        above = np.maximum(a * values + b, 0) ** g + e
        return np.clip(np.where(values >= d, above, c * values + f), 0, 1)

    return curve
