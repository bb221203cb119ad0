"""A net small enough to check by hand, terms built in few words, and the slow marker."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest

# Several tests at a time, each on one thread: threads that wait for each other's processor cost
# more than they do. Set before torch is imported, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from command.files import TEXTURES
from command.plan import job_of, work_items
from command.weights import LoadedWeights
from engine import layouts, painting, patchmatch
from engine.kinds import STOCHASTIC
from engine.levels import Level, PaintingJob, generators
from engine.objective import Objective
from engine.optimizers import Settings, minimize
from engine.spec import Spec, exemplar_of
from engine.synthesis import frames
from losses import MATCH_EVERY, Criterion
from models import NETS, layer_table
from terms.base import MAX_PATCHES, Canvas, Exemplar, Options, TermInputs, View, equal_weights
from terms.guided import Guided
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.regions import PerRegion
from utils import UserError

WIDTH = 4  # filters a layer of the narrow net


def pytest_configure(config):
    """Have the processes that tests start take Ctrl-C, also where whatever started pytest ignores
    it, as shells have it for what runs in the background: children inherit what is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow, runs with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def fast_first(cases, fast=1):
    """The cases, all but the first marked slow. Tuples are the values of several arguments."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=pytest.mark.slow if i >= fast else (),
        )
        for i, case in enumerate(cases)
    ]


@pytest.fixture(autouse=True)
def few_layouts(monkeypatch):
    """Paintings choose from two layouts, since tests of other things need no more."""
    monkeypatch.setattr(layouts, "LAYOUTS", 2)


def seeded(seed=0) -> torch.Generator:
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0) -> Tensor:
    """Uniform noise in [0, 1]."""
    return torch.rand(shape, generator=seeded(seed))


def noise_image(height, width, seed=0) -> Tensor:
    """(1, 3, height, width) of uniform noise in [0, 1]."""
    return noise(1, 3, height, width, seed=seed)


def save_crops(width, height, *paths):
    """Save parts of an exemplar that lie side by side."""
    with Image.open(TEXTURES / "pebbles.png") as picture:
        for i, path in enumerate(paths):
            picture.crop((i * width, 0, (i + 1) * width, height)).save(path)


def refusal(function, *arguments) -> str:
    """The one line of the UserError that a function raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def level_of(exemplars, size, *, factor=1.0, kind=STOCHASTIC, group=SINGLE_PROCESS, **canvas):
    """A level of a painting without stretch; exemplars, or an image (1, 3, h, w)."""
    if isinstance(exemplars, Tensor):
        exemplars = exemplar_of(exemplars)
    exemplars = exemplars if isinstance(exemplars, tuple) else (exemplars,)
    draws = generators(torch.device("cpu"), 0)
    job = PaintingJob(exemplars, Canvas(size, **canvas), kind, draws, group=group)
    return Level(job, factor, size)


