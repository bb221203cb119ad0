"""Maps that say what goes where: regions, progressions, directions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from terms import Features, Settings
from utils import LEVELS, UserError, one_hot, region_masks

MOST_REGIONS = 12  # colours; a picture of more is no label map
STEPS = 8  # into which methods that match statistics divide a progression


class Guide(NamedTuple):
    """What each place of the exemplar is, and of each of its variants, the exemplar turned and
    resized; and what each place of the output shall be.

    Channels are for methods that match patches, (1, G, h, w); regions, (1, 1, h, w) of int64, for
    those that match statistics: -1 is no region.
    """

    sources: tuple[Tensor, ...]
    output: Tensor
    source_regions: tuple[Tensor, ...]
    output_region: Tensor

    def to(self, device: torch.device) -> "Guide":
        """The same on another device."""
        sources, regions = (tuple(x.to(device) for x in maps) for maps in (self[0], self[2]))
        return Guide(sources, self.output.to(device), regions, self.output_region.to(device))


Variants = Callable[[Tensor], list[Tensor]]


def read_guide(
    source: Tensor,
    output: Tensor,
    names: Sequence[str],
    variants: Variants = lambda maps: [],
    size: tuple[int, int] | None = None,
) -> Guide:
    """The guide that two control maps make, pictures (1, 3, H, W) of any two sizes.

    Maps of at most MOST_REGIONS colours in all are labels: each colour is a region. Other ones are
    a progression, in grey. The output's map is brought to `size`, (height, width), None for its
    own: labels by the nearest one, so that they stay labels, a progression smoothly.

    Raises:
        UserError: a colour of the output that the source does not have; more colours than
            regions may be.
    """
    levels = [_levels(picture) for picture in (source, output)]
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
        indices[1] = _labels_at(indices[1], size)
        channels = [one_hot(x, len(colours)) for x in indices]
        return _with_variants(*channels, *indices, variants)
    if (colours != colours[:, :1]).any():
        raise UserError(
            f"--guide {' '.join(names)}: {len(colours)} colours; give {MOST_REGIONS} regions or "
            f"fewer, each of one colour, saved without loss, or a grey progression"
        )
    if size is not None:
        output = F.interpolate(output, size, mode="bilinear", antialias=True)
    # Steps of the same share of the source: none is empty.
    edges = source[:, :1].flatten().quantile(torch.linspace(0, 1, STEPS + 1)[1:-1]).unique()
    steps = [torch.bucketize(picture[:, :1].contiguous(), edges) for picture in (source, output)]
    steps = [x.clamp(steps[0].min(), steps[0].max()) for x in steps]
    return _with_variants(source[:, :1], output[:, :1], *steps, variants)


def _with_variants(
    source: Tensor, output: Tensor, source_region: Tensor, output_region: Tensor, variants: Variants
) -> Guide:
    shares = one_hot(source_region, 1 + int(source_region.max()))
    regions = [maps.argmax(1, keepdim=True) for maps in variants(shares)]
    sources = source, *variants(source)
    return Guide(sources, output, (source_region, *regions), output_region)


def which_exemplar(
    exemplars: list[Tensor], output: Tensor, name: str, size: tuple[int, int] | None = None
) -> Guide:
    """The guide whose regions are whole exemplars, by the colours of a map from dark to light.

    The map is brought to `size`, (height, width), None for its own.

    Raises:
        UserError: the map has not one colour for each of the exemplars.
    """
    colours, index = _levels(output).unique(dim=0, return_inverse=True)
    if len(colours) != len(exemplars):
        raise UserError(
            f"--guide mix {name}: {len(colours)} colours, needed are {len(exemplars)}, one for "
            "each exemplar from dark to light"
        )
    order = colours.sum(1).argsort().argsort()
    region = _labels_at(order[index].view(1, 1, *output.shape[2:]), size)
    regions = tuple(
        torch.full((1, 1, *exemplar.shape[2:]), k) for k, exemplar in enumerate(exemplars)
    )

    sources = tuple(one_hot(region, len(exemplars)) for region in regions)
    return Guide(sources, one_hot(region, len(exemplars)), regions, region)


def _labels_at(labels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(1, 1, H, W) of int64 -> of another size, each place with the label nearest to it."""
    if size is None or tuple(labels.shape[-2:]) == tuple(size):
        return labels
    return F.interpolate(labels.double(), size, mode="nearest-exact").long()


