"""Hostile files, faithful saving and plain arguments; every expected value can be had by hand."""

import errno
import gc
import json
import math
import os
import platform
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from torch.nn import functional as F

import utils
from utils import UserError


def png_claiming(width: int, height: int) -> bytes:
    """A valid PNG header with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


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
    image, notes = utils.read_picture(path)
    assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[:2] == (1, 3)
    return image, notes


def levels(image: torch.Tensor) -> list:
    """The picture's pixels in reading order, as 8-bit levels."""
    return image[0].mul(255).flatten(1).T.round().int().tolist()


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ------------------------------------------------------------------------------------- finding


@pytest.fixture
def textures(tmp_path, monkeypatch):
    folder = tmp_path / "textures"
    folder.mkdir()
    for name in ("leaf.jpg", "Pebbles.png", "leaf.py"):
        (folder / name).touch()
    monkeypatch.setattr(utils, "TEXTURES", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_find_picture_prefers_the_path_as_given(textures, tmp_path):
    assert utils.find_picture("leaf.jpg") == textures / "leaf.jpg"
    (tmp_path / "leaf.jpg").touch()
    assert utils.find_picture("leaf.jpg").resolve() == tmp_path / "leaf.jpg"


@pytest.mark.parametrize(
    "typo, nearest",
    [("laef.jpg", "leaf.jpg"), ("pebbles.jpg", "Pebbles.png"), ("old/LEAF.JPG", "leaf.jpg")],
)
def test_find_picture_names_both_places_and_the_nearest(textures, typo, nearest):
    line = refusal(utils.find_picture, typo)
    assert typo in line and " here " in line and str(textures) in line
    assert line.endswith(f"nearest there: {nearest}")  # and never leaf.py


def test_find_picture_without_anything_near(textures, monkeypatch):
    assert "nearest" not in refusal(utils.find_picture, "zzzz.tga")
    monkeypatch.setattr(utils, "TEXTURES", textures / "gone")
    assert "no such picture" in refusal(utils.find_picture, "leaf.jpg/inside.jpg")


@pytest.mark.parametrize("name", ["textures", ""])
def test_find_picture_refuses_a_folder(textures, name):
    assert f"{name!r}: a folder" in refusal(utils.find_picture, name)


def test_find_picture_refuses_what_may_not_be_read(textures, monkeypatch):
    def forbidden(path):  # the superuser may read anything, so chmod would prove nothing
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(utils, "open_regular", forbidden)
    assert refusal(utils.find_picture, "leaf.jpg") == "'leaf.jpg': Permission denied"


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
    assert "values 70000 to 70000" in line and "0 to 65535" in line


def test_floats_must_lie_in_the_unit_interval(tmp_path):
    image, _ = read(Image.new("F", (1, 1), 0.25), tmp_path / "a.tif")
    assert image.unique().tolist() == [0.25]
    for value in (-0.5, 1.5, float("nan"), float("inf")):
        line = refusal(read, Image.new("F", (1, 1), value), tmp_path / "a.tif")
        assert f"{value:g}" in line and "0 to 1" in line


def test_alpha_is_composited_over_the_weighted_mean(tmp_path):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (9, 9, 9, 0), (0, 0, 255, 51)])
    image, notes = read(picture, tmp_path / "a.png")
    # Weights 1, 0, 0.2: mean red 255 / 1.2 = 212.5, blue 51 / 1.2 = 42.5. The last pixel is a
    # fifth itself: red 0.8 * 212.5 = 170, blue 0.2 * 255 + 0.8 * 42.5 = 85.
    expected = torch.tensor([[255, 0, 0], [212.5, 0, 42.5], [170, 0, 85]]).T.reshape(1, 3, 1, 3)
    torch.testing.assert_close(image * 255, expected, atol=1e-3, rtol=0)
    assert notes == ["a.png: transparent pixels painted over the mean colour"]


