#!/usr/bin/env python3
"""Neural texture synthesis: a picture of a texture -> new texture of any size."""

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import costs
import maps
from arguments import parse
from controls import NONE, Controls, colours, cut
from jobs import Job, layers_of, plan, scales_of
from losses import Criterion
from models import DEFAULT_NET, Extractor, Weights, least_side, load_weights, resolve_layers
from optimizers import LEARNING_RATES, optimize
from scores import LEAST_SIDE, as_json, as_table, score
from terms import GRAM_LAYERS, MATCH_EVERY, MAX_PATCHES, Content, Features, Gram, Settings
from utils import (
    UserError,
    find_picture,
    pick_device,
    read_picture,
    resize,
    save_picture,
    split_steps,
    turned_and_resized,
)

VERSION = "0.1.0"
DETAIL = 0.7  # of the standard deviation that the exemplar's detail has
NOT_RECORDED = {"gt_path", "save_path", "save_every", "quiet", "score", "json", "model", "weights"}


class Progress(NamedTuple):
    """Where a synthesis stands after a step."""

    step: int  # 1 ... steps, over all scales
    scale: int  # 1 ... scales
    scales: int
    fraction: float  # of the work that is done, 0 ... 1; a fine step is more work than a coarse one
    image: Tensor  # the best so far, (1, 3 or 1, H, W) in [0, 1]
    loss: float


def synthesize(
    exemplar: Tensor,
    extractor: Extractor,
    *,
    size: tuple[int, int] | None = None,
    method: str = "gram",
    layers: list[str] | None = None,
    weights: dict[str, float] | None = None,
    match_every: int = MATCH_EVERY,
    patch_rotations: Iterable[float] = (),
    patch_scales: Iterable[float] = (),
    max_patches: int = MAX_PATCHES,
    controls: Controls = NONE,
    optimizer: str = "Adam",
    steps: int = 1000,
    lr: float | None = None,
    scales: int | None = None,
    seed: int = 0,
    report: Callable[[Progress], None] | None = None,
) -> Tensor:
    """New texture like the exemplar, from white noise, coarse to fine.

    The first scale starts from noise with the exemplar's mean and covariance of colours, every
    other one from the result of the scale before (Snelgrove 2017, Gonthier et al. 2022). We depart
    from them in that noise is added of what the exemplar gains in detail: from a smooth start, fine
    structure grows along the net's pooling grid, and the grid is left to be seen.

    Args:
        exemplar: (1, 3, H, W) in [0, 1], on the extractor's device.
        extractor: picture -> features, of the layers below and any that terms shall look at.
        size: (height, width) of the output; None means the exemplar's.
        method: texture model, a name in `losses.METHODS`.
        layers: that the model looks at; None means all that the extractor has.
        weights: of the terms beside it, by their names in `terms.TERMS`; None means the method's
            own, without any that depends on the exemplar.
        match_every: steps for which the model holds what it has matched.
        patch_rotations, patch_scales: degrees and factors, for models that take patches also from
            the exemplar turned and resized.
        max_patches: of a layer, for models that sample.
        controls: borders, start, mask and content. Sides along which the output tiles are
            optimised as multiples of the net's stride.
        optimizer: a name in `optimizers.OPTIMIZERS`.
        steps: evaluations of loss and gradient, over all scales.
        lr: step size; None means the optimiser's own.
        scales: how many; None lets the exemplar's size decide.
        seed: the same on one machine's CPU gives the same picture.
        report: called after every step.

    Returns:
        (1, 3, height, width) in [0, 1].

    Raises:
        UserError: exemplar or size too small for the layers or the scales.
    """
    size = size or tuple(exemplar.shape[-2:])
    tile = controls.tile
    sizes = scales_of(tuple(exemplar.shape[-2:]), size, scales, extractor.layers, tile)
    shares = split_steps(steps, len(sizes))
    settings = controls.settings(Settings(seed, match_every, max_patches))
    generator = torch.Generator().manual_seed(seed)
    image = _noise_like(exemplar, sizes[0][1], generator).clamp(0, 1)
    if not all(is_grey(mixed) for mixed, _ in controls.mixed):
        image = image.expand(-1, 3, -1, -1)
    for scale, (source_size, output_size) in enumerate(sizes):
        picture = resize(exemplar, source_size)
        with torch.no_grad():
            others = turned_and_resized(picture, patch_rotations, patch_scales)
            pools = [0] * (1 + len(others)) + list(range(1, 1 + len(controls.mixed)))
            others += controls.mixed_at(source_size[0] / exemplar.shape[2])
            features = tuple(map(extractor, others))
            settings = settings._replace(variants=features, pools=tuple(pools))
            # The source's features have no name, so that those that nobody keeps are free again.
            criterion = Criterion(
                extractor(picture), layers or extractor.layers, method, weights, settings
            )
            if controls.content is not None:
                layout = resize(controls.content, output_size, tile)
                term = Content(extractor(layout), controls.content_layers)
                criterion.add(controls.content_weight, term)
        on_step = partial(_tell, report, sizes, shares, scale) if report else None
        image = resize(image, output_size, tile)
        if scale > 0:
            gained = picture - resize(resize(exemplar, sizes[scale - 1][0]), source_size)
            image = (image + DETAIL * _noise_like(gained, output_size, generator)).clamp(0, 1)
        image = controls.start(image, first=scale == 0)
        extract = partial(_extract, extractor, tile, controls.free_at(output_size))
        image = optimize(image, extract, criterion, shares[scale], optimizer, lr, on_step)
    return finished(image, size, controls)


