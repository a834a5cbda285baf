"""A process of its own: ``benchmarks/gpu.py`` on a GPU that is not there.

Tensors of that GPU have a shape, a dtype and a device, but no values; tensors of the host are real. So whoever mixes
tensors of both fails as on a GPU, autocast follows CUDA's rules, torch's attention kernel checks what it is given, and
whoever asks for a value is told of as one who waits. A value that is asked for is 1.

Usage: LD_PRELOAD=LIBRARY python pretended_gpu.py [options of gpu.py], the library made from ``pretended_gpu.cpp``.
"""

import sys
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _device
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
NOT_TOLD = (str(Path(torch.__file__).parent), __file__)
real_tensor, real_to, RealGenerator = torch.tensor, torch.nn.Module.to, torch.Generator


class PretendedGpu(TorchDispatchMode):
    """Lets operations on tensors of the GPU find out shapes alone."""

    def __init__(self):
        super().__init__()
        self.shapes = FakeTensorMode()
        self.tells_of_waits = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, structure = pytree.tree_flatten((args, kwargs or {}))
        if not any(map(on_the_gpu, given)):
            return func(*args, **(kwargs or {}))
        if func is aten._local_scalar_dense.default:
            self.wait()
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten.equal.default:
            self.wait()
            return True
        if func is aten._to_copy.default and torch.device(kwargs.get("device", "cuda")).type == "cpu":
            self.wait()
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        without_values = [self.shapes.from_tensor(x) if is_real(x) else x for x in given]
        args, kwargs = pytree.tree_unflatten(without_values, structure)
        with self.shapes:
            result = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                tensor.constant = None  # torch would compute with it
        return result

    def wait(self):
        """Warn as torch does, with the place of the one who waits."""
        frames = (frame for frame, _ in traceback.walk_stack(None))
        place = next(frame for frame in frames if not frame.f_code.co_filename.startswith(NOT_TOLD))
        if self.tells_of_waits:
            message = ("called a synchronizing CUDA operation", UserWarning)
            warnings.warn_explicit(*message, place.f_code.co_filename, place.f_lineno)


def on_the_gpu(value):
    return isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")


def is_real(value):
    return isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)


def tensor(data, *, device=None, **given):
    """``torch.tensor``, which would write its values to the GPU by itself."""
    return real_tensor(data, device="cpu", **given).to(device or _device.CURRENT_DEVICE or "cpu")


def move(module, *given, **more):
    """``Module.to``, which would write into the weights that are there; tied ones part, which changes no shape."""
    device = torch._C._nn._parse_to(*given, **more)[0]
    if device is None or device.type != "cuda":
        return real_to(module, *given, **more)
    for part in module.modules():
        for single in (part._parameters, part._buffers):
            for name, values in single.items():
                if not is_real(values):
                    continue
                moved = values.detach().to(device)
                single[name] = (
                    torch.nn.Parameter(moved, values.requires_grad) if single is part._parameters else moved
                )
    return module


class Generator(RealGenerator):
    """On the host, wherever it is asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class Event(SimpleNamespace):
    """Two of them are always a millisecond apart."""

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1.0


def nothing(*given):
    """There is nothing to do on a GPU that is not there."""


def pretend(gpu):
    """Put what the table asks of CUDA in the place of what torch for CPUs has."""
    about = SimpleNamespace(name="pretended", total_memory=2**37, multi_processor_count=132, major=9, minor=0)
    for name, stand_in in {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *given: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_capability": lambda *given: (9, 0),
        "get_device_properties": lambda *given: about,
        "synchronize": nothing,
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "max_memory_allocated": lambda *given: 2**30,
        "is_current_stream_capturing": lambda: False,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "tells_of_waits", mode == "warn"),
        "Event": Event,
    }.items():
        setattr(torch.cuda, name, stand_in)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.tensor, torch.Generator = tensor, Generator
    torch.nn.Module.to = move


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from gpu import main

    device = PretendedGpu()
    pretend(device)
    with device:
        sys.exit(main())
