"""Many pictures by one command, and that nothing of the user's is lost."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

import Synthesis
from command import display, pictures, results, sheet
from command.arguments import parse, request_of
from command.pictures import check_save_path, read_record, save_picture
from command.plan import orders_of
from Synthesis import main, run_one
from utils import TEXTURES, UserError

TINY = ["--device", "cpu", "--epoch", "3", "--size", "32", "--quiet"]


@pytest.fixture
def folder(tmp_path, narrow_net):
    """Three exemplars, and a file that only looks like one."""
    found = tmp_path / "in"
    found.mkdir()
    for i, name in enumerate(("a.png", "c.png", "d.jpg")):
        box = (40 * i, 0, 40 * i + 40, 40)
        Image.open(TEXTURES / "pebbles.png").crop(box).save(found / name)
    (found / "b.png").write_bytes((found / "a.png").read_bytes()[:300])
    (found / "notes.txt").write_text("no picture")
    return found


@pytest.fixture
def exemplar(folder):
    return folder / "a.png"


def run_main(*arguments):
    return main([*map(str, arguments), *TINY])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_with_a_broken_picture_and_the_same_again(folder, tmp_path, capfd):
    command = ["--gt_path", folder, "--save_path", f"{tmp_path}/out/"]
    assert run_main(*command) == 1
    out, err = capfd.readouterr()
    assert [Path(line.split("  ")[0]).name for line in out.splitlines()] == [
        *("a.png", "c.png", "d.png")
    ]
    broken, counted = err.splitlines()
    assert broken.startswith(f"Synthesis.py: {folder}/b.png: ")
    assert counted == "Synthesis.py: 1 of 4 pictures could not be made"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    assert run_main(*command) == 1
    out, _ = capfd.readouterr()
    assert all("finished before" in line for line in out.splitlines())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    assert run_main(*command) == 0
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png", "d.png"]


def test_pictures_of_a_batch_are_those_of_single_runs(folder, tmp_path):
    (folder / "b.png").unlink()
    assert run_main("--gt_path", folder / "*.png", "--save_path", f"{tmp_path}/many/") == 0
    for name in ("a.png", "c.png"):
        assert run_main("--gt_path", folder / name, "--save_path", tmp_path / "one" / name) == 0
        one, many = (tmp_path / made / name for made in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--save_path new.png", ["new_a.png", "new_c.png"]),
        ("--save_path out/", ["out/a.png", "out/c.png"]),
        ("--save_path out/{stem}.jpg", ["out/a.jpg", "out/c.jpg"]),
        ("--save_path {stem}/{seed}.png --seed 7", ["a/7.png", "c/7.png"]),
        (
            "--save_path new.png --count 2",
            ["new_a_0.png", "new_a_1.png", "new_c_0.png", "new_c_1.png"],
        ),
        (
            "--save_path {stem}_{seed:03d}.png --count 2 --seed 9",
            ["a_009.png", "a_010.png", "c_009.png", "c_010.png"],
        ),
        (
            "--save_path out/ --count 2",
            ["out/a_0.png", "out/a_1.png", "out/c_0.png", "out/c_1.png"],
        ),
    ],
)
def test_where_pictures_go(flags, expected, folder, monkeypatch):
    monkeypatch.chdir(folder)
    orders = orders_of(parse(["--gt_path", "a.png", "c.png", *flags.split()]))
    assert [str(order.save_path) for order in orders] == expected
    assert {order.seed for order in orders} <= {0, 1, 7, 9, 10}


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--save_path", "{name}.png"], "stem and seed"),
        (["--save_path", "{.png"], "stem and seed"),
        (["--save_path", "same{seed}.png"], "saved as same0.png"),
        (["--save_path", "{stem}"], "suffix"),
    ],
)
def test_patterns_that_are_none(flags, told, folder):
    paths = [str(folder / name) for name in ("a.png", "c.png")]
    with pytest.raises(UserError, match=told):
        orders_of(parse(["--gt_path", *paths, *flags]))


def test_a_folder_that_is_there_needs_no_slash(exemplar, tmp_path):
    (tmp_path / "out").mkdir()
    assert run_main("--gt_path", exemplar, "--save_path", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"]


def test_another_picture_is_overwritten_on_request_alone(exemplar, tmp_path, capfd):
    result = tmp_path / "result.png"
    command = ["--gt_path", exemplar, "--save_path", result]
    assert run_main(*command) == 0
    before = result.read_bytes()
    assert run_main(*command, "--seed", "1") == 2
    assert "--overwrite" in capfd.readouterr().err and result.read_bytes() == before
    assert run_main(*command, "--seed", "1", "--overwrite") == 0
    assert result.read_bytes() != before
    # A picture that is not ours, and none at all.
    for content in (exemplar.read_bytes(), b"letter"):
        result.write_bytes(content)
        assert run_main(*command) == 2 and result.read_bytes() == content


def test_a_changed_exemplar_makes_another_picture(exemplar, tmp_path, capfd):
    command = ["--gt_path", exemplar, "--save_path", tmp_path / "result.png"]
    assert run_main(*command) == 0
    Image.open(exemplar).rotate(90).save(exemplar)
    assert run_main(*command) == 2
    assert "another picture" in capfd.readouterr().err


def test_what_was_interrupted_or_is_not_whole_is_made_again(exemplar, tmp_path, capfd):
    result = tmp_path / "result.png"
    command = ["--gt_path", exemplar, "--save_path", result, "--tile", "x"]
    assert run_main(*command) == 0
    assert run_main(*command) == 0
    assert "finished before" in capfd.readouterr().out.splitlines()[-1]
    image, record = torch.zeros(1, 3, 32, 32), read_record(result)
    whole = result.read_bytes()
    for missing in (record | {"interrupted at step": 2}, {**record, "error": None}):
        if missing["error"] is None:
            del missing["error"]  # as it is while the rest is saved
        save_picture(image, result, missing)
        assert run_main(*command) == 0
        assert result.read_bytes() == whole
    (tmp_path / "result_tiled.png").unlink()
    assert run_main(*command) == 0
    assert (tmp_path / "result_tiled.png").exists()


def test_a_job_that_fails_midway_costs_a_line(folder, tmp_path, capfd, monkeypatch):
    (folder / "b.png").unlink()
    make = Synthesis.new_texture
    failures = iter([RuntimeError("can't allocate memory: 9 bytes"), IndexError("off by one")])

    def failing(*arguments):
        if error := next(failures, None):
            raise error
        return make(*arguments)

    monkeypatch.setattr(Synthesis, "new_texture", failing)
    assert run_main("--gt_path", folder, "--save_path", f"{tmp_path}/out/") == 1
    err = capfd.readouterr().err
    assert names(tmp_path / "out") == ["d.png"]
    assert f"{folder}/a.png: out of memory" in err
    assert f"{folder}/c.png: IndexError: off by one" in err and "Traceback" in err  # our own bug
    assert err.splitlines()[-1] == "Synthesis.py: 2 of 3 pictures could not be made"


def test_pictures_are_read_when_their_turn_comes(folder, tmp_path):
    (folder / "b.png").unlink()
    made = Synthesis.run(
        parse(["--gt_path", str(folder), "--save_path", f"{tmp_path}/out/", *TINY])
    )
    assert next(made).path.name == "a.png"
    (folder / "c.png").unlink()
    assert "c.png" in next(made).line
    assert next(made).path.name == "d.png"


# ------------------------------------------------------------------------- what must not be lost


def test_inputs_are_not_overwritten(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    (folder / "r_000002.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "r_tiled.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "r_c.png").write_bytes((folder / "c.png").read_bytes())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for flags in (
        "--gt_path r_000002.png --save_path r.png --save_every 1",
        "--gt_path r_tiled.png --save_path r.png --tile x",
        "--gt_path r_c.png --save_path r.png --maps c.png",
        "--gt_path a.png --save_path a.png --overwrite",
        "--gt_path a.png c.png --save_path {stem}.png --overwrite",
        "--gt_path a.png --weights c.png --save_path c.png --overwrite",
        "--gt_path a.png --init c.png --save_path c.png --overwrite",
    ):
        assert run_main(*flags.split()) == 2, flags
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_are_missing_cost_a_line_beside_an_old_result(exemplar, tmp_path, capfd):
    (tmp_path / "old.png").write_bytes(b"old")
    command = ["--gt_path", exemplar, "--save_path", tmp_path / "old.png", "--overwrite"]
    assert run_main(*command, "--weights", "no.pth") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no.pth" in line and (tmp_path / "old.png").read_bytes() == b"old"


def test_devices_and_pipes_are_no_results(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    for name in ("pipe.png", "null.png"):
        with pytest.raises(UserError, match="a device or a pipe"):
            check_save_path(tmp_path / name)


def test_a_refused_run_leaves_no_folder(exemplar, tmp_path):
    refused = ["--gt_path", exemplar, "--save_path", tmp_path / "new" / "er" / "a.png"]
    assert run_main(*refused, "--maps", "no.png") == 2
    assert not (tmp_path / "new").exists()
    assert run_main(*refused) == 0
    assert names(tmp_path / "new" / "er") == ["a.png"]


def test_room_is_tried_with_bytes(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.tempfile.TemporaryFile", lambda dir: Full())
    with pytest.raises(UserError, match="No space left"):
        check_save_path(tmp_path / "a.png")


def test_what_a_killed_run_has_left_is_swept(tmp_path):
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    node = os.uname().nodename
    kept = {f".synthesis-{node}-{os.getpid()}-x.tmp", f".synthesis-elsewhere-{dead}-x.tmp", "a.tmp"}
    for name in (*kept, f".synthesis-{node}-{dead}-x.tmp"):
        (tmp_path / name).touch()
    check_save_path(tmp_path / "a.png")
    assert set(names(tmp_path)) == kept


def test_a_picture_that_cannot_be_saved_goes_to_the_temporary_folder(
    exemplar, tmp_path, capfd, monkeypatch
):
    def full(image, path, record, *rest):
        if path.parent == tmp_path / "out":
            raise UserError(f"{path}: cannot be saved (No space left on device)")
        save_picture(image, path, record, *rest)

    monkeypatch.setattr(results, "save_picture", full)
    monkeypatch.setattr(results.tempfile, "tempdir", str(tmp_path))
    command = ["--gt_path", exemplar, "--save_path", tmp_path / "out" / "a.png"]
    assert run_main(*command) == 0
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    saved = Path(out.split("  ")[0])
    assert saved.parent.parent == tmp_path and saved.exists() and str(saved) in line
    assert read_record(saved)["exemplar"] == "a.png"


def disk(monkeypatch, folder, room):
    """Has files of a folder take room, which a file takes beside the one that it replaces."""
    write = pictures.save_bytes

    def save_bytes(content, path):
        taken = sum(one.stat().st_size for one in folder.iterdir())
        if path.parent == folder and taken + len(content) > room:
            raise UserError(f"{path}: cannot be saved (No space left on device)")
        write(content, path)

    for module in (pictures, sheet):
        monkeypatch.setattr(module, "save_bytes", save_bytes)


def test_a_disk_with_room_for_one_copy_has_a_finished_picture(
    exemplar, tmp_path, capfd, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    result, command = out / "a.png", ["--gt_path", exemplar, "--save_path", out / "a.png"]
    assert run_main(*command) == 0
    content = result.read_bytes()
    result.unlink()
    disk(monkeypatch, out, len(content) * 3 // 2)
    assert run_main(*command) == 0 and result.read_bytes() == content
    assert read_record(result)["error"] > 0 and names(out) == ["a.png"]
    capfd.readouterr()
    assert run_main(*command) == 0 and "finished before" in capfd.readouterr().out


def test_what_does_not_fit_beside_a_picture_is_a_line_and_exit_code_1(
    exemplar, tmp_path, capfd, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    grey = tmp_path / "grey.png"
    Image.open(exemplar).convert("L").save(grey)
    command = ["--gt_path", exemplar, "--save_path", out / "a.png", "--maps", grey]
    command += ["--tile", "xy", "--sheet", out / "sheet.png", "--log", tmp_path / "log"]
    assert run_main(*command) == 0
    files = [out / name for name in ("a.png", "a_grey.png", "a_tiled.png", "sheet.png")]
    assert names(out) == [path.name for path in files]
    picture, carried, *_ = sizes = [path.stat().st_size for path in files]
    assert carried < min(sizes[2:]) // 2
    content = files[0].read_bytes()
    for path in files:
        path.unlink()
    capfd.readouterr()
    disk(monkeypatch, out, picture + carried * 3 // 2)  # not for the repeat, nor for the sheet
    assert run_main(*command) == 1
    told, err = capfd.readouterr()
    assert names(out) == ["a.png", "a_grey.png"] and files[0].read_bytes() == content
    assert len(told.splitlines()) == 1 and told.startswith(str(files[0]))
    full = "cannot be saved (No space left on device)"
    assert err.splitlines() == [f"Synthesis.py: {path}: {full}" for path in files[2:]]
    line = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert line["reason"] == "finished" and line["missing"] == [f"{files[2]}: {full}"]


def test_a_picture_whose_error_cannot_be_known_is_saved(exemplar, tmp_path, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(results, "saved_error", full)
    result = tmp_path / "a.png"
    assert run_main("--gt_path", exemplar, "--save_path", result) == 2
    assert "error" not in read_record(result) and read_record(result)["size"] == "32x32"


def test_without_any_room_there_is_one_line(exemplar, tmp_path, capfd, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    out.mkdir()
    disk(monkeypatch, out, 100)
    monkeypatch.setattr(results.tempfile, "mkdtemp", full)
    assert run_main("--gt_path", exemplar, "--save_path", out / "a.png") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"Synthesis.py: {out}/a.png: cannot be saved (No space left on device)"


def test_a_snapshot_that_cannot_be_saved_is_a_note(exemplar, tmp_path, capfd, monkeypatch):
    def full(image, path, record):
        raise UserError(f"{path}: cannot be saved (No space left on device)")

    monkeypatch.setattr(display, "save_picture", full)
    result = tmp_path / "a.png"
    assert run_main("--gt_path", exemplar, "--save_path", result, "--save_every", "2") == 0
    assert "a_000002.png: cannot be saved" in capfd.readouterr().err and result.exists()


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space"), ValueError("closed")]
)
def test_broken_outputs_cost_no_picture(error, exemplar, tmp_path, monkeypatch):
    class Broken:
        encoding = "ascii"

        def isatty(self):
            return False

        def write(self, text):
            raise error

        flush = write

    command = ["--gt_path", str(exemplar), "--save_path", str(tmp_path / "ä.png")]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Broken())
        patched.setattr(sys, "stderr", Broken())
        assert main([*command, *TINY[:-1]]) == 0
    assert (tmp_path / "ä.png").exists()


def test_an_alphabet_without_the_names_letters(exemplar, tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        assert run_main("--gt_path", exemplar, "--save_path", tmp_path / "ä.png") == 0
    assert "?.png" in (tmp_path / "log").read_text()


def test_as_a_library_in_a_thread(exemplar, tmp_path):
    """Where signals cannot be handled."""
    found = []

    def one():
        flags = {"device": "cpu", "epoch": 2, "size": (32, 32), "quiet": True}
        flags |= {"gt_path": str(exemplar), "save_path": str(tmp_path / "a.png")}
        found.append(run_one(request_of(**flags)).image)

    thread = threading.Thread(target=one)
    thread.start()
    thread.join()
    assert isinstance(found[0], torch.Tensor)
