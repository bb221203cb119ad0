"""Tiles that fit each other along every edge, and floors of them."""

import pytest
import torch
from conftest import fast_first, noise_image, save_crops, seeded, synthesized
from PIL import Image

import engine.edges as edges
from command.arguments import parse
from command.canvas import channels_of
from command.floor import floor_size, random_order
from command.pictures import read_levels, read_picture, read_record, save_picture
from command.plan import work_items
from command.ranks import ProcessRank
from command.run import _items_of_rank
from engine.edges import fitted
from engine.maps import normalized
from Synthesis import main, synthesize
from utils import DATA, NORMALS, UserError

TINY = ["--device", "cpu", "--epoch", "3", "--quiet", "--model", "vgg16-caffe"]


def test_the_difference_of_every_roll_is_that_of_brute_force():
    image, given = noise_image(5, 6), noise_image(5, 6, seed=1)
    part = torch.rand(5, 6, generator=seeded()) < 0.5
    found = edges._rolled_difference(image, given, part)
    for y in range(5):
        for x in range(6):
            apart = (image.roll((y, x), (2, 3)) - given).square()[..., part].sum().item()
            assert found[y, x].item() == pytest.approx(apart, rel=1e-5)


def test_a_tile_has_the_edges_of_another_and_an_inside_of_its_own():
    """Of 64 px, the cut runs between 64 / 32 = 2 and 64 * 3 / 16 = 12 px from the border."""
    image, given = noise_image(64, 80), noise_image(64, 80, seed=1)
    found = fitted(image, given, roll=True)
    rolled = image.roll(found.shift, (2, 3))
    assert torch.equal(found.image, rolled.where(found.inside, given))
    distance = edges._distance_to_border((64, 80))
    assert distance[0, 40] == 0 and distance[20, 79 - 7] == 7 and distance[31, 40] == 31
    inside = found.inside[0, 0]
    assert not inside[distance < 2].any() and inside[distance >= 12].all()
    cut = inside[(distance >= 2) & (distance < 12)].float().mean()
    assert 0.1 < cut < 0.9
    assert fitted(image, given, roll=False).shift == (0, 0)


@pytest.mark.parametrize("place, cut", [(2, 2), (6, 6), (11, 11), (12, None)])
def test_the_cut_follows_what_both_have(place, cut):
    """Both are white along a closed path, and noise elsewhere. The pixels of a cut are given ones;
    from 12 px on, all are new."""
    image, given = noise_image(64, 64) / 2, noise_image(64, 64, seed=1) / 2 + 0.3
    distance = edges._distance_to_border((64, 64))
    image[..., distance == place] = given[..., distance == place] = 1
    inside = fitted(image, given, roll=False).inside[0, 0]
    if cut is None:
        assert inside[distance >= 12].all()
    else:
        assert torch.equal(inside, distance > cut)


def test_rows_stay_in_phase():
    """Stripes of 8 px below noise, at another phase, are rolled by 3 px, or by 3 px and whole
    periods, and not by the pixel more or less that makes little difference."""
    rows = (torch.arange(64.0) * torch.pi / 4).sin().view(1, 1, 64, 1) / 4
    given, image = rows + noise_image(64, 64), rows.roll(-3, 2) + noise_image(64, 64, seed=1)
    down, _ = fitted(image, given, roll=True).shift
    assert down % 8 == 3


def test_the_inside_differs_although_a_copy_would_fit_best(monkeypatch):
    """The columns of both repeat after 32 px but for a spot in the middle, which a roll by 32 px
    takes to the border, outside the cut."""
    given = noise_image(64, 32).repeat(1, 1, 1, 2)
    given[..., 30:34, 30:34] = noise_image(4, 4, seed=1)
    image = given + 0.1 * noise_image(64, 64, seed=2)
    assert fitted(image, given, roll=True).shift == (0, 32)
    monkeypatch.setattr(edges, "TOLERANCE", 0.0)
    assert fitted(image, given, roll=True).shift == (0, 0)


