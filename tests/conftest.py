"""A net small enough to check by hand, and the slow marker."""

import pytest
import torch
from torch import Tensor, nn


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow, runs with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


class TinyExtractor(nn.Module):
    """Two seeded convolutions in place of VGG; the interface of `models.Extractor`, never tiled."""

    layers = ["relu1_1", "relu2_1"]

    def __init__(self, padding: str = "reflect") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding)
        self.second = nn.Conv2d(8, 16, 3, padding=1, padding_mode=padding)
        self.requires_grad_(False)

    def forward(self, image: Tensor, tile: str = "") -> dict[str, Tensor]:
        image = image.expand(-1, 3, -1, -1)
        relu1_1 = self.first(image).relu()
        relu2_1 = self.second(nn.functional.avg_pool2d(relu1_1, 2)).relu()
        return {"image": image, "relu1_1": relu1_1, "relu2_1": relu2_1}


@pytest.fixture
def tiny():
    return TinyExtractor()


@pytest.fixture
def checkerboard():
    """(1, 3, 16, 16): squares of 4 px, one colour 0.2 0.4 0.6, the other 0.8 0.6 0.4."""
    squares = torch.arange(16).div(4, rounding_mode="floor")
    odd = ((squares[:, None] + squares[None, :]) % 2).float()
    dark, light = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.8, 0.6, 0.4])
    return (dark.view(1, 3, 1, 1) * (1 - odd) + light.view(1, 3, 1, 1) * odd).contiguous()
