"""A material's other maps go where its colour went."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fast_first
from PIL import Image
from torch.nn import functional as F

from command.arguments import parse
from command.canvas import Pictures
from command.kinds import green_up_by_name, kind_and_name, kind_by_name
from command.maps import CarriedMap, read_map
from command.pictures import Picture, read_picture, save_picture
from engine import maps
from engine.maps import carried, correspondence, finished, normalized, reordered, rotated, with_kept
from engine.spec import exemplar_of
from Synthesis import main
from terms.base import Canvas, View
from utils import COLOUR, DATA, LABELS, NORMALS, resize, rotated_and_resized


def features(image):
    """The pixels and their means over the strides, which tell places apart."""
    layers = {"relu1_1": image}
    layers["relu2_1"] = F.avg_pool2d(image, 2)
    layers["relu3_1"] = F.avg_pool2d(image, 4)
    return layers


@pytest.fixture
def source():
    return torch.rand(1, 6, 40, 48, generator=torch.Generator().manual_seed(0))


def drawn(shape, height, width):
    """Places at random, with room for a patch about each."""
    generator = torch.Generator().manual_seed(1)
    y, x = (torch.randint(2, side - 2, shape, generator=generator) for side in (height, width))
    return y * width + x


def voted(source, places, wrap=""):
    """(C, N, H, W): what all patches have at every place of a map (1, C, h, w)."""
    starts, strides = maps._laid([source], places[None], torch.zeros_like(places))
    return source[0].flatten(1)[:, maps._votes(starts, strides, slice(None), wrap)]


def mean_of_patches(source, places, wrap=""):
    return voted(source, places, wrap).mean(1)


def unit_normals(*shape):
    """(1, 3, H, W) in [0, 1] that point out of the picture."""
    vectors = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    vectors[:, 2] = vectors[:, 2].abs() + 0.5
    return (F.normalize(vectors) + 1) / 2


def lengths(normals):
    return (2 * normals[:, :3] - 1).norm(dim=1)


def of_relief(height):
    """Normals of a height field (1, 1, H, W), green up, of its inner pixels."""
    x = (height[..., 1:-1, 2:] - height[..., 1:-1, :-2]) / 2
    up = (height[..., :-2, 1:-1] - height[..., 2:, 1:-1]) / 2
    return (F.normalize(torch.cat((-x, -up, torch.ones_like(x)), 1)) + 1) / 2


def test_a_picture_corresponds_to_itself(source):
    found = correspondence(features(source), features(source))
    inside = torch.arange(40 * 48).view(40, 48)[4:-4, 4:-4]
    assert (found[0][4:-4, 4:-4] == inside).all()
    other = torch.rand(1, 2, 40, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        mean_of_patches(other, found[0])[..., 8:-8, 8:-8], other[0, ..., 8:-8, 8:-8]
    )


def test_what_was_moved_is_found_where_it_went(source):
    # Two blocks changed places: multiples of the coarsest stride.
    moved = torch.cat((source[..., 24:], source[..., :24]), 3)
    found, _ = correspondence(features(moved), features(source))
    expected = torch.cat([torch.arange(24, 48), torch.arange(24)]) + 48 * torch.arange(40)[:, None]
    away = torch.tensor([x not in (0, 1, 22, 23, 24, 25, 46, 47) for x in range(48)])
    assert (found == expected)[4:-4][:, away].float().mean() > 0.93


def test_correspondence_goes_on_across_a_border_that_tiles(source):
    moved = source.roll((20, 24), (2, 3))
    inner = {}
    for wrap in ("", "xy"):
        found, _ = correspondence(features(moved), features(source), wrap)
        inner[wrap] = mean_of_patches(source, found, wrap)
    assert inner["xy"].shape == source.shape[1:]
    # The source's own border lies in the middle; there, and at the output's, patches overlap.
    error = (inner["xy"] - moved[0]).abs().mean(0)
    assert error[[0, -1]].median() < 1e-6 and error[:, [0, -1]].median() < 1e-6


def test_what_does_not_count_corresponds_to_nothing(source):
    for width in (10, 20):  # in 10 px no patch of the coarsest layer lies
        valid = torch.ones(1, 1, 40, 48, dtype=torch.bool)
        valid[..., width:] = False
        found, _ = correspondence(features(source), features(source), valid=valid)
        assert (found % 48 < width).all()
    # Nor has it a vote: of the 5x5 px about the last corner that counts, 16 do not.
    valid[..., 20:, :] = False
    copy = torch.where(valid, 0.0, 1.0)
    places, near = torch.full((6, 6), 48 * 19 + 19), torch.zeros(6, 6)
    for wrap in ("", "xy"):
        assert carried([copy], [(places, near)], LABELS, wrap)[0, 0, 3, 3] == 1
        assert carried([copy], [(places, near)], LABELS, wrap, [valid]).max() == 0


def test_what_the_canvas_keeps_of_the_exemplar_keeps_its_map():
    image, given = torch.rand(1, 3, 4, 5), torch.rand(1, 2, 4, 5)
    carried = torch.full((1, 2, 4, 5), 7.0)
    mask = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    mask[..., 2:] = True
    found = with_kept(carried, given, View({"image": image}), Canvas((4, 5), init=image, mask=mask))
    assert torch.equal(found[..., :2], given[..., :2]) and (found[..., 2:] == 7).all()
    # It grows by 1 px at the top, 2 below, 3 to the left and none to the right.
    wide, new = F.pad(image, (3, 0, 1, 2)), F.pad(mask * False, (3, 0, 1, 2), value=True)
    more = torch.full((1, 2, 7, 8), 7.0)
    found = with_kept(more, given, View({"image": image}), Canvas((7, 8), init=wide, mask=new))
    assert torch.equal(found[..., 1:5, 3:], given) and (found.where(new, 7) == 7).all()
    # Of another picture nothing is known, nor of what does not count.
    other = Canvas((4, 5), init=1 - image, mask=mask)
    assert with_kept(carried, given, View({"image": image}), other) is carried
    small = Canvas((3, 5), init=image[..., :3, :], mask=mask[..., :3, :])
    assert with_kept(carried, given, View({"image": image}), small) is carried
    valid = torch.ones_like(mask)
    valid[..., 0, 0] = False
    view = View({"image": image}, valid=valid)
    found = with_kept(carried, given, view, Canvas((4, 5), init=image, mask=mask))
    assert (found[..., 0, 0] == 7).all() and torch.equal(found[..., 1:, :2], given[..., 1:, :2])


@pytest.mark.parametrize("flags", ["--preset draft", "--method gram --epoch 8"])
@pytest.mark.slow
def test_maps_of_a_damaged_material_are_mended_with_it(flags, material, narrow_net):
    """Outside the hole each map is what it was, and what it has in the hole comes nowhere."""
    hole = torch.zeros(1, 1, 48, 48)
    hole[..., 18:30, 18:30] = 1
    with Image.open("stone.png") as picture:
        stone = torch.tensor(np.asarray(picture)).movedim(2, 0)[None] / 255
    save("stone.png", stone.where(hole == 0, 0))
    save("hole.png", hole)
    height = torch.arange(48.0).expand(1, 1, 48, 48) / 255
    save("height.png", height.where(hole == 0, 1))
    flags = [*"--init stone.png --mask hole.png".split(), *flags.split()]
    assert material("height.png", flags=flags) == 0
    found, given = opened("o_height.png")[1], opened("height.png")[1]
    kept = hole[0, 0].numpy() == 0
    assert (found == given)[kept].all() and found.max() < 48


def test_votes_by_hand(monkeypatch):
    monkeypatch.setattr(maps, "VOTE", 3)
    picture = torch.arange(25.0).view(1, 1, 5, 5)
    # Every patch is the one about (2, 2), which is 12: a place in the middle has one vote of each
    # of its pixels, and so has every place of an output that goes on across its borders.
    found = torch.full((3, 3), 2 * 5 + 2)
    block = {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert set(voted(picture, found)[0, :, 1, 1].tolist()) == block
    assert all(set(x.tolist()) == block for x in voted(picture, found, "xy")[0].flatten(1).T)
    # Beyond a corner there is nothing: what lies within votes more often.
    corner = voted(picture, found)[0, :, 0, 0].tolist()
    assert sorted(corner) == [6, 7, 7, 11, 11, 12, 12, 12, 12]


def test_votes_are_of_the_copy_that_each_neighbour_has(monkeypatch):
    """A patch is laid with its own copy's values, also where the pixel beside it is of another."""
    monkeypatch.setattr(maps, "VOTE", 3)
    copies = [torch.arange(25.0).view(1, 1, 5, 5), 100 + torch.arange(16.0).view(1, 1, 4, 4)]
    places = torch.stack((torch.full((3, 3), 12), torch.full((3, 3), 5)))  # (2, 2) and (1, 1)
    nearest = torch.tensor([0, 0, 1]).expand(3, 3)
    starts, strides = maps._laid(copies, places, nearest)
    values = torch.cat([copy.flatten() for copy in copies])
    votes = values[maps._votes(starts, strides, slice(None), "")][:, 1, 1]
    # To the right of the middle lies a patch of the smaller copy, of which the left column counts.
    assert set(votes.tolist()) == {7, 8, 12, 13, 17, 18, 100, 104, 108}


