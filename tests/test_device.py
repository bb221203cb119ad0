"""The program on a device that is not the CPU, without one.

Tensors of a device that computes on the CPU and, as a GPU would, refuses to meet the CPU's. It goes
by the name of "meta", as autograd wants threads of its own for any other device. As on Apple's,
there is no float64.
"""

import shlex

import pytest
import torch
from conftest import fast_first
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import Synthesis
from command.files import TEXTURES
from command.pictures import read_picture
from engine import levels
from engine.objective import Evaluator
from losses import METHODS, TERMS

DEVICE = torch.device("meta")
ACROSS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # copies go across
WIDE = {torch.float64, torch.complex128}  # which Apple's GPUs do not have
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}  # by the CPU's, too
crossings = []  # operations that copied between the devices, or made the CPU wait for the other


class Far(torch.Tensor):
    """A tensor of the device, held by the CPU as `near`."""

    @staticmethod
    def __new__(cls, near):
        return torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=DEVICE
        )

    def __init__(self, near):
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Generator(torch.Generator):
    """The CPU's or the device's. A mode sees another object, and knows whose it is by its seed."""

    FAR = 2**60  # added to seeds

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.far = torch.device(device) == DEVICE
        return made

    @property
    def device(self):
        return DEVICE if self.far else torch.device("cpu")

    def manual_seed(self, seed):
        return super().manual_seed(seed + self.FAR * self.far)


class FarDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    near = [x for x in tensors if not isinstance(x, Far) and x.dim()]  # plain numbers are welcome
    indexed = func in INDEXING and isinstance(args[0], Far)
    if far and near and func not in ACROSS and not indexed:
        raise RuntimeError(f"{func}: tensors on two devices")
    goes_far = isinstance(args[0], Far) if func is torch.ops.aten.copy_.default else bool(far)
    if far and func in WAITS or far and near and func in ACROSS:
        crossings.append(str(func))
    if kwargs.get("device") is not None:
        if (torch.device(kwargs["device"]) == DEVICE) != bool(far) and tensors:
            crossings.append(str(func))
        goes_far = torch.device(kwargs["device"]) == DEVICE
        kwargs = kwargs | {"device": torch.device("cpu")}
    drawn = kwargs.get("generator")
    if drawn is not None and (drawn.initial_seed() >= Generator.FAR) != bool(goes_far):
        raise RuntimeError(f"{func}: a generator of another device")
    result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    if goes_far and any(x.dtype in WIDE for x in tree_leaves(result) if torch.is_tensor(x)):
        raise RuntimeError(f"{func}: float64")
    known = {id(x.near): x for x in far}  # what was changed in place is the same tensor

    def back(x):
        if id(x) in known:
            return known[id(x)]
        return Far(x) if goes_far and isinstance(x, torch.Tensor) else x

    return tree_map(back, result)


def _near(x):
    return x.near if isinstance(x, Far) else x


@pytest.fixture
def far(monkeypatch):
    """`--device` is far, and `torch.tensor(..., device=far)` copies, where a mode does not see."""
    plain = torch.tensor

    def tensor(data, dtype=None, device=None):
        made = plain(data, dtype=dtype)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(levels, "GPU_PIXELS", 0)  # as if pictures were large
    monkeypatch.setattr("command.run.pick_device", lambda *_: (DEVICE, None))
    with FarDevice():
        yield


def test_devices_do_not_meet(far):
    one, other = torch.ones(2, device=DEVICE), torch.ones(2)
    assert (one + one).device == DEVICE and (one.cpu() + other).tolist() == [2, 2]
    assert (one * torch.tensor(3.0)).sum().item() == 6
    one.add_(1)[0].mul_(5)
    assert one.cpu().tolist() == [10, 2] and one[torch.tensor([1])].cpu().tolist() == [2]
    for wrong in (
        lambda: one + other,
        lambda: other[one.long()],
        lambda: torch.cat((one, other)),
        lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
        lambda: one.double(),
    ):
        with pytest.raises(RuntimeError):
            wrong()


WAITING = {  # how often the CPU waits for the device in a step: for the loss, but
    # For its curvature, and what was expected, which is there by then; at this rate no trial is in
    # vain.
    "--optimizer LBFGS --lr 0.5": 3,
    "--size 64 --init {maps} --mask {mask} {every}": 1,
    "--guide {mask} {mask} --histogram 1 --patches 1": 1,
    "--method swd": 1,
    "--method cnnmrf": 1,
    "--method guided --max_patches 9": 1,
    "--tile xy {every}": 1,
}


@pytest.mark.parametrize("command, waits", fast_first([*WAITING.items()], 0))
def test_a_step_copies_nothing_between_the_devices(command, waits, far, tmp_path, monkeypatch):
    """Nor does the CPU wait, but for what it decides by."""
    marks, plain = [], Evaluator.__call__

    def marked(self, *args, **kwargs):
        marks.append(len(crossings))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "__call__", marked)
    run_far(tmp_path, f"--scales 1 --epoch 12 {command}")
    each_step = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    # The first steps find what stays the same; the last ones show a picture that was painted.
    assert each_step[2:5] + each_step[-2:] == [waits] * 5


EVERY_TERM = " ".join(f"--{term} 1" for term in TERMS)
COMMANDS = [
    f"--method gram --optimizer LBFGS --tile xy {EVERY_TERM}",
    "--method cnnmrf --patch_rotations 90 --patch_scales 1.5 --maps {maps} --tile x",
    "--method guided --max_patches 9 --patch_rotations 30 --tile xy --optimizer LBFGS",
    f"--method swd --tile y {EVERY_TERM}",
    "--style_image leaf.jpg --keep_color --pool max",
    "--init {maps} --mask {mask} --size 64 --save_every 1",
    "--expand 72x72 --size 72 --no-rescale",
    *(
        f"--method {method} {control}"
        for method in METHODS
        for control in (
            "--orientation circular",
            "--guide {mask} {mask}",
            "--mix leaf.jpg:0.3",
            "--mix leaf.jpg --guide mix {mask}",
        )
    ),
]


@pytest.mark.parametrize("command", fast_first(COMMANDS))
def test_all_is_computed_on_the_device(command, far, tmp_path, narrow_net):
    saved = run_far(tmp_path, f"--epoch 2 {command}")
    assert read_picture(saved)[0].std() > 0.02


def run_far(tmp_path, command):
    """The picture, 48x48, that comes of a command on the device, with a map and a mask of 64x64."""
    exemplar, mask, saved = (tmp_path / name for name in ("corner.png", "mask.png", "result.png"))
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 64, 64)).save(exemplar)
    saved.unlink(missing_ok=True)
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(mask)
    arguments = (
        f"--gt_path {exemplar} --save_path {saved} --size 48 --model vgg16-caffe --overwrite "
    )
    arguments += command.format(mask=mask, maps=exemplar, every=EVERY_TERM)
    assert Synthesis.main(shlex.split(arguments)) == 0
    return saved