def _levels(picture: Tensor) -> Tensor:
    """(1, 3, H, W) in [0, 1] -> (H W, 3) of int64, levels of 8 bits."""
    return (LEVELS * picture[0]).round().long().flatten(1).T


def joined(guides: list[Guide]) -> Guide:
    """Several guides as one: every channel, and a region for every pair of regions.

    Raises:
        UserError: the output asks for regions together that the source has only apart.
    """
    first, *others = guides
    for other in others:
        count = 1 + max(x.max() for x in (*other.source_regions, other.output_region))

        def both(one: Tensor, two: Tensor, count: Tensor = count) -> Tensor:
            return torch.where((one < 0) | (two < 0), -1, one * count + two)

        regions = tuple(map(both, first.source_regions, other.source_regions))
        wanted = both(first.output_region, other.output_region)
        had = torch.cat([x.flatten() for x in regions])
        if not torch.isin(wanted[wanted >= 0].unique(), had).all():
            raise UserError(
                "--guide: the output maps ask together for what no place of the source is"
            )
        sources = zip(first.sources, other.sources, strict=True)
        output = torch.cat((first.output, other.output), 1)
        first = Guide(tuple(torch.cat(pair, 1) for pair in sources), output, regions, wanted)
    return first


Places = dict[tuple[int, int], list[Tensor]]  # size of a layer -> flat positions of each region


class Regional:
    """A model of what features there are, not where, for every region alone: Gatys et al.,
    "Controlling Perceptual Factors in Neural Style Transfer", 2017, section 4, and the tags of
    Heitz et al. 2021; the regions weigh as much as they have of the output.
    """

    def __init__(
        self, kind: Callable, source: Features, layers: list[str], settings: Settings
    ) -> None:
        source_regions, self.regions = settings.regions
        self.count = 1 + int(max(regions.max() for regions in (*source_regions, self.regions)))
        self.places: Places = {}
        pictures = [
            (features, _add_places({}, features, regions, self.count))
            for features, regions in zip((source, *settings.variants), source_regions, strict=False)
        ]
        sizes = self.regions[self.regions >= 0].bincount(minlength=self.count)
        self.parts = [
            (k, n / sizes.sum(), kind(_gathered(pictures, k), layers, settings))
            for k, n in enumerate(sizes)
            if n
        ]
        if hasattr(kind, "renew"):
            self.renew = self._renew

    def _renew(self, output: Features) -> None:
        for k, _, part in self.parts:
            part.renew(self._of(output, k))

    def __call__(self, output: Features) -> Tensor:
        # Where no place has a region, the loss is 0 and so is its gradient.
        nothing = 0 * next(iter(output.values())).flatten(1).sum(1)
        return sum((share * part(self._of(output, k)) for k, share, part in self.parts), nothing)

    def _of(self, output: Features, k: int) -> Features:
        return _of_region(output, _add_places(self.places, output, self.regions, self.count), k)


def _add_places(places: Places, features: Features, regions: Tensor, count: int) -> Places:
    """Where the positions of every region are, for every size of the features, each found once."""
    for maps in features.values():
        size = tuple(maps.shape[2:])
        if size not in places:
            places[size] = [mask.nonzero()[:, 0] for mask in region_masks(regions, size, count)]
    return places


def _of_region(features: Features, places: Places, k: int) -> Features:
    """(B, C, H, W) each -> (B, C, n, 1), the positions of region k."""
    return {
        layer: maps.flatten(2)[..., places[tuple(maps.shape[2:])][k]][..., None]
        for layer, maps in features.items()
    }


def _gathered(pictures: list[tuple[Features, Places]], k: int) -> Features:
    """The positions of region k in several pictures, side by side."""
    parts = [_of_region(features, places, k) for features, places in pictures]
    return {layer: torch.cat([part[layer] for part in parts], 2) for layer in parts[0]}


# ---------------------------------------------------------------------------------- orientation

SMOOTHING = 9  # px, side of the window whose mean axis counts as that of a place
AXIS_BINS = 8  # of 22.5 degrees: the regions of methods that match statistics
AXIS_WEIGHT = 0.3  # of a unit axis beside features, before GUIDE_WEIGHT
COHERENT = 0.2  # of 1; places of less have no axis
LEAST_SHARE = 0.05  # of the exemplar that an axis must have, not to be offered by turning
FIELDS = ("radial", "circular", "wave")


