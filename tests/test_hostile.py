"""Input that nobody means well by: an error of one line, soon and in little memory, never a hang, a
traceback or code that runs."""

import io
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from command import pictures
from command.files import TEXTURES
from command.pictures import find_picture, read_picture, read_vectors
from command.settings import digest, of_file
from command.weights import BUNDLE, load_weights
from models import resolve_layers
from Synthesis import main
from utils import UserError, in_one_line

ROOT = Path(__file__).resolve().parent.parent
LAYERS = resolve_layers(["conv1_1"], "vgg16-caffe")


def read_weights(path):
    load_weights("vgg16-caffe", path, LAYERS)


READERS = [find_picture, read_picture, read_vectors, read_weights]


@pytest.fixture
def at_once():
    """Fails what takes more than five seconds."""

    def late(number, frame):
        raise AssertionError("took too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", READERS)
def test_pipes_and_devices_are_not_waited_for(read, tmp_path, at_once):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="a device or a pipe"):
            read(path)


@pytest.mark.parametrize("read", [*READERS, of_file])
@pytest.mark.parametrize("name", ["self/mem", "kmsg", "meminfo"])
def test_files_of_the_system_are_not_read(read, name, at_once):
    """The first is all of memory, the second never ends."""
    path = Path("/proc", name)
    if not path.exists():
        pytest.skip(f"no {path} here")
    with pytest.raises(UserError, match="/proc, which the system makes up"):
        read(path)


@pytest.mark.parametrize("read", [*READERS, of_file, digest])
def test_empty_files_are_not_read(read, tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"/a\.png'?: .*an empty file"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("read", READERS)
def test_names_that_cannot_be(read):
    for name in ("a" * 300 + ".png", "a\0.png"):
        with pytest.raises(UserError):
            read(Path(name))


def npy(shape, dtype="<f4", content=b""):
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (118 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def archive():
    file = io.BytesIO()
    np.savez(file, np.zeros((2, 2, 2)))
    return file.getvalue()


class Code:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "an empty file"),
        (archive(), "archive"),
        (npy((2, 400_000, 100_000)), "not a .npy"),  # 596 GiB
        (npy((2, 2, 2))[:40], "not a .npy"),
        (npy((2, 2, 2), "O", pickle.dumps(Code())), "not a .npy"),
        (npy((2, 2, 2), "<f8", np.full(8, 1e300).tobytes()), "not finite"),
        (npy((2, 2, 2), "<f4", np.full(8, np.nan, np.float32).tobytes()), "not finite"),
        (npy((3, 2, 2), "<f4", bytes(48)), r"\(2, H, W\)"),
    ],
)
def test_vectors_that_are_none(content, told, tmp_path, at_once):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_vectors(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda w: w * torch.nan, "beyond -1000 to 1000"),
        (lambda w: w + 1e30, "beyond -1000 to 1000"),
        (lambda w: w.to_sparse(), "not a (plain tensor|state dict)"),
        (lambda w: w.to("meta"), "not a plain tensor"),
        (lambda w: (w * 100).to(torch.int8), "beyond"),
        (lambda w: w[:3], "has shape"),
        (lambda w: None, "not a state dict"),
        (lambda w: Code(), "not a state dict"),
    ],
)
def test_weights_that_are_none(change, told, tmp_path, at_once):
    state = torch.load(BUNDLE, weights_only=True)
    state["features.0.weight"] = change(state["features.0.weight"].float())
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=told):
        read_weights(tmp_path / "w.pth")


