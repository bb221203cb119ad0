"""The atlas of all views, and which patches of it are usable."""

from dataclasses import replace

import torch
from conftest import noise_image

from engine.descriptors import NO_LABEL
from engine.levels import Atlas
from engine.patchmatch import NNField
from engine.spec import exemplar_of


def test_an_atlas_stacks_all_views():
    """An exemplar of 10x12 with a copy of half the size, and one of 9x7 below them."""
    first = exemplar_of(noise_image(10, 12), factors=(0.5,))
    second = exemplar_of(noise_image(9, 7, 1))
    atlas = Atlas((first, second), 1.0)
    assert atlas.sizes == [(10, 12), (5, 6), (9, 7)] and atlas.image.shape == (1, 3, 24, 12)
    assert torch.equal(atlas.image[..., 15:, :7], second.image)
    assert atlas.views[:, 0].tolist() == [0] * 10 + [1] * 5 + [2] * 9
    assert atlas.exemplars[:, 0].tolist() == [0] * 15 + [1] * 9
    assert (atlas.views[10:15, 6:] == NO_LABEL).all() and (atlas.exemplars[15:, 7:] == -1).all()
    usable = atlas.usable_patches()  # of 7 px: 4x6 in the first view, 3x1 in the last
    assert usable.sum() == 4 * 6 + 3 * 1 and usable[:4].all() and usable[15:18, 0].all()


def test_invalid_pixels_have_no_label():
    valid = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    valid[..., 10:, :] = False
    exemplar = exemplar_of(noise_image(20, 20), valid=valid)
    atlas = Atlas((exemplar,), 1.0)
    assert (atlas.views[10:] == NO_LABEL).all() and (atlas.views[:9] == 0).all()


def test_guides_are_stacked_beside_the_images():
    exemplar = exemplar_of(noise_image(8, 8))
    views = tuple(replace(view, guide=torch.full((1, 2, 8, 8), 0.5)) for view in exemplar.views)
    atlas = Atlas((replace(exemplar, views=views),) * 2, 0.5)
    assert torch.equal(atlas.guide, torch.full((1, 2, 8, 4), 0.5))


def test_patches_around_pixels_are_moved_inside_their_view():
    atlas = Atlas((exemplar_of(noise_image(10, 12)), exemplar_of(noise_image(9, 8, 1))), 1.0)
    pixels = NNField(torch.tensor([[0, 5, 9, 10, 18]]), torch.tensor([[0, 5, 11, 7, 7]]))
    found = atlas.patches_around(pixels)
    assert found.y.tolist() == [[0, 2, 3, 10, 12]] and found.x.tolist() == [[0, 2, 5, 1, 1]]