def test_one_channel_is_reordered_by_ranks():
    values, wanted = torch.tensor([[5.0, 1.0, 9.0, 2.0]]), torch.tensor([[0.4, 0.9, 0.1, 0.2]])
    assert reordered(values, wanted).tolist() == [[5, 9, 1, 2]]


def test_channels_are_reordered_together():
    """Every column goes where its like is asked for, though fainter, and no other column comes."""
    values = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1], [0.2, 0.4, 0.6, 0.8]])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(reordered(values, 0.4 + 0.1 * values[:, order]), values[:, order])


def test_both_axes_of_what_is_reordered_count():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 4096, generator=generator)  # a variance of 1 / 12 each
    wanted = values[:, torch.randperm(4096, generator=generator)]
    wanted = wanted + 0.05 * torch.randn(2, 4096, generator=generator)
    assert ((reordered(values, wanted) - wanted).square().mean(1) < 0.05**2 + 0.002).all()


@pytest.mark.parametrize("kind", [DATA, COLOUR])
def test_carried_deals_out_the_values_of_the_places(source, kind):
    """Patches disagree, so that their mean is flat; what is carried has the map's own pixels."""
    places, near = drawn((32, 24), 40, 48), torch.zeros(32, 24)
    flat = mean_of_patches(source, places)
    found = carried([source], [(places, near)], kind)
    own = source[0].flatten(1)[:, places.flatten()]
    columns = {tuple(column.tolist()) for column in found[0].flatten(1).T}
    assert columns == {tuple(column.tolist()) for column in own.T}
    assert flat.std() < 0.5 * found.std()
    # One channel alone is in the very order of the mean.
    found = carried([source[:, :1]], [(places, near)], kind)
    assert (found.flatten()[flat[0].flatten().argsort()].diff() >= 0).all()


