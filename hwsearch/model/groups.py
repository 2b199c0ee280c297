"""Prune groups: channels that must go together, found by torch-pruning and then checked.

torch-pruning follows autograd's graph and treats what it does not know as elementwise, so its answer is a proposal. A
group is accepted only if

* its index maps are linear (channel ``c`` is always entries ``offset + c * repeat`` ...);
* the exported graph still fits together, and has the same output, with half of the group's channels;
* permuting the group's channels leaves the network's outputs as they were, which catches every axis that was missed.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwsearch.model.canonical import BATCH_NORMS, LAYER_TYPES
from hwsearch.model.channels import take_channels
from hwsearch.model.foreign import quiet, root_cause
from hwsearch.model.template import Template, folded_parameters
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
        proposals = _Proposals(module, example)
    except Exception as error:  # noqa: BLE001  (any failure of the library means only that nothing is offered)
        return (), (f"no channels can be pruned: torch-pruning cannot follow the network ({root_cause(error)})",)
    groups, refused = proposals.collect(template.layers)
    groups = _with_sound_shapes(groups, refused, module, template)
    groups = _with_free_order(groups, refused, module, example)
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

    def collect(self, layers: Sequence[str]) -> tuple[list[PruneGroup], dict[str, str]]:
        """Proposed groups, and the reasons for those that are unclear, by first layer."""
        groups: list[PruneGroup] = []
        refused: dict[str, str] = {}
        claimed: dict[Axis, set[int]] = defaultdict(set)
        for layer in layers:
            if claimed[layer, "out"] or _is_depthwise(self._modules[layer]):
                continue
            try:
                group = self._group(layer)
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
        pruner = self._graph.get_pruner_of_module(module)
        found: dict[Axis, set[int]] = defaultdict(set)
        crosses_add = False
        for item in self._graph.get_pruning_group(module, pruner.prune_out_channels, [channel]):
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


@dataclass(frozen=True, slots=True)
class _Removal:
    """Axis -> entries that go with one channel, and whether the channel passes a sum of two tensors."""

    entries: dict[Axis, list[int]]
    crosses_add: bool


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


# --------------------------------------------------------------------------- checks


def _with_sound_shapes(
    groups: Iterable[PruneGroup], refused: dict[str, str], module: nn.Module, template: Template
) -> list[PruneGroup]:
    """Groups the exported graph accepts at half their channels, and that are not the network's output."""
    parameters = folded_parameters(module, template.folded)
    output = template.skeleton.graph.output[0].name
    # An odd batch: a size baked into a reshape cannot be made up for by the batch axis unnoticed.
    expected = template.shapes(3)[output]
    sound = []
    for group in groups:
        halved = take_channels(parameters, [group], {group.name: range((group.channels + 1) // 2)})
        try:
            shape = template.shapes(3, halved)[output]
        except onnx.shape_inference.InferenceError:
            shape = ()
        if shape == expected:
            sound.append(group)
        elif not _narrower(shape, expected):
            refused[group.name] = "the network fixes this number of channels, for example in a reshape"
    return sound


def _narrower(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether one axis of the output shrank: then the group is the output's own width."""
    smaller = [one < other for one, other in zip(shape, expected, strict=False) if one != other]
    return len(shape) == len(expected) and smaller == [True] and shape[0] == expected[0]


def _with_free_order(
    groups: list[PruneGroup], refused: dict[str, str], module: nn.Module, example: Tensor
) -> list[PruneGroup]:
    """Groups whose channels can be permuted without changing what the network computes."""
    state = _unsymmetric_state(module)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn((2, *example.shape[1:]), generator=draw, dtype=torch.float64)

    def outputs(some: Sequence[PruneGroup]) -> Tensor:
        order = np.random.default_rng(0)
        permuted = take_channels(state, some, {group.name: order.permutation(group.channels) for group in some})
        found: Tensor = functional_call(module, permuted, (inputs,))
        return found

    with torch.no_grad():
        try:
            expected = outputs([])
        except RuntimeError:  # a network that mixes in single precision of its own
            state, inputs = {name: _single(tensor) for name, tensor in state.items()}, inputs.float()
            expected = outputs([])
        if _close(outputs(groups), expected):
            return groups
        free = [group for group in groups if _close(outputs([group]), expected)]
    for group in groups:
        if group not in free:
            refused[group.name] = "the order of its channels matters to the network"
    return free


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-9 if other.dtype == torch.float64 else 1e-5
    return (one - other).abs().max().item() <= tolerance * other.abs().max().item()


def _unsymmetric_state(module: nn.Module) -> Mapping[str, Tensor]:
    """The state dict in double precision, vectors and constants made random so that no permutation goes unnoticed."""
    draw = torch.Generator().manual_seed(1)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    statistics = {name for name in state if name.endswith((".running_mean", ".running_var"))}
    for name in sorted({name for name, _ in module.named_parameters()} | statistics):
        tensor = state[name]
        if tensor.dim() == 1 or bool((tensor == tensor.flatten()[0]).all()):
            tensor.uniform_(0.5, 1.5, generator=draw)
    return state