class TinyExtractor(nn.Module):
    """Two seeded convolutions in place of VGG; the interface of `models.Extractor`, never tiled
    and always float32."""

    layers = ["relu1_1", "relu2_1"]

    def __init__(self, padding: str = "reflect") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding)
        self.second = nn.Conv2d(8, 16, 3, padding=1, padding_mode=padding)
        self.requires_grad_(False)

    def forward(
        self, image: Tensor, wrap: str = "", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        image = image.expand(-1, 3, -1, -1)
        relu1_1 = self.first(image).relu()
        relu2_1 = self.second(nn.functional.avg_pool2d(relu1_1, 2)).relu()
        return {"image": image, "relu1_1": relu1_1, "relu2_1": relu2_1}


def known(
    features, *, variants=(), others=(), shares=(), guide=None, regions=None, wrap="",
    seed=0, max_patches=MAX_PATCHES, group=SINGLE_PROCESS,
):  # fmt: skip
    """The scene that terms are built from, in few words.

    Args:
        features: of the first exemplar as it is, and `variants` those of its copies.
        others: features of more exemplars, and `shares` those of all.
        guide, regions: (maps of every view in order, map of the output).
    """
    pictures = [[features, *variants], *([other] for other in others)]
    guides, wanted = guide or ((), None)
    divided, asked = regions or ((), None)
    maps = zip_longest(guides, divided)
    exemplars = tuple(
        Exemplar(tuple(View(picture, *next(maps, ())) for picture in views), share)
        for views, share in zip(pictures, shares or [1.0] * len(pictures), strict=True)
    )
    size = next((tuple(x.shape[2:]) for x in (wanted, asked) if x is not None), (1, 1))
    canvas = Canvas(size, wrap, guide=wanted, regions=asked)
    return TermInputs(exemplars, canvas, Options(seed, max_patches, group))


def built(kind, features, layers, **told):
    """A term of what `known` takes."""
    return kind(known(features, **told), equal_weights(layers))


def regional(kind, features, layers, **told):
    """The same term of every region."""
    return PerRegion(kind, known(features, **told), equal_weights(layers))


def criterion_of(
    features,
    layers,
    method="gram",
    weights=None,
    match_every=MATCH_EVERY,
    layer_weights=None,
    **told,
) -> Criterion:
    """A criterion of what `known` takes."""
    inputs = known(features, **told)
    return Criterion(
        inputs, equal_weights(layers) | (layer_weights or {}), method, weights, match_every
    )


def made(spec, net, state=None, report=None):
    """The result of a synthesis; each frame is reported."""
    for frame in frames(spec, net, state):
        if report:
            report(frame)
    return frame.made


def synthesized(exemplar, trunk, *, size=None, report=None, canvas=None, **spec) -> Tensor:
    """The result of a synthesis from one exemplar (1, 3, H, W); `canvas` has fields of that."""
    size = size or tuple(exemplar.shape[2:])
    spec = Spec((exemplar_of(exemplar),), Canvas(size, **canvas or {}), **spec)
    return made(spec, trunk, report=report).image


def optimize(image, extract, criterion, steps, optimizer="Adam", report=None, rough=None, **more):
    """The result of `minimize`, of functions too, which cannot be rematched; each step is reported
    as (number, best picture, its loss)."""
    if not hasattr(criterion, "match_every"):
        criterion.match_every = None
    run = minimize(
        image, Objective(extract, criterion, rough=rough), Settings(steps, optimizer, **more)
    )
    while True:
        try:
            step = next(run)
        except StopIteration as end:
            return end.value[0]
        if report:
            report(step)


@dataclass(frozen=True)
class Threads(ProcessGroup):
    """Threads in place of processes."""

    def all_reduce(self, tensors):
        barrier, given = self.handle
        given[self.rank] = tensors
        barrier.wait()
        sums = [sum(parts) for parts in zip(*given, strict=True)]
        barrier.wait()
        for x, total in zip(tensors, sums, strict=True):
            x.copy_(total)

    def exchange(self, up, down, ring):
        barrier, given = self.handle
        given[self.rank] = up, down
        barrier.wait()
        above = given[self.rank - 1][1].clone() if ring or self.rank else up[:, :, :0]
        after = (self.rank + 1) % self.size
        below = given[after][0].clone() if ring or after else up[:, :, :0]
        barrier.wait()
        return above, below


def in_threads(count, work):
    """What comes of `work(group)` for each of a group of so many."""
    group = threading.Barrier(count), [None] * count
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Threads(rank, count, group) for rank in range(count)]))


def plan(request):
    """All jobs of a request at once, and the notes for the user."""
    items, notes = work_items(request)
    found = [job_of(request, item) for item in items]
    return [job for job, _ in found], notes + [note for _, more in found for note in more]


@pytest.fixture
def tiny():
    return TinyExtractor()


@pytest.fixture
def every_patch(monkeypatch):
    """Guided correspondence of all patches, where it otherwise draws a sixteenth of them."""
    monkeypatch.setattr(Guided, "stride", 1)


@pytest.fixture
def checkerboard():
    """(1, 3, 16, 16): squares of 4 px, one colour 0.2 0.4 0.6, the other 0.8 0.6 0.4."""
    squares = torch.arange(16).div(4, rounding_mode="floor")
    odd = ((squares[:, None] + squares[None, :]) % 2).float()
    dark, light = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.8, 0.6, 0.4])
    return (dark.view(1, 3, 1, 1) * (1 - odd) + light.view(1, 3, 1, 1) * odd).contiguous()


@pytest.fixture
def brief_painting(monkeypatch):
    """One layout and two rounds, where no picture's quality decides."""
    monkeypatch.setattr(layouts, "LAYOUTS", 1)
    monkeypatch.setattr(painting, "rounds_at", lambda side: 2)


@pytest.fixture
def narrow_weights(monkeypatch):
    """In the command the bundled net with a few random filters a layer, for tests of the program
    that no picture's quality decides: as many layers, and next to no time."""
    generator, weights, channels = torch.Generator().manual_seed(0), {}, 3
    for index in layer_table(NETS["vgg16-caffe"]).values():
        if index is not None:
            shape = WIDTH, channels, 3, 3
            weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator)
            weights[f"features.{index}.bias"] = torch.zeros(WIDTH)
            channels = WIDTH
    found = LoadedWeights(weights, "vgg16-caffe")
    monkeypatch.setattr("command.run.load_weights", lambda *_, **__: found)


@pytest.fixture
def narrow_net(narrow_weights, brief_painting, monkeypatch):
    """The same, with painting in one round that tries the places of direct neighbours only."""
    monkeypatch.setattr(painting, "rounds_at", lambda side: 1)
    monkeypatch.setattr(patchmatch, "STRIDES", (1,))