def test_carried_takes_every_place_from_the_nearest_copy(source):
    places = drawn((40, 48), 40, 48)
    left = (torch.arange(48) < 24).float().expand(40, 48)
    found = carried([source, source + 2], [(places, left), (places, 1 - left)], DATA)
    inner = (torch.arange(48) - 23.5).abs() > 2
    assert torch.equal((found > 1.5)[..., inner], (left < 0.5).expand(1, 6, 40, 48)[..., inner])


def test_labels_are_what_most_patches_have(monkeypatch):
    monkeypatch.setattr(maps, "VOTE", 3)
    red, green = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 1.0, 0, 0.5])
    label = torch.stack((red, green), 1)[:, (torch.arange(6) >= 3).long()]  # (4, 6): half and half
    label = label[None, :, None].expand(1, 4, 6, 6)
    # Columns 1 and 4 are far from the other colour: patches there are of one.
    places = torch.tensor([[1, 1, 1], [1, 4, 1], [1, 4, 1]]) + 6 * 2
    found = carried([label], [(places, torch.zeros(3, 3))], LABELS)
    assert torch.equal(found, red.view(1, 4, 1, 1).expand(1, 4, 3, 3))
    # A corner's own patch has four votes of nine, and so five with the one in the middle.
    places = torch.tensor([[1, 1, 1], [1, 4, 1], [1, 1, 4]]) + 6 * 2
    found = carried([label], [(places, torch.zeros(3, 3))], LABELS)
    assert torch.equal(found[0, :, 2, 2], green)
    assert torch.equal(found.flatten(2)[0, :, :8], red[:, None].expand(4, 8))


