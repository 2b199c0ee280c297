"""Prune groups: channels that must go together, found by torch-pruning and then checked.

torch-pruning follows autograd's graph and treats what it does not know as elementwise, so its answer is a proposal; the
heads of an attention, which it does not know either, are proposed by `hwsearch.model.attention`. A group is accepted
only if

* its index maps are linear (channel ``c`` is always entries ``offset + c * repeat`` ...);
* the exported graph still fits together, and has the same output, with half of the group's channels;
* permuting the group's channels leaves the network's outputs as they were, which catches every axis that was missed;
* of heads: the module itself runs with half of them, and gives what it gives when the others are not read.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hwsearch.model.attention import Entries, Heads, find_heads
from hwsearch.model.canonical import BATCH_NORMS, LAYER_TYPES
from hwsearch.model.foreign import quiet, root_cause
from hwsearch.model.group_checks import Trial, with_free_order, with_narrow_attention, with_sound_shapes
from hwsearch.model.template import Template
from hwsearch.types import ChannelAxis, PruneGroup

NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

Side = Literal["out", "in"]
Axis = tuple[str, Side]


class _Refusal(Exception):  # noqa: N818  (not an error: a finding)
    """Why a group is not offered."""


def find_groups(
    module: nn.Module, example: Tensor, template: Template
) -> tuple[tuple[PruneGroup, ...], tuple[str, ...]]:
    """Groups that can be pruned, in execution order, and one line for each that cannot.

    The width of the network's output is fixed; that is no refusal and not reported.

    Args:
        module: In eval mode; left as it is.
        example: Input [N, ...].
        template: The template of `module`.
    """
    try:
        with _lenient_reshapes():
            groups, refused = _Proposals(module, example).collect(template.layers, find_heads(template))
    except Exception as error:  # noqa: BLE001  (any failure of the library means only that nothing is offered)
        return (), (f"no channels can be pruned: torch-pruning cannot follow the network ({root_cause(error)})",)
    groups = with_sound_shapes(groups, refused, module, template)
    trial = Trial.of(module, example)
    groups = with_narrow_attention(groups, refused, trial)
    groups = with_free_order(groups, refused, trial)
    return tuple(groups), tuple(f"{layer}: {reason}" for layer, reason in refused.items())


# --------------------------------------------------------------------------- proposals


class _Proposals:
    """torch-pruning's dependency graph of a copy of the network, read one channel at a time."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        import torch_pruning

        network = copy.deepcopy(module).eval().requires_grad_(requires_grad=True)
        self._modules = {name: child for name, child in network.named_modules() if name}
        self._names: dict[Any, str] = {child: name for name, child in self._modules.items()}
        self._parameters = {parameter: name for name, parameter in network.named_parameters()}
        self._graph = torch_pruning.DependencyGraph()
        with quiet(), torch.enable_grad():
            self._graph.build_dependency(network, example[:1], unwrapped_parameters=[], verbose=False)

    def collect(self, layers: Sequence[str], attentions: Sequence[Heads]) -> tuple[list[PruneGroup], dict[str, str]]:
        """Proposed groups, and the reasons for those that are unclear, by first layer."""
        groups: list[PruneGroup] = []
        refused: dict[str, str] = {}
        claimed: dict[Axis, set[int]] = defaultdict(set)
        heads = {min(found.writers, key=layers.index): found for found in attentions}
        for layer in layers:
            if claimed[layer, "out"] or _is_depthwise(self._modules[layer]):
                continue
            try:
                group = _of_heads(layer, heads[layer]) if layer in heads else self._group(layer)
                _claim(group, claimed)
            except _Refusal as reason:
                refused[layer] = str(reason)
            else:
                groups.append(group)
        return groups, refused

    def _group(self, layer: str) -> PruneGroup:
        module = self._modules[layer]
        if not isinstance(module, LAYER_TYPES) or module not in self._graph.module2node:
            raise _Refusal("torch-pruning does not see this layer")
        channels = module.weight.shape[0]
        first, second, last = (self._removing(module, c) for c in (0, min(1, channels - 1), channels - 1))
        if not first.entries.keys() == second.entries.keys() == last.entries.keys():
            raise _Refusal("its channels do not all go the same way")
        axes = tuple(
            axis
            for key, entries in first.entries.items()
            for axis in _linear(key, entries, second.entries[key], last.entries[key], channels)
        )
        if ChannelAxis(module=layer, side="out") not in axes:
            raise _Refusal("its channels are tied to one another")
        for axis in axes:
            if axis.offset + channels * axis.repeat > self._size(axis):
                raise _Refusal(f"its channels reach `{axis.module}` in an order that is not known")
        return PruneGroup(name=layer, channels=channels, kind="stage" if first.crosses_add else "inner", axes=axes)

    def _removing(self, module: nn.Module, channel: int) -> _Removal:
        """What goes when one output channel of `module` goes."""
        found: dict[Axis, set[int]] = defaultdict(set)
        crosses_add = False
        for item in self._tied(module, channel):
            target, handler = item.dep.target.module, item.dep.handler
            if target in self._parameters:
                raise _Refusal(f"parameter `{self._parameters[target]}` holds its channels")
            crosses_add |= target not in self._names and _is_sum(item.dep.target)
            if target not in self._names or (isinstance(target, nn.PReLU) and target.num_parameters == 1):
                continue
            side: Side = "out" if self._graph.is_out_channel_pruning_fn(handler) else "in"
            self._check(target, side)
            found[self._names[target], side].update(item.idxs)
        return _Removal({axis: sorted(entries) for axis, entries in found.items()}, crosses_add)

    def _tied(self, module: nn.Module, channel: int) -> Sequence[Any]:
        pruner = self._graph.get_pruner_of_module(module)
        try:
            tied: Sequence[Any] = list(self._graph.get_pruning_group(module, pruner.prune_out_channels, [channel]))
        except IndexError:  # the library lost count, as it does behind a channel shuffle
            raise _Refusal("its channels pass a shuffle or another reshape that cannot be followed") from None
        return tied

    def _check(self, target: nn.Module, side: str) -> None:
        name = self._names[target]
        if not isinstance(target, (*LAYER_TYPES, *NORMS, nn.PReLU)):
            raise _Refusal(f"`{name}` ({type(target).__name__}) cannot be pruned")
        if getattr(target, "groups", 1) > 1 and not _is_depthwise(target):
            raise _Refusal(f"`{name}` is a grouped convolution")
        if side == "in" and not isinstance(target, LAYER_TYPES):
            raise _Refusal(f"`{name}` reads its channels in a way that is not known")

    def _size(self, axis: ChannelAxis) -> int:
        """Length of the axis: of the weight, or of a norm's statistics."""
        state = self._modules[axis.module].state_dict()
        dim = 1 if axis.side == "in" else 0
        return min((tensor.shape[dim] for tensor in state.values() if tensor.dim() > dim), default=0)


