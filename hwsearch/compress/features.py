"""Distillation from what the original computes on its way, beside its outputs (after Romero et al., "FitNets", 2015).

Compared is the residual stream, whose channels mean the same in a network and its compressed form, where the last layer
reads it before it changes its shape. Inside branches channels are gone, and what is left serves another purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from hwsearch.compress.statistics import watch
from hwsearch.errors import EvaluationError
from hwsearch.model.train import Loss
from hwsearch.types import SourceModel

Points = Mapping[str, int]
"""Layer -> numbers it reads per example."""


def stream_ends(source: SourceModel, keep: Mapping[str, int]) -> dict[str, int]:
    """For every shape of the residual stream, the last layer that reads it, and how many numbers those are.

    Args:
        source: The original network.
        keep: Prune group -> channels that a candidate keeps. A stream that lost some is left out.

    Raises:
        EvaluationError: the network has no residual stream, or the candidate none with all of its channels.
    """
    gone = {
        axis.module
        for group in source.groups
        if group.kind == "inner" or keep.get(group.name, group.channels) < group.channels
        for axis in group.axes
        if axis.side == "in"
    }
    gone |= {layer.name for layer in source.layers if layer.op == "depthwise"}  # they read what they write
    ends = {layer.in_shape: layer.name for layer in source.layers[1:] if layer.name not in gone}
    if not ends:
        raise EvaluationError(
            "no activations of the original and the compressed network can be compared",
            stage="recover", kind="no features", hint="recover.features: 0",
        )  # fmt: skip
    return {name: prod(shape) for shape, name in ends.items()}


class Watched(nn.Module):
    """A network that returns what some of its layers read behind its outputs: [N, classes + numbers read].

    Args:
        network: From [N, ...] to [N, classes].
        points: The layers, in the order in which they are returned.
    """

    def __init__(self, network: nn.Module, points: Points) -> None:
        super().__init__()
        self.network, self._points = network, tuple(points)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        seen: dict[str, Tensor] = {}
        with watch(self.network, self._points, lambda name, _, inputs, __: seen.update({name: inputs})):
            outputs: Tensor = self.network(x)
        return torch.cat([outputs.flatten(1), *(seen[name].flatten(1) for name in self._points)], dim=1)


def with_features(loss: Loss, weight: float, points: Points) -> Loss:
    """A loss over the outputs of `Taught`, where it and its teacher are `Watched`: [N, 2, classes + numbers read].

    Args:
        loss: Over the outputs themselves, [N, 2, classes].
        weight: Of the squared distance to the teacher's activations, relative to their square, on average of points.
        points: As `Watched` has them.
    """
    sizes = list(points.values())

    def both(outputs: Tensor, targets: Tensor) -> Tensor:
        answers, *read = torch.split(outputs, [outputs.shape[2] - sum(sizes), *sizes], dim=2)
        return loss(answers, targets) + weight * torch.stack([_distance(part) for part in read]).mean()

    return both


def _distance(read: Tensor) -> Tensor:
    """Squared distance of student and teacher [N, 2, numbers], relative to the teacher's square."""
    student, teacher = read.unbind(1)
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(torch.finfo(read.dtype).tiny)
