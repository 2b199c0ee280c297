"""Sequential least squares: one forward pass of a pruned network in which its layers are refitted on the way.

Each layer that reads something other than it used to is solved for anew, on what it now reads, so that its result is
again that of the original network. A layer that ends in a residual sum aims at the original *sum* and so makes up for
errors of the shortcut as well. Where only a ReLU follows, a result that should be negative may be any negative number
(Zhang et al., "Accelerating very deep convolutional networks", 2016, section 3.2). No gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hwsearch.compress.fold import Flow
from hwsearch.compress.select import damped
from hwsearch.compress.sparsify import restricted_solve
from hwsearch.compress.statistics import (
    CHUNK_IMAGES,
    Layer,
    gram,
    output_positions,
    sample_positions,
    take_inputs,
    take_outputs,
    watch,
    write_parameters,
)

Join = Callable[[Tensor, Tensor], Tensor | None]

OVERSHOOT = 1.5  # a step of 1 is the solution of a round; one below 2 still lowers the error it majorises


@dataclass(frozen=True, slots=True)
class Goal:
    """What the original network computes where a layer writes.

    Attributes:
        positions: Output positions looked at [images, rows per image].
        target: The layer's own result, or the residual sum it goes into [rows, channels].
        in_sum: Which of the two. Of layers that go into one sum, the one with most weights aims at it.
    """

    positions: Tensor
    target: Tensor
    in_sum: bool

    def of_first(self, images: int) -> Goal:
        """The part of it that belongs to the first `images`."""
        positions = self.positions[:images]
        return Goal(positions, self.target[: positions.numel()], self.in_sum)


def record_goals(module: nn.Module, flow: Flow, images: Tensor, *, rows: int) -> dict[str, Goal]:
    """Layer -> goal, from one pass of the original network over `images`, a few at a time.

    Args:
        module: The original network, batch norm folded.
        flow: Its flow.
        images: [N, ...].
        rows: About how many positions are looked at for a layer.
    """
    positions: dict[str, Tensor] = {}
    targets: dict[str, list[Tensor]] = {}
    in_sum: set[str] = set()
    waiting: dict[int, tuple[str, Layer, Tensor]] = {}
    start = 0

    def take(name: str, layer: Layer, values: Tensor) -> Tensor:
        return take_outputs(layer, values, positions[name][start : start + len(values)])

    def look(name: str, layer: Layer, _: Tensor, output: Tensor) -> None:
        if name not in positions:
            positions[name] = sample_positions(name, len(images), output_positions(layer, output), rows)
        targets.setdefault(name, []).append(take(name, layer, output))
        if name in flow.joined:
            waiting[id(output)] = name, layer, output  # holding the tensor keeps its id unique

    def join(one: Tensor, other: Tensor) -> None:
        found = [entry for tensor in (one, other) if (entry := waiting.pop(id(tensor), None))]
        if found:
            name, layer, _ = max(found, key=lambda entry: entry[1].weight.numel())
            targets[name][-1] = take(name, layer, one + other)
            in_sum.add(name)

    with torch.inference_mode(), watch(module, flow.template.layers, look), Sums(join):
        for chunk in torch.split(images, CHUNK_IMAGES):
            module(chunk)
            waiting.clear()
            start += len(chunk)
    # Popped, so that no more than one layer's rows are held twice.
    return {name: Goal(positions[name], torch.cat(targets.pop(name)), name in in_sum) for name in list(targets)}


def refit(
    module: nn.Module,
    stale: Iterable[str],
    goals: Mapping[str, Goal],
    flow: Flow,
    kept: Mapping[str, Tensor],
    images: Tensor,
    *,
    ridge: float,
    rectify: int,
    sparse: Collection[str] = (),
) -> None:
    """Refit the `stale` layers of a pruned network, in place, in one pass over `images`.

    Args:
        module: Batch norm folded, channels removed.
        stale: Layers to refit; those without a goal are left as they are.
        goals: From the original network, on the same images and perhaps more behind them.
        flow: Of the original network.
        kept: Layer -> output channels that are left, for layers that lost some.
        images: [N, ...].
        ridge: Weight of the pull towards the weights found in `module`, relative to the mean energy of an input.
        rectify: Rounds in which targets below a ReLU's zero give way.
        sparse: Layers whose zero weights stay zero.
    """
    run = _Pass(goals, flow, kept, ridge, rectify, sparse)
    modules = dict(module.named_modules())
    layers = {name: modules[name] for name in stale if name in goals}
    with torch.inference_mode(), _replaced_forward(layers, run.forward), Sums(run.join):
        module(images)


def solve(
    inputs: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    offset: Tensor | float = 0.0,
    ridge: float,
    rectify: int = 0,
    kept: Tensor | None = None,
) -> Tensor:
    """The weight [groups, columns, outputs] whose result on `inputs`, plus `offset`, is nearest to `target`.

    Args:
        inputs: Rows [groups, rows, columns], the last column constant.
        weight: What the solution is pulled towards, same shape as the result.
        target: [groups, rows, outputs].
        offset: Added to the layer's result before it is compared, same shape as `target`.
        ridge: Strength of that pull, relative to the mean energy of a column.
        rectify: Rounds (of majorise-minimise) in which only the positive part of target and result must agree; each
            lowers that error, and steps beyond its own solution do so faster.
        kept: True for the weights that may change, same shape as the result; None for all.
    """
    moments = gram(inputs) / inputs.shape[1]
    known = moments @ weight.double()
    invert = _inverse(damped(moments, ridge), kept)

    def change_for(wanted: Tensor) -> Tensor:
        """What to add to the weight, of whose result X·W only `known` = Xᵀ·X·W / rows is needed."""
        return invert(gram(inputs, wanted) / inputs.shape[1] - known).to(inputs.dtype)

    change = change_for(target - offset)
    for _ in range(rectify):
        result = inputs @ (weight + change) + offset
        nearest = torch.where(target < 0, result.clamp_max(0.0), target)
        change += OVERSHOOT * (change_for(nearest - offset) - change)
    return weight + change


def _inverse(moments: Tensor, kept: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Divides by `moments`; where only some weights may change, by those rows and columns that belong to them."""
    if kept is not None:
        return partial(restricted_solve, moments=moments, kept=kept)
    factor = torch.linalg.cholesky(moments)
    return lambda wanted: torch.cholesky_solve(wanted, factor)


