"""Specification of a synthesis: everything that determines it, except for the network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.kinds import STOCHASTIC, Kind
from engine.optimizers import LBFGS_MEMORY
from engine.precision import EXACT
from engine.tiling import WHOLE, Tiling
from losses import MATCH_EVERY
from terms.base import MAX_PATCHES, Canvas, Exemplar, LayerWeights, View
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import NEARLY_ALL, fill_invalid
from utils import Size, rotated_and_resized


@dataclass(frozen=True)
class Spec:
    """Specification of one synthesis."""

    exemplars: tuple[Exemplar, ...]  # at full size; their views hold pictures, no other features
    canvas: Canvas
    method: str = "gram"  # a name in `losses.METHODS`
    layers: LayerWeights | None = None  # of the method; None: all layers of the network, equally
    weights: dict[str, float] | None = None  # of the additional terms; None: the method's own
    match_every: int = MATCH_EVERY  # steps between two rematches of the criterion
    max_patches: int = MAX_PATCHES  # per layer, for methods that sample patches
    content_layers: tuple[str, ...] = ()  # in which the content is compared
    content_weight: float = 0.0  # relative to the sum of all texture terms
    optimizer: str = "Adam"  # a name in `optimizers.OPTIMIZERS`
    steps: int = 1000  # evaluations of loss and gradient, over all scales
    lr: float | None = None  # step size; None: the optimizer's default
    memory: int = LBFGS_MEMORY  # steps in the history of L-BFGS
    scales: int | None = None  # None: derived from the size of the exemplar
    repaint: float = 0.0  # share of the steps that are spent on painting
    kind: Kind = STOCHASTIC  # of the first exemplar; read by painting
    tolerance: float = 0.0  # relative decrease of the loss below which a scale ends
    precision: str = EXACT  # a name in `precision.PRECISIONS`
    tilings: tuple[Tiling, ...] = ()  # one per scale, coarse to fine; (): untiled
    group: ProcessGroup = SINGLE_PROCESS  # processes that make the picture together
    seed: int = 0

    @property
    def starts_from_painting(self) -> bool:
        """Whether optimization starts from a painting; otherwise it starts from noise, or from the
        content or `canvas.init`."""
        return self.repaint > 0 and self.canvas.content is None

    @property
    def finest_tiling(self) -> Tiling:
        """The tiling of the finest scale."""
        return self.tilings[-1] if self.tilings else WHOLE

    def factor_at(self, source_size: Size) -> float:
        """Return the factor that resizes the first exemplar to a size."""
        return source_size[0] / self.exemplars[0].image.shape[2]

    def to(self, device: torch.device) -> "Spec":
        """Return a copy whose tensors are on the device."""
        exemplars = tuple(one.to(device) for one in self.exemplars)
        return replace(self, exemplars=exemplars, canvas=self.canvas.to(device))


def exemplar_of(
    picture: Tensor,
    rotations: Sequence[float] = (),
    factors: Sequence[float] = (),
    share: float = 1.0,
    valid: Tensor | None = None,
) -> Exemplar:
    """Return an exemplar that holds a picture and its rotated and resized copies.

    Args:
        picture: (1, 3, H, W) in [0, 1].
        rotations: angles of the copies in degrees, counter-clockwise.
        factors: factors by which copies are resized.
        share: share of the output that looks like the exemplar; 1 for a single exemplar.
        valid: (1, 1, H, W) of bool; None: all pixels are valid. Invalid pixels are filled by
            `fill_invalid`.
    """
    if valid is not None:
        picture = fill_invalid(picture, valid)
    copies = [picture, *rotated_and_resized(picture, rotations, factors)]
    views = [View({"image": image}) for image in copies]
    if valid is not None:
        shares = [valid.float(), *rotated_and_resized(valid.float(), rotations, factors)]
        pairs = zip(views, shares, strict=True)
        views = [replace(view, valid=part > NEARLY_ALL) for view, part in pairs]
    return Exemplar(tuple(views), share, tuple(rotations), tuple(factors))
