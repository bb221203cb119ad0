"""The kind of a map, given by a prefix (normal:file.png) or recognised by the file name."""

import re
from collections.abc import Mapping

from utils import COLOUR, DATA, LABELS, NORMALS

# Prefixes -> kinds.
GIVEN: Mapping[str, str] = {
    **{"color": COLOUR, "colour": COLOUR, "data": DATA, "id": LABELS},
    **dict.fromkeys(("normal", "normal_gl", "normal_dx"), NORMALS),
}
# Words in file names, as texture libraries and baking tools use them.
_WORDS = {
    NORMALS: "normal normals nrm nor norm normalgl normaldx norgl nordx",
    LABELS: "id ids label labels matid materialid colorid segmentation",
    COLOUR: "color colour albedo diffuse diff basecolor base emissive emission specular spec",
    DATA: "height displacement disp depth bump roughness rough gloss glossiness smoothness "
    "metallic metalness metal ao occlusion ambientocclusion cavity curvature thickness opacity "
    "alpha mask orm arm rma mra data",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # a word of a file name; NormalGL has two


def kind_and_name(text: str) -> tuple[str | None, str]:
    """Split 'normal:a.png' into ('normal', 'a.png') and 'a.png' into (None, 'a.png'); a prefix that
    is not in GIVEN is part of the name."""
    word, colon, name = text.partition(":")
    return (word.lower(), name) if colon and word.lower() in GIVEN else (None, text)


def kind_by_name(stem: str) -> str | None:
    """Return the kind named by the last matching word of a file name, None if no word matches.

    Words may end with "map"; a name that ends with _n is a map of normals.
    """
    if re.search(r"[_.\-][nN]$", stem):
        return NORMALS
    words = [word.lower() for word in _WORD.findall(stem)]
    found = [_KINDS.get(word) or _KINDS.get(word.removesuffix("map")) for word in words]
    return next((kind for kind in reversed(found) if kind), None)


def green_up_by_name(stem: str) -> bool | None:
    """Return whether a file name says that the green of normals points up (OpenGL) or down
    (DirectX); None if it says neither."""
    words = [word.lower() for word in _WORD.findall(stem)]
    for up, end, whole in ((False, "dx", "directx"), (True, "gl", "opengl")):
        if whole in stem.lower() or any(
            word == end or (word in _KINDS and word.endswith(end)) for word in words
        ):
            return up
    return None
