"""Pictures in memory that are given in place of paths: arrays, tensors and PIL images."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from command.deep import FLOAT_BITS
from command.pictures import Picture, find_picture, read_picture
from utils import LEVELS, LEVELS_16_BIT, UserError, prefixed

ARRAY = "array@"  # prefix of names of pictures in memory, before digits of the SHA-256
PICTURE_FLAGS = {"gt_path", "image_path", "style_image", "init", "mask", "guide", "mix", "maps"}
PICTURE_FLAGS |= {"edges_of"}
# Names of integer dtypes -> value of white, and bits of the picture.
INTEGERS = {"uint8": (LEVELS, 8), "uint16": (LEVELS_16_BIT, 16), "bool": (1, 8)}
AS_PNG = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16")  # PIL modes that PNG holds
AS_TIFF = ("I", "F", "CMYK")  # PIL modes that TIFF holds


class Held(NamedTuple):
    """A picture in memory."""

    picture: Picture
    sha256: str  # of its shape and values

    @property
    def name(self) -> str:
        """The name in flags and records."""
        return ARRAY + self.sha256[:12]


def in_memory(flags: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Held]]:
    """Replace the pictures among the values of flags by names.

    Returns:
        The flags, and the pictures by name.

    Raises:
        UserError: A flag does not take pictures; also as `held`.
    """
    found: dict[str, Held] = {}

    def named(flag: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(flag, one) for one in value]
        if not isinstance(value, np.ndarray | Tensor | Image.Image):
            return value
        if flag not in PICTURE_FLAGS:
            raise UserError(f"--{flag}: takes no picture, only text and numbers")
        with prefixed(f"--{flag}: "):
            one = held(value)
        found[one.name] = one
        return one.name

    taken = {flag: named(flag, value) for flag, value in flags.items()}
    return taken, found


def names_one(name: str, pictures: Mapping[str, Held]) -> bool:
    """Return whether a name stands for one picture, in memory or a file, not a folder."""
    with suppress(UserError):
        return name in pictures or bool(find_picture(name))
    return False


def held(value: np.ndarray | Tensor | Image.Image) -> Held:
    """Return a picture in memory.

    Args:
        value: Array (H, W, 3) or (H, W), tensor (1, 3, H, W), (3, H, W) or the same with one
            channel, of uint8, uint16, bool, or floats in [0, 1]; or a PIL image of any mode.

    Raises:
        UserError: The shape, dtype or range is not one of these.
    """
    picture = _of_pil(value) if isinstance(value, Image.Image) else _of_numbers(value)
    content = hashlib.sha256(str(tuple(picture.pixels.shape)).encode())
    for part in (picture.pixels, picture.alpha):
        if part is not None:
            content.update(part.contiguous().numpy().tobytes())
    one = Held(picture, content.hexdigest())
    notes = [one.name + note[note.index(":") :] for note in picture.notes]
    return one._replace(picture=picture._replace(notes=notes))


def _of_numbers(value: np.ndarray | Tensor) -> Picture:
    shape, allowed = tuple(value.shape), "arrays of (H, W, 3) or (H, W)"
    if isinstance(value, Tensor):
        allowed = "tensors of (1, 3, H, W) or (3, H, W)"
        value = value.detach().cpu()
        value = value[0] if value.ndim == 4 and len(value) == 1 else value
        value = value.float() if value.is_floating_point() else value
        value = (value.movedim(0, -1) if value.ndim == 3 else value[..., None]).numpy()
    elif value.ndim == 2:
        value = value[..., None]
    if value.ndim != 3 or value.shape[2] not in (1, 3) or not value.size:
        raise UserError(f"a picture of shape {shape}, allowed are {allowed}")
    kind = str(value.dtype)
    if kind not in INTEGERS and value.dtype.kind != "f":
        raise UserError(f"a picture of {kind}, allowed are uint8, uint16, bool and floats")
    white, bits = INTEGERS.get(kind, (1, FLOAT_BITS))
    pixels = value.astype(np.float32) / np.float32(white)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # written so that NaN is refused
        raise UserError(
            f"a picture of floats from {pixels.min():g} to {pixels.max():g}, allowed are 0 to 1"
        )
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].expand(-1, 3, -1, -1).contiguous()
    return Picture(image, None, bits, value.shape[2] == 1, [])


def _of_pil(image: Image.Image) -> Picture:
    """Return what `read_picture` reads after saving, with palette, alpha and profile applied."""
    if image.mode not in (*AS_PNG, *AS_TIFF):
        image = image.convert("RGB")
    with TemporaryDirectory() as folder:
        path = Path(folder) / ("picture.tif" if image.mode in AS_TIFF else "picture.png")
        try:
            image.save(path, icc_profile=image.info.get("icc_profile"))
            return read_picture(path)
        except (OSError, ValueError) as error:
            raise UserError(f"a PIL image that cannot be read ({error})") from error
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from error
