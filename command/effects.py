"""Flags that have no effect in combination with others: refused or reported, not ignored."""

from command.flags import Request
from engine.schedule import steps_after_painting
from losses import BEST, METHODS, TERMS
from utils import UserError

# Flags of the optimisation, without effect on a picture that is only painted.
OF_STEPS = (
    *("method", "layers", "pool", "rescale", *TERMS, "match_every", "max_patches"),
    *("content_layers", "content_weight", "optimizer", "lr", "tolerance", "scales"),
)
COPIES = {"patch_rotations", "patch_scales"}  # flags that painting uses too
EXCLUDED_BY_EXACT_HISTOGRAM = {
    "tile_set": "whose tiles would no longer have the same edges",
    "edges_of": "which keeps the edges of the picture",
    "mix": "as it takes the distribution of one exemplar",
    "guide": "whose map determines how much of each part of the exemplar there is",
    "alpha": "as the colours of transparent pixels are not seen",
    "keep_color": "which keeps the colours of the content",
}
HOW = "--repaint 0.5 also runs the texture model, --repaint 0 runs it alone"


def only_painted(request: Request) -> bool:
    """Return whether the picture is painted and not optimised."""
    return request.repaint > 0 and steps_after_painting(request.epoch, request.repaint) == 0


def chosen_by_kind(request: Request) -> bool:
    """Return whether the preset BEST chooses, by the kind of an exemplar, between painting and
    optimisation. A flag of either, given explicitly, chooses instead."""
    return request.preset == BEST and not request.asked.keys() & {"repaint", "epoch", *OF_STEPS}


def without_effect(request: Request) -> dict[str, str]:
    """Return the flags without effect on the picture or on the output: name -> reason and remedy.

    Flags that do not describe the picture, such as --device, --seed and --overwrite, are left out,
    since scripts may give them to any run.
    """
    found: dict[str, str] = {}
    if only_painted(request):
        why = f"no effect on pictures that are only painted (--repaint {request.repaint:g}); {HOW}"
        found = dict.fromkeys(OF_STEPS, why)
        if request.repaint == 1 and not request.save_every:  # else --epoch numbers snapshots
            found["epoch"] = why
        if request.style_image and request.init != "content":
            found["init"] = f"no effect on pictures that are only painted over --image_path; {HOW}"
    users = {flag for method in METHODS.values() for flag in method.flags}
    used = METHODS[request.method].flags
    if request.repaint or chosen_by_kind(request):
        used = (*used, *COPIES)
    for flag in users - {*used}:
        told = ", ".join(name for name, method in METHODS.items() if flag in method.flags)
        found.setdefault(flag, f"no effect with --method {request.method}, only with {told}")
    if (request.save_every or 0) > request.epoch:
        found["save_every"] = f"no effect with --epoch {request.epoch}, give at most that many"
    return found


def check_effects(request: Request) -> None:
    """Check the combination of flags.

    Raises:
        UserError: A flag typed for this run has no effect, or two flags contradict each other.
    """
    # COPIES recorded in the picture of --from are refused too, as painting would use them.
    refused = request.typed | (request.asked.keys() & COPIES)
    for name, why in without_effect(request).items():
        if name in refused:
            raise UserError(f"--{name}: {why}")
    _check_combinations(request)
    for flag, why in EXCLUDED_BY_EXACT_HISTOGRAM.items():
        if request.exact_histogram and getattr(request, flag):
            raise UserError(f"--exact_histogram: not allowed with --{flag}, {why}")


def effect_notes(request: Request, count: int) -> list[str]:
    """Return lines on flags that have no effect but are not refused: those recorded in the picture
    of --from, which the user cannot remove, --resume and --workers.

    Args:
        count: Number of pictures.
    """
    notes = []
    if idle := sorted(without_effect(request).keys() & request.asked.keys() - request.typed):
        flags = ", ".join(f"--{name}" for name in idle)
        notes.append(
            f"--from {request.from_picture}: flags of its record have no effect here: {flags}"
        )
    if request.resume and only_painted(request):
        notes.append(
            "--resume: painting saves no checkpoints, so a stopped run starts from the beginning"
        )
    if count == 1 and (request.workers or 1) > 1:
        notes.append(f"--workers {request.workers}: one picture is made by one process")
    return notes


def _check_combinations(request: Request) -> None:
    """Raise UserError for a flag that another one excludes, or that requires another one."""
    if request.resume and request.split:
        raise UserError("--resume: not allowed with --split, whose processes save no checkpoints")
    if request.workers and request.split:
        raise UserError("--workers: not allowed with --split, which makes one picture at a time")
    _check_tiles(request)
    for flag in ("style_image", "mix", "init", "mask", "expand"):
        if request.alpha and getattr(request, flag):
            raise UserError(f"--alpha: not allowed with --{flag}, as it needs one exemplar alone")
    if request.maps and request.mix:
        raise UserError("--maps: not allowed with --mix, as they describe one exemplar")
    if request.quiet and request.progress == "json":
        raise UserError(
            "--progress json: no effect with --quiet, which silences it; leave out one of them"
        )
    if request.json and not request.score:
        raise UserError("--json: requires --score, whose format it is")
    if request.weights_layout and not request.weights:
        raise UserError("--weights_layout: requires --weights PATH")
    for flag, given in (
        ("keep_color", request.keep_color),
        ("init content", request.init == "content"),
        ("content_weight", request.content_weight is not None),
        ("content_layers", request.content_layers is not None),
    ):
        if given and not request.style_image:
            raise UserError(f"--{flag}: no effect without --style_image")
    if request.mix and (request.orientation or request.patch_rotations or request.patch_scales):
        raise UserError("--mix: not with --orientation, --patch_rotations or --patch_scales")
    if request.mix and request.guide and (len(request.guide) > 1 or request.guide[0][0] != "mix"):
        raise UserError("--mix: the only --guide allowed is --guide mix OUTPUT_MAP")
    for name, share in request.mix:
        if share is not None and request.guide:
            raise UserError(
                f"--mix {name}:{share:g}: leave out :{share:g}, as --guide mix sets the shares"
            )
    if request.mask and request.init_picture is None:
        raise UserError(f"--mask {request.mask}: requires --init PICTURE, to which it applies")
    if request.mask and request.expand:
        raise UserError(
            f"--mask {request.mask}: not allowed with --expand, which sets the mask itself"
        )
    if request.style_image and (request.mask or request.expand):
        raise UserError("--style_image: changes the whole picture, leave out --mask and --expand")


def _check_tiles(request: Request) -> None:
    """Raise UserError for a flag that --tile_set or --edges_of excludes."""
    if request.edges_of and request.tile != "xy":
        raise UserError(f"--edges_of {request.edges_of}: requires --tile xy")
    if request.tile_set and request.tile != "xy":
        raise UserError(
            f"--tile {request.tile}: not allowed with --tile_set, whose tiles fit along every edge"
        )
    if not (request.tile_set or request.edges_of):
        return
    one = f"--tile_set {request.tile_set}" if request.tile_set else f"--edges_of {request.edges_of}"
    if request.tile_set and request.edges_of:
        raise UserError(
            f"--edges_of {request.edges_of}: not allowed with {one}, whose first tile has edges of "
            "its own; with --from, name the first tile"
        )
    excluded = ["style_image", "mask", "expand"]
    if request.tile_set:
        excluded += ["split", "workers"]
    for flag in excluded:
        if getattr(request, flag):
            raise UserError(f"--{flag}: not allowed with {one}")
    if request.init_picture is not None:
        raise UserError(f"--init {request.init}: not allowed with {one}")
