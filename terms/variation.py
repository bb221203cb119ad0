"""Total variation."""

from torch import Tensor

from models import Features
from terms.base import LayerWeights, Statistics, Sums, Term, TermInputs
from utils import wrapped


class TotalVariation(Term):
    """Mean absolute difference of neighbouring pixels, rows plus columns, in units of the range
    [0, 1] (Rudin, Osher and Fatemi 1992, anisotropic): the one term that is not zero at the source.
    """

    needs_whole = "compares neighbours, across the borders of parts too"
    uses_pixels = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.tile = inputs.canvas.tile

    def measure(self, output: Features) -> Statistics:
        image, found = output["image"], {}
        for axis, other, dim in (("y", "x", 2), ("x", "y", 3)):
            steps = wrapped(image, self.tile.replace(other, ""), 1, 1).diff(dim=dim).abs()
            found[axis] = Sums(steps.sum((1, 2, 3)), steps[0].numel())
        return found

    def distance(self, statistics: Statistics) -> Tensor:
        return statistics["y"].mean + statistics["x"].mean
