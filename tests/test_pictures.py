"""Hostile files, faithful saving and plain arguments; every expected value can be had by hand."""

import errno
import gc
import json
import os
import struct
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import OpenImageIO
import pytest
import torch
from conftest import refusal
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from command import files, pictures, profiles
from utils import COLOUR, DATA, KINDS, UserError


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png_claiming(width: int, height: int) -> bytes:
    """A valid PNG header with no pixels behind it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b""))


def png(pixels: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG of uint8 or uint16 (H, W, 1 to 4) with chunks by name before the pixels."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    parts = {b"IHDR": header} | {name.encode(): data for name, data in chunks.items()}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts.items())


def tiff(size: tuple[int, int], data: bytes, order: str = "<", **tags: list[int]) -> bytes:
    """An uncompressed TIFF of (width, height) whose strips lie one after the other; tags by the
    names of `TAGS`, shorts."""
    strips = len(tags["bits"]) if tags.get("planar") == [2] else 1
    part = len(data) // strips
    body, entries = b"", {256: [size[0]], 257: [size[1]], 259: [1], 278: [size[1]]}
    entries |= {TAGS[name]: values for name, values in tags.items()}
    entries |= {273: [0] * strips, 279: [part] * strips}
    start = 8 + 2 + 12 * len(entries) + 4
    before = sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = [start + before + i * part for i in range(strips)]
    table = struct.pack(order + "H", len(entries))
    for tag, values in sorted(entries.items()):
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            where = struct.pack(order + "I", start + len(body))
            body += packed
            packed = where
        table += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + table + bytes(4) + body.ljust(before, b"\0") + data


TAGS = {"bits": 258, "photometric": 262, "samples": 277, "planar": 284, "extra": 338, "kind": 339}


LINEAR = b"curv" + bytes(8)


def colour_profile(space: bytes, curve: bytes = LINEAR) -> bytes:
    """An ICC profile, grey or with sRGB's primaries, whose values follow `curve`."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7141)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">2I", start + len(data), len(value))
        data += value
    header = struct.pack(">I", start + len(data)) + bytes(4) + b"\x02\x10\0\0mntr" + space
    header += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + xyz(0.9642, 1, 0.8249)[8:]
    return header.ljust(128, b"\0") + table + data


def read(picture: Image.Image, path, **options) -> tuple[torch.Tensor, list[str]]:
    picture.save(path, **options)
    image, *_, notes = pictures.read_picture(path)
    assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[:2] == (1, 3)
    return image, notes


def levels(image: torch.Tensor) -> list:
    """The picture's pixels in reading order, as 8-bit levels."""
    return image[0].mul(255).flatten(1).T.round().int().tolist()


# ------------------------------------------------------------------------------------- finding


@pytest.fixture
def textures(tmp_path, monkeypatch):
    folder = tmp_path / "textures"
    folder.mkdir()
    for name in ("leaf.jpg", "Pebbles.png", "leaf.py"):
        (folder / name).write_bytes(b"x")
    monkeypatch.setattr(pictures, "TEXTURES", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_find_picture_prefers_the_path_as_given(textures, tmp_path):
    assert pictures.find_picture("leaf.jpg") == textures / "leaf.jpg"
    (tmp_path / "leaf.jpg").write_bytes(b"x")
    assert pictures.find_picture("leaf.jpg").resolve() == tmp_path / "leaf.jpg"


@pytest.mark.parametrize(
    "typo, nearest",
    [("laef.jpg", "leaf.jpg"), ("pebbles.jpg", "Pebbles.png"), ("old/LEAF.JPG", "leaf.jpg")],
)
def test_find_picture_names_both_places_and_the_nearest(textures, typo, nearest):
    line = refusal(pictures.find_picture, typo)
    assert typo in line and " here " in line and str(textures) in line
    assert line.endswith(f"nearest there: {nearest}")  # and never leaf.py


def test_find_picture_without_anything_near(textures, monkeypatch):
    assert "nearest" not in refusal(pictures.find_picture, "zzzz.tga")
    monkeypatch.setattr(pictures, "TEXTURES", textures / "gone")
    assert "no such picture" in refusal(pictures.find_picture, "leaf.jpg/inside.jpg")


@pytest.mark.parametrize("name", ["textures", ""])
def test_find_picture_refuses_a_folder(textures, name):
    assert f"{name!r}: a folder" in refusal(pictures.find_picture, name)


def test_find_picture_refuses_what_may_not_be_read(textures, monkeypatch):
    def forbidden(path):  # the superuser may read anything, so chmod would prove nothing
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pictures, "open_regular", forbidden)
    assert refusal(pictures.find_picture, "leaf.jpg") == "'leaf.jpg': Permission denied"


# ------------------------------------------------------------------------------------- reading