def finished(image: Tensor, size: tuple[int, int], controls: Controls) -> Tensor:
    """What the optimiser has, (1, 3 or 1, h, w), as it is saved: (1, 3, height, width)."""
    image = controls.finish(resize(image, size, controls.tile).expand(-1, 3, -1, -1))
    return image if controls.placed else cut(image, controls.tile)


def _extract(extractor: Extractor, tile: str, free: Tensor | None, image: Tensor) -> Features:
    if free is not None:
        image = torch.where(free, image, image.detach())  # no gradient, so that it never moves
    return extractor(image, tile)


def _tell(
    report: Callable[[Progress], None],
    sizes: list[tuple[tuple[int, int], tuple[int, int]]],
    shares: list[int],
    scale: int,
    step: int,
    image: Tensor,
    loss: float,
) -> None:
    work = [share * math.prod(size) for share, (_, size) in zip(shares, sizes, strict=True)]
    done = sum(work[:scale]) + step * math.prod(sizes[scale][1])
    step += sum(shares[:scale])
    report(Progress(step, scale + 1, len(sizes), done / sum(work), image, loss))


def is_grey(picture: Tensor) -> bool:
    """Whether the channels of (1, 3, H, W) are equal."""
    return torch.equal(picture, picture[:, :1].expand_as(picture))


