"""The canvas: the size of the output, and masks, guides and axes in that size."""

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
    """Reads each picture once, and collects notes on pictures for the user, which may repeat."""

    def __init__(self, given: Mapping[str, Held] | None = None) -> None:
        """
        Args:
            given: pictures in memory by name.
        """
        self.given = given or {}
        self.seen: dict[tuple[Path, str], Picture] = {}  # by path and kind
        self.inputs: dict[str, Path] = {}  # name in the record -> file that was read
        self.notes: list[str] = []

    def find(self, name: str | Path) -> Path:
        """Return the path of a picture, found by `find_picture`; for one in memory, its name."""
        return Path(name) if str(name) in self.given else find_picture(name)

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, or of the values of a picture in memory."""
        held = self.given.get(str(path))
        return digest(path) if held is None else held.sha256

    def read(self, name: str | Path, kind: str = COLOUR) -> Picture:
        """Read a picture, unless it has been read.

        Args:
            name: name of a picture in memory, or of a file for `find_picture`.
            kind: what its values are, a name in `utils.KINDS`.

        Raises:
            UserError: the picture is missing or cannot be read.
        """
        path = self.find(name)
        self.inputs[named(name) if isinstance(name, Path) else name] = path
        if (path, kind) not in self.seen:
            held = self.given.get(str(path))
            self.seen[path, kind] = read_picture(path, kind) if held is None else held.picture
            self.notes += self.seen[path, kind].notes
        return self.seen[path, kind]

    def over_mean(self, name: str | Path) -> Tensor:
        """Return the colours of a picture, (1, 3, H, W), where transparent pixels are blended with
        the mean colour."""
        picture = self.read(name)
        if not picture.opaque:
            self.notes.append(f"{self.find(name).name}: transparent pixels get the mean colour")
        return picture.over_mean

    def opaque(self, name: str | Path) -> Tensor | None:
        """Return the mask of the opaque pixels of a picture, (1, 1, H, W), bool; None if all are
        opaque.

        Raises:
            UserError: no pixel is opaque.
        """
        picture = self.read(name)
        if picture.alpha is None or picture.opaque:
            return None
        opaque = picture.alpha == 1
        if not opaque.any():
            raise UserError(f"{name}: no pixel is opaque, so nothing of it can be used")
        self.notes.append(f"{self.find(name).name}: transparent pixels are not used as texture")
        return opaque


def channels_of(picture: Picture) -> Tensor:
    """Return the channels of a picture as in its file, (1, C, H, W): one or three colours, then
    alpha if it has alpha."""
    colours = picture.pixels[:, :1] if picture.grey else picture.pixels
    return colours if picture.alpha is None else torch.cat((colours, picture.alpha), 1)


def visible_mask(picture: Picture) -> Tensor:
    """Return the mask of pixels whose alpha is 0.5 or more, (1, 1, H, W), bool."""
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
    """Return (height, width) of the output.

    It is the size of the first of these that is given: --size, --expand, the --init picture if
    some of its pixels are kept, the --edges_of picture, the content, the output map of the first
    --guide, the map of --orientation, the --init picture, the exemplar.
    """
    init = _init_picture(request, pictures)
    maps = [pictures.read(output, LABELS).pixels for _, output in request.guide]
    edges = pictures.read(request.edges_of).pixels if request.edges_of else None
    kept = init if request.mask or _hole(request, pictures) is not None else None
    given = (kept, edges, content, *maps, drawn_axes, init, exemplar)
    followed = next(picture for picture in given if picture is not None)
    size = request.size
    assert not isinstance(size, str)  # `command.periods.with_size` has replaced it
    return size or request.expand or size_of(followed)


def canvas_of(
    request: Request, size: Size, exemplar: Tensor, content: Tensor | None, pictures: Pictures
) -> Canvas:
    """Return the canvas without guides.

    Args:
        size: of the output, from `output_size`.
        exemplar: (1, 3, h, w); --expand without --init grows it.

    Raises:
        UserError: the sizes of mask, --init and output differ, --expand is not larger than its
            picture, or no pixel may change.
    """
    init = _init_picture(request, pictures)
    if request.init in (None, "content"):
        init = content
    mask = _hole(request, pictures)
    if request.expand:
        init, mask = _expanded(request.expand, exemplar if init is None else init)
    if request.mask:
        assert init is not None  # --mask needs --init, as `check_effects` ensures
        mask = _drawn_mask(request.mask, pictures)
        if size_of(mask) != size_of(init):
            raise UserError(
                f"--mask {request.mask}: {size_text(size_of(mask))}, but --init {request.init} is "
                f"{size_text(size_of(init))}"
            )
    if mask is not None and size_of(mask) != size:
        flag = f"--init {request.init}, which is partly transparent,"
        if request.mask or request.expand:
            flag = f"--mask {request.mask}" if request.mask else "--expand"
        raise UserError(
            f"--size {size_text(size)}: {flag} keeps pixels of {size_text(size_of(mask))} exactly, "
            "give that size or none"
        )
    return Canvas(
        size,
        wrap=request.tile,
        init=None if init is None else resize(init, size, request.tile),
        mask=mask,
        content=None if content is None else resize(content, size),
        keep_color=request.keep_color,
        edges=_edges(request, size, pictures),
    )


def _drawn_mask(name: str, pictures: Pictures) -> Tensor:
    """Return the mask of the white pixels of the picture of --mask, (1, 1, h, w), bool."""
    drawn = pictures.read(name, MASK)
    visible = 1 if drawn.alpha is None else drawn.alpha  # transparent pixels count as black
    mask = drawn.pixels.mean(1, keepdim=True) * visible >= 0.5
    if not mask.any():
        raise UserError(f"--mask {name}: no pixel is white, so nothing may change")
    return mask


def _edges(request: Request, size: Size, pictures: Pictures) -> Tensor | None:
    """Return the picture of --edges_of, (1, 3, H, W); raise UserError if its size is not that of
    the output."""
    if request.edges_of is None:
        return None
    # With --alpha, the output gets the alpha of the tile too, and its colours as in the file.
    tile = request.edges_of
    edges = pictures.read(tile).pixels if request.alpha else pictures.over_mean(tile)
    if size_of(edges) != size:
        raise UserError(
            f"--size {size_text(size)}: --edges_of {request.edges_of} is "
            f"{size_text(size_of(edges))}, give that size or none"
        )
    return edges


def _init_picture(request: Request, pictures: Pictures) -> Tensor | None:
    given = request.init_picture
    return None if given is None else pictures.over_mean(given)


def _hole(request: Request, pictures: Pictures) -> Tensor | None:
    """Return the mask of the pixels of --init that are not opaque, (1, 1, H, W), bool. None if
    there are none, or if --mask, --expand or --style_image determines what is synthesised."""
    name = request.init_picture
    if name is None or request.mask or request.expand or request.style_image:
        return None
    opaque = pictures.opaque(name)
    return None if opaque is None else ~opaque


def _expanded(size: Size, picture: Tensor) -> tuple[Tensor, Tensor]:
    if any(new < old for new, old in zip(size, size_of(picture), strict=True)):
        raise UserError(
            f"--expand {size_text(size)}: smaller than the picture, {size_text(size_of(picture))}"
        )
    if size == size_of(picture):
        raise UserError(
            f"--expand {size_text(size)}: the size of the picture, nothing would be new"
        )
    return expanded(picture, size)


def kept_pixels(
    request: Request, path: Path, canvas: Canvas, save_path: Path, pictures: Pictures
) -> Tensor | None:
    """Return colours and alpha, (1, 4, H, W), of the content photo, or of the picture whose pixels
    --mask or --expand keeps. None if there is no such picture, if all its pixels are opaque, or if
    the format of the result holds no alpha."""
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
    """Pad a picture (1, C, h, w) with 0 to (H, W), centred, and return it with the mask of the new
    pixels, (1, 1, H, W), bool."""
    spare = [new - old for new, old in zip(size, size_of(image), strict=True)]
    pads = [spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2]
    old = torch.zeros_like(image[:, :1], dtype=torch.bool)
    return F.pad(image, pads), F.pad(old, pads, value=True)


def drawn_axes(spec: str | None, pictures: Pictures) -> Tensor | None:
    """Return the axes of the map of --orientation in its own size: unit vectors (1, 2, H, W), 0
    where there is no axis or the map is transparent. None if `spec` is not a map, but degrees or a
    name in `FIELDS`.

    Raises:
        UserError: `spec` is neither degrees nor a name in `FIELDS` nor a map with axes.
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
        found = axes_of_hue(drawn.pixels).where(visible_mask(drawn), 0)
    if not found.any():
        raise UserError(f"--orientation {spec}: no pixel has an axis")
    return found


def axes_at(spec: str, drawn: Tensor | None, size: Size) -> Tensor:
    """Return the axes of --orientation in a size, unit vectors (1, 2, H, W). Where opposite axes of
    a map cancel when it is resized, they are 0.

    Args:
        drawn: axes of the map, from `drawn_axes`.
    """
    if drawn is None:
        found = field(spec, size)
        assert found is not None  # else `drawn_axes` has read a map
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
    """Return the guide of all --guide maps and of the orientation; None if there are none.

    Args:
        exemplars: (1, 3, h, w) each, the first and those of --mix.
        variants: returns the rotated and resized copies of a map of the first exemplar.

    Raises:
        UserError: the source map and the exemplar differ in size, or the output map has a region
            that the source map lacks.
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
    """Return (1, 4, H, W) of a --guide map: colours and 1, or four zeros where it is
    transparent."""
    picture = pictures.read(name, LABELS)
    visible = visible_mask(picture)
    return torch.cat((picture.pixels.where(visible, 0), visible.float()), 1)