def axes(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 2, H, W): cosine and sine of twice the angle along which a texture runs,
    counted from the rows towards the columns, times its coherence, 0 ... 1.

    The structure tensor (Bigün and Granlund 1987): gradients squared as complex numbers and
    averaged; a texture runs across its mean gradient.
    """
    grey = image.mean(1, keepdim=True)
    grey = F.pad(grey, (1, 1, 1, 1), "replicate")
    x, y = (grey.diff(dim=d, n=1) for d in (3, 2))
    x, y = (x[..., 1:-1, 1:] + x[..., 1:-1, :-1]) / 2, (y[..., 1:, 1:-1] + y[..., :-1, 1:-1]) / 2
    squares = torch.cat((x.square() - y.square(), 2 * x * y, x.square() + y.square()), 1)
    for _ in range(2):
        padded = F.pad(squares, [SMOOTHING // 2] * 4, "replicate")
        squares = F.avg_pool2d(padded, SMOOTHING, 1)
    return -squares[:, :2] / squares[:, 2:].clamp(min=1e-8)


def field(spec: str, size: tuple[int, int]) -> Tensor | None:
    """`axes` of unit length that degrees or a name in FIELDS ask for, None for another spec.

    Degrees are counted from the horizontal counter-clockwise, as they look.
    """
    y, x = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in size), indexing="ij")
    if spec in FIELDS:
        angle = {
            "radial": torch.atan2(y, x),
            "circular": torch.atan2(y, x) + math.pi / 2,
            "wave": math.pi / 4 * (2 * math.pi * x / size[1]).cos(),
        }[spec]
    else:
        try:
            angle = torch.full(size, -math.radians(float(spec)))
        except ValueError:
            return None
        if not angle.isfinite().all():
            return None
    return torch.stack(((2 * angle).cos(), (2 * angle).sin()))[None]


def axes_of_hue(picture: Tensor) -> Tensor:
    """(1, 3, H, W) -> unit axes: the hue, once round the circle, is twice the angle."""
    red, green, blue = picture.split(1, 1)
    sixth = 2 * math.pi / 6
    # The hexagon of hues, red at 0, as a plane.
    cos = red - green * math.cos(sixth) - blue * math.cos(sixth)
    sin = (green - blue) * math.sin(2 * sixth)
    # Counter-clockwise, as it looks: rows go down.
    return F.normalize(torch.cat((cos, -sin), 1))


def axes_of_vectors(vectors: Tensor) -> Tensor:
    """(1, 2, H, W) of vectors to the right and down, either sign -> unit axes."""
    x, y = vectors.split(1, 1)
    return F.normalize(torch.cat((x.square() - y.square(), 2 * x * y), 1))


def axis_bins(found: Tensor) -> Tensor:
    """`axes` -> (1, 1, H, W): which of AXIS_BINS, the first one about the rows; -1 for none."""
    angle = torch.atan2(found[:, 1:], found[:, :1]) / (2 * math.pi)  # of half a turn
    bins = (angle * AXIS_BINS).round().long() % AXIS_BINS
    return torch.where(found.norm(dim=1, keepdim=True) < COHERENT, -1, bins)


def missing_turns(exemplar: Tensor, wanted: Tensor) -> list[float]:
    """Degrees, counter-clockwise, by which to turn the exemplar for it to have all axes wanted."""
    found = axes(exemplar)
    have, ask = axis_bins(found), axis_bins(wanted)
    mean = torch.atan2(*found.mean((0, 2, 3)).flip(0)).item() / 2
    turns = []
    for k in ask[ask >= 0].unique().tolist():
        share = (have == k).float().mean()
        if share < LEAST_SHARE:
            axis = wanted.movedim(1, 0).flatten(1)[:, (ask == k).flatten()].mean(1)
            turns.append(math.degrees(mean - torch.atan2(axis[1], axis[0]).item() / 2) % 180)
    return turns


def orientation_guide(exemplar: Tensor, wanted: Tensor, variants: Variants) -> Guide:
    """The guide that lays an exemplar's texture along `axes` of the output."""
    found = [axes(image) for image in (exemplar, *variants(exemplar))]
    regions = tuple(map(axis_bins, found))
    sources = tuple(AXIS_WEIGHT * x for x in found)
    region = axis_bins(wanted)
    had = torch.cat([x.flatten() for x in regions])
    # What no place has, no statistics can be asked for; patches come as near as they can.
    region = torch.where(torch.isin(region, had), region, -1)
    if (region < 0).all():
        # A flat exemplar has no axis at all: its statistics are asked for as a whole.
        regions, region = tuple(map(torch.zeros_like, regions)), torch.zeros_like(region)
    return Guide(sources, AXIS_WEIGHT * wanted, regions, region)
