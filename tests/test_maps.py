"""A material's other maps go where its colour went."""

import pytest
import torch
from torch.nn import functional as F

from engine import maps
from engine.maps import carried, correspondence, holds_normals, rotated


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


def test_a_picture_corresponds_to_itself(source):
    found = correspondence(features(source), features(source))
    inside = torch.arange(40 * 48).view(40, 48)[4:-4, 4:-4]
    assert (found[0][4:-4, 4:-4] == inside).all()
    other = torch.rand(1, 2, 40, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        maps._mean_of_patches(other, found[0], "")[..., 8:-8, 8:-8], other[0, ..., 8:-8, 8:-8]
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
    for tile in ("", "xy"):
        found, _ = correspondence(features(moved), features(source), tile)
        inner[tile] = maps._mean_of_patches(source, found, tile)
    assert inner["xy"].shape == source.shape[1:]
    # The source's own border lies in the middle; there, and at the output's, patches overlap.
    error = (inner["xy"] - moved[0]).abs().mean(0)
    assert error[[0, -1]].median() < 1e-6 and error[:, [0, -1]].median() < 1e-6


def test_mean_of_patches_by_hand(monkeypatch):
    monkeypatch.setattr(maps, "VOTE", 3)
    picture = torch.arange(25.0).view(1, 1, 5, 5)
    # Every patch is the one about (2, 2): places that tile are the mean of all that may lie there.
    found = torch.full((3, 3), 2 * 5 + 2)
    assert torch.equal(maps._mean_of_patches(picture, found, ""), picture[0, :, 1:4, 1:4])
    tiled = maps._mean_of_patches(picture, found, "xy")
    torch.testing.assert_close(tiled, torch.full((1, 3, 3), 12.0))


def test_carried_deals_out_the_values_of_the_places(source):
    """Patches disagree, so that their mean is flat; what is carried has the map's own values."""
    places = drawn((32, 24), 40, 48)
    near = torch.zeros(32, 24)
    flat = maps._mean_of_patches(source, places, "")
    found = carried([source], [(places, near)])
    own = source[0].flatten(1)[:, places.flatten()]
    assert torch.equal(found.flatten(2).sort(2).values[0], own.sort(1).values)
    assert flat.std() < 0.5 * found.std()
    for channel, wanted in zip(found[0].flatten(1), flat.flatten(1), strict=True):
        assert (channel[wanted.argsort()].diff() >= 0).all()  # in the same order
    labels = (source[:, :3] > 0.5).float()
    assert set(carried([labels], [(places, near)]).unique().tolist()) == {0, 1}


def test_carried_takes_every_place_from_the_nearest_copy(source):
    places = drawn((40, 48), 40, 48)
    left = (torch.arange(48) < 24).float().expand(40, 48)
    found = carried([source, source + 2], [(places, left), (places, 1 - left)])
    assert torch.equal(found > 1.5, (left < 0.5).expand(1, 6, 40, 48))


def test_carried_normals_have_length_1():
    """Channels dealt out one by one are no vectors of length 1."""
    normals = F.normalize(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    places = drawn((16, 16), 16, 16)
    vectors = 2 * carried([(normals + 1) / 2], [(places, torch.zeros(16, 16))]) - 1
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1, 16, 16))


def test_what_holds_normals():
    normals = F.normalize(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert holds_normals(((normals + 1) / 2 * 255).round() / 255)
    assert not holds_normals(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert not holds_normals(torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8))


def test_normals_turn_with_the_picture():
    right = torch.tensor([0.6, 0, 0.8]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    up, smaller = (2 * maps - 1 for maps in rotated((right + 1) / 2, [90], [0.5])[1:])
    torch.testing.assert_close(up[0, :, 0, 0], torch.tensor([0, 0.6, 0.8]))
    torch.testing.assert_close(smaller[0, :, 0, 0], torch.tensor([0, 0.6, 0.8]))
    assert up.shape == (1, 3, 6, 4) and smaller.shape == (1, 3, 3, 2)
    height = torch.rand(1, 1, 4, 6).expand(1, 3, 4, 6)
    assert torch.equal(rotated(height, [90], [])[0], height.rot90(1, (2, 3)))