class _Pass:
    """State of one refitting pass: joined layers wait for their sum, the others are solved when their turn comes."""

    def __init__(
        self,
        goals: Mapping[str, Goal],
        flow: Flow,
        kept: Mapping[str, Tensor],
        ridge: float,
        rectify: int,
        sparse: Collection[str],
    ) -> None:
        self._goals, self._flow, self._kept = goals, flow, kept
        self._ridge, self._rectify, self._sparse = ridge, rectify, sparse
        self._waiting: dict[int, tuple[str, Layer, Tensor, Tensor]] = {}

    def forward(self, name: str, layer: Layer, inputs: Tensor) -> Tensor:
        """Stands in for the layer's own `forward`."""
        if not self._goals[name].in_sum:
            self._fit(name, layer, inputs)
            return _apply(layer, inputs)
        shape = _apply(layer, inputs[:1]).shape[1:]
        promise = inputs.new_empty(len(inputs), *shape)  # never read: `join` puts the refitted result in its place
        self._waiting[id(promise)] = name, layer, inputs, promise
        return promise

    def join(self, one: Tensor, other: Tensor) -> Tensor | None:
        """The sum of two activations, after refitting the layer that waits for it; None if there is none."""
        for promise, shortcut in ((one, other), (other, one)):
            if id(promise) in self._waiting:
                name, layer, inputs, _ = self._waiting.pop(id(promise))
                self._fit(name, layer, inputs, shortcut)
                return _apply(layer, inputs).add_(shortcut)
        return None

    def _fit(self, name: str, layer: Layer, inputs: Tensor, shortcut: Tensor | None = None) -> None:
        goal = self._goals[name].of_first(len(inputs))
        target = goal.target[:, self._kept[name]] if name in self._kept else goal.target
        groups = getattr(layer, "groups", 1)
        weight = _matrix(layer, groups)
        found = solve(
            take_inputs(layer, inputs, goal.positions),
            weight,
            _grouped(target, groups),
            offset=0.0 if shortcut is None else _grouped(take_outputs(layer, shortcut, goal.positions), groups),
            ridge=self._ridge,
            rectify=self._rectify if self._is_rectified(name) else 0,
            kept=_free(weight) if name in self._sparse else None,
        )
        flat = found.transpose(1, 2).flatten(0, 1)
        write_parameters(layer, flat[:, :-1].reshape(layer.weight.shape), flat[:, -1])

    def _is_rectified(self, name: str) -> bool:
        """Whether only ReLUs read what is being fitted: the sum if there is one, the layer's own result if not."""
        return name in self._flow.rectified and self._goals[name].in_sum == (name in self._flow.joined)


class Sums(TorchFunctionMode):
    """While active, shows every sum of two tensors of one shape to `join`, which may give the result."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        self._join = join

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in place of every function on tensors."""
        name = getattr(func, "__name__", "")
        if name in ("add", "add_") and not kwargs and len(args) == 2 and _same_shape(*args):
            total = self._join(*args)
            if total is not None:
                return args[0].copy_(total) if name == "add_" else total
        return func(*args, **(kwargs or {}))


def _same_shape(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


@contextmanager
def _replaced_forward(
    layers: Mapping[str, nn.Module], forward: Callable[[str, Layer, Tensor], Tensor]
) -> Iterator[None]:
    for name, layer in layers.items():
        layer.forward = partial(forward, name, layer)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _apply(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer's result by the `forward` of its class, whatever stands in for it on the instance."""
    result: Tensor = type(layer).forward(layer, inputs)
    return result


def _matrix(layer: Layer, groups: int) -> Tensor:
    """Weight and bias as [groups, columns + 1, outputs per group]."""
    assert layer.bias is not None
    flat = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1)
    return flat.reshape(groups, -1, flat.shape[1]).transpose(1, 2)


def _free(weight: Tensor) -> Tensor:
    """True where a sparse weight [groups, columns + 1, outputs] is not zero, and for the bias in the last row."""
    free = weight != 0
    free[:, -1] = True
    return free


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """[rows, channels] as [groups, rows, channels per group]."""
    return rows.reshape(len(rows), groups, -1).movedim(1, 0)
