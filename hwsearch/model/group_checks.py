"""What a proposed prune group must pass before it is offered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwsearch.model.channels import axis_indices, take_channels
from hwsearch.model.template import Template, folded_parameters
from hwsearch.types import PruneGroup

Refused = dict[str, str]
State = Mapping[str, Tensor]


def with_sound_shapes(
    groups: Iterable[PruneGroup], refused: Refused, module: nn.Module, template: Template
) -> list[PruneGroup]:
    """Groups the exported graph accepts at half their channels, and that are not the network's output."""
    parameters = folded_parameters(module, template.folded)
    output = template.skeleton.graph.output[0].name
    # An odd batch: a size baked into a reshape cannot be made up for by the batch axis unnoticed.
    expected = template.shapes(3)[output]
    sound = []
    for group in groups:
        halved = take_channels(parameters, [group], {group.name: _half(group)})
        try:
            shape = template.shapes(3, halved)[output]
        except onnx.shape_inference.InferenceError:
            shape = ()
        if shape == expected:
            sound.append(group)
        elif not _narrower(shape, expected):
            refused[group.name] = "the network fixes this number of channels, for example in a reshape"
    return sound


def _half(group: PruneGroup) -> range:
    return range((group.channels + 1) // 2)


def _narrower(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether one axis of the output shrank: then the group is the output's own width."""
    smaller = [one < other for one, other in zip(shape, expected, strict=False) if one != other]
    return len(shape) == len(expected) and smaller == [True] and shape[0] == expected[0]


def with_narrow_attention(groups: Iterable[PruneGroup], refused: Refused, trial: Trial) -> list[PruneGroup]:
    """Groups but those of heads whose number, or whose size, the module works out from something else."""
    free = []
    for group in groups:
        if all(axis.repeat == 1 for axis in group.axes if axis.side == "out") or trial.forgets(group):
            free.append(group)
        else:
            refused[group.name] = (
                "`forward` fixes the number of heads: let a reshape infer it, with a constant head size"
            )
    return free


def with_free_order(groups: list[PruneGroup], refused: Refused, trial: Trial) -> list[PruneGroup]:
    """Groups whose channels can be permuted without changing what the network computes."""
    if trial.permits(groups):
        return groups
    free = [group for group in groups if trial.permits([group])]
    for group in groups:
        if group not in free:
            refused[group.name] = "the order of its channels matters to the network"
    return free


@dataclass(frozen=True, slots=True)
class Trial:
    """A network with numbers that let no change go unnoticed, and an input.

    Attributes:
        module: In eval mode; left as it is.
        state: Stands in for its own.
        inputs: [2, ...].
        expected: What the network gives.
    """

    module: nn.Module
    state: State
    inputs: Tensor
    expected: Tensor

    @classmethod
    def of(cls, module: nn.Module, example: Tensor) -> Trial:
        """In double precision, if the network bears that; `example` is [N, ...]."""
        state = _unsymmetric_state(module)
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn((2, *example.shape[1:]), generator=draw, dtype=torch.float64)
        try:
            return cls(module, state, inputs, _outputs(module, state, inputs))
        except RuntimeError:  # a network that mixes in single precision of its own
            state, inputs = {name: _single(tensor) for name, tensor in state.items()}, inputs.float()
            return cls(module, state, inputs, _outputs(module, state, inputs))

    def permits(self, groups: Sequence[PruneGroup]) -> bool:
        """Whether the network stays the same when the channels of the groups change places."""
        order = np.random.default_rng(0)
        permuted = take_channels(self.state, groups, {g.name: order.permutation(g.channels) for g in groups})
        return _close(_outputs(self.module, permuted, self.inputs), self.expected)

    def forgets(self, group: PruneGroup) -> bool:
        """Whether the module runs with half of the group's channels as if nothing read the others."""
        narrow = take_channels(self.state, [group], {group.name: _half(group)})
        silent = dict(self.state)
        for axis in (axis for axis in group.axes if axis.side == "in"):
            name = f"{axis.module}.weight"
            left = torch.zeros(silent[name].shape[1], dtype=torch.bool)
            left[axis_indices(len(left), [(axis, group.channels, _half(group))])] = True
            silent[name] = silent[name] * left.reshape(1, -1, *[1] * (silent[name].dim() - 2))
        try:
            found = _outputs(self.module, narrow, self.inputs)
        except RuntimeError:
            return False
        return _close(found, _outputs(self.module, silent, self.inputs))


def _outputs(module: nn.Module, state: State, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = functional_call(module, dict(state), (inputs,))
    return found


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-9 if other.dtype == torch.float64 else 1e-5
    return one.shape == other.shape and (one - other).abs().max().item() <= tolerance * other.abs().max().item()


def _unsymmetric_state(module: nn.Module) -> State:
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