def test_palette_transparency_counts_as_alpha(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([200, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    for name, transparency in (("a.png", 0), ("b.png", b"\0\xff"), ("c.gif", 0)):
        image, notes = read(picture, tmp_path / name, transparency=transparency)
        assert levels(image) == [[10, 20, 30]] * 2 and len(notes) == 1


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
    assert utils.read_record(tmp_path / "a.png") == {}


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


def test_profile_of_deep_grey_is_noted(tmp_path):
    grey = Image.fromarray(np.full((1, 1), 65535, np.uint16))
    _, notes = read(grey, tmp_path / "a.tif", icc_profile=colour_profile(b"GRAY"))
    assert len(notes) == 1 and "profile" in notes[0]


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
    for function in (utils.read_picture, utils.read_record):
        line = refusal(function, path)
        assert str(path) in line and str(Image.MAX_IMAGE_PIXELS) in line


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_no_picture_of_ours_is_too_large_to_read(suffix, tmp_path, monkeypatch):
    """But for memory; and one that only claims to be ours, in another size, is not."""
    own, other = tmp_path / f"own{suffix}", tmp_path / f"other{suffix}"
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    utils.save_picture(picture, own, {"size": "30x20", "error": 1})
    utils.save_picture(picture, other, {"size": "20x30"})
    wanted = utils.read_picture(own)[0]
    for limit in (400, 100):  # Pillow: only a warning, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert torch.equal(utils.read_picture(own)[0], wanted)
        assert utils.read_record(own)["error"] == 1
        assert "at most" in refusal(utils.read_picture, other)
    monkeypatch.setattr(utils, "available_bytes", lambda _: 600 * utils.READ_BYTES - 1)
    assert "at most" in refusal(utils.read_picture, own)


def test_a_format_holds_so_many_pixels():
    utils.check_format(Path("a.webp"), (16383, 1))
    assert "16384x1" in refusal(utils.check_format, Path("a.webp"), (1, 16384))
    utils.check_format(Path("a.tif"), (9000, 9000))
    assert "read again" in refusal(utils.check_format, Path("a.tif"), (9500, 9500))


@pytest.mark.parametrize("suffix", utils.SUFFIXES)
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    utils.save_picture(torch.rand(1, 3, 32, 32), path, {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refusal(utils.read_picture, path)


def test_files_that_hold_no_picture(tmp_path):
    path = tmp_path / "two\nlines.jpg"
    for content, line in ((b"", "not a pic"), (b"hello", "not a pic"), (png_claiming(4, 4), "")):
        path.write_bytes(content)
        assert f"two lines.jpg: {line}" in refusal(utils.read_picture, path)


def test_no_file_stays_open(tmp_path):
    second = Image.new("L", (2, 2), 9)
    read(Image.new("L", (2, 2)), tmp_path / "a.gif", save_all=True, append_images=[second])
    (tmp_path / "bomb.png").write_bytes(png_claiming(12000, 12000))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.gif").read_bytes()[:30])
    utils.read_record(tmp_path / "a.gif")
    refusal(utils.read_picture, tmp_path / "bomb.png")
    refusal(utils.read_picture, tmp_path / "cut.jpg")
    gc.collect()  # a file left open is a ResourceWarning, and so an error


def test_folder_and_missing_file(tmp_path):
    assert "directory" in refusal(utils.read_picture, tmp_path)
    assert "No such file" in refusal(utils.read_picture, tmp_path / "a.png")


def test_unreadable_file(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", forbidden)
    assert refusal(utils.read_picture, tmp_path / "a.png").endswith("(Permission denied)")


# -------------------------------------------------------------------------------------- saving

GREY = torch.full((1, 3, 4, 4), 0.5)


def test_check_save_path_leaves_nothing(tmp_path):
    utils.check_save_path(tmp_path / "new" / "deeper" / "a.PNG")
    assert list(tmp_path.iterdir()) == []


def test_check_save_path_refusals(tmp_path, monkeypatch):
    for name in ("a.bmp", "a", "png"):
        line = refusal(utils.check_save_path, tmp_path / name)
        assert name in line and ".jpg" in line and ".tiff" in line
    (tmp_path / "folder.png").mkdir()
    assert "a folder" in refusal(utils.check_save_path, tmp_path / "folder.png")
    (tmp_path / "file").touch()
    assert "cannot be saved" in refusal(utils.check_save_path, tmp_path / "file" / "a.png")
    assert "too long" in refusal(utils.check_save_path, tmp_path / ("a" * 300 + ".png"))

    def forbidden(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(utils.tempfile, "TemporaryFile", forbidden)
    assert "Permission denied" in refusal(utils.check_save_path, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".TIFF"])
def test_lossless_formats_round_to_the_nearest_level(tmp_path, suffix):
    values = torch.tensor([-0.6, 0.49, 0.51, 1.49, 1.51, 254.49, 254.51, 255.6]) / 255
    image = values.expand(3, 8)[None, :, None] * torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1)
    utils.save_picture(image, tmp_path / f"a{suffix}", {})
    saved, _ = utils.read_picture(tmp_path / f"a{suffix}")
    assert levels(saved) == [[level, level, 0] for level in (0, 0, 1, 1, 2, 254, 255, 255)]


@pytest.mark.parametrize("suffix", utils.SUFFIXES)
def test_suffix_decides_the_format(tmp_path, suffix):
    utils.save_picture(GREY, tmp_path / f"a{suffix}", {})
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == kinds.get(suffix, "TIFF")


def test_jpeg_keeps_full_chroma(tmp_path):
    utils.save_picture(GREY, tmp_path / "a.jpg", {})
    with Image.open(tmp_path / "a.jpg") as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
        assert max(picture.quantization[0]) == 12  # 121 at quality 50, a tenth of it at 95


def test_tiff_is_compressed(tmp_path):
    utils.save_picture(torch.zeros(1, 3, 64, 64), tmp_path / "a.tif", {})
    assert (tmp_path / "a.tif").stat().st_size < 64 * 64 * 3 / 4


def test_save_refuses_bugs(tmp_path):
    for bad in (float("nan"), float("inf")):
        image = GREY.clone()
        image[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="finite"):
            utils.save_picture(image, tmp_path / "a.png", {})
    for shape in ((2, 3, 4, 4), (3, 4, 4), (1, 1, 4, 4)):
        with pytest.raises(ValueError, match="shape"):
            utils.save_picture(torch.zeros(shape), tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


def test_save_takes_what_an_optimiser_holds(tmp_path):
    utils.save_picture(GREY.to(torch.bfloat16).requires_grad_(), tmp_path / "a.png", {})
    assert levels(utils.read_picture(tmp_path / "a.png")[0])[0] == [128] * 3  # 127.5 to even


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

    owner, name = {"encoder": (Image.Image, "save"), "disk": (utils.Path, "write_bytes")}.get(
        failing, (utils.os, "replace")
    )
    monkeypatch.setattr(owner, name, half_then_fail)
    with pytest.raises(KeyboardInterrupt if failing == "Ctrl-C" else UserError) as caught:
        utils.save_picture(GREY, path, {})
    assert failing == "Ctrl-C" or str(caught.value) == f"{path}: cannot be saved (No space left)"
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_side_beyond_the_format_is_the_users_to_fix(tmp_path):
    line = refusal(utils.save_picture, torch.zeros(1, 3, 1, 16384), tmp_path / "a.webp", {})
    assert "16383" in line and list(tmp_path.iterdir()) == []


def test_two_runs_use_different_temporary_files(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(utils.os, "replace", lambda source, path: used.append(source))
    for _ in range(2):
        utils.save_picture(GREY, tmp_path / "a.png", {})
    assert used[0] != used[1] and used[0].parent == used[1].parent == tmp_path.resolve()


def test_file_mode_follows_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        utils.save_picture(GREY, tmp_path / "a.png", {})
    finally:
        os.umask(previous)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_saving_through_a_link_changes_what_it_points_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "folder" / "real.dat")
    utils.check_save_path(tmp_path / "link.png")
    utils.save_picture(GREY, tmp_path / "link.png", {})
    assert (tmp_path / "link.png").is_symlink()
    assert utils.read_picture(tmp_path / "folder" / "real.dat")[0].shape == (1, 3, 4, 4)


# ------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("suffix", utils.SUFFIXES)
def test_record_comes_back(tmp_path, suffix):
    record = {"gt_path": "bl\u00e4tter/\u8449\n'\"\udcff.jpg", "seed": 3, "error": 0.00047}
    record |= {"layers": ["conv1_1", "conv2_1"], "pool": None, "rescale": True}
    utils.save_picture(GREY, tmp_path / f"a{suffix}", record)
    assert utils.read_record(tmp_path / f"a{suffix}") == record


def test_record_of_unusual_values_and_size_never_breaks_saving(tmp_path):
    record = {"path": tmp_path, "device": torch.device("cpu"), ("odd",): {1: {2: 3}, (): 4}}
    record |= {"long": "\u8449" * 20_000, "also": "x" * 59_000, "seed": 7}
    utils.save_picture(GREY, tmp_path / "a.jpg", record)
    expected = {"path": str(tmp_path), "device": "cpu", "('odd',)": {"1": {"2": 3}}, "seed": 7}
    # Escaped, "long" is twice what a JPEG can hold, and goes; "also" just fits.
    assert utils.read_record(tmp_path / "a.jpg") == expected | {"also": "x" * 59_000}


def test_foreign_pictures_carry_no_record(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = json.dumps({"somebody": "else"})
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert utils.read_record(tmp_path / "a.jpg") == {}
    for text in ("not JSON", "[1]"):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("synthesis", text)
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=chunks)
        assert utils.read_record(tmp_path / "a.png") == {}
    assert "missing.png" in refusal(utils.read_record, tmp_path / "missing.png")


def test_png_record_is_plain_json_under_its_key(tmp_path):
    utils.save_picture(GREY, tmp_path / "a.png", {"seed": 3})
    with Image.open(BytesIO((tmp_path / "a.png").read_bytes())) as picture:
        assert json.loads(picture.text["synthesis"]) == {"seed": 3}


def test_same_picture_same_bytes(tmp_path):
    for suffix in utils.SUFFIXES:
        for name in ("a", "b"):
            utils.save_picture(GREY, tmp_path / (name + suffix), {"seed": 3})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# ------------------------------------------------------------------------------------- devices


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def gpus(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_device_by_default(gpus):
    device, note = utils.pick_device(None)
    assert device == torch.device("cuda:0" if gpus else "cpu")
    assert (note is None) if gpus else ("CPU" in note and "\n" not in note)


def test_device_by_name(gpus):
    assert utils.pick_device("CPU") == (torch.device("cpu"), None)
    for name, device in (("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")):
        if gpus:
            assert utils.pick_device(name) == (torch.device(device), None)
        else:
            assert repr(name) in refusal(utils.pick_device, name)


def test_apples_gpu_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device, _ = utils.pick_device("MPS")
    assert device == torch.device("mps") and utils.pick_device(None)[0].type == "cpu"
    assert utils.layout_on(device) == torch.contiguous_format
    assert utils.layout_on(torch.device("cpu")) == torch.channels_last


@pytest.mark.parametrize("name", ["gpu", "cuda:7", "cuda:x", "cuda:-1", "meta", "mps", "xpu", ""])
def test_device_that_is_not_there(gpus, name):
    line = refusal(utils.pick_device, name)
    assert repr(name) in line and line.endswith("cpu, cuda:0, cuda:1" if gpus else "has cpu")


# --------------------------------------------------------------------------------------- sizes


def test_resize_leaves_the_same_size_alone():
    assert utils.resize(GREY, (4, 4)) is GREY
    assert utils.resize(GREY, (3, 5)).shape == (1, 3, 3, 5)


def test_resize_stays_in_the_box():
    step = (torch.arange(8) > 3).float().expand(1, 3, 8, 8)
    enlarged = utils.resize(step, (32, 32))
    assert enlarged.min() == 0 and enlarged.max() == 1  # bicubic alone gives -0.07 and 1.07


@pytest.mark.parametrize("tile, dims", [("x", 3), ("y", 2), ("xy", (2, 3))])
def test_resize_of_what_repeats_repeats(tile, dims):
    # Half the size: moved by 8 px before or by 4 px after is the same, across the border too.
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half = utils.resize(image, (16, 16), tile)
    shifts = {3: (8, 4), 2: (8, 4), (2, 3): ((8, 16), (4, 8))}[dims]
    moved = utils.resize(image.roll(shifts[0], dims), (16, 16), tile)
    torch.testing.assert_close(moved, half.roll(shifts[1], dims))
    assert (half - utils.resize(image, (16, 16))).abs().max() > 0.01


@pytest.mark.parametrize("tile", ["x", "y", "xy"])
@pytest.mark.parametrize(
    "old, new",
    [((48, 64), (24, 32)), ((24, 32), (48, 64)), ((31, 32), (32, 31)), ((64, 60), (5, 50))],
)
def test_resize_sees_of_what_repeats_as_much_as_of_nine_copies(old, new, tile, monkeypatch):
    image = torch.rand(1, 3, *old, generator=torch.Generator().manual_seed(0))
    down, across = (3 if axis in tile else 1 for axis in "yx")
    size = down * new[0], across * new[1]
    copies = F.interpolate(image.repeat(1, 1, down, across), size, mode="bicubic", antialias=True)
    (top, left) = down // 2 * new[0], across // 2 * new[1]
    expected = copies[..., top : top + new[0], left : left + new[1]].clamp(0, 1)

    seen, interpolate = [], F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda x, *args, **kw: seen.append(x.shape) or interpolate(x, *args, **kw)
    )
    torch.testing.assert_close(utils.resize(image, new, tile), expected, rtol=0, atol=1e-4)
    if (old, new) == ((24, 32), (48, 64)):
        # 2 px of the picture on either side, of one axis at a time.
        width, height = 32 + 4 * ("x" in tile), 24 + 4 * ("y" in tile)
        assert seen == [(1, 3, 24, width), (1, 3, height, 64)]


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_padded_is_what_pytorch_makes_and_folded_its_gradient(tile, mode, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    x = x.contiguous(memory_format=layout)
    expected = F.pad(x, (1, 1, 0, 0), "circular" if "x" in tile else mode)
    expected = F.pad(expected, (0, 0, 1, 1), "circular" if "y" in tile else mode)
    found = utils.padded(x, tile, mode)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=layout)
    upstream = torch.rand(2, 3, 4, 7, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(utils.folded(upstream.clone(), tile, mode), gradient)


def test_wrapped_by_hand():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert utils.wrapped(maps, "", 1, 1) is maps
    assert utils.wrapped(maps, "x", 1, 2).tolist() == [[[[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]]]
    assert utils.wrapped(maps, "y", 1, 2).tolist() == [[[[0, 1, 2], [3, 4, 5], [0, 1, 2]]]]
    assert utils.wrapped(maps, "xy", 1, 0).tolist() == [[[[0, 1, 2], [3, 4, 5], [0, 1, 2]]]]


def test_surrounded_by_hand():
    maps = torch.arange(1, 5.0).view(1, 1, 1, 4).expand(-1, -1, 2, -1)
    for wraps, mirrors, row in (
        ("", "", [1, 2, 3, 4]),
        ("", "x", [2, 1, 1, 2, 3, 4, 4, 3]),
        ("x", "y", [3, 4, 1, 2, 3, 4, 1, 2]),
    ):
        found = utils.surrounded(maps, wraps, mirrors, 2)
        assert found.shape[2] == (6 if mirrors == "y" else 2)
        assert all(line == row for line in found[0, 0].tolist())
    assert utils.surrounded(maps.mT, "y", "", 2)[0, 0, :, 1].tolist() == [3, 4, 1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("wraps, mirrors", [("", "xy"), ("x", "y"), ("y", "x"), ("xy", "")])
def test_every_pixel_is_in_as_many_windows_of_what_is_surrounded(wraps, mirrors):
    image = torch.zeros(1, 1, 8, 9, requires_grad=True)
    F.avg_pool2d(utils.surrounded(image, wraps, mirrors, 3), 7, 1).sum().backward()
    torch.testing.assert_close(image.grad, torch.ones(1, 1, 8, 9))


def test_resize_is_antialiased():
    stripes = (torch.arange(48) % 2).float().expand(1, 3, 48, 48)
    # Every third column would be 1, 0, 1, 0; the mean of the stripes is 1/2.
    assert (utils.resize(stripes, (16, 16))[..., 2:-2] - 0.5).abs().max() < 0.1


def ramp(height, width, across, down):
    """Grey of the mean 0.5 that changes by so much a pixel to the right, and down."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    return (0.5 + across * x[None, :] + down * y[:, None]).expand(1, 3, height, width)


def test_turned_and_resized_is_every_pair_but_the_picture_itself():
    image = ramp(20, 30, 0.01, 0.005)
    found = utils.rotated_and_resized(image, [90, 180], [0.5, 1.5])
    # Of 0, 90 and 180 degrees: as it is, half, and half as much again.
    sizes = [(10, 15), (30, 45), (30, 20), (15, 10), (45, 30), (20, 30), (10, 15), (30, 45)]
    assert [tuple(other.shape[2:]) for other in found] == sizes
    assert utils.rotated_and_resized(image, [], []) == []
    (half,) = utils.rotated_and_resized(image, [], [0.5])
    assert torch.equal(half, utils.resize(image, (10, 15)))
    (tiny,) = utils.rotated_and_resized(image, [], [0.001])
    assert tiny.shape == (1, 3, 1, 1)


@pytest.mark.parametrize("degrees, quarters", [(90, 1), (180, 2), (270, 3), (-90, 3), (450, 1)])
def test_quarter_turns_are_exact(degrees, quarters):
    image = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    (turned,) = utils.rotated_and_resized(image, [degrees], [])
    assert torch.equal(turned, torch.rot90(image, quarters, (2, 3)))


def test_turning_is_counter_clockwise():
    corner = torch.zeros(1, 1, 4, 6)
    corner[0, 0, 0, 5] = 1  # top right goes to top left
    assert utils.rotated_and_resized(corner, [90], [])[0][0, 0, 0, 0] == 1
    # What rises to the right rises up to the right after 30 degrees: down, it falls by the sine.
    (turned,) = utils.rotated_and_resized(ramp(60, 60, 0.01, 0), [30], [])
    middle = turned[0, 0, 10:-10, 10:-10]
    assert middle.diff(dim=1).mean().item() == pytest.approx(0.01 * math.cos(math.pi / 6), rel=0.01)
    assert middle.diff(dim=0).mean().item() == pytest.approx(-0.01 / 2, rel=0.01)


@pytest.mark.parametrize("near", [-1e-3, 1e-3, 90 - 1e-3, 90 + 1e-3, 180 - 1e-3, 270 + 1e-3])
def test_nearly_a_quarter_turn_is_nearly_exact(near):
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = utils.resize(image, (45, 45))  # smooth
    (turned,) = utils.rotated_and_resized(image, [near], [])
    exact = torch.rot90(image, round(near / 90), (2, 3))
    # One pixel less either way, so that pixels lie in the middle of four.
    assert turned.shape == (1, 3, 44, 44)
    between = F.avg_pool2d(exact, 2, 1)
    assert (turned - between).abs().max() < 0.05
    for other in (*(torch.rot90(between, k, (2, 3)) for k in (1, 2, 3)), between.flip(3)):
        assert (turned - other).abs().max() > 0.2


@pytest.mark.parametrize("shape", [(40, 40), (30, 51), (64, 17)])
@pytest.mark.parametrize("degrees", [1, 30, 45, 77.5, 100, 211, -15, 359])
def test_turned_pictures_have_no_empty_corners(shape, degrees):
    constant = torch.full((1, 3, *shape), 0.6)
    (turned,) = utils.rotated_and_resized(constant, [degrees], [])
    torch.testing.assert_close(turned, torch.full_like(turned, 0.6))
    # A ramp that leaves the picture is not reflected: every pixel lies where the plane says.
    height, width = shape
    across = 0.4 / width
    (turned,) = utils.rotated_and_resized(ramp(height, width, across, 0), [degrees], [])
    assert turned.min() > 0.29 and turned.max() < 0.71
    angle = math.radians(degrees)
    expected = ramp(*turned.shape[2:], across * math.cos(angle), -across * math.sin(angle))
    assert (turned - expected).abs().max() < across


@pytest.mark.parametrize("degrees", [10, 45, 130])
def test_turned_pictures_are_as_large_as_they_can_be(degrees):
    height, width = 60, 90
    (turned,) = utils.rotated_and_resized(torch.rand(1, 1, height, width), [degrees], [])
    h, w = turned.shape[2:]
    if degrees > 90:  # turned by a quarter, and by the rest
        height, width = width, height
    assert abs(h / height - w / width) < 1 / min(h, w)  # the same aspect, but for rounding
    angle = math.radians(degrees % 90)

    def bounds(h, w):  # of the part, turned back, in the picture
        return (
            w * math.sin(angle) + h * math.cos(angle),
            w * math.cos(angle) + h * math.sin(angle),
        )

    down, across = bounds(h, w)
    assert down <= height and across <= width
    down, across = bounds(h + 1, w + 1)
    assert down > height or across > width


def test_turned_pictures_stay_in_the_box():
    steps = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0)).round()
    for turned in utils.rotated_and_resized(steps, [20, 45], [0.7, 1.3]):
        assert turned.min() >= 0 and turned.max() <= 1  # bicubic alone leaves it


# ---------------------------------------------------------------------------------- memory


def group(folder, limit: dict[str, str], used: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in limit.items():
        (folder / name).write_text(text)
    (folder / "memory.stat").write_text(f"{used}\nfile 7\n")


FAULTS = """
import resource, numpy
{}
numpy.ones(2**25)  # 256 MB: 65536 pages, which are freed again
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    def faults(first):
        command = [sys.executable, "-c", FAULTS.format(first)]
        folder = Path(utils.__file__).parent
        return int(subprocess.run(command, capture_output=True, check=True, cwd=folder).stdout)

    kept = "import utils; utils.keep_freed_memory(tight={})"
    assert faults(kept.format(False)) < 10 < min(faults(kept.format(True)), faults(""))


def test_available_memory_is_the_least_of_what_limits_it(tmp_path, monkeypatch):
    memory, own, groups = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    monkeypatch.setattr(utils, "MEMORY", memory)
    monkeypatch.setattr(utils, "OWN_GROUPS", own)
    monkeypatch.setattr(utils, "GROUPS", groups)
    cpu = torch.device("cpu")
    assert utils.available_bytes(cpu) > 2**20  # all that there is, on systems without these files
    memory.write_text("MemTotal:       4000 kB\nMemFree:        10 kB\nMemAvailable:    3000 kB\n")
    assert utils.available_bytes(cpu) == 3000 * 1024
    own.write_text("0::/user/me\n4:memory:/job\n3:cpu:/elsewhere\n")
    assert utils.available_bytes(cpu) == 3000 * 1024
    group(groups / "user/me", {"memory.max": "max\n"}, "anon 100")
    assert utils.available_bytes(cpu) == 3000 * 1024
    group(groups, {"memory.max": "2000000\n"}, "anon 500000")  # a container's own root
    assert utils.available_bytes(cpu) == 1_500_000
    group(groups / "memory/job", {"memory.limit_in_bytes": "900000\n"}, "total_rss 100000")
    assert utils.available_bytes(cpu) == 800_000


def test_available_memory_may_be_unknown(tmp_path, monkeypatch):
    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(utils, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(utils.os, "sysconf", unknown)
    assert utils.available_bytes(torch.device("cpu")) == math.inf
