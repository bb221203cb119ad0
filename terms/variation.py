"""Total variation of the pixels."""

from torch import Tensor

from models import Features
from terms.base import LayerWeights, Statistics, Sums, Term, TermInputs
from utils import wrapped


class TotalVariation(Term):
    """Anisotropic total variation: mean absolute difference between vertical neighbours plus that
    between horizontal neighbours, of pixels in [0, 1] (Rudin, Osher and Fatemi, "Nonlinear Total
    Variation Based Noise Removal Algorithms", 1992, in its anisotropic form). Unlike all other
    terms it is not relative to the exemplar, and not 0 at the exemplar.
    """

    needs_whole = "compares neighbouring pixels across the borders of parts"
    uses_pixels = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.wrap = inputs.canvas.wrap

    def measure(self, output: Features) -> Statistics:
        image, found = output["image"], {}
        for axis, other, dim in (("y", "x", 2), ("x", "y", 3)):
            steps = wrapped(image, self.wrap.replace(other, ""), 1, 1).diff(dim=dim).abs()
            found[axis] = Sums(steps.sum((1, 2, 3)), steps[0].numel())
        return found

    def distance(self, statistics: Statistics) -> Tensor:
        return statistics["y"].mean + statistics["x"].mean
