"""CUDA graphs without a GPU: what is captured is noted, and done again in the same memory."""

import contextlib

import pytest
import torch
from conftest import criterion_of, fast_first, optimize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import graphs, optimizers
from engine.graphs import graphed


class Graph:
    """What was done between its beginning and its end."""

    def __init__(self):
        self.done = []

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, results in self.done:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Capture(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        self.graph.done.append((function, args, kwargs or {}, results))
        return results


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def captures(monkeypatch):
    """The CPU has graphs; returns those that were captured."""
    made = []

    def capture(graph):
        made.append(graph)
        return Capture(graph)

    monkeypatch.setattr(graphs, "CUDA", "cpu")
    for name, fake in {
        "device": lambda device: contextlib.nullcontext(),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def pictures(count, side=8):
    return torch.rand(count, 1, 3, side, side, generator=torch.Generator().manual_seed(3))


def sums(image):
    return image.sum((1, 2, 3)), 2 * image


def test_a_graph_measures_other_pictures(captures):
    first, *others = pictures(4)
    measure = graphed(sums, first)
    assert measure is not sums and len(captures) == 1
    found = [measure(image) for image in others]  # all of them before any is looked at
    for (total, double), image in zip(found, others, strict=True):
        assert torch.equal(total, image.sum((1, 2, 3))) and torch.equal(double, 2 * image)


def test_what_the_cpu_decides_is_no_graph(captures):
    def decides(image):
        return (image * image.mean().item(),)

    def fails(image):
        raise RuntimeError("operation not permitted when stream is capturing")

    for measure in (decides, fails):
        assert graphed(measure, pictures(1)[0]) is measure


def test_only_small_pictures_of_a_gpu_are_a_graph(captures, monkeypatch):
    small, large = torch.zeros(1, 3, 512, 512), torch.zeros(1, 3, 512, 513)
    assert graphed(sums, large) is sums and not captures
    assert graphed(sums, torch.zeros(2, 3, 512, 512)) is sums
    assert graphed(sums, small) is not sums
    monkeypatch.setattr(graphs, "CUDA", "cuda")
    assert graphed(sums, small) is sums


@pytest.mark.parametrize("optimizer", fast_first([*optimizers.OPTIMIZERS]))
def test_an_optimiser_by_graphs_makes_the_same_picture(
    optimizer, tiny, checkerboard, captures, monkeypatch
):
    # Without the histogram, as NumPy sorts here.
    criterion = criterion_of(tiny(checkerboard), tiny.layers, weights={})
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    looked = {"tiny": 0, "rough": 0}

    def looking(name):
        def extractor(image):
            looked[name] += 1
            return tiny(image)

        return extractor

    def found():
        args = start, looking("tiny"), criterion, 40, optimizer
        return optimize(*args, rough=looking("rough"), exact_steps=10)

    by_graphs = found()
    # Once for each way of looking, and never in a step.
    assert len(captures) == 2
    assert looked == {"tiny": graphs.WARM_UP + 1, "rough": graphs.WARM_UP + 1}
    monkeypatch.setattr(graphs, "CUDA", "cuda")
    torch.testing.assert_close(by_graphs, found(), atol=1e-5, rtol=0)
    assert sum(looked.values()) == 2 * (graphs.WARM_UP + 1) + 40


def test_what_is_rematched_is_no_graph(tiny, checkerboard, captures):
    criterion = criterion_of(tiny(checkerboard), tiny.layers, "swd", match_every=3)
    optimize(checkerboard, tiny, criterion, 5)
    assert not captures
