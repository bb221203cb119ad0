"""Maps that say what goes where: regions, progressions, directions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from terms import Features, Settings
from utils import LEVELS, UserError

MOST_REGIONS = 12  # colours; a picture of more is no label map
STEPS = 8  # into which methods that match statistics divide a progression


class Guide(NamedTuple):
    """What each place of the exemplar is, and what each place of the output shall be."""

    source: Tensor  # (1, G, h, w)
    output: Tensor  # (1, G, H, W)
    source_region: Tensor  # (1, 1, h, w) of int64, the same in regions
    output_region: Tensor  # (1, 1, H, W), -1 where nothing is asked for

    def to(self, device: torch.device) -> "Guide":
        """The same on another device."""
        return Guide(*(x.to(device) for x in self))


def read_guide(source: Tensor, output: Tensor, names: tuple[str, str]) -> Guide:
    """The guide that two control maps make, pictures (1, 3, H, W) of any two sizes.

    Maps of at most MOST_REGIONS colours in all are labels: each colour is a region. Other ones are
    a progression, in grey.

    Raises:
        UserError: a colour of the output that the source does not have; more colours than
            regions may be.
    """
    levels = [(LEVELS * picture[0]).round().long().flatten(1).T for picture in (source, output)]
    colours, index = torch.cat(levels).unique(dim=0, return_inverse=True)
    indices = [
        part.view(1, 1, *picture.shape[2:])
        for part, picture in zip(
            index.split([len(x) for x in levels]), (source, output), strict=True
        )
    ]
    if len(colours) <= MOST_REGIONS:
        for k in range(len(colours)):
            if not (indices[0] == k).any():
                colour = "#" + "".join(f"{level:02x}" for level in colours[k].tolist())
                raise UserError(f"--guide {names[0]}: has no {colour}, which {names[1]} asks for")
        channels = [F.one_hot(x[:, 0], len(colours)).movedim(3, 1).float() for x in indices]
        return Guide(*channels, *indices)
    if (colours != colours[:, :1]).any():
        raise UserError(
            f"--guide {' '.join(names)}: {len(colours)} colours; give {MOST_REGIONS} regions or "
            f"fewer, each of one colour, saved without loss, or a grey progression"
        )
    # Steps of the same share of the source: none is empty.
    edges = source[:, :1].flatten().quantile(torch.linspace(0, 1, STEPS + 1)[1:-1]).unique()
    steps = [torch.bucketize(picture[:, :1].contiguous(), edges) for picture in (source, output)]
    steps = [x.clamp(steps[0].min(), steps[0].max()) for x in steps]
    return Guide(source[:, :1], output[:, :1], *steps)


def joined(guides: list[Guide]) -> Guide:
    """Several guides as one: every channel, and a region for every pair of regions.

    Raises:
        UserError: the output asks for regions together that the source has only apart.
    """
    first, *others = guides
    for other in others:
        count = 1 + max(other.source_region.max(), other.output_region.max())
        regions = [
            one * count + two
            for one, two in (
                (first.source_region, other.source_region),
                (first.output_region, other.output_region),
            )
        ]
        if not torch.isin(regions[1].unique(), regions[0].unique()).all():
            raise UserError(
                "--guide: the output maps ask together for what no place of the source is"
            )
        channels = [torch.cat(pair, 1) for pair in zip(first[:2], other[:2], strict=True)]
        first = Guide(*channels, *regions)
    return first


def region_masks(regions: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """(1, 1, H, W) of -1 ... count - 1 -> (count, h w) of bool: which positions of a layer are in.

    Each position is in the region that has most of it, -1 being none; a region that has most of no
    position gets the one of which it has most.
    """
    shares = F.one_hot(regions[:, 0] + 1, count + 1).movedim(3, 1).float()
    shares = F.adaptive_avg_pool2d(shares, size)[0].flatten(1)  # (1 + count, h w)
    masks = F.one_hot(shares.argmax(0), count + 1).T.bool()[1:]
    for mask, share in zip(masks, shares[1:], strict=True):
        if not mask.any() and share.max() > 0:
            mask[share.argmax()] = True
    return masks


class Regional:
    """A model of what features there are, not where, for every region alone: Gatys et al.,
    "Controlling Perceptual Factors in Neural Style Transfer", 2017, section 4, and the tags of
    Heitz et al. 2021; the regions weigh as much as they have of the output.
    """

    def __init__(
        self, kind: Callable, source: Features, layers: list[str], settings: Settings
    ) -> None:
        source_regions, self.regions = settings.regions
        self.count = 1 + int(max(source_regions.max(), self.regions.max()))
        self.masks: dict[tuple[int, int], Tensor] = {}
        masks = {
            maps.shape[2:]: region_masks(source_regions, maps.shape[2:], self.count)
            for maps in source.values()
        }
        sizes = self.regions[self.regions >= 0].bincount(minlength=self.count)
        self.parts = [
            (k, n / sizes.sum(), kind(_of_region(source, masks, k), layers, settings))
            for k, n in enumerate(sizes)
            if n
        ]
        if hasattr(kind, "renew"):
            self.renew = self._renew

    def _renew(self, output: Features) -> None:
        for k, _, part in self.parts:
            part.renew(self._of(output, k))

    def __call__(self, output: Features) -> Tensor:
        return sum(share * part(self._of(output, k)) for k, share, part in self.parts)

    def _of(self, output: Features, k: int) -> Features:
        for maps in output.values():
            size = tuple(maps.shape[2:])
            if size not in self.masks:
                self.masks[size] = region_masks(self.regions, size, self.count)
        return _of_region(output, self.masks, k)


def _of_region(features: Features, masks: dict[tuple[int, int], Tensor], k: int) -> Features:
    """(B, C, H, W) each -> (B, C, n, 1), the positions of region k."""
    return {
        layer: maps.flatten(2)[..., masks[tuple(maps.shape[2:])][k]][..., None]
        for layer, maps in features.items()
    }