@pytest.mark.parametrize("fixed", [False, True])
def test_an_output_with_positions_of_its_own_is_not_rolled(fixed, tiny, monkeypatch):
    rolls = []

    def spy(image, given, *, roll):
        rolls.append(roll)
        return fitted(image, given, roll=roll)

    monkeypatch.setattr("engine.synthesis.fitted", spy)
    given = noise_image(32, 32)
    canvas = {"wrap": "xy", "edges": given} | ({"init": given} if fixed else {})
    image = synthesized(noise_image(32, 32, seed=1), tiny, steps=2, canvas=canvas)
    assert set(rolls) == {not fixed}
    assert torch.equal(image[..., 0, :], given[..., 0, :])
    assert not torch.equal(image[..., 16, 16], given[..., 16, 16])


def test_no_tile_of_a_floor_is_next_to_itself():
    order = random_order(3, (20, 20), seeded())
    assert (order[1:] != order[:-1]).all() and (order[:, 1:] != order[:, :-1]).all()
    assert order.unique().tolist() == [0, 1, 2]
    pair = random_order(2, (20, 20), seeded())
    assert (pair[0, 1:] != pair[0, :-1]).all()  # the first row has a choice
    assert torch.equal(order, random_order(3, (20, 20), seeded()))


def test_large_tiles_make_a_smaller_floor():
    assert floor_size((64, 80)) == (256, 320)
    assert floor_size((1000, 1200)) == (3000, 3600)
    assert floor_size((3000, 40)) == (6000, 80)


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def exemplar(tmp_path, narrow_net):
    path = tmp_path / "a.png"
    save_crops(40, 36, path)
    return path


@pytest.fixture
def run(exemplar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        return main([*(["--gt_path", "a.png"] if "--from" not in flags else []), *flags, *TINY])

    return run


def levels(path):
    return torch.frombuffer(bytearray(read_levels(path).tobytes()), dtype=torch.uint8)


def test_a_set_fits_and_makes_a_floor(run, tmp_path, capfd):
    command = "--tile_set", "3", "--save_path", "f.png"
    assert run(*command) == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["a.png", "f_1.png", "f_2.png", "f_3.png", "f_floor.png"]
    first, *others = tiles = [read_picture(tmp_path / f"f_{n}.png").pixels for n in (1, 2, 3)]
    for tile in others:  # of 36 px, at least 36 / 32 = 1 px
        assert torch.equal(tile[..., [0, -1], :], first[..., [0, -1], :])
        assert torch.equal(tile[..., [0, -1]], first[..., [0, -1]])
        assert not torch.equal(tile[..., 15:20, 15:20], first[..., 15:20, 15:20])
    assert not torch.equal(*others)
    floor = read_picture(tmp_path / "f_floor.png").pixels
    assert floor.shape == (1, 3, 4 * 36, 4 * 40)
    parts = [part for row in floor.split(36, 2) for part in row.split(40, 3)]
    laid = [[torch.equal(part, tile) for tile in tiles].index(True) for part in parts]
    assert laid == random_order(3, (4, 4), seeded()).flatten().tolist()
    records = [read_record(tmp_path / f"f_{n}.png") for n in (1, 2, 3)]
    assert [one["seed"] for one in records] == [0, 1, 2]
    assert [one["edges_of"] for one in records] == [None, "f_1.png", "f_1.png"]
    assert all(one["tile"] == "xy" for one in records)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("f_?.png")}
    content = (tmp_path / "f_2.png").read_bytes()
    (tmp_path / "f_2.png").unlink()  # an interrupted set is completed
    capfd.readouterr()
    assert run(*command) == 0
    assert capfd.readouterr().out.count("finished before") == 2
    assert (tmp_path / "f_2.png").read_bytes() == content
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.name for path in before if before[path] != after[path]] == ["f_2.png"]

    assert run("--from", "f_3.png", "--save_path", "again.png") == 0
    assert torch.equal(levels(tmp_path / "again.png"), levels(tmp_path / "f_3.png"))