def test_labels_have_no_colours_between():
    """Rotated, resized and brought to another size: none but those of the map."""
    given = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    given = F.interpolate(given, (40, 40))
    copies = [given, *rotated(given, [30, 90], [0.7], LABELS)]
    copies += [finished(copy, (33, 47), (5, 6), LABELS, "xy") for copy in copies]
    colours = {tuple(x.tolist()) for x in given[0].flatten(1).T}
    for copy in copies:
        assert {tuple(x.tolist()) for x in copy[0].flatten(1).T} <= colours


# --------------------------------------------------------------------------------------- normals


def test_finished_normals_have_length_1():
    given = unit_normals(24, 20)
    off = [resize(given, (9, 9)), rotated_and_resized(given, [20], [])[0]]
    for normals in (given, *off):
        found = finished(normals, (31, 17), (3, 4), NORMALS, "x")
        torch.testing.assert_close(lengths(found), torch.ones(1, 31, 17))
    assert all((lengths(normals) - 1).abs().max() > 0.1 for normals in off)
    # What has none points out of the picture; what is in a fourth channel stays.
    grey = torch.tensor([0.5, 0.5, 0.5, 0.3]).view(1, 4, 1, 1)
    torch.testing.assert_close(
        normalized(grey).flatten(), torch.tensor([0.5, 0.5, 1.0, 0.3]), atol=1e-6, rtol=0
    )


def test_carried_normals_are_those_of_the_map():
    normals, places = unit_normals(16, 16), drawn((16, 16), 16, 16)
    found = carried([normals], [(places, torch.zeros(16, 16))], NORMALS)
    torch.testing.assert_close(lengths(found), torch.ones(1, 16, 16))


def test_what_holds_normals():
    normals = unit_normals(8, 8)
    generator = torch.Generator().manual_seed(0)
    assert maps.holds_normals((normals * 255).round() / 255)
    assert maps.holds_normals(normals + 0.04 * (torch.rand(1, 3, 8, 8, generator=generator) - 0.5))
    for blue in (0.0, 1.0):
        bare = torch.cat((normals[:, :2], torch.full((1, 1, 8, 8), blue)), 1)
        assert maps.lacks_blue(bare) and maps.holds_normals(bare)
        torch.testing.assert_close(maps.with_blue(bare), normals, atol=1e-5, rtol=0)
    assert not maps.lacks_blue(normals)
    flat = torch.tensor([0.5, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert maps.holds_normals(flat) and not maps.lacks_blue(flat)
    assert not maps.holds_normals(torch.rand(1, 3, 8, 8, generator=generator))
    assert not maps.holds_normals(torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8))
    assert not maps.holds_normals(normals[:, :1])
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1) * (torch.rand(1, 1, 8, 8) > 0.5)
    assert not maps.holds_normals(red)


def test_green_is_up_where_slopes_have_no_curl():
    coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    normals = of_relief(8 * resize(coarse, (64, 64)))
    down = torch.cat((normals[:, :1], 1 - normals[:, 1:2], normals[:, 2:]), 1)
    assert maps.green_up(normals) is True and maps.green_up(down) is False
    stripes = of_relief((torch.arange(32.0) / 3).sin().view(1, 1, -1, 1).expand(1, 1, 32, 32))
    assert maps.green_up(stripes) is None


