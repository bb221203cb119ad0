"""Image from the patches that cover it."""

import numpy as np
import pytest
import torch
from conftest import fast_first, level_of, noise_image, seeded

from engine.descriptors import PATCH
from engine.patchmatch import NNField
from engine.voting import main_source, vote


@pytest.mark.parametrize("wrap", fast_first(["x", "", "y", "xy"]))
def test_a_pixel_is_the_weighted_mean_of_the_patches_that_cover_it(wrap, monkeypatch):
    monkeypatch.setattr("engine.voting.chunk_size", lambda device: 15 * 6)  # three parts
    level = level_of(noise_image(20, 22), (16, 15), wrap=wrap)
    field = NNField.random(level.patches, (20, 22), seeded())
    weights = torch.rand(level.patches, generator=seeded(1))
    total, weight = torch.zeros(3, 16, 15), torch.zeros(16, 15)
    highest, pixels = torch.zeros(16, 15), torch.zeros(16, 15, dtype=torch.int64)
    for i, j in np.ndindex(*weights.shape):
        y = field.y[i, j].clamp(0, 20 - PATCH).item()
        x = field.x[i, j].clamp(0, 22 - PATCH).item()
        for down, across in np.ndindex(PATCH, PATCH):
            to, own = ((i + down) % 16, (j + across) % 15), (y + down, x + across)
            total[:, *to] += weights[i, j] * level.atlas.image[0, :, *own]
            weight[to] += weights[i, j]
            if weights[i, j] > highest[to]:
                highest[to], pixels[to] = weights[i, j], own[0] * 22 + own[1]
    torch.testing.assert_close(vote(level, field, weights)[0], total / weight)
    assert torch.equal(main_source(level, field, weights), pixels)
    equal = torch.ones(level.patches)
    assert torch.equal(vote(level, field), vote(level, field, equal))


def test_masked_pixels_keep_their_values():
    kept, mask = noise_image(16, 15, 1), torch.zeros(1, 1, 16, 15, dtype=torch.bool)
    mask[..., 4:9, 5:11] = True
    level = level_of(noise_image(20, 22), (16, 15), init=kept, mask=mask)
    field = NNField.random(level.patches, (14, 16), seeded())
    image = vote(level, field)
    changed = (image != kept).any(1, keepdim=True)
    assert torch.equal(changed, mask)