@pytest.mark.parametrize("how", fast_first(["--preset draft", "--epoch 3"]))
def test_maps_and_alpha_of_a_set_fit_and_make_floors(how, run, tmp_path, capfd):
    """The channels of the exemplar are its colours and its alpha; one map is 1 less the red, in
    floats, and one holds normals. Where a tile has the pixels of the first, so do its maps."""
    pixels, alpha = read_picture(tmp_path / "a.png").pixels, noise_image(36, 40)[:, :1]
    save_picture(torch.cat((pixels, (alpha > 0.1)), 1), tmp_path / "a.png", {})
    save_picture(1 - pixels[:, :1], tmp_path / "h.tif", {}, 32, DATA)
    save_picture(normalized(noise_image(36, 40, seed=1)), tmp_path / "n.png", {}, 16, NORMALS)
    more = "--alpha --tile_set 3 --save_path f.png --device cpu --model vgg16-caffe"
    assert main(f"--gt_path a.png --maps data:h.tif normal_dx:n.png {how} {more}".split()) == 0

    def channels(name, kind=DATA):
        return channels_of(read_picture(tmp_path / name, kind))

    assert "f_1.png: transparent" not in capfd.readouterr().err  # its colours are used as they are
    order = random_order(3, (4, 4), seeded()).flatten().tolist()
    for suffix, count in ((".png", 4), ("_h.tif", 1), ("_n.png", 3)):
        first, *others = tiles = [channels(f"f_{n}{suffix}") for n in (1, 2, 3)]
        for tile in others:
            assert tile.shape[1] == count
            assert torch.equal(tile[..., [0, -1], :], first[..., [0, -1], :])
            assert torch.equal(tile[..., [0, -1]], first[..., [0, -1]])
            assert not torch.equal(tile[..., 15:20, 15:20], first[..., 15:20, 15:20])
        floor = channels(f"f_floor{suffix}")
        parts = [part for row in floor.split(36, 2) for part in row.split(40, 3)]
        assert all(torch.equal(part, tiles[i]) for part, i in zip(parts, order, strict=True))
    if "draft" in how:  # each pixel of a painting has the map of the place that it comes from
        for n in (2, 3):
            red, height = channels(f"f_{n}.png")[:, :1], channels(f"f_{n}_h.tif")
            assert (red + height - 1).abs().median() < 0.05
    assert main("--from f_3.png --save_path again.png --device cpu".split()) == 0
    for suffix in (".png", "_h.tif", "_n.png"):
        assert torch.equal(channels(f"again{suffix}"), channels(f"f_3{suffix}"))


def test_a_map_of_another_tile_is_refused(run, tmp_path, capfd):
    for name, size in (("h.png", (36, 40)), ("t.png", (32, 32)), ("t_h.png", (16, 32))):
        save_picture(noise_image(*size), tmp_path / name, {})
    assert run("--tile", "xy", "--edges_of", "t.png", "--maps", "data:h.png") == 2
    told = "t_h.png: 32x16 with 3 channels, give 32x32 with 3 channels"
    assert told in capfd.readouterr().err


@pytest.mark.slow
def test_a_larger_set_has_the_tiles_of_a_smaller_one(run, tmp_path, capfd):
    assert run("--tile_set", "2", "--save_path", "f.png") == 0
    assert run("--tile_set", "3", "--save_path", "f.png") == 0
    assert capfd.readouterr().out.count("finished before") == 2
    assert run("--tile_set", "3", "--save_path", "f.png", "--seed", "1") == 2
    assert "f_1.png: another file is there" in capfd.readouterr().err


def test_a_floor_replaces_no_other_file(run, tmp_path, capfd):
    Image.new("RGB", (9, 9)).save(tmp_path / "f_floor.png")
    assert run("--tile_set", "2", "--save_path", "f.png") == 2
    assert "f_floor.png: another file is there" in capfd.readouterr().err
    assert not (tmp_path / "f_1.png").exists()