def test_normals_turn_with_the_picture():
    right = torch.tensor([0.6, 0, 0.8]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    turned = rotated((right + 1) / 2, [90], [0.5], NORMALS)
    up, smaller = (2 * maps - 1 for maps in turned[1:])
    torch.testing.assert_close(up[0, :, 0, 0], torch.tensor([0, 0.6, 0.8]))
    torch.testing.assert_close(smaller[0, :, 0, 0], torch.tensor([0, 0.6, 0.8]))
    assert up.shape == (1, 3, 6, 4) and smaller.shape == (1, 3, 3, 2)
    height = torch.rand(1, 1, 4, 6)
    assert torch.equal(rotated(height, [90], [], DATA)[0], height.rot90(1, (2, 3)))
    # What is beside the three channels is a height, and goes along as it is.
    both = rotated(torch.cat(((right + 1) / 2, height), 1), [90], [], NORMALS)[0]
    assert torch.equal(both[:, 3:], height.rot90(1, (2, 3)))
    torch.testing.assert_close(2 * both[0, :3, 0, 0] - 1, torch.tensor([0, 0.6, 0.8]))


@pytest.mark.parametrize(
    "told, file",
    [
        ({}, (0.8, 0.5, 0.9)),
        ({"green_down": True}, (0.8, 0.5, 0.9)),
        ({"blue": 1.0}, (0.8, 0.5, 1.0)),
        ({"blue": 0.0, "green_down": True}, (0.8, 0.5, 0.0)),
        ({"signed": True}, (0.6, 0.0, 0.8)),
    ],
)
def test_normals_turn_in_the_way_of_their_file(told, file, tmp_path):
    """To the right, turned by 90 degrees, is up: green, or as DirectX has it 1 - green."""
    one = CarriedMap(tmp_path / "a.png", NORMALS, [], 8, **told)
    given = torch.tensor(file).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    inner = one.of_file(given)
    torch.testing.assert_close(inner[0, :, 0, 0], torch.tensor([0.8, 0.5, 0.9]))
    torch.testing.assert_close(one.as_file(inner), given)
    up = one.as_file(normalized(rotated(inner, [90], [], NORMALS)[0]))[0, :, 0, 0]
    middle, side = (0.0, 0.6) if "signed" in told else (0.5, 0.8)
    wanted = middle, 2 * middle - side if "green_down" in told else side, file[2]
    torch.testing.assert_close(up, torch.tensor(wanted))


# ---------------------------------------------------------------------------------- what a map is


@pytest.mark.parametrize(
    "kind, names",
    [
        (NORMALS, "wall_normal wall-nrm wall.nor Wall_Norm wall_n WallNormalGL wall_nor_dx_2k"),
        (NORMALS, "wall_normalmap wall_NormalDX id_of_wall_normal rough_stone_nor_gl_4k"),
        (LABELS, "wall_id idmap Wall_MatID wall_labels wallID"),
        (DATA, "wall_height disp wall_rough Wall_Metalness wall_ao wall_mask AmbientOcclusion"),
        (DATA, "wall_roughnessmap wall_ORM normal_height heightMap"),
        (COLOUR, "wall_albedo wall_BaseColor wall_color wall_diff_1k normal_wall_col_color"),
        (None, "video n wall nation idea normality pebbles dx_stripes mapped"),
    ],
)
def test_kinds_by_name(kind, names):
    assert {name: kind_by_name(name) for name in names.split()} == dict.fromkeys(
        names.split(), kind
    )


def test_green_by_name():
    names = "wall_NormalDX wall_nor_dx stripes_dx wall_normaldx DirectX_normal".split()
    assert [green_up_by_name(name) for name in names] == [False] * len(names)
    assert [green_up_by_name(name) for name in ("NormalGL", "wall_nor_gl", "gl")] == [True] * 3
    assert green_up_by_name("wall_normal") is None and green_up_by_name("mogl") is None


def test_only_kinds_may_be_before_a_colon():
    assert kind_and_name("normal_dx:a/b.png") == ("normal_dx", "a/b.png")
    assert kind_and_name("ID:b.png") == ("id", "b.png")
    for name in ("./normal:b.png", "a:b.png", "C:/b.png", "height:b.png", "b.png"):
        assert kind_and_name(name) == (None, name)


@pytest.fixture
def material(tmp_path, monkeypatch):
    """A folder with an exemplar of 48x48, where the command runs, and what it runs with."""
    monkeypatch.chdir(tmp_path)
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    save("stone.png", resize(coarse, (48, 48)))

    def run(*maps, flags=("--preset", "draft")):
        return main(
            ["--gt_path", "stone.png", "--maps", *maps, *flags]
            + ["--model", "vgg16-caffe", "--device", "cpu", "--save_path", "o.png", "--overwrite"]
        )

    return run


def save(name, pixels, mode=None, **options):
    """(1, C, H, W) in [0, 1], or an array as it is, as a file."""
    if isinstance(pixels, torch.Tensor):
        levels = (255 * pixels[0]).round().byte().movedim(0, 2).numpy()
        pixels = levels[..., 0] if levels.shape[2] == 1 else levels
    picture = Image.fromarray(pixels)
    (picture.quantize(256) if mode == "P" else picture).save(name, **options)


def opened(name):
    with Image.open(name) as picture:
        return picture.mode, np.asarray(picture)


def tuples(pixels):
    return {tuple(x) for x in pixels.reshape(-1, pixels.shape[-1]).tolist()}


@pytest.mark.slow
def test_a_picture_as_the_map_of_itself_equals_the_result(material):
    """Stripes with a period of 6 px."""
    stripes = (torch.arange(48) // 3 % 2).float().expand(1, 3, 48, 48)
    save("stone.png", stripes)
    save("stone_height.png", stripes[:, :1])
    assert material("stone_height.png") == 0
    (_, carried), (_, picture) = opened("o_stone_height.png"), opened("o.png")
    assert set(np.unique(picture)) == {0, 255}
    assert np.array_equal(carried, picture[..., 0])


PAINTED = ["--patch_rotations 45", "", "--size 60x40", "--tile xy --size 52"]


@pytest.mark.parametrize("more", fast_first(PAINTED))
def test_maps_come_back_as_what_they_are(more, material, narrow_net, capfd):
    """Painted, tiled, in other sizes and turned: labels, normals of every kind, data."""
    normals = unit_normals(48, 48)
    height = torch.linspace(0, 1, 48).expand(1, 1, 48, 48)
    save("a_normal.png", torch.cat((normals, height), 1))
    save("b.jpg", F.interpolate(unit_normals(6, 6), (48, 48)), quality=90, subsampling=0)
    save("bc5_nrm.png", torch.cat((normals[:, :2], torch.ones(1, 1, 48, 48)), 1))
    label = torch.arange(48).div(16, rounding_mode="floor")
    label = (label[:, None] + label) % 3 * 100
    label = torch.stack((label, 255 - label, label, 255 - label // 2), 2).byte().numpy()
    save("which.png", label)
    save("palette_id.png", label[..., :3], "P")
    rough = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)
    save("rough.png", (rough // 10).astype(np.uint8))
    save("few_mask.png", 255 * (rough // 9 % 2).astype(np.uint8))
    save("height.png", rough + 20000)
    names = (
        "a_normal.png b.jpg bc5_nrm.png which.png palette_id.png rough.png few_mask.png height.png"
    )
    assert material(*names.split(), flags=("--preset", "draft", *more.split())) == 0
    for name in ("a_normal", "b", "bc5_nrm"):
        mode, found = opened(f"o_{name}.png")
        vectors = found[..., :3] / 127.5 - 1
        if name == "bc5_nrm":
            assert (found[..., 2] == 255).all()
            assert (np.hypot(vectors[..., 0], vectors[..., 1]) < 1.01).all()
        else:
            assert abs(np.linalg.norm(vectors, axis=2) - 1).max() < 0.01
        assert mode == ("RGBA" if name == "a_normal" else "RGB")
    assert opened("o_a_normal.png")[1][..., 3].std() > 50
    assert tuples(opened("o_which.png")[1]) == tuples(label)
    assert tuples(opened("o_palette_id.png")[1]) == tuples(label[..., :3])
    assert opened("o_rough.png")[0] == "L" and opened("o_height.png")[0] == "I;16"
    assert set(opened("o_few_mask.png")[1].ravel().tolist()) == {0, 255}
    assert opened("o_height.png")[1].min() >= 20000 > 22304 - 2305
    told = capfd.readouterr().err
    for line in (
        "a_normal.png: taken for normals by its name, green is",
        "b.jpg: taken for normals by its pixels",
        "which.png: taken for labels by its pixels; otherwise give --maps KIND:which.png",
        "rough.png: taken for data by its name",
        "few_mask.png: taken for data by its name, carried as labels as it has few values",
    ):
        assert line in told
    assert told.count("turned with the exemplar") == (3 if "--patch_rotations" in more else 0)


@pytest.mark.parametrize(
    "text, files, told",
    [
        ("a_normal.png", "plain", (False, False, False)),
        ("normal_dx:a_normal.png", "plain", (True, False, False)),
        ("a_dx.png", "plain", (True, False, False)),
        ("normal_gl:a_dx.png", "plain", (False, False, False)),
        ("a_normal.png", "down", (True, False, False)),  # by its pixels
        ("b_normal.png", "bare", (False, True, False)),
        ("c_normal.png", "signed", (False, False, True)),
    ],
)
def test_normals_are_read_as_they_are(text, files, told, tmp_path):
    coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = of_relief(8 * resize(coarse, (34, 34)))
    if "dx" in text:  # of stripes alone
        plain = of_relief((torch.arange(34.0) / 3).sin().view(1, 1, -1, 1).expand(1, 1, 34, 34))
    x, green, blue = plain.split(1, 1)
    pixels = {
        "plain": plain,
        "down": torch.cat((x, 1 - green, blue), 1),
        "bare": torch.cat((x, green, torch.zeros_like(blue)), 1),
        "signed": 2 * plain - 1,
    }[files]
    path = tmp_path / kind_and_name(text)[1]
    save(path, plain)
    pictures = Pictures()
    for kind in (DATA, NORMALS):
        bits = 32 if files == "signed" else 8
        pictures.seen[path, kind] = Picture(pixels, None, bits, False, [])
    text = text.replace(path.name, str(path))
    exemplar = exemplar_of(torch.rand(1, 3, 32, 32), [90], [])
    found = read_map(text, exemplar, parse([]), tmp_path / "o.png", pictures)
    assert (found.green_down, found.blue is not None, found.signed) == told
    inner = torch.cat((x, 1 - green, blue), 1) if text.startswith("normal_dx") else plain
    inner = torch.cat((x, 1 - green, blue), 1) if path.name == "a_dx.png" and told[0] else inner
    torch.testing.assert_close(found.copies[0], inner, atol=1e-4, rtol=0)
    assert found.path.name == f"o_{path.stem}" + (".tif" if files == "signed" else ".png")
    assert "; turned with the exemplar" in pictures.notes[-1]


@pytest.mark.parametrize("flags", [("--tile", "xy"), ("--size", "70x60"), ()])
def test_a_map_goes_where_the_colour_goes(flags, material, narrow_net):
    """The exemplar itself, carried as a map, is the picture that is painted."""
    with Image.open("stone.png") as picture:
        picture.save("copy.png")
    assert material("color:copy.png", flags=("--preset", "draft", *flags)) == 0
    one, other = (opened(name)[1].astype(float).ravel() for name in ("o.png", "o_copy.png"))
    assert np.corrcoef(one, other)[0, 1] > 0.9


def test_a_map_is_what_it_is_said_to_be(material, narrow_net, capfd):
    label = (torch.arange(48 * 48) % 64 * 4).view(1, 1, 48, 48) / 255
    for name in ("a_rough.png", "a:b.png", "normal:c.png"):
        save(name, label.expand(1, 3, 48, 48))
    assert material("id:a_rough.png", "a:b.png", "./normal:c.png", "data:./normal:c.png") == 2
    assert "o_normal:c.png: the same file as --maps" in capfd.readouterr().err
    assert material("id:a_rough.png", "a:b.png", "./normal:c.png") == 0
    told = capfd.readouterr().err
    assert "a_rough.png: taken for labels by id:" in told
    assert "a:b.png: taken for a colour map by its pixels" in told
    assert "normal:c.png: taken for normals by its name, green is" in told
    assert "but most pixels are not of length 1" in told
    assert "more than 256 colours" not in told
    save("many_id.png", torch.rand(1, 3, 48, 48))
    assert material("many_id.png") == 0
    assert "labels by its name, but has more than 256 colours" in capfd.readouterr().err
    save("grey.png", label)
    assert material("normal:grey.png") == 2
    assert "normal:grey.png: grey, but normals" in capfd.readouterr().err
    save("grey_normal.png", label)
    assert material("grey_normal.png") == 0
    assert "grey_normal.png: taken for data by its pixels" in capfd.readouterr().err
    assert material("rough:grey.png") == 2
    told = capfd.readouterr().err
    assert "--maps 'rough:grey.png': no such picture" in told and "before a colon: color" in told


@pytest.mark.slow
def test_a_picture_is_made_again_with_its_kinds_of_maps(material, narrow_net, capfd):
    save("x.png", torch.rand(1, 3, 48, 48))
    assert material("id:x.png") == 0
    first = opened("o_x.png")[1]
    capfd.readouterr()
    assert main("--from o.png --save_path again.png --device cpu".split()) == 0
    assert "x.png: taken for labels by id:" in capfd.readouterr().err
    assert (opened("again_x.png")[1] == first).all()
    save("x.png", torch.rand(1, 3, 48, 48))
    assert main("--from o.png --save_path third.png --device cpu".split()) == 2
    assert "made from x.png, which is missing or has changed" in capfd.readouterr().err


@pytest.mark.parametrize("flags", fast_first(["--size 60x40", ""]))
def test_maps_keep_their_bits(flags, material, narrow_net):
    """Floats of any size, in TIFF and EXR, and normals of 16 bits with a height beside them."""
    waves = (torch.arange(48.0) / 5).sin().view(1, 1, -1, 1) * (torch.arange(48.0) / 7).cos()
    normals = unit_normals(48, 48)
    for name, pixels, bits, kind in (
        ("height.tif", 0.4 * waves, 32, DATA),
        ("depth.exr", 1000 * waves, 32, DATA),
        ("a_normal.exr", 2 * normals - 1, 32, NORMALS),
        ("b_normal.png", torch.cat((normals, (1 + waves) / 2), 1), 16, NORMALS),
    ):
        save_picture(pixels, Path(name), {}, bits, kind)
    names = "height.tif depth.exr a_normal.exr b_normal.png".split()
    assert material(*names, flags=("--preset", "draft", *flags.split())) == 0
    height, depth, signed, deep = (read_picture(Path(f"o_{name}"), DATA) for name in names)
    assert height.grey and depth.grey and not deep.grey
    assert [one.bits for one in (height, depth, signed, deep)] == [32, 32, 32, 16]
    for one, most in ((height, 0.4), (depth, 1000.0)):
        assert -1.01 * most < one.pixels.min() < -0.5 * most
        assert 0.5 * most < one.pixels.max() < 1.01 * most
    assert (signed.pixels.norm(dim=1) - 1).abs().max() < 1e-5 and signed.pixels.min() < -0.3
    assert (lengths(deep.pixels) - 1).abs().max() < 1e-4
    assert deep.alpha is not None and deep.alpha.std() > 0.2


def test_data_beyond_0_and_1_keep_their_range():
    heights = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0)) * 4 - 2
    for found in (
        *rotated(heights, [30], [0.5], DATA),
        finished(heights, (9, 33), (0, 0), DATA, ""),
    ):
        assert heights.min() <= found.min() and found.max() <= heights.max()
        assert found.min() < -1 and found.max() > 0.5
