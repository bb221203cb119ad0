"""What the user decides about the output beside its texture: borders, start, and what stays."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from guides import Guide
from terms import Settings
from utils import resize


class Controls(NamedTuple):
    """Pictures are (1, 3, H, W) in [0, 1], of the output's size."""

    tile: str = ""  # axes along which the output goes on where it began, "x", "y" or "xy"
    init: Tensor | None = None  # what the output starts from; None means noise
    free: Tensor | None = None  # (1, 1, H, W) of bool: where it may leave init; None: everywhere
    content: Tensor | None = None  # whose layout the output keeps
    content_layers: tuple[str, ...] = ()
    content_weight: float = 0.0
    keep_color: bool = False  # the output gets the content's hue and saturation
    guide: Guide | None = None  # what goes where
    mixed: tuple[tuple[Tensor, float], ...] = ()  # other exemplars, of any size, and their shares

    def to(self, device: torch.device) -> "Controls":
        """The same on another device."""
        moved = Controls(*(x.to(device) if isinstance(x, Tensor | Guide) else x for x in self))
        return moved._replace(mixed=tuple((x.to(device), share) for x, share in self.mixed))

    def settings(self, settings: Settings) -> Settings:
        """What texture models and terms shall know of these controls."""
        settings = settings._replace(tile=self.tile)
        if self.guide is not None:
            sources, output, source_regions, output_region = self.guide
            settings = settings._replace(
                guide=(sources, output), regions=(source_regions, output_region)
            )
        elif self.mixed:
            shares = [share for _, share in self.mixed]
            settings = settings._replace(shares=(1 - sum(shares), *shares))
        if self.free is not None:
            # What is far from all that may change would only be made up for elsewhere.
            near = _dilated(self.free, self.tile)
            whole = torch.zeros_like(near, dtype=torch.int64)
            source, output = settings.regions or ((whole,), whole)
            settings = settings._replace(regions=(source, torch.where(near, output, -1)))
        return settings

    @property
    def placed(self) -> bool:
        """Whether anything says where in the output something is to be."""
        return any(x is not None for x in (self.init, self.content, self.guide))

    def mixed_at(self, factor: float) -> list[Tensor]:
        """The other exemplars, resized."""
        sizes = [[max(1, round(factor * side)) for side in x.shape[2:]] for x, _ in self.mixed]
        return [resize(x, tuple(size)) for (x, _), size in zip(self.mixed, sizes, strict=True)]

    def free_at(self, size: tuple[int, int]) -> Tensor | None:
        """`free` in another size, smaller ones included where any of it is free."""
        if self.free is None or tuple(self.free.shape[-2:]) == tuple(size):
            return self.free
        return F.adaptive_max_pool2d(self.free.float(), size) > 0

    def start(self, image: Tensor, first: bool) -> Tensor:
        """What a scale starts from: `image`, noise or the scale before, or init where it counts."""
        if self.init is None or not (first or self.free is not None):
            return image
        size = tuple(image.shape[-2:])
        init = resize(self.init, size, self.tile)
        return init if self.free is None else torch.where(self.free_at(size), image, init)

    def finish(self, image: Tensor) -> Tensor:
        """(1, 3, H, W), with what was to be kept put back exactly."""
        if self.free is not None:
            return torch.where(self.free, image, self.init)
        if self.keep_color:
            return with_chroma(image, resize(self.content, tuple(image.shape[-2:])))
        return image


NONE = Controls()
CONTENT_LAYERS, CONTENT_WEIGHT = ["conv4_1"], 0.5
NEAR = 4  # px around what is free that count with it; what is kept there may be another texture
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LEAST_DEVIATION = 1 / 255  # one grey level: less than that is rounding, not worth amplifying


def _dilated(free: Tensor, tile: str) -> Tensor:
    """(1, 1, H, W) of bool -> the same, grown by NEAR px, across the border of what tiles."""
    grown = free.float()
    for axis, pads in (("x", (NEAR, NEAR, 0, 0)), ("y", (0, 0, NEAR, NEAR))):
        grown = F.pad(grown, pads, "circular" if axis in tile else "constant")
    return F.max_pool2d(grown, 2 * NEAR + 1, 1) > 0


def luma(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, H, W)."""
    weights = torch.tensor(LUMA, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def with_chroma(image: Tensor, content: Tensor) -> Tensor:
    """The luma of one picture with the colour differences of another of the same size."""
    return (luma(image) + content - luma(content)).clamp(0, 1)


def matched_colours(style: Tensor, content: Tensor) -> Tensor:
    """The style moved linearly to the content's mean and covariance of colours.

    Gatys et al., "Preserving Color in Neural Artistic Style Transfer", 2016, section 4, by the
    symmetric square root, which moves colours least. Along axes of colour in which the style
    hardly varies it cannot be made to: a flat style becomes the content's mean.
    """
    (mean_style, root_style), (mean, root) = (
        colours(picture[0].flatten(1), LEAST_DEVIATION) for picture in (style, content)
    )
    pixels = style[0].flatten(1).double() - mean_style
    matched = root @ torch.linalg.solve(root_style, pixels) + mean
    return matched.view(style.shape).to(style.dtype).clamp(0, 1)


def colours(pixels: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """(C, N) -> mean (C, 1) and symmetric square root of the covariance (C, C), as float64.

    The root exists for any picture, of two colours or of one as well, whose covariance has no full
    rank and is therefore of no use to a Cholesky decomposition. Its eigenvalues are the standard
    deviations along the axes of the colours, each of them at least `least`.
    """
    pixels = pixels.double()
    covariance = pixels.cov().reshape(len(pixels), len(pixels))
    variances, axes = torch.linalg.eigh(covariance)  # what is 0 may come out as -1e-18
    deviations = variances.clamp(min=0).sqrt().clamp(min=least)
    return pixels.mean(1, keepdim=True), axes @ deviations.diag() @ axes.T


def cut(image: Tensor, tile: str) -> Tensor:
    """(1, 3, H, W) that tiles -> the same, moved round until the step across is the mean one.

    Where the repeat of a picture is cut is free; a row of large steps there looks like a seam.
    """
    for axis, dim in (("y", 2), ("x", 3)):
        if axis in tile:
            steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
            image = image.roll(-int((steps - steps.mean()).abs().argmin()), dim)
    return image


def expanded(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(1, 3, h, w) in the middle of a canvas of (H, W), and (1, 1, H, W) of bool: what is new."""
    spare = [new - old for new, old in zip(size, image.shape[-2:], strict=True)]
    pads = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
    free = torch.ones(1, 1, *size, dtype=torch.bool)
    free[..., pads[2] : size[0] - pads[3], pads[0] : size[1] - pads[1]] = False
    return F.pad(image, pads), free