def test_without_a_first_tile_there_are_no_others(run, tmp_path, capfd):
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:300])
    assert run("--gt_path", "b.png", "--tile_set", "2", "--save_path", "out/") == 1
    err = capfd.readouterr().err
    assert "b_2.png: not made, as the first tile is not saved as out/b_1.png" in err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_1.png", "a_2.png", "a_floor.png"]


def test_tiles_of_several_sets_have_seeds_of_their_own(exemplar):
    flags = ["--gt_path", str(exemplar), "--tile_set", "3", "--count", "2", "--seed", "5"]
    items, _ = work_items(parse([*flags, "--save_path", "f.png"]))
    found = {item.save_path.name: item.seed for item in items}
    assert found == {
        **{"f_5_1.png": 5, "f_5_2.png": 7, "f_5_3.png": 9},
        **{"f_6_1.png": 6, "f_6_2.png": 8, "f_6_3.png": 10},
    }


def test_processes_share_sets_and_not_tiles():
    shares = [_items_of_rank(list(range(9)), ProcessRank(rank, 2), 3) for rank in (0, 1)]
    assert shares == [[0, 1, 2, 6, 7, 8], [3, 4, 5]]


def test_a_tile_of_the_user_has_variants(run, tmp_path):
    tile = noise_image(32, 32)
    Image.fromarray((255 * tile[0]).byte().movedim(0, 2).numpy()).save(tmp_path / "own.png")
    assert run("--tile", "xy", "--edges_of", "own.png", "--save_path", "new.png") == 0
    own, new = (read_picture(tmp_path / name).pixels for name in ("own.png", "new.png"))
    assert torch.equal(new[..., [0, -1], :], own[..., [0, -1], :])
    assert not torch.equal(new, own)


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--tile_set 1", "--tile_set: '1': give a whole number from 2 to 64"),
        ("--tile_set 65", "--tile_set: '65': give a whole number from 2 to 64"),
        ("--tile_set 2 --tile x", "--tile x: not allowed with --tile_set"),
        ("--tile_set 2 --mask m.png", "--mask: not allowed with --tile_set 2"),
        ("--tile_set 2 --expand 99", "--expand: not allowed with --tile_set 2"),
        ("--tile_set 2 --alpha", "--alpha: a.png has no transparent pixel"),
        ("--tile_set 2 --workers 2", "--workers: not allowed with --tile_set 2"),
        ("--tile_set 2 --init a.png", "--init a.png: not allowed with --tile_set 2"),
        ("--tile_set 2 --style_image a.png", "--style_image: not allowed with --tile_set 2"),
        (
            "--tile_set 2 --tile xy --edges_of a.png",
            "--edges_of a.png: not allowed with --tile_set 2",
        ),
        ("--edges_of a.png", "--edges_of a.png: requires --tile xy"),
        (
            "--tile xy --edges_of a.png --maps data:a.png",
            "--maps a.png: with --edges_of a.png, its map is required: 'a_a.png': no such picture",
        ),
        ("--tile_set 64 --count 2000", "--count 2000: 128000 pictures"),
        ("--tile_set 2 --animate a.gif --save_every 1", "--animate a.gif: shows one picture"),
        ("--tile_set 2 --save_path f.gif", "f_1.gif|f.gif"),
        ("--tile xy --edges_of a.png --size 32", "--size 32x32: --edges_of a.png is 40x36"),
        ("--tile xy --edges_of none.png", "'none.png': no such picture"),
    ],
)
def test_what_does_not_go_together_costs_a_line(flags, told, run, tmp_path, capfd):
    assert run(*flags.split()) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and any(one in err for one in told.split("|")), err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_set_is_not_split_among_processes():
    with pytest.raises(UserError, match="--split: not allowed with --tile_set 2"):
        work_items(parse(["--tile_set", "2", "--split"]))


def test_a_set_from_python_is_a_list(exemplar):
    found = synthesize(str(exemplar), tile_set=2, epoch=2, device="cpu", model="vgg16-caffe")
    assert [image.shape for image in found] == [(1, 3, 36, 40)] * 2