def test_a_huge_file_is_not_read(tmp_path, at_once):
    with open(tmp_path / "a.tif", "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "TIFF")
        file.truncate(3 * 2**30)  # holds nothing, and takes no room
    with pytest.raises(UserError, match=r"3\.2 GB"):
        read_picture(tmp_path / "a.tif")


def test_what_does_not_fit_into_memory_is_not_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.gif")
    free = 100 * 100 * pictures.READ_BYTES - 1
    monkeypatch.setattr(pictures, "available_bytes", lambda device: free)
    with pytest.raises(UserError, match="are free"):
        read_picture(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_record_is_read_without_the_picture(suffix, tmp_path, monkeypatch):
    """Which may claim to be of gigabytes."""
    pictures.save_picture(torch.zeros(1, 3, 8, 8), tmp_path / f"a{suffix}", {"size": "8x8"})
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: pytest.fail("decoded"))
    assert pictures.read_record(tmp_path / f"a{suffix}") == {"size": "8x8"}


def test_libtiff_says_nothing_of_its_own(tmp_path, capfd):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[8:40] = b"\xff" * 32
    (tmp_path / "a.tif").write_bytes(damaged)
    with pytest.raises(UserError):
        read_picture(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_lines_stay_lines_and_steer_no_terminal(capfd):
    assert in_one_line("a\nb\x1b[31mc\u202e\u00e9") == "a b\\x1b[31mc\\u202e\u00e9"
    assert main(["--no\x1b[31m\nsuch"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "\x1b" not in line and line.startswith("Synthesis.py: ")


def test_errors_are_short():
    """Of a value 200 characters are told, 131 of its beginning; of a line 1000."""
    value = "a" * 131 + "b" * 99_800 + "c" * 66
    assert str(UserError(f"x {value} y")) == "x " + "a" * 131 + "..." + "c" * 66 + " y"
    quoted = f"'{'a b ' * 1000}'"
    assert str(UserError(f"x: {quoted} y")) == f"x: {quoted[:131]}...{quoted[-66:]} y"
    assert str(UserError("x" * 200)) == "x" * 200
    many = str(UserError("word " * 20_000 + "end"))
    assert len(many) == 1000 and many.endswith("word end")


@pytest.mark.parametrize(
    "flags",
    [
        ["--size", "9" * 100_000],
        ["--seed", "9" * 100_000],
        ["--method", "x" * 100_000],
        ["--" + "x" * 100_000],
        ["--gt_path", "x" * 100_000],
        ["--gt_path", *["x y"] * 3 * 10_000, "--mask"],
        ["--save_path", "{" + "x" * 100_000 + "}.png"],
        ["--device", "x y " * 25_000],
        ["--layers", *["conv1_1:x"] * 10_000],
    ],
)
def test_errors_of_long_values_are_short(flags, capfd, at_once):
    assert main(["--gt_path", "leaf.jpg", "--quiet", *flags]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line) < 1100


# ------------------------------------------------------------------------------------------ fuzz


def changed(content, dice):
    """A few bytes changed, a part taken away or put in twice."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(found))
        match dice.randrange(4):
            case 0:
                found[at] = dice.randrange(256)
            case 1:
                found[at : at + dice.randrange(1, 9)] = dice.randbytes(dice.randrange(9))
            case 2:
                del found[at : at + dice.randrange(1, 64)]
            case 3:
                found[at:at] = found[at : at + 64]
        if not found:
            return b""
    return bytes(found)


def drawn_pictures(dice):
    size = dice.randrange(1, 24), dice.randrange(1, 24)
    picture = Image.frombytes("RGB", size, dice.randbytes(3 * size[0] * size[1]))
    picture = picture.convert(dice.choice(["RGB", "L", "P", "RGBA", "1", "CMYK"]))
    kind = dice.choice(["PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG", "PPM", "TGA", "ICO"])
    file = io.BytesIO()
    try:
        picture.save(file, kind)
    except (OSError, KeyError, ValueError):
        picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


WORDS = ["0", "-1", "1e300", "nan", "inf", "x", "", "16", "32", "32x16", "0x0", "mix", "leaf.jpg"]
WORDS += ["a.png", "a.png:0.5", "no.png", "conv1_1", "relu9_9", "auto", "True", "cpu", "cuda:9"]
WORDS += ["gram", "swd", "cnnmrf", "guided", "LBFGS", "99999999999999999999", "\x1b[0m", "\u202e"]
WORDS += ["{stem}.png", "{", "out/", "a" * 300, "circular", "90", "0.3", "1GB", "xy", "noise"]


def fuzz(kind, folder):
    """Every case in so much time, all of them in so much memory; prints what was wrong."""
    import resource

    from command.arguments import build_parser, parse
    from command.plan import job_of, work_items

    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(99))
    os.chdir(folder)
    dice, before, refused = random.Random(0), resource.getrusage(resource.RUSAGE_SELF), 0
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 32, 32)).save("a.png")
    flags = [name for action in build_parser()._actions for name in action.option_strings]
    flags = [name for name in flags if "help" not in name and name != "-h" and name != "--version"]
    vectors = npy((2, 8, 8), "<f4", dice.randbytes(512))
    file = io.BytesIO()
    torch.save({"features.0.weight": torch.rand(64, 3, 3, 3)}, file)
    state = file.getvalue()
    for _ in range({"arguments": 2000, "pictures": 2000, "numbers": 500}[kind]):
        signal.alarm(20)
        try:
            if kind == "arguments":
                said = ["--gt_path", "a.png", "--size", "16"]
                for _ in range(dice.choice([1, 1, 2, 4])):
                    said += [dice.choice(flags), *dice.choices(WORDS, k=dice.randrange(3))]
                request = parse(said)
                for order in work_items(request)[0][:2]:
                    job_of(request, order)
            elif kind == "pictures":
                Path("b.png").write_bytes(changed(drawn_pictures(dice), dice))
                read_picture(Path("b.png"))
            elif dice.random() < 0.5:
                Path("b.npy").write_bytes(changed(vectors, dice))
                read_vectors(Path("b.npy"))
            else:
                Path("b.pth").write_bytes(changed(state, dice))
                read_weights(Path("b.pth"))
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, ascii(str(error))
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    print(refused, peak // 1024)


@pytest.mark.slow
@pytest.mark.parametrize("kind, least", [("arguments", 1000), ("pictures", 500), ("numbers", 100)])
def test_fuzz(kind, least, tmp_path):
    code = f"import sys; sys.path.insert(0, 'tests'); import test_hostile as t; t.fuzz({kind!r}, "
    code += f"{str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]
    refused, megabytes = map(int, done.stdout.split())
    assert refused >= least and megabytes < 500
