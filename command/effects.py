"""Flags that change nothing beside others, which are never ignored in silence."""

from command.arguments import Request
from engine.synthesis import steps_after_painting
from losses import METHODS, TERMS
from utils import UserError

# What a step of an optimiser reads. A picture that is only painted takes none.
OF_STEPS = (
    *("method", "layers", "pool", "rescale", *TERMS, "match_every", "max_patches"),
    *("content_layers", "content_weight", "optimizer", "lr", "tolerance", "scales"),
)
COPIES = {"patch_rotations", "patch_scales"}  # flags that painting has a use for as well
HOW = "--repaint 0.5 lets the model polish them, --repaint 0 is the model alone"


def only_painted(request: Request) -> bool:
    """Whether no step of an optimiser follows painting."""
    return request.repaint > 0 and steps_after_painting(request.epoch, request.repaint) == 0


def without_effect(request: Request) -> dict[str, str]:
    """The names of flags that change nothing about the picture or what is shown of it, each with
    the reason and what would give it an effect. Not among them are flags that only say how a
    picture is made, such as --device, --seed and --overwrite: shell loops give them to any."""
    found: dict[str, str] = {}
    if only_painted(request):
        why = f"no effect where pictures are only painted (--repaint {request.repaint:g}); {HOW}"
        found = dict.fromkeys(OF_STEPS, why)
        if request.repaint == 1 and not request.save_every:  # whose snapshots it numbers
            found["epoch"] = why
        if request.style_image and request.init != "content":
            found["init"] = f"no effect on what is only painted over --image_path; {HOW}"
    takers = {flag for method in METHODS.values() for flag in method.takes}
    for flag in takers - {*METHODS[request.method].takes, *(COPIES if request.repaint else ())}:
        told = ", ".join(name for name, method in METHODS.items() if flag in method.takes)
        found.setdefault(flag, f"--method {request.method} has no use for it, but {told}")
    if (request.save_every or 0) > request.epoch:
        found["save_every"] = f"no effect with only {request.epoch} steps, give a larger --epoch"
    if request.quiet and request.progress == "json":
        found["progress json"] = "no effect beside --quiet, which silences it, leave out one"
    return found


def check_effects(request: Request) -> None:
    """Raise UserError for a flag that is typed now and changes nothing."""
    # Copies would be painted with as detail, which is not what they were typed for.
    refused = request.typed | (request.asked.keys() & COPIES)
    for name, why in without_effect(request).items():
        if name.split()[0] in refused:
            raise UserError(f"--{name}: {why}")


def effect_notes(request: Request, count: int) -> list[str]:
    """What the user should hear of flags that change nothing but are not refused: those of the
    picture of --from, which cannot be taken back, and those of how pictures are made.

    Args:
        count: of pictures.
    """
    notes = []
    if idle := sorted(without_effect(request).keys() & request.asked.keys() - request.typed):
        flags = ", ".join(f"--{name}" for name in idle)
        notes.append(f"--from {request.from_picture}: its flags without an effect here: {flags}")
    if request.resume and only_painted(request):
        notes.append("--resume: painting keeps no checkpoint, what is stopped begins anew")
    if count == 1 and (request.workers or 1) > 1:
        notes.append(f"--workers {request.workers}: there is one picture, which takes one process")
    return notes