@contextmanager
def _lenient_reshapes() -> Iterator[None]:
    """Within the context torch-pruning leaves reshapes alone that it fails on, such as channel shuffles.

    It divides by the number of channels behind them, which it sometimes takes for zero, and would give up the whole
    network. What then is proposed wrongly does not pass the checks.
    """
    from torch_pruning.dependency import index_mapping

    strict = index_mapping.update_reshape_index_mapping

    def lenient(graph: Any, node: Any) -> None:
        with suppress(ZeroDivisionError):
            strict(graph, node)

    index_mapping.update_reshape_index_mapping = lenient
    try:
        yield
    finally:
        index_mapping.update_reshape_index_mapping = strict


@dataclass(frozen=True, slots=True)
class _Removal:
    """Axis -> entries that go with one channel, and whether the channel passes a sum of two tensors."""

    entries: dict[Axis, list[int]]
    crosses_add: bool


def _of_heads(name: str, heads: Heads) -> PruneGroup:
    """The heads of an attention as channels of many entries each."""
    sides: dict[Axis, Entries] = {(layer, "out"): entries for layer, entries in heads.writers.items()}
    sides[heads.reader, "in"] = heads.read
    axes: list[ChannelAxis] = []
    for key, entries in sides.items():
        first, second, last = (sorted(entries[head].tolist()) for head in (0, 1, -1))
        axes += _linear(key, first, second, last, len(entries))
    return PruneGroup(name=name, channels=len(heads.read), kind="inner", axes=tuple(axes))


def _is_sum(node: Any) -> bool:
    return hasattr(node.grad_fn, "name") and node.grad_fn.name().startswith("AddBackward") and len(node.inputs) > 1


def _is_depthwise(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == getattr(module, "in_channels", 0) == getattr(module, "out_channels", 0)


def _linear(key: Axis, first: list[int], second: list[int], last: list[int], channels: int) -> list[ChannelAxis]:
    """The axes that map channel 0 to `first`, 1 to `second` and the last to `last`."""
    repeat = second[0] - first[0] if channels > 1 else len(first)
    expected = [entry + (channels - 1) * repeat for entry in first]
    offsets = first[::repeat] if repeat > 0 else []
    runs = [offset + i for offset in offsets for i in range(repeat)]
    if runs != first or expected != last or (channels > 1 and [e + repeat for e in first] != second):
        raise _Refusal(f"its channels reach `{key[0]}` in an order that is not known")
    return [ChannelAxis(module=key[0], side=key[1], offset=offset, repeat=repeat) for offset in offsets]


def _claim(group: PruneGroup, claimed: dict[Axis, set[int]]) -> None:
    wanted = {axis: range(axis.offset, axis.offset + group.channels * axis.repeat) for axis in group.axes}
    for axis, entries in wanted.items():
        if not claimed[axis.module, axis.side].isdisjoint(entries):
            raise _Refusal(f"it shares channels of `{axis.module}` with another group")
    for axis, entries in wanted.items():
        claimed[axis.module, axis.side].update(entries)
