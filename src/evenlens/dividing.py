"""One training on several processes: each computes the network for its share of every batch.

All processes draw the same batches and hold the same state. What is divided is what takes the time, a network's way
from images to features: each process takes its rows, and the features of all are put together again. All that follows
(losses over the whole batch, kernels, cell means, multipliers, masks) is computed alike everywhere, so that a method
needs no line for it, and what it sees is the same batch on 1 or N processes.

Four functions make gradients right; each is the other's way back, so that gradients of gradients are right too:
`_Rows` (take my rows) and `_Together` (put all rows together); `_Mine` (the same weights, used by everybody on other
rows) and `_Sum` (add up what everybody has). The statistics of batch norm go over the rows of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from evenlens import engine

_dividing = False  # not while networks are built, traced and timed, which each process does by itself


@contextmanager
def divided() -> Iterator[None]:
    """Divide what `over_processes` computes in here; all processes have to do the same in here, in the same order."""
    global _dividing
    before, _dividing = _dividing, engine.processes() > 1
    try:
        yield
    finally:
        _dividing = before


def over_processes(compute: Callable[[Tensor], Tensor], net: nn.Module, image: Tensor) -> Tensor:
    """Compute something row by row for a batch, each process a share of it, where there are several.

    Args:
        compute: maps images (B, ...) to values (B, ...), row by row but for the statistics of batch norm, with `net`.
        net: what has the weights; nothing else in `compute` learns.
        image: (B, ...), the same on all processes; a batch of fewer rows than processes is not divided.

    Returns:
        compute(image), the same on all processes, to rounding.
    """
    if not _dividing or len(image) < engine.processes():
        return compute(image)
    num, share = len(image), _Rows.apply(image)
    learned = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    with _BatchNorm(num):
        if learned and torch.is_grad_enabled():
            copies = _Mine.apply(*learned.values())
            named = {f"net.{name}": copy for name, copy in zip(learned, copies, strict=True)}
            found = functional_call(_Part(net, compute), named, (share,))
        else:
            found = compute(share)
    return _Together.apply(found, num)


def keep_alike(net: nn.Module) -> None:
    """Give all processes the state of the first one: on a GPU, sums in another order would let them drift apart."""
    if engine.processes() > 1:
        for value in (*net.parameters(), *net.buffers()):
            distributed.broadcast(value.detach(), 0)


class _Part(nn.Module):
    """A computation as a module, so that its network can be lent other weights."""

    def __init__(self, net: nn.Module, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.compute = net, compute

    def forward(self, image: Tensor) -> Tensor:
        return self.compute(image)


def _sizes(num: int) -> list[int]:
    """Give how many of `num` rows each process takes."""
    whole, rest = divmod(num, engine.processes())
    return [whole + (place < rest) for place in range(engine.processes())]


class _Rows(torch.autograd.Function):
    """Take this process's rows of a tensor that all have alike."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        ctx.num = len(whole)
        return whole.split(_sizes(len(whole)))[engine.place()].contiguous(
            memory_format=torch.channels_last if _is_channels_last(whole) else torch.contiguous_format
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Together.apply(gradients[0], ctx.num)


class _Together(torch.autograd.Function):
    """Put the rows of all processes together, in their order."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, num: int) -> Tensor:
        sizes = _sizes(num)
        sent = share.float() if share.dtype == torch.bfloat16 else share  # which not every back end sends
        padded = sent.new_zeros(sizes[0], *sent.shape[1:])
        padded[: len(sent)] = sent
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(share.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Rows.apply(gradients[0]), None


class _Mine(torch.autograd.Function):
    """Take tensors that all processes have alike into a computation on this one's rows: gradients are added up."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        there = [gradient for gradient in gradients if gradient is not None]  # the same on all: so is the computation
        summed = iter(_Sum.apply(*there)) if there else iter(())
        return tuple(None if gradient is None else next(summed) for gradient in gradients)


class _Sum(torch.autograd.Function):
    """Add up what each process has; in one message, as each takes its time."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        kind = torch.promote_types(values[0].dtype, torch.float32)  # no sum is as rough as bfloat16
        flat = torch.cat([value.reshape(-1).to(kind) for value in values])
        distributed.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])
        return tuple(part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Mine.apply(*gradients)


class _BatchNorm(TorchFunctionMode):
    """Let batch norm go over the rows of all processes.

    Args:
        num: rows of all of them.
    """

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num = num

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return self.normalised(*args, **kwargs)
        return func(*args, **kwargs)

    def normalised(
        self,
        value: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Normalise as `torch.nn.functional.batch_norm` does with the whole batch."""
        if not training:
            with torch._C.DisableTorchFunction():
                return functional.batch_norm(value, running_mean, running_var, weight, bias, training, momentum, eps)
        exact = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        over = [axis for axis in range(exact.dim()) if axis != 1]
        count = self.num * exact[0, 0].numel()
        mean = _of_all(exact.sum(over)) / count
        shape = [1, -1] + [1] * (exact.dim() - 2)
        centred = exact - mean.view(shape)
        variance = _of_all((centred * centred).sum(over)) / count
        scale = torch.rsqrt(variance + eps)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
        found = centred * (scale if weight is None else scale * weight).view(shape)
        return (found if bias is None else found + bias.view(shape)).to(value.dtype)


def _of_all(value: Tensor) -> Tensor:
    """Add up what each process has, for each to go on with on its own rows."""
    (summed,) = _Sum.apply(value)
    (mine,) = _Mine.apply(summed)
    return mine


def _is_channels_last(image: Tensor) -> bool:
    return image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last)
