"""The flag --exact_histogram: its use on the picture that is saved, its record and its line."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from command.plan import Job
from engine.histogram import luminance, with_exact_histogram
from engine.synthesis import Made
from utils import LEVELS, LEVELS_16_BIT

LUMINANCE = "luminance"  # key of a record


def with_histogram(job: Job, made: Made) -> Made:
    """Return the synthesis as it is saved. With --exact_histogram, its pixels get the values of the
    exemplar, rounded to whole levels of the file."""
    if job.exact_histogram is None:
        return made
    canvas, exemplar = job.spec.canvas, job.spec.exemplars[0]
    source, how = exemplar.image, job.exact_histogram
    if exemplar.valid is not None:
        source = source[..., exemplar.valid[0, 0]][..., None]
    levels = LEVELS if job.bits == 8 else LEVELS_16_BIT
    image = with_exact_histogram(
        made.image, source, how, levels, mask=canvas.mask, wrap=canvas.wrap
    )
    return replace(made, image=image)


def luminance_of(job: Job, saved: Tensor) -> dict[str, Any]:
    """Return the part of a record that --exact_histogram adds: mean and standard deviation of the
    luminance, 0 to 255, of the exemplar and of the pixels of the file that are made anew.

    Args:
        saved: (1, 3, H, W), as decoded from the file.
    """
    if job.exact_histogram is None:
        return {}
    exemplar = job.spec.exemplars[0]
    both = {
        "exemplar": luminance(exemplar.image, exemplar.valid),
        "result": luminance(saved, job.spec.canvas.mask),
    }
    rounded = {name: [round(LEVELS * x, 3) for x in found] for name, found in both.items()}
    return {LUMINANCE: rounded}


def luminance_note(job: Job, record: dict[str, Any]) -> str | None:
    """Return a line on the luminance in a record; None without --exact_histogram."""
    if LUMINANCE not in record:
        return None
    (mean, deviation), (made_mean, made_deviation) = record[LUMINANCE].values()
    return (
        f"{job.name}: luminance of exemplar and result, 0 to 255: mean {mean:.2f} and "
        f"{made_mean:.2f}, standard deviation {deviation:.2f} and {made_deviation:.2f}"
    )