def _noise_like(picture: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Gaussian white noise with the picture's mean colour and colour covariance.

    A picture whose channels are equal gives one of one channel, so that what is grey stays grey.
    Drawn on the CPU, where a seed means the same on every machine.
    """
    pixels = picture[0].flatten(1).cpu()  # (3, H W)
    if is_grey(picture):
        pixels = pixels[:1]
    mean, root = (x.float() for x in colours(pixels))
    image = mean + root @ torch.randn(len(pixels), math.prod(size), generator=generator)
    return image.view(1, len(pixels), *size).to(picture.device)


# ---------------------------------------------------------------------------------------- main


class Display:
    """Shows progress on stderr, saves snapshots, and keeps the picture as it stands."""

    def __init__(self, args: argparse.Namespace, job: Job, record: dict[str, object]) -> None:
        self.args, self.job, self.record = args, job, record
        self.last: Progress | None = None
        self.lines = not args.quiet and not sys.stderr.isatty()
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            disable=args.quiet or self.lines,
            leave=False,
        )

    def __call__(self, progress: Progress) -> None:
        height, width = progress.image.shape[-2:]
        if self.last is None or self.last.scale != progress.scale:
            told = f"scale {progress.scale}/{progress.scales} {width}x{height}"
            self.bar.set_description(told, refresh=False)
            if self.lines:
                print(f"{self.job.name}: {told} from step {progress.step}", file=sys.stderr)
        self.last = progress
        told = f"step {progress.step}/{self.args.epoch}, error {progress.loss:.2g}"
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(progress.fraction - self.bar.n)
        if self.args.save_every and progress.step % self.args.save_every == 0:
            path = self.job.save_path
            path = path.with_stem(f"{path.stem}_{progress.step:06d}")
            save_picture(self.picture(), path, self.record | {"step": progress.step})

    def picture(self) -> Tensor:
        """(1, 3, height, width) of the job's size: the best so far."""
        image = self.last.image
        return finished(image, self.job.size, self.job.controls.to(image.device))


@torch.no_grad()
def saved_error(path: Path, exemplar: Tensor, weights: Weights, net: str) -> float:
    """Relative Gram error of a saved file: what clamping, 8 bits and compression cost is in it.

    Always of `GRAM_LAYERS`, as many of them as the sizes allow, in the net as it comes, so that
    pictures made with different settings compare.
    """
    saved = read_picture(path)[0].to(exemplar.device)
    least = min(*saved.shape[-2:], *exemplar.shape[-2:])
    layers = [layer for layer in resolve_layers(GRAM_LAYERS, net) if least_side([layer]) <= least]
    extractor = Extractor(weights, net, layers).to(exemplar.device)
    return Gram(extractor(exemplar), layers)(extractor(saved)).item()


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """A second Ctrl-C, or one at the very end, must not cost the picture.

    Ctrl-C interrupts the main thread only, and only that thread may say what it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def make(job: Job, args: argparse.Namespace, weights: Weights, net: str) -> None:
    """One exemplar -> one saved picture, and the line on stdout that says so.

    Raises:
        KeyboardInterrupt: again, once the picture as it stands is saved.
    """
    started = time.perf_counter()
    exemplar = job.exemplar.to(args.device)
    layers, every = layers_of(args, net)
    extractor = Extractor(weights, net, every, args.pool).to(args.device)
    if args.rescale:
        extractor.rescale(exemplar)
    record = {"version": VERSION, "exemplar": job.exemplar_name}
    record |= {name: value for name, value in vars(args).items() if name not in NOT_RECORDED}
    record |= job.weights
    if args.style_image:
        record |= {
            "content": job.name,
            "content_layers": job.controls.content_layers,
            "content_weight": job.controls.content_weight,
        }
    record |= {
        "size": f"{job.size[1]}x{job.size[0]}",
        "net": f"{net} from {args.weights.name}" if args.weights else net,
        "layers": layers,
        "lr": args.lr or LEARNING_RATES[args.optimizer],
    }
    display = Display(args, job, record)
    interrupted = None
    try:
        image = synthesize(
            exemplar,
            extractor,
            size=job.size,
            method=args.method,
            layers=layers,
            weights=job.weights,
            match_every=args.match_every or MATCH_EVERY,
            patch_rotations=job.rotations,
            patch_scales=args.patch_scales,
            max_patches=args.max_patches or MAX_PATCHES,
            controls=job.controls.to(args.device),
            optimizer=args.optimizer,
            steps=args.epoch,
            lr=args.lr,
            scales=args.scales,
            seed=args.seed,
            report=display,
        )
    except KeyboardInterrupt as interrupt:
        if display.last is None:
            raise
        interrupted = interrupt
        image = display.picture()
        record["interrupted at step"] = display.last.step
    finally:
        display.bar.close()
    with ctrl_c_ignored():
        save_picture(image, job.save_path, record)
        record["error"] = round(saved_error(job.save_path, exemplar, weights, net), 6)
        save_picture(image, job.save_path, record)
        if args.tile:
            down, across = (2 if axis in args.tile else 1 for axis in "yx")
            save_picture(image.repeat(1, 1, down, across), job.tiled_path, record)
        carry_maps(job, args, weights, net, image.to(args.device))
    seconds = time.perf_counter() - started
    print(
        f"{job.save_path}  {record['size']}  {seconds:.1f} s  Gram error {record['error']:.6f}  "
        f"{record['net']}",
        flush=True,
    )
    if interrupted:
        raise interrupted


@torch.no_grad()
def carry_maps(
    job: Job, args: argparse.Namespace, weights: Weights, net: str, image: Tensor
) -> None:
    """Save the exemplar's other maps as they go with the picture, each place from the exemplar as
    it is or as it was turned and resized, whichever is nearer."""
    if not job.maps:
        return
    extractor = Extractor(weights, net, maps.LAYERS).to(args.device)
    output, variants = extractor(image, args.tile), (job.rotations, args.patch_scales)
    found = [
        maps.correspondence(output, extractor(source.to(args.device)), args.tile)
        for source in (job.exemplar, *turned_and_resized(job.exemplar, *variants))
    ]
    for path, picture, deep in job.maps:
        copies = [x.to(args.device) for x in (picture, *maps.turned(picture, *variants))]
        carried = maps.carried(copies, found, args.tile)
        save_picture(carried, path, {"version": VERSION, "exemplar": job.exemplar_name}, deep)


def print_scores(args: argparse.Namespace) -> None:
    """What `--score` asks for, as a table or as JSON."""
    if len(args.gt_path) > 1:
        raise UserError(f"--score compares with one exemplar, --gt_path has {len(args.gt_path)}")
    paths = [find_picture(args.score), find_picture(args.gt_path[0])]
    pictures = []
    for path in paths:
        picture, notes = read_picture(path)
        height, width = picture.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise UserError(f"{path}: {width}x{height}, scores need sides of {LEAST_SIDE} or more")
        say(notes, args)
        pictures.append(picture)
    scores = score(*pictures)
    print(as_json(scores) if args.json else as_table(scores))


def say(notes: Iterable[str], args: argparse.Namespace) -> None:
    """Print notes on stderr, unless the user wants it quiet."""
    if not args.quiet:
        for note in notes:
            print(note, file=sys.stderr)


def run(args: argparse.Namespace) -> None:
    """The whole program, for parsed arguments."""
    if args.json and not args.score:
        raise UserError("--json is the format of --score PICTURE, which is missing")
    if args.score:
        return print_scores(args)
    args.device, device_note = pick_device(args.device)
    # Spelling is checked before the weights are read; the net may turn out to be another one.
    net = args.model or DEFAULT_NET
    _, layers = layers_of(args, net)
    jobs, picture_notes = plan(args, layers)
    runs = [(job.name, costs.Run.of(job, args, net)) for job in jobs]
    cost_notes = costs.told(runs, args.device)
    weights, net, net_notes = load_weights(args.model, args.weights, layers, not args.quiet)
    say(filter(None, (device_note, *picture_notes, *cost_notes, *net_notes)), args)
    for job in jobs:
        make(job, args, weights, net)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for the user's errors, 130 for Ctrl-C."""
    args = parse(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        return 130
    except (UserError, RuntimeError, MemoryError) as error:
        # A GPU has an error of its own for this; the CPU's is known by its text alone.
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if full or "can't allocate memory" in str(error):
            error = f"out of memory on {args.device}: give a smaller --size"
        elif not isinstance(error, UserError):
            raise
        print(f"Synthesis.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