def test_rgb_keeps_rows_columns_and_channels(tmp_path):
    picture = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10)
    image, notes = read(picture, tmp_path / "a.png")
    assert image.shape == (1, 3, 2, 3) and image.is_contiguous() and notes == []
    assert image[0, 1, 1, 2].item() == pytest.approx(160 / 255)  # element 16 of the array
    assert image[0, 2, 0, 1].item() == pytest.approx(50 / 255)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 51, [51, 51, 51]),
        ("1", 1, [255, 255, 255]),
        ("P", 7, [10, 20, 30]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("LA", (51, 255), [51, 51, 51]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
    ],
)
def test_modes(tmp_path, mode, colour, expected):
    picture = Image.new(mode, (2, 2), colour)
    if mode == "P":
        picture.putpalette([0] * 21 + [10, 20, 30])
    image, notes = read(picture, tmp_path / "a.tif")
    assert levels(image) == [expected] * 4 and notes == []


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    image, _ = read(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "a.jpg", quality=95)
    torch.testing.assert_close(image.mean((0, 2, 3)), torch.tensor([0.0, 1, 1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("suffix, kind", [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix, kind):
    grey = Image.fromarray(np.array([[0, 0x1234, 0x8000, 0xFFFF]]).astype(kind))
    image, _ = read(grey, tmp_path / f"a.{suffix}")
    expected = torch.tensor([0, 4660 / 65535, 32768 / 65535, 1])
    torch.testing.assert_close(image, expected.expand(1, 3, 1, 4))


def test_wide_integers_are_refused_beyond_16_bits(tmp_path):
    image, _ = read(Image.new("I", (1, 1), 13107), tmp_path / "a.tif")
    assert image.unique().tolist() == pytest.approx([0.2])
    line = refusal(read, Image.new("I", (1, 1), 70000), tmp_path / "a.tif")
    assert "values from 70000 to 70000" in line and "0 to 65535" in line


def test_floats_of_colours_must_lie_in_the_unit_interval(tmp_path):
    image, notes = read(Image.new("F", (1, 1), 0.25), tmp_path / "a.tif")
    assert image.unique().tolist() == [0.25]
    assert len(notes) == 1 and "without a colour profile" in notes[0]
    for value in (-0.5, 1.5):
        line = refusal(read, Image.new("F", (1, 1), value), tmp_path / "a.tif")
        assert f"{value:g}" in line and "0 to 1" in line and "--maps" in line
    for value in (float("nan"), float("inf")):
        line = refusal(read, Image.new("F", (1, 1), value), tmp_path / "a.tif")
        assert "values that are not finite" in line and "0 to 1" not in line


@pytest.mark.parametrize("suffix", [".tif", ".exr"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_floats_of_data_are_any_and_come_back(tmp_path, suffix, channels):
    values = torch.linspace(-0.4, 700, channels * 6).view(1, channels, 2, 3)
    values[:, 1 if channels == 2 else 3 :].clamp_(0, 1)  # alpha
    path = tmp_path / f"a{suffix}"
    pictures.save_picture(values, path, {"seed": 3}, 32, DATA)
    found = pictures.read_picture(path, DATA)
    assert (found.bits, found.grey, found.notes) == (32, channels < 3, [])
    colours = found.pixels[:, :1] if found.grey else found.pixels
    parts = [colours] if found.alpha is None else [colours, found.alpha]
    assert torch.equal(torch.cat(parts, 1), values)
    assert pictures.read_record(path) == {"seed": 3}
    assert "floats from -0.4 to" in refusal(pictures.read_picture, path) or channels % 2 == 0


def test_floats_that_pillow_reads_are_held_to_the_same(tmp_path):
    for value in (0.25, -0.5):
        (tmp_path / "a.pfm").write_bytes(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", value))
        found = pictures.read_picture(tmp_path / "a.pfm", DATA)
        assert found.pixels.unique().tolist() == [value] and found.bits == 32 and found.grey
    assert "floats from -0.5" in refusal(pictures.read_picture, tmp_path / "a.pfm")


def test_data_must_be_finite(tmp_path):
    Image.new("F", (2, 2), float("nan")).save(tmp_path / "a.tif")
    assert "finite" in refusal(pictures.read_picture, tmp_path / "a.tif", DATA)


def test_an_exr_of_colours_holds_light(tmp_path):
    """0.5 of light is 1.055 * 0.5 ** (1 / 2.4) - 0.055 = 0.73536 of sRGB."""
    light = torch.tensor([0.5, 0.0, 1.0]).view(1, 3, 1, 1)
    path = tmp_path / "a.exr"
    pictures.save_picture(light, path, {}, 32, DATA)
    found = pictures.read_picture(path)
    assert found.pixels.flatten().tolist() == pytest.approx([0.735357, 0, 1], abs=1e-6)
    pictures.save_picture(found.pixels, path, {})
    again = pictures.read_picture(path, DATA)
    torch.testing.assert_close(again.pixels, light)


def test_an_exr_is_as_large_as_a_picture_may_be(tmp_path, monkeypatch):
    path = tmp_path / "a.exr"
    pictures.save_picture(torch.rand(1, 3, 20, 30), path, {})
    monkeypatch.setattr(pictures, "available_bytes", lambda _: 600 * pictures.DEEP_READ_BYTES - 1)
    assert "reading it takes" in refusal(pictures.read_picture, path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    assert "the limit is 599" in refusal(pictures.read_picture, path)
    assert "the limit is 599" in refusal(pictures.read_record, path)


def deep(content: bytes, path: Path, kind: str = COLOUR) -> pictures.Picture:
    """A picture by its bytes, of 16 bits."""
    path.write_bytes(content)
    found = pictures.read_picture(path, kind)
    assert found.bits == 16
    return found


def levels_16(image: torch.Tensor) -> list:
    """The picture's pixels in reading order, as 16-bit levels."""
    return image[0].double().mul(65535).flatten(1).T.round().int().tolist()


@pytest.mark.parametrize("order", "<>")
def test_16_bit_colours_keep_every_level(tmp_path, order):
    values = [[1, 2, 3], [0x1234, 0xFFFF, 0x00FF]]
    data = np.array(values, order + "u2")
    found = deep(png(np.array([values], np.uint16)), tmp_path / "a.png")
    assert levels_16(found.pixels) == values and not found.grey and found.alpha is None
    colours = {"bits": [16] * 3, "photometric": [2], "samples": [3]}
    content = tiff((2, 1), data.tobytes(), order, **colours)
    assert levels_16(deep(content, tmp_path / "a.tif").pixels) == values
    planes = tiff((2, 1), data.T.tobytes(), order, planar=[2], **colours)
    assert levels_16(deep(planes, tmp_path / "b.tif").pixels) == values
    content = b"P6 2 1 65535\n" + np.array(values, ">u2").tobytes()
    found = deep(content, tmp_path / "a.ppm").pixels
    assert levels_16(found) == [pytest.approx(pixel, abs=1) for pixel in values]  # before 3.2


def test_tiff_with_white_as_0_is_no_negative(tmp_path):
    data = np.array([0, 0x1234, 0xFFFF], "<u2").tobytes()
    content = tiff((3, 1), data, bits=[16], photometric=[0], samples=[1])
    found = deep(content, tmp_path / "a.tif")
    assert [grey for grey, _, _ in levels_16(found.pixels)] == [0xFFFF, 0xFFFF - 0x1234, 0]
    assert found.grey


def test_tiff_of_floats_with_white_as_0_is_refused(tmp_path):
    data = np.array([0, 1], "<f4").tobytes()
    content = tiff((2, 1), data, bits=[32], photometric=[0], samples=[1], kind=[3])
    (tmp_path / "a.tif").write_bytes(content)
    assert "whose 0 is white" in refusal(pictures.read_picture, tmp_path / "a.tif", DATA)


@pytest.mark.parametrize("bits", [2, 4, 10, 12])
def test_tiff_of_odd_bits_goes_from_black_to_white(tmp_path, bits):
    """0 and the greatest level are black and white; Pillow takes 4095 of 12 bits for dark grey."""
    packed = f"{2**bits - 1:0{bits}b}{0:0{bits}b}"
    data = int(packed.ljust(24, "0"), 2).to_bytes(3, "big")
    content = tiff((2, 1), data, bits=[bits], photometric=[1], samples=[1])
    (tmp_path / "a.tif").write_bytes(content)
    found = pictures.read_picture(tmp_path / "a.tif")
    assert levels(found.pixels) == [[255] * 3, [0] * 3] and found.bits == (16 if bits > 8 else 8)


@pytest.mark.parametrize("channels", [2, 4])
def test_what_lies_under_16_bit_alpha_stays_in_data(tmp_path, channels):
    pixels = np.full((1, 2, channels), 1000, np.uint16)
    pixels[..., -1] = 0, 65535
    found = deep(png(pixels), tmp_path / "a.png", DATA)
    assert levels_16(found.pixels) == [[1000] * 3] * 2 and found.notes == []
    assert found.alpha.flatten().tolist() == [0, 1] and found.grey == (channels == 2)


def test_a_16_bit_colour_key_is_alpha(tmp_path):
    pixels = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint16)
    found = deep(png(pixels, tRNS=struct.pack(">3H", 1, 2, 3)), tmp_path / "a.png")
    assert found.alpha.flatten().tolist() == [0, 1]
    assert levels_16(found.pixels) == [[1, 2, 3], [1, 2, 4]]
    assert levels_16(found.over_mean) == [[1, 2, 4]] * 2


def test_colours_of_a_16_bit_tiff_are_divided_by_its_alpha(tmp_path):
    """Where the file says that they are multiplied by it (1), and not where it says no (2)."""
    data = np.array([1000, 2000, 3000, 0x8000], "<u2").tobytes()
    for extra, expected in ((1, [2000, 4000, 6000]), (2, [1000, 2000, 3000])):
        content = tiff((1, 1), data, bits=[16] * 4, photometric=[2], samples=[4], extra=[extra])
        (tmp_path / "a.tif").write_bytes(content)
        found = pictures.read_picture(tmp_path / "a.tif")
        assert levels_16(found.pixels) == [pytest.approx(expected, abs=1)]


def test_16_bit_orientation_turns_the_picture_once(tmp_path):
    """As Pillow turns one of 8 bits, whatever the tag says."""
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        read(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
        wanted = pictures.read_picture(tmp_path / "a.png").pixels
        content = png(pixels.astype(np.uint16) * 257, eXIf=exif.tobytes()[6:])
        for kind in (COLOUR, DATA):
            found = deep(content, tmp_path / "b.png", kind)
            torch.testing.assert_close(found.pixels, wanted)


def test_cmyk_of_16_bits_says_that_it_is_read_with_8(tmp_path):
    data = np.array([65535, 0, 0, 0], "<u2").tobytes()
    content = tiff((1, 1), data, bits=[16] * 4, photometric=[5], samples=[4])
    (tmp_path / "a.tif").write_bytes(content)
    found = pictures.read_picture(tmp_path / "a.tif")
    assert levels(found.pixels) == [[0, 255, 255]] and found.bits == 8
    assert found.notes == ["a.tif: CMYK of more than 8 bits a channel, read with 8"]


def test_lab_is_read(tmp_path):
    """L* of 53.39 with neither a* nor b* is the light 0.2140, which is 0.5 of sRGB."""
    content = tiff((1, 1), bytes([136, 0, 0]), bits=[8] * 3, photometric=[8], samples=[3])
    (tmp_path / "a.tif").write_bytes(content)
    found = pictures.read_picture(tmp_path / "a.tif")
    assert np.abs(np.array(levels(found.pixels)) - 127).max() <= 1 and not found.grey


@pytest.mark.parametrize("suffix", ["png", "tif", "exr"])
def test_truncated_deep_file(tmp_path, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    pictures.save_picture(torch.rand(1, 3, 32, 32), path, {}, 16)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 30, 80):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(pictures.read_picture, path)
    assert capfd.readouterr() == ("", "")  # libpng and OpenEXR have lines of their own


def test_tiff_of_signed_integers_is_no_picture_of_unsigned_ones(tmp_path):
    """Pillow reads -1 of 8 bits as 255."""
    for bits in (8, 16):
        data = np.array([-1], f"<i{bits // 8}").tobytes()
        content = tiff((1, 1), data, bits=[bits], photometric=[1], samples=[1], kind=[2])
        (tmp_path / "a.tif").write_bytes(content)
        line = refusal(pictures.read_picture, tmp_path / "a.tif", DATA)
        assert "signed" in line or "values from -1 to -1" in line


@pytest.mark.parametrize(
    "names, alpha, expected, told",
    [
        ("RGBZ", -1, [0.1, 0.2, 0.3], "more channels"),
        ("RGBA", 3, [0.1, 0.2, 0.3], ""),
        ("XYZ", -1, [0.1, 0.2, 0.3], "X, Y, Z are taken for"),
        ("Z", -1, [0.1] * 3, ""),
        (["A", "AA", "B", "G", "R"], 0, [0.5, 0.4, 0.3], "more channels"),
        (["Y", "BY", "RY"], -1, None, "channels Y, BY, RY"),
        (["a.X", "a.Y"], -1, None, "channels a.X, a.Y"),
        (["a.R", "a.G", "a.B", "b.Z"], -1, None, "channels a.R, a.G, a.B, b.Z"),
    ],
)
def test_channels_of_exr(tmp_path, names, alpha, expected, told):
    """The first has 0.1, the second 0.2 and so on."""
    spec = OpenImageIO.ImageSpec(1, 1, len(names), OpenImageIO.FLOAT)
    spec.channelnames, spec.alpha_channel = tuple(names), alpha
    path = tmp_path / "a.exr"
    file = OpenImageIO.ImageOutput.create("openexr")
    assert file.open(str(path), spec)
    file.write_image(np.arange(1, len(names) + 1, dtype=np.float32)[None, None] / 10)
    file.close()
    if expected is None:
        assert told in refusal(pictures.read_picture, path, DATA)
        return
    found = pictures.read_picture(path, DATA)
    assert found.pixels.flatten().tolist() == pytest.approx(expected)
    assert len(found.notes) == bool(told) and all(told in note for note in found.notes)
    assert (found.alpha is not None) == (alpha >= 0)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="a Pillow without JPEG 2000")
def test_jpeg_2000_keeps_its_bits(tmp_path):
    values = np.array([[0, 300, 65535, 7]] * 4, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.jp2")
    found = deep((tmp_path / "a.jp2").read_bytes(), tmp_path / "a.jp2")
    assert (
        found.grey and [grey for grey, _, _ in levels_16(found.pixels)] == values.ravel().tolist()
    )
    image, _ = read(Image.new("RGB", (4, 4), (1, 2, 3)), tmp_path / "b.jp2")
    assert levels(image) == [[1, 2, 3]] * 16


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="all names there are Unicode")
def test_a_deep_file_whose_name_is_not_utf8_is_to_be_renamed(tmp_path):
    path = tmp_path / "a\udcff.png"
    pictures.save_picture(torch.rand(1, 3, 4, 4), path, {}, 16)
    assert "rename it" in refusal(pictures.read_picture, path)
    assert pictures.read_record(path) == {}


def test_a_jpeg_lacks_its_end_mark_or_more(tmp_path):
    path = tmp_path / "a.jpg"
    pictures.save_picture(torch.rand(1, 3, 32, 32), path, {})
    whole, wanted = path.read_bytes(), pictures.read_picture(path).pixels
    path.write_bytes(whole[:-2])
    assert torch.equal(pictures.read_picture(path).pixels, wanted)
    for length in (len(whole) - 500, len(whole) // 2):  # 32 and more blocks of 8x8 values each
        path.write_bytes(whole[:length])
        assert "truncated" in refusal(pictures.read_picture, path)
        # Pillow reads the same with an end mark, what is missing being grey.
        path.write_bytes(whole[:length] + whole[-2:])
        (note,) = pictures.read_picture(path).notes
        assert "data are missing" in note


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_missing_data_of_any_jpeg_are_told(tmp_path, mode, options):
    """Of sizes at which a single pixel of the last block is seen, with chroma from its left."""
    path = tmp_path / "a.jpg"
    colours = np.random.default_rng(0).integers(0, 256, (33, 33, 3), np.uint8)
    Image.fromarray(colours).convert(mode).save(path, **options)
    whole = path.read_bytes()
    assert not pictures.read_picture(path).notes
    path.write_bytes(whole[: len(whole) * 2 // 3] + whole[-2:])
    assert any("data are missing" in note for note in pictures.read_picture(path).notes)


def test_a_whole_jpeg_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.deep, "lacks_data", lambda path: pytest.fail("decoded again"))
    pictures.save_picture(torch.full((1, 3, 40, 40), 0.3), tmp_path / "a.jpg", {})
    assert not pictures.read_picture(tmp_path / "a.jpg").notes


def test_alpha_is_composited_over_the_weighted_mean(tmp_path):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (9, 9, 9, 0), (0, 0, 255, 51)])
    picture.save(tmp_path / "a.png")
    image = pictures.read_picture(tmp_path / "a.png").over_mean
    # Weights 1, 0, 0.2: mean red 255 / 1.2 = 212.5, blue 51 / 1.2 = 42.5. The last pixel is a
    # fifth itself: red 0.8 * 212.5 = 170, blue 0.2 * 255 + 0.8 * 42.5 = 85.
    expected = torch.tensor([[255, 0, 0], [212.5, 0, 42.5], [170, 0, 85]]).T.reshape(1, 3, 1, 3)
    torch.testing.assert_close(image * 255, expected, atol=1e-3, rtol=0)


def test_palette_transparency_counts_as_alpha(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([200, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    for name, transparency in (("a.png", 0), ("b.png", b"\0\xff"), ("c.gif", 0)):
        picture.save(tmp_path / name, transparency=transparency)
        found = pictures.read_picture(tmp_path / name)
        assert found.alpha.flatten().tolist() == [0, 1]
        assert levels(found.over_mean) == [[10, 20, 30]] * 2


def test_transparent_throughout_is_refused(tmp_path):
    line = refusal(read, Image.new("RGBA", (2, 2), (1, 2, 3, 0)), tmp_path / "a.png")
    assert "a.png" in line and "transparent" in line


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_turns_the_picture_once(tmp_path, suffix):
    red, green = (255, 0, 0), (0, 255, 0)
    picture = Image.new("RGB", (2, 1), red)
    picture.putpixel((1, 0), green)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the left end comes to the top
    options = {"lossless": True} if suffix == "webp" else {}
    image, _ = read(picture, tmp_path / f"a.{suffix}", exif=exif, **options)
    assert image.shape == (1, 3, 2, 1) and levels(image) == [list(red), list(green)]


def test_broken_exif_is_ignored_with_a_note(tmp_path):
    image, notes = read(Image.new("RGB", (2, 2), (9, 9, 9)), tmp_path / "a.png", exif=b"rubbish!")
    assert levels(image) == [[9, 9, 9]] * 4
    assert notes == ["a.png: unreadable EXIF, orientation ignored"]
    assert pictures.read_record(tmp_path / "a.png") == {}


@pytest.mark.parametrize(
    "mode, space", [("RGB", b"RGB "), ("RGBA", b"RGB "), ("L", b"GRAY"), ("LA", b"GRAY")]
)
def test_colour_profile_is_applied(tmp_path, mode, space):
    picture = Image.new("RGB", (2, 2), (128, 128, 128)).convert(mode)
    image, notes = read(picture, tmp_path / "a.png", icc_profile=colour_profile(space))
    # sRGB encodes the light 128/255 = 0.502 as 1.055 * 0.502 ** (1 / 2.4) - 0.055 = 0.7366.
    assert image.mul(255).sub(187.8).abs().max() < 1 and notes == []


def test_srgb_profile_leaves_every_pixel_alone(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)
    picture = Image.fromarray(np.stack([ramp, ramp[::-1], np.roll(ramp, 99)], -1)[None])
    # The web's compact sRGB profiles hold the curve at 26 points, which is a level off at times.
    code = np.linspace(0, 1, 26)
    light = np.where(code > 0.04045, ((code + 0.055) / 1.055) ** 2.4, code / 12.92)
    table = (light * 65535).round().astype(">u2").tobytes()
    compact = colour_profile(b"RGB ", b"curv" + struct.pack(">2I", 0, 26) + table)
    ideal = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (ideal, compact):
        image, notes = read(picture, tmp_path / "a.png", icc_profile=profile)
        assert levels(image) == np.asarray(picture)[0].tolist() and notes == []


@pytest.mark.parametrize("profile", [b"rubbish", colour_profile(b"GRAY")], ids=["broken", "grey"])
def test_unusable_profile_is_ignored_with_a_note(tmp_path, profile):
    picture = Image.new("RGB", (2, 2), (128, 0, 0))
    image, notes = read(picture, tmp_path / "a.png", icc_profile=profile)
    assert levels(image) == [[128, 0, 0]] * 4
    assert notes == ["a.png: unusable colour profile, ignored"]


@pytest.mark.parametrize("space, channels", [(b"GRAY", 1), (b"RGB ", 3)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_profile_is_applied_to_16_bits(tmp_path, suffix, space, channels):
    """The light 0.5 and 0.5 + 1 / 65535, which 8 bits do not tell apart."""
    values = np.array([32768, 32769], np.uint16)[None, :, None].repeat(channels, 2)
    profile = colour_profile(space)
    content = png(values, iCCP=b"a\0\0" + zlib.compress(profile))
    if suffix == "tif":
        path = tmp_path / "grey.tif"
        if channels == 3:
            return  # Pillow saves none of 16 bits
        Image.fromarray(values[..., 0]).save(path, icc_profile=profile)
        content = path.read_bytes()
    found = deep(content, tmp_path / f"a.{suffix}")
    first, second = (1.055 * (v / 65535) ** (1 / 2.4) - 0.055 for v in (32768, 32769))
    assert found.pixels.sub(first).abs().max() < 2e-4  # the profile's white is as near to D50
    steps = found.pixels[..., 1] - found.pixels[..., 0]
    assert steps.sub(second - first).abs().max() < 1e-6 < second - first
    assert found.notes == [] and found.grey == (channels == 1)


def test_profile_by_tables_is_applied_at_8_bits_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "space_of_icc", lambda *_: None)  # such a profile is large
    values = np.full((1, 1, 3), 128 * 257, np.uint16)
    content = png(values, iCCP=b"a\0\0" + zlib.compress(colour_profile(b"RGB ")))
    (tmp_path / "a.png").write_bytes(content)
    found = pictures.read_picture(tmp_path / "a.png")
    assert levels(found.pixels) == [[188] * 3] and found.bits == 8
    assert len(found.notes) == 1 and "at 8 bits" in found.notes[0]


@pytest.mark.parametrize("profile", [b"rubbish", colour_profile(b"GRAY"), colour_profile(b"")])
def test_unusable_profile_of_16_bits_is_ignored_with_a_note(tmp_path, profile):
    values = np.full((1, 1, 3), 4660, np.uint16)
    found = deep(png(values, iCCP=b"a\0\0" + zlib.compress(profile)), tmp_path / "a.png")
    assert levels_16(found.pixels) == [[4660] * 3]
    assert found.notes == ["a.png: unusable colour profile, ignored"]


@pytest.mark.parametrize(
    "curve, expected",
    [
        (struct.pack(">4s4xIH2x", b"curv", 1, 0x0200), lambda x: x**2),
        (struct.pack(">4s4xI2H", b"curv", 2, 0, 65535), lambda x: x),
        (struct.pack(">4s4xI1i", b"para", 0, 131072), lambda x: x**2),
        # (x - 1 / 4) ** 2 from 1 / 4 on, 0 below; and that plus an eighth.
        (
            struct.pack(">4s4xI3i", b"para", 1 << 16, 131072, 65536, -16384),
            lambda x: np.where(x >= 0.25, (x - 0.25) ** 2, 0),
        ),
        (
            struct.pack(">4s4xI4i", b"para", 2 << 16, 131072, 65536, -16384, 8192),
            lambda x: np.where(x >= 0.25, (x - 0.25) ** 2, 0) + 0.125,
        ),
        # x ** 2 from 1 / 2 on, x / 2 below; the last adds an eighth above and a sixteenth below.
        (
            struct.pack(">4s4xI5i", b"para", 3 << 16, 131072, 65536, 0, 32768, 32768),
            lambda x: np.where(x >= 0.5, x**2, x / 2),
        ),
        (
            struct.pack(">4s4xI7i", b"para", 4 << 16, 131072, 32768, 0, 32768, 32768, 8192, 4096),
            lambda x: np.where(x >= 0.5, (x / 2) ** 2 + 0.125, x / 2 + 0.0625),
        ),
    ],
)
def test_curves_of_profiles(curve, expected):
    space = profiles.space_of_icc(colour_profile(b"GRAY", curve), 1)
    values = np.linspace(0, 1, 9)
    assert space.curves[0](values) == pytest.approx(expected(values), abs=1e-4)


def test_space_of_srgb_is_that_of_its_profile():
    ideal = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    space = profiles.space_of_icc(ideal, 3)
    assert space.is_srgb() and np.abs(space.to_xyz - profiles.SRGB.to_xyz).max() < 1e-3
    assert not profiles.LINEAR.is_srgb()


def gama(value: float) -> bytes:
    return struct.pack(">I", round(value * 100_000))


def chrm(*values: float) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for value in values))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gama_is_read(tmp_path, bits, channels):
    """Light of 128/255 = 0.502 is 187.8 of sRGB; alpha is no light."""
    pixels = np.full((1, 1, channels), 128)
    pixels = pixels.astype(np.uint8) if bits == 8 else (pixels * 257).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, gAMA=gama(1)))
    found = pictures.read_picture(tmp_path / "a.png")
    assert found.pixels.mul(255).sub(187.84).abs().max() < 0.01
    assert found.alpha is None or found.alpha.item() == pytest.approx(128 / 255)
    if bits == 8:
        own = pictures.read_picture(tmp_path / "a.png", DATA)
        assert levels(own.pixels) == [[128] * 3]


def test_gama_of_a_palette_is_read(tmp_path):
    picture = Image.new("P", (1, 1), 1)
    picture.putpalette([0, 0, 0, 128, 128, 128])
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    content = content[:33] + png_chunk(b"gAMA", gama(1)) + content[33:]
    (tmp_path / "a.png").write_bytes(content)
    assert levels(pictures.read_picture(tmp_path / "a.png").pixels) == [[188] * 3]


P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": gama(0.45455)},  # which stands for sRGB
        {"gAMA": gama(0.45455), "cHRM": chrm(*SRGB)},
        {"gAMA": gama(1), "cHRM": chrm(*P3), "sRGB": b"\0"},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": gama(1)},
    ],
)
def test_srgb_in_chunks_leaves_every_pixel_alone(tmp_path, chunks):
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack([ramp, ramp[::-1], np.roll(ramp, 99)], -1)[None]
    (tmp_path / "a.png").write_bytes(png(pixels, **chunks))
    image, _, _, _, notes = pictures.read_picture(tmp_path / "a.png")
    assert levels(image) == pixels[0].tolist() and notes == []


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "chunks",
    [
        {"cHRM": chrm(*P3)},
        {"gAMA": gama(0.45455), "cHRM": chrm(*P3)},
        {"cICP": bytes([12, 13, 0, 1])},
        {"cICP": bytes([12, 13, 0, 1]), "iCCP": b"a\0\0" + zlib.compress(colour_profile(b"RGB "))},
        {"cICP": bytes([12, 13, 0, 1]), "sRGB": b"\0"},
    ],
)
def test_display_p3_is_read(tmp_path, chunks, bits):
    """By the matrix of CSS Color 4 from light of Display P3 to that of sRGB."""
    matrix = [[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0]]
    matrix += [[-0.0196376, -0.0786361, 1.0982737]]
    pixels = np.array([[[100, 150, 120]]])
    light = profiles.srgb_curve(pixels[0, 0] / 255) @ np.array(matrix).T
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    pixels = pixels.astype(np.uint8) if bits == 8 else (pixels * 257).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, **chunks))
    image, _, _, _, notes = pictures.read_picture(tmp_path / "a.png")
    assert image.flatten().tolist() == pytest.approx(expected.tolist(), abs=2e-4) and notes == []


def test_a_profile_goes_before_srgb_and_gama(tmp_path):
    iccp = b"a\0\0" + zlib.compress(colour_profile(b"RGB "))
    for others in ({"sRGB": b"\0"}, {"gAMA": gama(0.25)}):
        content = png(np.full((1, 1, 3), 128, np.uint8), iCCP=iccp, **others)
        (tmp_path / "a.png").write_bytes(content)
        assert levels(pictures.read_picture(tmp_path / "a.png").pixels) == [[188] * 3]


@pytest.mark.parametrize("bits", [8, 16])
def test_cicp_of_narrow_range_goes_from_16_to_235(tmp_path, bits):
    scale = 2 ** (bits - 8)
    pixels = np.array([[[16] * 3, [235] * 3, [0] * 3, [128] * 3]]) * scale
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, cICP=bytes([1, 13, 0, 0])))
    image = pictures.read_picture(tmp_path / "a.png").pixels
    expected = torch.tensor([0, 1, 0, 112 / 219]).expand(1, 3, 1, 4)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "chunks, told, expected",
    [
        ({"cICP": bytes([9, 16, 0, 1])}, "cICP [9, 16, 0, 1]", 128),  # PQ
        ({"cICP": bytes([9, 16, 0, 1]), "gAMA": gama(1)}, "cICP [9, 16, 0, 1]", 188),
        ({"cICP": b"\1"}, "cICP [1]", 128),
        ({"cICP": bytes([1, 1, 0, 1])}, "(video), read as sRGB", 128),
        ({"gAMA": gama(0)}, "gAMA, 0", 128),
        ({"gAMA": gama(1), "cHRM": chrm(*([0.3, 0] * 4))}, "cHRM", 188),
        ({"gAMA": gama(1), "cHRM": chrm(*([0.3, 0.3] * 4))}, "cHRM", 188),
    ],
)
def test_chunks_that_are_not_read_are_told(tmp_path, chunks, told, expected):
    (tmp_path / "a.png").write_bytes(png(np.full((1, 1, 3), 128, np.uint8), **chunks))
    found = pictures.read_picture(tmp_path / "a.png")
    assert levels(found.pixels) == [[expected] * 3]
    (note,) = found.notes
    assert told in note and note.startswith("a.png: ")


@pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")
@pytest.mark.parametrize(
    "numbers, expected, told",
    [
        ((1, 13), 128, None),
        ((2, 2), 128, None),
        ((1, 8), 188, None),  # light
        ((9, 16), 128, "nclx 9, 16"),  # PQ
    ],
)
def test_colours_of_avif_are_read(tmp_path, numbers, expected, told):
    Image.new("RGB", (8, 8), (128, 128, 128)).save(tmp_path / "a.avif", quality=100)
    head, mark, rest = (tmp_path / "a.avif").read_bytes().partition(b"colrnclx")
    content = head + mark + struct.pack(">2H", *numbers) + rest[4:]
    (tmp_path / "a.avif").write_bytes(content)
    found = pictures.read_picture(tmp_path / "a.avif")
    assert levels(found.pixels)[0] == [expected] * 3 and len(found.notes) == bool(told)
    assert not told or told in found.notes[0]
    deeper = content.replace(
        b"pixi\0\0\0\0\x03\x08", b"pixi\0\0\0\0\x03\x0a"
    )  # no decoder takes it
    notes = []
    profiles.space_in_avif(deeper, notes)
    assert notes[0] == "10 bits a channel, read with 8"


def exif_of(colour_space: int | None, index: str | None) -> bytes:
    """EXIF with a colour space and an index of interoperability."""
    entries = []
    if colour_space is not None:
        entries.append(struct.pack(">HHIHH", 0xA001, 3, 1, colour_space, 0))
    if index is not None:
        entries.append(struct.pack(">HHII", 0xA005, 4, 1, 26 + 2 + 12 * (len(entries) + 1) + 4))
    interop = struct.pack(">HHHI4sI", 1, 1, 2, 4, (index or "").encode(), 0)
    top = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    own = struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + top + own + interop


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("colour_space, index", [(0xFFFF, "R03"), (None, "R03"), (2, None)])
def test_adobe_rgb_of_cameras_is_read(tmp_path, suffix, colour_space, index):
    """Grey of 128 is light of (128/255) ** (563/256) = 0.2196, and 0.5060 of sRGB."""
    picture = Image.new("RGB", (8, 8), (128, 128, 128))
    exif = Image.Exif()
    exif.load(exif_of(colour_space, index))
    options = {"lossless": True} if suffix == "webp" else {}
    image, notes = read(picture, tmp_path / f"a.{suffix}", exif=exif, **options)
    light = (128 / 255) ** (563 / 256)
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    assert image.sub(expected).abs().max() < 1e-4 and notes == []


