"""Patch descriptors, computed all at once or when they are indexed."""

import pytest
import torch
from conftest import noise_image, seeded
from torch.nn import functional as F

from engine.descriptors import NO_LABEL, PATCH, LazyDescriptors, PatchDescriptor, window_labels


def describer(image):
    size = image.shape[2] - PATCH + 1, image.shape[3] - PATCH + 1
    return PatchDescriptor(image, torch.ones(size, dtype=torch.bool), seeded())


def test_distances_of_descriptors_are_mean_squares():
    """For sums of a few waves, which a few components represent exactly."""
    y, x = torch.arange(30.0)[:, None], torch.arange(26.0)
    image = torch.stack([(0.7 * x + y).sin(), (x - 0.3 * y).cos(), (x * 0.2 + y).cos()])[None] / 2
    guide = torch.rand(1, 2, 30, 26, generator=seeded())
    describe = describer(image)
    descriptors = describe(image, guide).flatten(0, 1)
    patches = F.unfold(image, PATCH)[0].T
    means = F.unfold(guide, PATCH)[0].view(2, PATCH**2, -1).mean(1).T
    expected = torch.cdist(patches, patches).square() / (3 * PATCH**2)
    expected = expected + torch.cdist(means, means).square()
    assert (torch.cdist(descriptors, descriptors).square() - expected).abs().max() < 1e-4


def test_components_are_those_of_usable_patches(monkeypatch):
    """The usable right half varies along y alone, so that waves along x are orthogonal to it; the
    descriptors of patches that differ by such a wave are equal."""
    y, x = torch.arange(40.0)[:, None], torch.arange(60.0)
    image = torch.where(x < 30, (x * 2).sin(), (y / 2).sin()).expand(1, 3, 40, 60) / 2 + 0.5
    usable = torch.zeros(34, 54, dtype=torch.bool)
    usable[:, 30:] = True
    monkeypatch.setattr("engine.descriptors.COMPONENTS", 2)
    monkeypatch.setattr("engine.descriptors.SAMPLE", 400)
    found = PatchDescriptor(image, usable, seeded())(image, None)
    assert found[:, 30:].std((0, 1)).min() > 0.1 and found[:, :20].std((0, 1)).max() < 0.05


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
def test_lazy_descriptors_are_those_computed_at_once(wrap, monkeypatch):
    image, guide = noise_image(30, 26), torch.rand(1, 2, 30, 26, generator=seeded())
    describe = describer(image)
    height, width = (n if axis in wrap else n - 6 for n, axis in ((30, "y"), (26, "x")))
    expected = describe(image, guide, wrap)
    assert expected.shape == (height, width, 34)
    monkeypatch.setattr("engine.descriptors.CPU_CHUNK", 100)  # several chunks
    torch.testing.assert_close(describe(image, guide, wrap), expected)
    index = torch.arange(height * width)
    found = LazyDescriptors(describe, image, guide, wrap).index_select(index)
    torch.testing.assert_close(found, expected.flatten(0, 1))


def test_a_window_has_a_label_if_all_its_pixels_have():
    labels = torch.tensor([[0, 0, 1], [0, 0, 1], [2, NO_LABEL, 1]])
    assert window_labels(labels, (2, 1)).tolist() == [[0, 0, 1], [-1, -1, 1]]
    assert window_labels(labels, (2, 2)).tolist() == [[0, -1], [-1, -1]]
    assert window_labels(labels, (1, 1)).tolist() == labels.tolist()
