"""Many pictures by one command, and that nothing of the user's is lost."""

import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fast_first, plan, save_crops
from PIL import Image

from command import display, pictures, results, sheet
from command.arguments import parse
from command.names import distinct_names
from command.outputs import snapshot_of
from command.pictures import check_save_path, find_pictures, read_record, save_picture
from command.plan import work_items
from command.run import run
from engine.synthesis import frames
from Synthesis import main
from utils import UserError

TINY = ["--device", "cpu", "--epoch", "3", "--size", "32", "--quiet"]


@pytest.fixture
def folder(tmp_path, narrow_net):
    """Three exemplars, and a file that only looks like one."""
    found = tmp_path / "in"
    found.mkdir()
    save_crops(40, 40, *(found / name for name in ("a.png", "c.png", "d.jpg")))
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
        ("--save_path out", ["out/a.png", "out/c.png"]),
        (
            "--save_path new/out --count 2",
            ["new/out/a_0.png", "new/out/a_1.png", "new/out/c_0.png", "new/out/c_1.png"],
        ),
        ("--save_path {dir}", ["{dir}/a.png", "{dir}/c.png"]),
        ("--save_path {dir}/", ["{dir}/a.png", "{dir}/c.png"]),
        ("--save_path {dir}/{stem}.webp", ["{dir}/a.webp", "{dir}/c.webp"]),
        ("--save_path {dir}/x}.png", ["{dir}/x}_a.png", "{dir}/x}_c.png"]),
    ],
)
def test_where_pictures_go(flags, expected, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "{dir}").mkdir()
    items, _ = work_items(parse(["--gt_path", "a.png", "c.png", *flags.split()]))
    assert [str(item.save_path) for item in items] == expected
    assert {item.seed for item in items} <= {0, 1, 7, 9, 10}


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--save_path", "{name}.png"], "stem and seed"),
        (["--save_path", "{.png"], "stem and seed"),
        (["--save_path", "same{seed}.png"], "saved as same0.png"),
        (["--save_path", "{stem}"], "suffix"),
        (["--save_path", "{stem.x}.png"], "stem and seed"),
        (["--save_path", "{seed[0]}.png"], "stem and seed"),
        (["--save_path", "{seed:>999999999}.png"], "stem and seed"),
        (["--save_path", "{stem}_{seed:{stem}}.png"], "stem and seed"),
        (["--save_path", "{stem!r}.png"], "stem and seed"),
        (["--save_path", "{stem:3d}.png"], "stem and seed"),
        (["--count", "99999999999"], "1 to 100000"),
        (["--count", "50001"], "allowed are 100000"),
        (["--gt_path", "leaf.jpg", "leaf.jpg"], "leaf.jpg: given more than once"),
    ],
)
def test_patterns_that_are_none(flags, told, folder):
    paths = [str(folder / name) for name in ("a.png", "c.png")]
    with pytest.raises(UserError, match=told):
        work_items(parse(["--gt_path", *paths, *flags]))


