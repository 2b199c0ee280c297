"""Quantisation-aware training: rounding inside a network that trains, with ranges that are learned as well.

Values are rounded as the backends do it, weights per output channel and activations per tensor; gradients pass straight
through the rounding, and the ends of a range get those of Esser et al., "Learned step size quantization", 2020, and of
Bhalgat et al., "LSQ+", 2020 (equations 3 and 5 there, written for the two ends instead of step and offset). An end is
learned as the logarithm of its ratio to where it began, so that weight decay pulls it back there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.model.template import Template
from hwsearch.types import PRECISIONS, TensorRange

ROUNDED = ("int8", "int4", "int2")
"""Precisions whose rounding is imitated."""

SMALLEST = 1e-12
"""Step of a range that is empty."""


class _Round(torch.autograd.Function):
    """Nearest of the `steps` + 1 values from `low` to `high`, of which one is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, steps: int, damping: float) -> Tensor:
        scale = ((high - low) / steps).clamp_min(SMALLEST)
        zero = torch.round(-low / scale)
        place = x.float() / scale + zero
        level = torch.round(place).clamp_(0, steps)
        ctx.save_for_backward(place, level)
        ctx.steps, ctx.damping, ctx.ends = steps, damping, low.shape
        return ((level - zero) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        place, level = ctx.saved_tensors
        below, above = place < 0, place > ctx.steps
        inside = ~(below | above)
        wide = grad.float()
        moved = wide * inside * (level - place) / ctx.steps
        low = ((wide * below) - moved).sum_to_size(ctx.ends) * ctx.damping
        high = ((wide * above) + moved).sum_to_size(ctx.ends) * ctx.damping
        return grad * inside, low, high, None, None


def _round(x: Tensor, low: Tensor, high: Tensor, steps: int, damping: float) -> Tensor:
    rounded: Tensor = _Round.apply(x, low, high, steps, damping)  # type: ignore[no-untyped-call]
    return rounded


class LearnedRange(nn.Module):
    """Rounds an activation tensor to the levels of a range that is trained."""

    low: Tensor
    high: Tensor

    def __init__(self, start: TensorRange, bits: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([min(start.low, 0.0)]))
        self.register_buffer("high", torch.tensor([max(start.high, 0.0)]))
        self.stretch = nn.Parameter(torch.zeros(2))
        self._steps = 2**bits - 1

    def ends(self) -> tuple[Tensor, Tensor]:
        """Both ends, each a tensor of one number."""
        return self.low * self.stretch[:1].exp(), self.high * self.stretch[1:].exp()

    def interval(self) -> TensorRange:
        """The range as it is now."""
        low, high = self.ends()
        return TensorRange(low=low.item(), high=high.item())

    def forward(self, x: Tensor) -> Tensor:
        """Rounded values [N, ...]."""
        low, high = self.ends()
        return _round(x, low, high, self._steps, _damping(x[:1].numel(), self._steps))


class Quantized(nn.Module):
    """A layer that computes on rounded inputs and weights, or a module whose result is rounded.

    Args:
        inner: The layer, or the norm behind one.
        before, after: Round what it reads and what it returns.
        bits: Of its weight; None to leave that alone.
    """

    bound: Tensor

    def __init__(
        self, inner: Any, *, before: LearnedRange | None, after: LearnedRange | None, bits: int | None
    ) -> None:
        super().__init__()
        self.inner: Any = inner
        self.before, self.after = before, after
        self._levels = None if bits is None else 2 ** (bits - 1) - 1
        if self._levels is not None:
            weight = inner.weight.detach().flatten(1)
            start = torch.minimum(_largest(weight), 2 * weight.abs().mean(1) * self._levels**0.5)
            shape = (-1, *[1] * (inner.weight.dim() - 1))
            self.register_buffer("bound", start.clamp_min(torch.finfo(weight.dtype).tiny).reshape(shape))
            self.stretch = nn.Parameter(torch.zeros_like(self.bound))

    def forward(self, x: Tensor) -> Tensor:
        """What `inner` computes, rounded."""
        x = x if self.before is None else self.before(x)
        if self._levels is None:
            out: Tensor = self.inner(x)
        else:
            out = torch.func.functional_call(self.inner, {"weight": self._weight()}, (x,))
        return out if self.after is None else self.after(out)

    def restored(self) -> Any:
        """`inner` with its weight cut off at the learned ends, which makes them the ends a backend will find."""
        if self._levels is not None:
            bound = self._bound().detach()
            with torch.no_grad():
                self.inner.weight.copy_(self.inner.weight.clamp(-bound, bound))
        return self.inner

    def _bound(self) -> Tensor:
        """Where weights end; never beyond the largest of a channel, since a backend's scale cannot."""
        weight = self.inner.weight
        largest = _largest(weight.detach().flatten(1)).reshape(self.bound.shape)
        return torch.minimum(self.bound * self.stretch.exp(), largest.clamp_min(torch.finfo(weight.dtype).tiny))

    def _weight(self) -> Tensor:
        assert self._levels is not None
        weight, bound = self.inner.weight, self._bound()
        damping = _damping(weight[0].numel(), 2 * self._levels)
        return _round(weight, -bound, bound, 2 * self._levels, damping)


def insert(
    module: nn.Module, template: Template, precision: Mapping[str, str], ranges: Mapping[str, TensorRange]
) -> dict[str, LearnedRange]:
    """Put rounding into a network, in place; tensor name -> its learned range.

    Args:
        module: As `materialize` makes it.
        template: Of the network without its dropped branches.
        precision: Layer -> precision.
        ranges: Tensor that the backend quantises -> range to start from. Those that are neither read by a layer nor
            its result, such as a sum that is only pooled, are left alone.
    """
    integer = [name for name in template.layers if precision[name] in ROUNDED]
    reads = {name: template.node(name).input[0] for name in template.layers}
    bits: dict[str, int] = {}
    for name in integer:
        bits[reads[name]] = max(bits.get(reads[name], 0), PRECISIONS[precision[name]].act_bits)
    found = {tensor: LearnedRange(interval, bits.get(tensor, 8)) for tensor, interval in ranges.items()}
    before = {name: reads[name] for name in integer if reads[name] in found}
    after = {
        template.folded.get(name, name): result
        for name in template.layers
        if (result := template.result(name)) in found and result not in reads.values()
    }
    for name in [*integer, *(name for name in after if name not in integer)]:
        wrapped = Quantized(
            module.get_submodule(name),
            before=found[before[name]] if name in before else None,
            after=found[after[name]] if name in after else None,
            bits=PRECISIONS[precision[name]].weight_bits if name in integer else None,
        )
        module.set_submodule(name, wrapped)
    return {tensor: found[tensor] for tensor in {*before.values(), *after.values()}}


def remove(module: nn.Module) -> None:
    """Take the rounding out again, in place; weights end where training left their ranges."""
    for name, inner in list(module.named_modules()):
        if isinstance(inner, Quantized):
            module.set_submodule(name, inner.restored())


def _largest(weight: Tensor) -> Tensor:
    return weight.abs().amax(1)


def _damping(values: int, steps: int) -> float:
    """Scale of a range's gradient, which makes its steps about as large as those of weights (Esser, section 2.2)."""
    return float((values * steps) ** -0.5)
