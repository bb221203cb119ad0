"""The output's size, by one rule, and all masks, guides and axes in that size."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from command.flags import Request
from command.memory import Held
from command.pictures import Picture, find_picture, holds_alpha, read_picture, read_vectors
from command.settings import digest, named
from engine.guides import Guide, Variants, joined, read_guide, which_exemplar
from engine.orientation import FIELDS, axes_of_hue, axes_of_vectors, field, orientation_guide
from terms.base import Canvas
from utils import AXES, COLOUR, LABELS, MASK, Size, UserError, prefixed, resize, size_of, size_text


class Pictures:
    """Reads each picture once, and keeps the lines on them for the user."""

    def __init__(self, given: Mapping[str, Held] | None = None) -> None:
        """
        Args:
            given: names -> pictures in memory.
        """
        self.given = given or {}
        self.seen: dict[tuple[Path, str], Picture] = {}
        self.inputs: dict[str, Path] = {}  # all files that were read, as records name them
        self.notes: list[str] = []

    def find(self, name: str | Path) -> Path:
        """The path of a picture, by `find_picture`; of one in memory its name."""
        return Path(name) if str(name) in self.given else find_picture(name)

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file, or of the values of a picture in memory."""
        held = self.given.get(str(path))
        return digest(path) if held is None else held.sha256

    def read(self, name: str | Path, kind: str = COLOUR) -> Picture:
        """The picture of that name, by `find_picture`, read as a kind, a name in `utils.KINDS`."""
        path = self.find(name)
        self.inputs[named(name) if isinstance(name, Path) else name] = path
        if (path, kind) not in self.seen:
            held = self.given.get(str(path))
            self.seen[path, kind] = read_picture(path, kind) if held is None else held.picture
            self.notes += [x for x in self.seen[path, kind].notes if x not in self.notes]
        return self.seen[path, kind]

    def over_mean(self, name: str | Path) -> Tensor:
        """(1, 3, H, W) of a picture for a net, which sees no alpha."""
        picture = self.read(name)
        if not picture.opaque:
            self._tell(f"{self.find(name).name}: transparent pixels are taken for the mean colour")
        return picture.over_mean

    def _tell(self, note: str) -> None:
        self.notes += [] if note in self.notes else [note]

    def opaque(self, name: str | Path) -> Tensor | None:
        """(1, 1, H, W) of bool: the pixels of a picture that are opaque, which alone are texture;
        None where all are.

        Raises:
            UserError: none is.
        """
        picture = self.read(name)
        if picture.alpha is None or picture.opaque:
            return None
        opaque = picture.alpha == 1
        if not opaque.any():
            raise UserError(f"{name}: no pixel is opaque, so nothing of it can be used")
        self._tell(f"{self.find(name).name}: transparent pixels are no texture")
        return opaque


def channels_of(picture: Picture) -> Tensor:
    """(1, C, H, W): the channels that a file has, of which its alpha is the last one."""
    colours = picture.pixels[:, :1] if picture.grey else picture.pixels
    return colours if picture.alpha is None else torch.cat((colours, picture.alpha), 1)


def shown(picture: Picture) -> Tensor:
    """(1, 1, H, W) of bool: where a picture is rather opaque than transparent."""
    if picture.alpha is None:
        return torch.ones_like(picture.pixels[:, :1], dtype=torch.bool)
    return picture.alpha >= 0.5


def output_size(
    request: Request,
    drawn_axes: Tensor | None,
    content: Tensor | None,
    exemplar: Tensor,
    pictures: Pictures,
) -> Size:
    """(height, width) of the output, which all maps and pictures are then brought to.

    The first that is given of: --size, --expand, the picture whose kept pixels --mask names, the
    content, the output map of the first --guide, the map of --orientation, --init, the exemplar.
    """
    init = _init_picture(request, pictures)
    maps = [pictures.read(output, LABELS).pixels for _, output in request.guide]
    kept = init if request.mask or _hole(request, pictures) is not None else None
    given = (kept, content, *maps, drawn_axes, init, exemplar)
    followed = next(picture for picture in given if picture is not None)
    return request.size or request.expand or size_of(followed)


def canvas_of(
    request: Request, size: Size, exemplar: Tensor, content: Tensor | None, pictures: Pictures
) -> Canvas:
    """The canvas, but for guides.

    Raises:
        UserError: pixels are to be kept to the bit in another size, or none may change.
    """
    init = _init_picture(request, pictures)
    if request.init in (None, "content"):
        init = content
    mask = _hole(request, pictures)
    if request.expand:
        init, mask = _expanded(request.expand, exemplar if init is None else init)
    if request.mask:
        assert init is not None  # checked where flags are: --mask needs --init PICTURE
        drawn = pictures.read(request.mask, MASK)
        # What is transparent is black.
        visible = 1 if drawn.alpha is None else drawn.alpha
        mask = drawn.pixels.mean(1, keepdim=True) * visible >= 0.5
        if size_of(mask) != size_of(init):
            raise UserError(
                f"--mask {request.mask}: {size_text(size_of(mask))}, but --init {request.init} is "
                f"{size_text(size_of(init))}"
            )
        if not mask.any():
            raise UserError(f"--mask {request.mask}: no pixel is white, so nothing may change")
    if mask is not None and size_of(mask) != size:
        flag = "--expand" if request.expand else f"--mask {request.mask}"
        if not request.mask and not request.expand:
            flag = f"--init {request.init}, which is partly transparent,"
        raise UserError(
            f"--size {size_text(size)}: {flag} keeps pixels of {size_text(size_of(mask))} to the "
            "bit, which is the only size allowed"
        )
    return Canvas(
        size,
        wrap=request.tile,
        init=None if init is None else resize(init, size, request.tile),
        mask=mask,
        content=None if content is None else resize(content, size),
        keep_color=request.keep_color,
    )