def test_adobe_rgb_is_that_of_its_primaries(tmp_path):
    """Its green is beyond sRGB's, its red is sRGB's on the line to white."""
    space = profiles.space_of(profiles.ADOBE_RGB_PRIMARIES, profiles.gamma_curve(1))
    # From light of Adobe RGB (1998) to XYZ about D50, as its specification has it.
    expected = [
        [0.60974, 0.20528, 0.14919],
        [0.31111, 0.62567, 0.06322],
        [0.01947, 0.06087, 0.74457],
    ]
    assert space.to_xyz == pytest.approx(np.array(expected), abs=2e-4)


@pytest.mark.parametrize("colour_space, told", [(0xFFFF, True), (1, False), (None, False)])
def test_exif_without_a_known_space_is_told(tmp_path, colour_space, told):
    picture = Image.new("RGB", (8, 8), (128, 128, 128))
    exif = exif_of(colour_space, "R98")
    image, notes = read(picture, tmp_path / "a.png", exif=exif)
    assert levels(image)[0] == [128] * 3 and len(notes) == told
    assert not told or "read as sRGB" in notes[0]
    _, notes = read(picture, tmp_path / "a.png", exif=exif, icc_profile=colour_profile(b"RGB "))
    assert notes == []


@pytest.mark.parametrize("chunks, expected", [({"sRGB": b"\0"}, 128), ({"gAMA": gama(1)}, 188)])
def test_chunks_of_png_go_before_exif(tmp_path, chunks, expected):
    pixels = np.full((1, 1, 3), 128, np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels, eXIf=exif_of(0xFFFF, "R03")[6:], **chunks))
    found = pictures.read_picture(tmp_path / "a.png")
    assert levels(found.pixels) == [[expected] * 3] and found.notes == []


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_primaries_that_are_not_those_of_srgb_are_told(tmp_path, suffix):
    for primaries, told in ((SRGB[2:], 0), (P3[2:], 1)):
        exif = Image.Exif()
        exif[0x013F] = tuple(TiffImagePlugin.IFDRational(round(v * 1000), 1000) for v in primaries)
        picture = Image.new("RGB", (8, 8), (128, 128, 128))
        image, notes = read(picture, tmp_path / f"a.{suffix}", exif=exif)
        assert levels(image)[0] == [128] * 3 and len(notes) == told


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != COLOUR])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_only_colours_are_colour_managed(tmp_path, mode, kind):
    """106 of light is 1.055 * (106 / 255) ** (1 / 2.4) - 0.055 of sRGB, 173; and what lies under
    alpha stays."""
    profile = colour_profile(b"GRAY" if mode[0] == "L" else b"RGB ")
    picture = Image.new("RGB", (1, 1), (106, 106, 106)).convert(mode)
    if mode[-1] == "A":
        picture.putalpha(0)
    picture.save(tmp_path / "a.png", icc_profile=profile)
    found = pictures.read_picture(tmp_path / "a.png", kind)
    assert levels(found.pixels) == [[106] * 3] and found.notes == []
    assert found.grey == (mode[0] == "L")
    if mode[-1] == "A":
        assert found.alpha.item() == 0
        assert "transparent" in refusal(pictures.read_picture, tmp_path / "a.png")
    else:
        assert levels(pictures.read_picture(tmp_path / "a.png").pixels) == [[173] * 3]