def test_one_picture_has_a_suffix(exemplar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an existing folder out/ would be where the picture goes
    with pytest.raises(UserError, match="unknown suffix ''"):
        work_items(parse(["--gt_path", str(exemplar), "--save_path", "out"]))


@pytest.mark.parametrize(
    "paths, expected",
    [
        ("in/wall.png in/wall.jpg in/leaf.jpg", "wall_png wall_jpg leaf"),
        ("a/wall.png b/wall.png", "a_wall b_wall"),
        ("a/wall.png b/wall.png a/wall.jpg", "a_wall b_wall wall_jpg"),
        ("x/a/w.png x/a/w.jpg x/b/w.png x/b/w.jpg", "a_w_png a_w_jpg b_w_png b_w_jpg"),
        ("in/w.png in/w.jpg in/w_png.png", "in_w w_jpg w_png_png"),
        ("x/a/w.png y/a/w.png", "x_a_w y_a_w"),
    ],
)
def test_exemplars_of_one_name_are_told_apart(paths, expected):
    assert distinct_names([Path(path) for path in paths.split()]) == expected.split()


def test_a_folder_is_taken_but_for_what_is_no_picture(folder):
    for suffix in ("jfif", "jpe", "jp2", "dib", "tga"):
        Image.open(folder / "a.png").convert("RGB").save(folder / f"e.{suffix}")
    (folder / "f.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")  # read by Ghostscript alone
    (folder / "sub").mkdir()
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    save_picture(torch.zeros(1, 3, 8, 8), folder / "ours.jpg", {"exemplar": "a.png"})
    (folder / "sub" / "a.png").write_bytes((folder / "a.png").read_bytes())
    expected = "a.png b.png c.png d.jpg e.dib e.jfif e.jp2 e.jpe e.tga".split()
    found, (line,) = find_pictures(folder)
    assert [path.name for path in found] == expected
    assert line == (
        f"'{folder}': left out f.eps, gone.png, notes.txt (not a picture format that is read)"
        ", ours.jpg (made by this program; used only if named one by one), sub (a folder; a "
        "pattern with '**' includes subfolders)"
    )
    found, _ = find_pictures(f"{folder}/**")
    assert {path.relative_to(folder) for path in found} == {*map(Path, expected), Path("sub/a.png")}
    assert find_pictures(folder / "ours.jpg") == ([folder / "ours.jpg"], [])
    with pytest.raises(UserError, match=r"left out notes\.txt"):
        find_pictures(f"{folder}/*.txt")


def test_what_pillow_reads_by_itself_is_taken():
    taken = pictures._read_suffixes()
    assert taken >= set(
        ".png .jpg .jfif .jpe .jp2 .j2k .psd .tga .bmp .webp .avif .tiff .qoi".split()
    )
    assert not taken & set(".eps .ps .pdf .mpg .wmf .emf .h5 .grib .npy .txt".split())


def test_a_pattern_in_a_folder_whose_name_is_one(folder):
    folder.rename(folder.parent / "in [1]")
    found, _ = find_pictures(f"{folder.parent}/in [1]/[ac].*")
    assert [path.name for path in found] == ["a.png", "c.png"]


@pytest.mark.slow
def test_the_same_command_beside_its_results(folder, capfd):
    (folder / "b.png").unlink()
    command = ["--gt_path", folder, "--save_path", folder / "{stem}_new.png", "--tile", "x"]
    assert run_main(*command) == 0
    made = names(folder)
    assert run_main(*command) == 0
    out, _ = capfd.readouterr()
    assert names(folder) == made and out.count("finished before") == 3
    assert run_main("--gt_path", folder / "a_new.png", "--save_path", folder / "again.png") == 0


def test_a_folder_that_is_there_needs_no_slash(exemplar, tmp_path):
    (tmp_path / "out").mkdir()
    assert run_main("--gt_path", exemplar, "--save_path", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"]


@pytest.mark.slow
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
    assert "another file is there" in capfd.readouterr().err


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
    capfd.readouterr()
    result.write_bytes(whole[:-400])  # its record is there, and some pixels are not
    assert run_main(*command) == 0
    assert result.read_bytes() == whole and "it is made again" in capfd.readouterr().err
    save_picture(image, result, record | {"error": 10**400})
    assert run_main(*command) == 0 and result.read_bytes() == whole


def test_a_job_that_fails_midway_costs_a_line(folder, tmp_path, capfd, monkeypatch):
    (folder / "b.png").unlink()
    make = frames
    failures = iter([RuntimeError("can't allocate memory: 9 bytes"), IndexError("off by one")])

    def failing(*arguments):
        if error := next(failures, None):
            raise error
        return make(*arguments)

    monkeypatch.setattr("command.make.frames", failing)
    assert run_main("--gt_path", folder, "--save_path", f"{tmp_path}/out/") == 1
    err = capfd.readouterr().err
    assert names(tmp_path / "out") == ["d.png"]
    assert f"{folder}/a.png: out of memory" in err
    assert f"{folder}/c.png: IndexError: off by one" in err and "Traceback" in err  # our own bug
    assert err.splitlines()[-1] == "Synthesis.py: 2 of 3 pictures could not be made"


def test_pictures_are_read_when_their_turn_comes(folder, tmp_path):
    (folder / "b.png").unlink()
    made = run(parse(["--gt_path", str(folder), "--save_path", f"{tmp_path}/out/", *TINY]))
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
    (folder / "link.png").symlink_to("a.png")
    (folder / "c.toml").write_text("epoch = 2")
    (folder / "report.html").write_text("<title>mine</title>")
    np.save(folder / "v.npy", np.ones((2, 36, 40)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for flags in (
        "--gt_path r_000002.png --save_path r.png --save_every 1",
        "--gt_path r_tiled.png --save_path r.png --tile x",
        "--gt_path r_c.png --save_path r.png --maps c.png",
        "--gt_path a.png --save_path a.png --overwrite",
        "--gt_path a.png c.png --save_path {stem}.png --overwrite",
        "--gt_path a.png --weights c.png --save_path c.png --overwrite",
        "--gt_path a.png --init c.png --save_path c.png --overwrite",
        "--gt_path a.png --style_image c.png --save_path c.png --overwrite",
        "--gt_path a.png --init a.png --mask c.png --save_path c.png --overwrite",
        "--gt_path a.png --guide a.png c.png --method cnnmrf --save_path c.png --overwrite",
        "--gt_path a.png --mix d.jpg c.png --save_path c.png --overwrite",
        "--gt_path a.png --maps c.png --save_path c.png --overwrite",
        "--gt_path a.png --orientation c.png --method cnnmrf --save_path c.png --overwrite",
        "--gt_path a.png --save_path r.png --sheet a.png --overwrite",
        "--gt_path a.png --save_path r.png --sheet ../in/a.png --overwrite",
        "--gt_path a.png --save_path r.png --sheet link.png --overwrite",
        "--gt_path a.png --save_path r.png --log a.png",
        "--gt_path a.png --config c.toml --save_path r.png --log c.toml",
        "--gt_path a.png --orientation v.npy --method cnnmrf --save_path r.png --log v.npy",
        "--gt_path a.png --save_path r.png --log notes.txt",
        "--gt_path a.png --save_path r.png --report .",
    ):
        assert run_main(*flags.split()) == 2, flags
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--save_path o.png --sheet o.png", "--sheet o.png: the same file as --save_path o.png"),
        ("--save_path o.png --log ./o.png", "--log o.png: the same file as --save_path o.png"),
        ("--save_path o.png --log o.png/log", "--save_path o.png: other files are to be saved"),
        ("--save_path o.png --tile x --sheet o_tiled.png", "as --tile o_tiled.png"),
        ("--save_path o.png --preview --sheet o.preview.png", "as --preview o.preview.png"),
        ("--save_path o.png --resume --log o.png.checkpoint", "as --resume o.png.checkpoint"),
        ("--save_path o.png --maps c.png --sheet o_c.png", "as --maps o_c.png"),
        ("--save_path o.png --maps c.png in/c.png", "--maps o_c.png: the same file as"),
        ("--save_path o.png --tile x --maps tiled.png", "--maps o_tiled.png: the same file as"),
        ("--save_path o.png --report . --log report.html", "as --log report.html"),
        ("--save_path o.png --save_every 2 --sheet o_000002.png", "would replace --sheet"),
        ("--save_path o.webp --save_every 2 --animate o_000002.webp", "would replace --animate"),
        (
            "--gt_path a.png in/a_tiled.png --save_path x/{stem}.png --tile x",
            "--save_path x/a_tiled.png: the same file as --tile x/a_tiled.png",
        ),
    ],
)
def test_no_output_replaces_another(flags, told, folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "c.png", "tiled.png", "in/a_tiled.png"):
        (tmp_path / name).write_bytes((folder / "a.png").read_bytes())
    before = names(tmp_path)
    assert run_main("--gt_path", "in/d.jpg", *flags.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line and names(tmp_path) == before


@pytest.mark.parametrize(
    "name, expected",
    [
        ("r_000004.png", "r.png"),
        ("r_000003.png", None),
        ("r_000006.png", None),
        ("r_000000.png", None),
        ("r_0000004.png", None),
        ("r_4.png", None),
        ("_000004.png", None),
    ],
)
def test_names_of_snapshots(name, expected):
    """Of every second of five steps."""
    found = snapshot_of(Path(name), parse(["--epoch", "5", "--save_every", "2"]))
    assert found == (expected and Path(expected))


def test_a_snapshot_of_each_of_twenty_million_steps_takes_no_list(exemplar, tmp_path):
    flags = "--epoch 20000000 --save_every 1 --size 32".split()
    request = parse(["--gt_path", str(exemplar), "--save_path", str(tmp_path / "r.png"), *flags])
    tracemalloc.start()
    plan(request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("overwrite", fast_first([[], ["--overwrite"]]))
def test_two_runs_to_one_path_lose_no_picture(overwrite, exemplar, tmp_path, monkeypatch, capfd):
    make, result = frames, tmp_path / "r.png"
    command = ["--gt_path", exemplar, "--save_path", result, "--tile", "x", "--maps", exemplar]

    def meanwhile(*arguments):
        monkeypatch.setattr("command.make.frames", make)
        assert run_main(*command, "--seed", "1", *overwrite) == 0
        return make(*arguments)

    if overwrite:
        assert run_main(*command, "--seed", "2") == 0
    monkeypatch.setattr("command.make.frames", meanwhile)
    (tmp_path / "r-2.png").write_bytes(b"taken")
    assert run_main(*command, *overwrite) == 0
    out, err = capfd.readouterr()
    assert [Path(line.split("  ")[0]).name for line in out.splitlines()][-2:] == [
        *("r.png", "r-3.png")
    ]
    assert f"{result}: another run has saved a picture there, this one is {tmp_path}/r-3.png" in err
    assert [read_record(tmp_path / name)["seed"] for name in ("r.png", "r-3.png")] == [1, 0]
    assert {"r-3_tiled.png", "r-3_a.png"} <= set(names(tmp_path))


def test_two_runs_of_one_command_are_one(exemplar, tmp_path, monkeypatch, capfd):
    make, command = (frames, ["--gt_path", exemplar, "--save_path", tmp_path / "r.png"])

    def meanwhile(*arguments):
        monkeypatch.setattr("command.make.frames", make)
        assert run_main(*command) == 0
        return make(*arguments)

    monkeypatch.setattr("command.make.frames", meanwhile)
    assert run_main(*command) == 0
    assert capfd.readouterr().err == "" and names(tmp_path) == ["in", "r.png"]


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

    monkeypatch.setattr("command.files.tempfile.TemporaryFile", lambda dir: Full())
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


@pytest.mark.slow
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


@pytest.mark.slow
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