def _init_picture(request: Request, pictures: Pictures) -> Tensor | None:
    given = request.init_picture
    return None if given is None else pictures.over_mean(given)


def _hole(request: Request, pictures: Pictures) -> Tensor | None:
    """(1, 1, H, W) of bool: the transparent pixels of --init, where no other flag says what is made
    anew; else None."""
    if request.mask or request.expand or request.style_image:
        return None
    if request.init_picture is None:
        return None
    opaque = pictures.opaque(request.init_picture)
    return None if opaque is None else ~opaque


def _expanded(size: Size, picture: Tensor) -> tuple[Tensor, Tensor]:
    if any(new < old for new, old in zip(size, size_of(picture), strict=True)):
        raise UserError(
            f"--expand {size_text(size)}: smaller than the picture, {size_text(size_of(picture))}, "
            "that it is to hold"
        )
    if size == size_of(picture):
        raise UserError(
            f"--expand {size_text(size)}: that is the picture's own size, nothing is new"
        )
    return expanded(picture, size)


def kept_of(
    request: Request, path: Path, canvas: Canvas, save_path: Path, pictures: Pictures
) -> Tensor | None:
    """(1, 4, H, W), colours and alpha of the photo that is styled, or of the picture parts of which
    are kept; None where that has no alpha, or the result's format holds none."""
    if not (request.style_image or request.expand or request.mask):
        return None
    init = None if request.style_image else request.init_picture
    picture = pictures.read(init or path)
    if picture.alpha is None or picture.opaque:
        return None
    if not holds_alpha(save_path):
        pictures.notes.append(f"{save_path}: saved without alpha; .png, .tif and .webp hold it")
        return None
    channels = torch.cat((picture.pixels, picture.alpha), 1)
    if request.expand:
        channels, _ = expanded(channels, canvas.size)
    return resize(channels, canvas.size)


def expanded(image: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """(1, C, h, w) in the middle of a canvas of (H, W), and (1, 1, H, W) of bool: what is new."""
    spare = [new - old for new, old in zip(size, size_of(image), strict=True)]
    pads = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
    mask = torch.ones(1, 1, *size, dtype=torch.bool)
    mask[..., pads[2] : size[0] - pads[3], pads[0] : size[1] - pads[1]] = False
    return F.pad(image, pads), mask


def drawn_axes(spec: str | None, pictures: Pictures) -> Tensor | None:
    """Unit axes (1, 2, H, W) of a file, of its own size, 0 where it has none, as where a picture
    is transparent; None for degrees and for FIELDS.

    Raises:
        UserError: neither degrees nor a name nor a file that holds axes.
    """
    if spec is None or field(spec, (1, 1)) is not None:
        return None
    if Path(spec).suffix.lower() == ".npy":
        pictures.inputs[spec] = Path(spec)
        found = axes_of_vectors(read_vectors(Path(spec)))
    else:
        try:
            drawn = pictures.read(spec, AXES)
        except UserError as error:
            allowed = f"allowed are -360 to 360 degrees, {', '.join(FIELDS)} or a file"
            raise UserError(f"--orientation {spec}: {allowed} ({error})") from error
        found = axes_of_hue(drawn.pixels).where(shown(drawn), 0)
    if not found.any():
        raise UserError(f"--orientation {spec}: no pixel has an axis")
    return found


def axes_at(spec: str, drawn: Tensor | None, size: Size) -> Tensor:
    """Unit axes (1, 2, H, W) in that size; where opposite ones of a file meet there is none."""
    if drawn is None:
        found = field(spec, size)
        assert found is not None  # as `drawn_axes` has read whatever is neither degrees nor a name
        return found
    if size_of(drawn) == size:
        return drawn
    return F.normalize(F.interpolate(drawn, size, mode="bilinear", antialias=True))


def guide_of(
    request: Request,
    size: Size,
    exemplars: list[Tensor],
    axes: Tensor | None,
    variants: Variants,
    pictures: Pictures,
) -> Guide | None:
    """Return the guide of all control maps and of the orientation; None where there are none.

    Raises:
        UserError: a map does not fit its exemplar, or requests regions that this does not have.
    """
    guides = []
    for names in request.guide:
        if request.mix and names[0] == "mix":
            output = _labels(names[1], pictures)
            with prefixed("--guide mix "):
                return which_exemplar(exemplars, output, names[1], size)
        source, output = (_labels(name, pictures) for name in names)
        if size_of(source) != size_of(exemplars[0]):
            raise UserError(
                f"--guide {names[0]}: {size_text(size_of(source))}, but the exemplar that it "
                f"describes is {size_text(size_of(exemplars[0]))}"
            )
        with prefixed("--guide "):
            guides.append(read_guide(source, output, names, variants, size))
    if axes is not None:
        guides.append(orientation_guide(exemplars[0], axes, variants))
    with prefixed("--guide: "):
        return joined(guides) if guides else None


def _labels(name: str, pictures: Pictures) -> Tensor:
    """(1, 4, H, W) of a control map: colours and 1, or 0 in all of them where it is transparent."""
    picture = pictures.read(name, LABELS)
    visible = shown(picture)
    return torch.cat((picture.pixels.where(visible, 0), visible.float()), 1)
