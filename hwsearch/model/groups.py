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

TOLERANCE = 1e-3


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
        first, second, last = (self._touched(module, c) for c in (0, min(1, channels - 1), channels - 1))
        if not first.keys() == second.keys() == last.keys():
            raise _Refusal("its channels do not all go the same way")
        axes = [axis for key in first for axis in _linear(key, first[key], second[key], last[key], channels)]
        if ChannelAxis(module=layer, side="out") not in axes:
            raise _Refusal("its channels are tied to one another")
        producers = {axis.module for axis in axes if axis.side == "out" and self._produces(axis.module)}
        return PruneGroup(
            name=layer, channels=channels, kind="stage" if len(producers) > 1 else "inner", axes=tuple(axes)
        )

    def _touched(self, module: nn.Module, channel: int) -> dict[Axis, list[int]]:
        """Axis -> entries that go when one output channel of `module` goes."""
        pruner = self._graph.get_pruner_of_module(module)
        found: dict[Axis, set[int]] = defaultdict(set)
        for item in self._graph.get_pruning_group(module, pruner.prune_out_channels, [channel]):
            target, handler = item.dep.target.module, item.dep.handler
            if target in self._parameters:
                raise _Refusal(f"parameter `{self._parameters[target]}` holds its channels")
            if target not in self._names or (isinstance(target, nn.PReLU) and target.num_parameters == 1):
                continue
            side: Side = "out" if self._graph.is_out_channel_pruning_fn(handler) else "in"
            self._check(target, side)
            found[self._names[target], side].update(item.idxs)
        return {axis: sorted(entries) for axis, entries in found.items()}

    def _check(self, target: nn.Module, side: str) -> None:
        name = self._names[target]
        if not isinstance(target, (*LAYER_TYPES, *NORMS, nn.PReLU)):
            raise _Refusal(f"`{name}` ({type(target).__name__}) cannot be pruned")
        if getattr(target, "groups", 1) > 1 and not _is_depthwise(target):
            raise _Refusal(f"`{name}` is a grouped convolution")
        if side == "in" and not isinstance(target, LAYER_TYPES):
            raise _Refusal(f"`{name}` reads its channels in a way that is not known")

    def _produces(self, name: str) -> bool:
        module = self._modules[name]
        return isinstance(module, LAYER_TYPES) and not _is_depthwise(module)


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
    inputs = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)

    def unchanged(some: Sequence[PruneGroup]) -> bool:
        order = np.random.default_rng(0)
        permuted = take_channels(state, some, {group.name: order.permutation(group.channels) for group in some})
        return _close(functional_call(module, permuted, (inputs,)), outputs)

    with torch.no_grad():
        outputs = functional_call(module, dict(state), (inputs,))
        if unchanged(groups):
            return groups
        free = [group for group in groups if unchanged([group])]
    for group in groups:
        if group not in free:
            refused[group.name] = "the order of its channels matters to the network"
    return free


def _close(one: Tensor, other: Tensor) -> bool:
    difference, scale = (one - other).abs().max().item(), other.abs().max().item()
    return difference <= TOLERANCE * scale


def _unsymmetric_state(module: nn.Module) -> Mapping[str, Tensor]:
    """The state dict with all vectors and constants made random, so that no permutation goes unnoticed."""
    draw = torch.Generator().manual_seed(1)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    statistics = {name for name in state if name.endswith((".running_mean", ".running_var"))}
    for name in {name for name, _ in module.named_parameters()} | statistics:
        tensor = state[name]
        if tensor.dim() == 1 or bool((tensor == tensor.flatten()[0]).all()):
            tensor.uniform_(0.5, 1.5, generator=draw)
    return state
