"""Guides: pairs of control maps, of exemplar and output, that say which texture goes where."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from terms.base import Canvas, Exemplar
from terms.matching import resize_guide
from terms.regions import one_hot
from utils import LEVELS, LEVELS_16_BIT, Size, UserError, resize

MOST_REGIONS = 12  # colours of a label map; a picture of more colours is a progression
STEPS = 8  # regions into which a progression is divided for methods that match statistics


class Guide(NamedTuple):
    """Maps of all views of the exemplars, in order, and of the output.

    Methods that match patches compare the channels; methods that match statistics match those of
    each region. Pixels of region -1 belong to no region.
    """

    sources: tuple[Tensor, ...]  # (1, G, h, w) each: channels of the views
    output: Tensor  # (1, G, H, W)
    source_regions: tuple[Tensor, ...]  # (1, 1, h, w) of int64 each: regions of the views
    output_region: Tensor  # (1, 1, H, W) of int64

    def laid(
        self, exemplars: tuple[Exemplar, ...], canvas: Canvas
    ) -> tuple[tuple[Exemplar, ...], Canvas]:
        """Return copies of exemplars and canvas that hold the guide."""
        guides, regions = iter(self.sources), iter(self.source_regions)
        guided = []
        for one in exemplars:
            views = (replace(v, guide=next(guides), regions=next(regions)) for v in one.views)
            guided.append(replace(one, views=tuple(views)))
        return tuple(guided), replace(canvas, guide=self.output, regions=self.output_region)


Variants = Callable[[Tensor], list[Tensor]]  # maps -> their rotated and resized copies


def read_guide(
    source: Tensor,
    output: Tensor,
    names: Sequence[str],
    variants: Variants = lambda maps: [],
    size: Size | None = None,
) -> Guide:
    """Return the guide given by two control maps.

    Maps of at most MOST_REGIONS colours in total are label maps: each colour is a region, and
    transparent pixels are one more. Maps of more colours must be grey and are a progression.

    Args:
        source, output: control maps in [0, 1] of any sizes, (1, 3, ., .), or (1, 4, ., .) with an
            alpha of 0 or 1; transparent pixels are black.
        names: names of the two maps, for messages.
        variants: returns rotated and resized copies of a map, as for the exemplar's views.
        size: size of the output, (H, W), to which its map is resized, labels by the nearest pixel;
            None: the map is not resized.

    Raises:
        UserError: the output has a colour that the source lacks, or there are more than
            MOST_REGIONS colours and not all of them are grey.
    """
    levels = [_levels(picture) for picture in (source, output)]
    colours, index = torch.cat(levels).unique(dim=0, return_inverse=True)
    parts = zip(index.split([len(x) for x in levels]), (source, output), strict=True)
    indices = [part.view(1, 1, *picture.shape[2:]) for part, picture in parts]
    if len(colours) <= MOST_REGIONS:
        for k, colour in enumerate(colours):
            if k not in indices[0]:
                missing = _colour_text(colour)
                raise UserError(f"{names[0]}: has no {missing}, which {names[1]} asks for")
        indices[1] = _labels_at(indices[1], size)
        channels = [one_hot(x, len(colours)) for x in indices]
        return _with_variants(channels[0], channels[1], indices[0], indices[1], variants)
    if (colours[:, :3] != colours[:, :1]).any():
        raise UserError(
            f"{' '.join(names)}: {len(colours)} colours; give {MOST_REGIONS} regions or "
            f"fewer, each of one colour, saved without loss, or a grey progression"
        )
    return _progression(source, output, names, variants, size)


def _progression(
    source: Tensor, output: Tensor, names: Sequence[str], variants: Variants, size: Size | None
) -> Guide:
    """Return the guide given by two grey maps. Their transparent parts form an extra region."""
    pair = source, output
    if source.shape[1] == 4 and not all(picture[:, 3:].all() for picture in pair):
        shown = [picture[:, 3:] > 0 for picture in pair]
        least = source[:, :1][shown[0]].min() if shown[0].any() else 0.0
        grey = [picture[:, :3].where(x, least) for picture, x in zip(pair, shown, strict=True)]
        black = [picture * torch.tensor([0, 0, 0, 1.0]).view(1, 4, 1, 1) for picture in pair]
        regions = read_guide(black[0], black[1], names, variants, size)
        return joined([_progression(grey[0], grey[1], names, variants, size), regions])
    if size is not None:
        output = resize_guide(output, size)
    # Edges are quantiles of the source, so that no step is empty.
    edges = source[:, :1].flatten().quantile(torch.linspace(0, 1, STEPS + 1)[1:-1]).unique()
    steps = [torch.bucketize(picture[:, :1].contiguous(), edges) for picture in (source, output)]
    steps = [x.clamp(steps[0].min(), steps[0].max()) for x in steps]
    return _with_variants(source[:, :1], output[:, :1], steps[0], steps[1], variants)


def _with_variants(
    source: Tensor, output: Tensor, source_region: Tensor, output_region: Tensor, variants: Variants
) -> Guide:
    shares = one_hot(source_region, 1 + int(source_region.max()))
    regions = [maps.argmax(1, keepdim=True) for maps in variants(shares)]
    sources = source, *variants(source)
    return Guide(sources, output, (source_region, *regions), output_region)


def which_exemplar(
    exemplars: list[Tensor], output: Tensor, name: str, size: Size | None = None
) -> Guide:
    """Return the guide that says which exemplar goes where.

    Args:
        exemplars: one picture for each colour of the map, from dark to light; transparent pixels
            count as the darkest colour.
        output: the map, as in `read_guide`.
        name: name of the map, for messages.
        size: as in `read_guide`.

    Raises:
        UserError: the map has more or fewer colours than there are exemplars.
    """
    colours, index = _levels(output).unique(dim=0, return_inverse=True)
    if len(colours) != len(exemplars):
        raise UserError(
            f"{name}: {len(colours)} colours, needed are {len(exemplars)}, one for "
            "each exemplar from dark to light"
        )
    order = colours.sum(1).argsort().argsort()
    region = _labels_at(order[index].view(1, 1, *output.shape[2:]), size)
    regions = tuple(
        torch.full((1, 1, *exemplar.shape[2:]), k) for k, exemplar in enumerate(exemplars)
    )
    sources = tuple(one_hot(region, len(exemplars)) for region in regions)
    return Guide(sources, one_hot(region, len(exemplars)), regions, region)


def _labels_at(labels: Tensor, size: Size | None) -> Tensor:
    """Resize labels (1, 1, H, W) of int64 by nearest-neighbour interpolation."""
    return labels if size is None else resize(labels.double(), size, labels=True).long()


def _levels(picture: Tensor) -> Tensor:
    """Return 16-bit levels: (1, C, H, W) in [0, 1] -> (H W, C) of int64. With 16 bits, labels that
    are stored as levels 1, 2 and 3 remain distinct; with 8 bits, they would not."""
    return (LEVELS_16_BIT * picture[0]).round().long().flatten(1).T


def _colour_text(levels: Tensor) -> str:
    """Return the text of a colour of 3 or 4 levels, for messages."""
    *colour, alpha = levels.tolist() if len(levels) == 4 else (*levels.tolist(), LEVELS_16_BIT)
    if not alpha:
        return "transparent place"
    step = LEVELS_16_BIT // LEVELS
    if any(level % step for level in colour):
        return "#" + "".join(f"{level:04x}" for level in colour)
    return "#" + "".join(f"{level // step:02x}" for level in colour)


def joined(guides: list[Guide]) -> Guide:
    """Combine guides into one that has the channels of all, and a region for each combination of
    their regions.

    Raises:
        UserError: the output combines regions that no pixel of the source combines.
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
            raise UserError("output maps combine regions that no place of the source combines")
        sources = zip(first.sources, other.sources, strict=True)
        output = torch.cat((first.output, other.output), 1)
        first = Guide(tuple(torch.cat(pair, 1) for pair in sources), output, regions, wanted)
    return first
