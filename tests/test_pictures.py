"""Hostile files, faithful saving and plain arguments; every expected value can be had by hand."""

import errno
import gc
import json
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

import utils
from command import pictures
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
    image, *_, notes = pictures.read_picture(path)
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
        assert "at most" in refusal(pictures.read_picture, other)
    monkeypatch.setattr(pictures, "available_bytes", lambda _: 600 * pictures.READ_BYTES - 1)
    assert "at most" in refusal(pictures.read_picture, own)


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

    monkeypatch.setattr(utils.tempfile, "TemporaryFile", forbidden)
    assert "Permission denied" in refusal(pictures.check_save_path, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".TIFF"])
def test_lossless_formats_round_to_the_nearest_level(tmp_path, suffix):
    values = torch.tensor([-0.6, 0.49, 0.51, 1.49, 1.51, 254.49, 254.51, 255.6]) / 255
    image = values.expand(3, 8)[None, :, None] * torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1)
    pictures.save_picture(image, tmp_path / f"a{suffix}", {})
    saved = pictures.read_picture(tmp_path / f"a{suffix}").pixels
    assert levels(saved) == [[level, level, 0] for level in (0, 0, 1, 1, 2, 254, 255, 255)]


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
def test_suffix_decides_the_format(tmp_path, suffix):
    pictures.save_picture(GREY, tmp_path / f"a{suffix}", {})
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
    for shape in ((2, 3, 4, 4), (3, 4, 4), (1, 1, 4, 4)):
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
        failing, (utils.os, "replace")
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
    monkeypatch.setattr(utils.os, "replace", lambda source, path: used.append(source))
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
