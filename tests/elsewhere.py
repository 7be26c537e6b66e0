"""A device that this machine does not have, for tests: it computes as the CPU does, and is as strict as a GPU.

Tensors of two devices do not meet, what is drawn there is not drawn by a generator of the CPU, and whatever makes the
host wait for the device is written down. PyTorch keeps a name for devices of others, `privateuseone`; it has to be
told of one before it first goes backward, hence the process of its own. torch.compile and torch.export do not work
there.
"""

import multiprocessing
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "elsewhere"
SOURCE = str(Path(__file__).parent.parent / "src" / "evenlens")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
NUMBERS = {aten._local_scalar_dense.default, aten.equal.default}  # their result is the host's
SIZED_BY_VALUES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip


class Elsewhere(torch.Tensor):
    """A tensor of the device; what it holds lies on the CPU."""

    @staticmethod
    def __new__(cls, held):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=f"{NAME}:0", **shape)

    def __init__(self, held):
        self.held = held

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, values):
        return torch.tensor(values, dtype=self.dtype).to(self.device)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def there(value):
    return isinstance(value, Elsewhere)


def check(func, args, kwargs, tensors, goes_there):
    """Refuse what a GPU would refuse."""
    far = [tensor for tensor in tensors if there(tensor)]
    if kwargs.get("generator") is not None and (far or goes_there):
        raise RuntimeError(f"{func} draws on one device by a generator of another")
    if not far or func in (aten._to_copy.default, aten.copy_.default):
        return
    near = [tensor for tensor in tensors if not there(tensor) and tensor.dim()]
    if func in INDEXED and there(args[0]):
        near = [tensor for tensor in near if not any(tensor is index for index in args[1])]
    changes_host = func._schema.is_mutable and isinstance(args[0], torch.Tensor) and not there(args[0])
    if near or changes_host:
        raise RuntimeError(f"{func} has tensors of two devices")


def waits(func, args, kwargs, tensors, wanted):
    """Say whether the host waits for the device."""
    patient = not kwargs.get("non_blocking")
    if func is aten._to_copy.default:
        return wanted is not None and there(args[0]) != (wanted == NAME) and (patient or there(args[0]))
    if func is aten.copy_.default:
        return there(args[0]) != there(args[1]) and (there(args[1]) or (patient and not any(args[2:])))
    if not any(there(tensor) for tensor in tensors):
        return False
    if func in INDEXED:
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) or not there(index) for index in indices)
    return func in SIZED_BY_VALUES | NUMBERS


def compute(func, args, kwargs, waited=None):
    """Do on the CPU what is asked of the device, or of both."""
    tensors = [value for value in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(value, torch.Tensor)]
    wanted = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    check(func, args, kwargs, tensors, wanted == NAME)
    if waited and waits(func, args, kwargs, tensors, wanted):
        waited(func)
    is_far = there(args[0]) if func is aten.copy_.default else any(there(tensor) for tensor in tensors)
    stays = wanted == NAME or (is_far and wanted is None and func not in NUMBERS)
    plain_args, plain = pytree.tree_map_only(Elsewhere, lambda value: value.held, (args, dict(kwargs)))
    if wanted == NAME:
        plain["device"] = "cpu"
    found = func(*plain_args, **plain)
    if not stays:
        return found
    found = pytree.tree_map_only(torch.Tensor, Elsewhere, found)
    return return_and_correct_aliasing(func, args, kwargs, found)


class Watched(TorchDispatchMode):
    """Sees all that is computed; `waits` are the places in evenlens' source where the host waited."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, self._waited)

    def _waited(self, func):
        frame, place = sys._getframe(), ""
        while frame and not place:
            if frame.f_code.co_filename.startswith(SOURCE):
                place = f"{frame.f_code.co_filename[len(SOURCE) + 1 :]}:{frame.f_lineno}"
            frame = frame.f_back
        self.waits.append(f"{place} {func}")


class Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device):
        return torch.get_rng_state()

    def set_rng_state(self, state, device):
        pass


LIBRARY = []


def begin():
    """Make this process know the device; it has not imported evenlens yet."""
    # In inference mode a tensor like ours cannot be a view.
    torch.inference_mode = lambda on=True: torch.no_grad() if on else torch.enable_grad()
    made = torch.tensor  # which does not ask us
    torch.tensor = lambda *given, device=None, **how: made(*given, **how).to(device)
    from tests import pair

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    LIBRARY.append(torch.library.Library("_", "IMPL", "AutocastPrivateUse1"))
    LIBRARY[0].fallback(torch.library.fallthrough_kernel)
    pair.know_tiny()


@contextmanager
def present():
    """Give the device and the places where it is waited for, in a process that `begin` was called in."""
    with Watched() as watched:
        yield torch.device(NAME, 0), watched.waits


def start():
    """Start a process that knows the device; what is submitted is called there."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin)