@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_first_of_several_frames(tmp_path, suffix):
    first, second = Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 255)
    image, notes = read(first, tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    assert image.max() == 0
    assert notes == [f"a.{suffix}: several frames, only the first is used"]


@pytest.mark.parametrize("side", [30000, 12000])  # Pillow: an error, and only a warning
def test_decompression_bomb_names_the_limit(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    for function in (pictures.read_picture, pictures.read_record):
        line = refusal(function, path)
        assert str(path) in line and str(Image.MAX_IMAGE_PIXELS) in line


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_no_picture_of_ours_is_too_large_to_read(suffix, tmp_path, monkeypatch):
    """But for memory; and one that only claims to be ours, in another size, is not."""
    own, other = tmp_path / f"own{suffix}", tmp_path / f"other{suffix}"
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    pictures.save_picture(picture, own, {"size": "30x20", "error": 1})
    pictures.save_picture(picture, other, {"size": "20x30"})
    wanted = pictures.read_picture(own)[0]
    for limit in (400, 100):  # Pillow: only a warning, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert torch.equal(pictures.read_picture(own)[0], wanted)
        assert pictures.read_record(own)["error"] == 1
        assert "the limit is" in refusal(pictures.read_picture, other)
    monkeypatch.setattr(pictures, "available_bytes", lambda _: 600 * pictures.READ_BYTES - 1)
    assert "the limit is" in refusal(pictures.read_picture, own)


def test_a_format_holds_so_many_pixels():
    pictures.check_format(Path("a.webp"), (16383, 1))
    assert "16384x1" in refusal(pictures.check_format, Path("a.webp"), (1, 16384))
    pictures.check_format(Path("a.tif"), (9000, 9000))
    assert "read again" in refusal(pictures.check_format, Path("a.tif"), (9500, 9500))


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    pictures.save_picture(torch.rand(1, 3, 32, 32), path, {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refusal(pictures.read_picture, path)


def test_files_that_hold_no_picture(tmp_path):
    path = tmp_path / "two\nlines.jpg"
    for content, line in (
        (b"", "cannot be read (an empty"),
        (b"hello", "not a pic"),
        (png_claiming(4, 4), ""),
    ):
        path.write_bytes(content)
        assert f"two lines.jpg: {line}" in refusal(pictures.read_picture, path)


def test_no_file_stays_open(tmp_path):
    second = Image.new("L", (2, 2), 9)
    read(Image.new("L", (2, 2)), tmp_path / "a.gif", save_all=True, append_images=[second])
    (tmp_path / "bomb.png").write_bytes(png_claiming(12000, 12000))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.gif").read_bytes()[:30])
    pictures.read_record(tmp_path / "a.gif")
    refusal(pictures.read_picture, tmp_path / "bomb.png")
    refusal(pictures.read_picture, tmp_path / "cut.jpg")
    gc.collect()  # a file left open is a ResourceWarning, and so an error


def test_folder_and_missing_file(tmp_path):
    assert "directory" in refusal(pictures.read_picture, tmp_path)
    assert "No such file" in refusal(pictures.read_picture, tmp_path / "a.png")


def test_unreadable_file(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", forbidden)
    assert refusal(pictures.read_picture, tmp_path / "a.png").endswith("(Permission denied)")


# -------------------------------------------------------------------------------------- saving

GREY = torch.full((1, 3, 4, 4), 0.5)


def test_check_save_path_leaves_nothing(tmp_path):
    pictures.check_save_path(tmp_path / "new" / "deeper" / "a.PNG")
    assert list(tmp_path.iterdir()) == []


def test_check_save_path_refusals(tmp_path, monkeypatch):
    for name in ("a.bmp", "a", "png"):
        line = refusal(pictures.check_save_path, tmp_path / name)
        assert name in line and ".jpg" in line and ".tiff" in line
    (tmp_path / "folder.png").mkdir()
    assert "a folder" in refusal(pictures.check_save_path, tmp_path / "folder.png")
    (tmp_path / "file").touch()
    assert "cannot be saved" in refusal(pictures.check_save_path, tmp_path / "file" / "a.png")
    assert "too long" in refusal(pictures.check_save_path, tmp_path / ("a" * 300 + ".png"))

    def forbidden(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", forbidden)
    assert "Permission denied" in refusal(pictures.check_save_path, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".TIFF"])
def test_lossless_formats_round_to_the_nearest_level(tmp_path, suffix):
    values = torch.tensor([-0.6, 0.49, 0.51, 1.49, 1.51, 254.49, 254.51, 255.6]) / 255
    image = values.expand(3, 8)[None, :, None] * torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1)
    pictures.save_picture(image, tmp_path / f"a{suffix}", {})
    saved = pictures.read_picture(tmp_path / f"a{suffix}").pixels
    assert levels(saved) == [[level, level, 0] for level in (0, 0, 1, 1, 2, 254, 255, 255)]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_round_to_the_nearest_level(tmp_path, suffix):
    values = torch.tensor([-0.6, 0.49, 0.51, 4660.49, 4660.51, 65534.51, 65535.6]) / 65535
    image = values.expand(3, 7)[None, :, None] * torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1)
    path = tmp_path / f"a{suffix}"
    pictures.save_picture(image, path, {"seed": 3}, 16)
    wanted = [[level, level, 0] for level in (0, 0, 1, 4660, 4661, 65535, 65535)]
    assert levels_16(deep(path.read_bytes(), path).pixels) == wanted
    assert pictures.read_record(path) == {"seed": 3}
    year = time.strftime("%Y:").encode()
    assert year not in path.read_bytes()  # so that the same picture is the same bytes


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_is_one_channel_in_the_file(tmp_path, suffix, bits):
    path = tmp_path / f"a{suffix}"
    pictures.save_picture(torch.full((1, 1, 8, 8), 0.2), path, {"seed": 3}, bits)
    found = pictures.read_picture(path)
    assert found.pixels.sub(0.2).abs().max() < 1e-6 and pictures.read_record(path) == {"seed": 3}
    held = {".png": bits, ".tif": bits, ".tiff": bits, ".exr": 32}.get(suffix, 8)
    assert found.bits == held and found.grey == (suffix != ".webp")  # which has no grey


def test_bits_that_a_format_holds(tmp_path):
    for suffix in (".jpg", ".webp", ".exr"):
        line = refusal(pictures.check_bits, tmp_path / f"a{suffix}", 16)
        assert "--bits 16" in line and f"a{suffix}" in line and ".png and .tif" in line
    for suffix in (".png", ".tif"):
        for bits in (8, 16):
            pictures.check_bits(tmp_path / f"a{suffix}", bits)


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_suffix_decides_the_format(tmp_path, suffix):
    pictures.save_picture(GREY, tmp_path / f"a{suffix}", {})
    if suffix == ".exr":
        assert (tmp_path / "a.exr").read_bytes()[:4] == b"\x76\x2f\x31\x01"
        return
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == kinds.get(suffix, "TIFF")


def test_jpeg_keeps_full_chroma(tmp_path):
    pictures.save_picture(GREY, tmp_path / "a.jpg", {})
    with Image.open(tmp_path / "a.jpg") as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
        assert max(picture.quantization[0]) == 12  # 121 at quality 50, a tenth of it at 95


def test_tiff_is_compressed(tmp_path):
    pictures.save_picture(torch.zeros(1, 3, 64, 64), tmp_path / "a.tif", {})
    assert (tmp_path / "a.tif").stat().st_size < 64 * 64 * 3 / 4


def test_save_refuses_bugs(tmp_path):
    for bad in (float("nan"), float("inf")):
        image = GREY.clone()
        image[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="finite"):
            pictures.save_picture(image, tmp_path / "a.png", {})
    for shape in ((2, 3, 4, 4), (3, 4, 4), (1, 5, 4, 4)):
        with pytest.raises(ValueError, match="shape"):
            pictures.save_picture(torch.zeros(shape), tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


def test_save_takes_what_an_optimiser_holds(tmp_path):
    pictures.save_picture(GREY.to(torch.bfloat16).requires_grad_(), tmp_path / "a.png", {})
    assert levels(pictures.read_picture(tmp_path / "a.png")[0])[0] == [128] * 3  # 127.5 to even


@pytest.mark.parametrize("failing", ["encoder", "disk", "replace", "Ctrl-C"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    error = KeyboardInterrupt() if failing == "Ctrl-C" else OSError(errno.ENOSPC, "No space left")

    def half_then_fail(target, *rest, **options):
        if failing == "disk":
            with open(target, "wb") as file:
                file.write(b"half")
        raise error

    owner, name = {"encoder": (Image.Image, "save"), "disk": (pictures.Path, "write_bytes")}.get(
        failing, (files.os, "replace")
    )
    monkeypatch.setattr(owner, name, half_then_fail)
    with pytest.raises(KeyboardInterrupt if failing == "Ctrl-C" else UserError) as caught:
        pictures.save_picture(GREY, path, {})
    assert failing == "Ctrl-C" or str(caught.value) == f"{path}: cannot be saved (No space left)"
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_side_beyond_the_format_is_the_users_to_fix(tmp_path):
    line = refusal(pictures.save_picture, torch.zeros(1, 3, 1, 16384), tmp_path / "a.webp", {})
    assert "16383" in line and list(tmp_path.iterdir()) == []


def test_two_runs_use_different_temporary_files(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(files.os, "replace", lambda source, path: used.append(source))
    for _ in range(2):
        pictures.save_picture(GREY, tmp_path / "a.png", {})
    assert used[0] != used[1] and used[0].parent == used[1].parent == tmp_path.resolve()


def test_file_mode_follows_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        pictures.save_picture(GREY, tmp_path / "a.png", {})
    finally:
        os.umask(previous)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_saving_through_a_link_changes_what_it_points_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "folder" / "real.dat")
    pictures.check_save_path(tmp_path / "link.png")
    pictures.save_picture(GREY, tmp_path / "link.png", {})
    assert (tmp_path / "link.png").is_symlink()
    assert pictures.read_picture(tmp_path / "folder" / "real.dat")[0].shape == (1, 3, 4, 4)


# ------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_record_comes_back(tmp_path, suffix):
    record = {"gt_path": "bl\u00e4tter/\u8449\n'\"\udcff.jpg", "seed": 3, "error": 0.00047}
    record |= {"layers": ["conv1_1", "conv2_1"], "pool": None, "rescale": True}
    pictures.save_picture(GREY, tmp_path / f"a{suffix}", record)
    assert pictures.read_record(tmp_path / f"a{suffix}") == record


def test_record_of_unusual_values_and_size_never_breaks_saving(tmp_path):
    record = {"path": tmp_path, "device": torch.device("cpu"), ("odd",): {1: {2: 3}, (): 4}}
    record |= {"long": "\u8449" * 20_000, "also": "x" * 59_000, "seed": 7}
    pictures.save_picture(GREY, tmp_path / "a.jpg", record)
    expected = {"path": str(tmp_path), "device": "cpu", "('odd',)": {"1": {"2": 3}}, "seed": 7}
    # Escaped, "long" is twice what a JPEG can hold, and goes; "also" just fits.
    assert pictures.read_record(tmp_path / "a.jpg") == expected | {"also": "x" * 59_000}


def test_foreign_pictures_carry_no_record(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = json.dumps({"somebody": "else"})
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert pictures.read_record(tmp_path / "a.jpg") == {}
    for text in ("not JSON", "[1]"):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("synthesis", text)
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=chunks)
        assert pictures.read_record(tmp_path / "a.png") == {}
    assert "missing.png" in refusal(pictures.read_record, tmp_path / "missing.png")


def test_png_record_is_plain_json_under_its_key(tmp_path):
    pictures.save_picture(GREY, tmp_path / "a.png", {"seed": 3})
    with Image.open(BytesIO((tmp_path / "a.png").read_bytes())) as picture:
        assert json.loads(picture.text["synthesis"]) == {"seed": 3}


def test_same_picture_same_bytes(tmp_path):
    for suffix in pictures.SUFFIXES:
        for name in ("a", "b"):
            pictures.save_picture(GREY, tmp_path / (name + suffix), {"seed": 3})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# ------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_what_will_be_read_is_known_before_it_is_saved(suffix, channels, bits, tmp_path):
    """JPEG's losses too; where a file has more than 8 bits, but for their rounding."""
    path = tmp_path / f"a{suffix}"
    image = torch.rand(1, channels, 12, 10, generator=torch.Generator().manual_seed(0))
    found = pictures.as_saved(image, path, bits)
    pictures.save_picture(image, path, {}, bits)
    read = pictures.read_picture(path)
    atol = 0 if read.bits == 8 else 1e-3 if read.bits == 32 else 0.51 / 65535
    torch.testing.assert_close(found, read.pixels, atol=atol, rtol=0)
