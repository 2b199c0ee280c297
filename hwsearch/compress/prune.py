"""Which channels and branches go, and the network without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwsearch.model.channels import take_channels
from hwsearch.types import Branch, Candidate, PruneGroup, SourceModel

Indices = NDArray[np.int64]


def select_channels(
    parameters: Mapping[str, NDArray[np.float32]], source: SourceModel, keep: Mapping[str, int]
) -> dict[str, Indices]:
    """Prune group -> sorted indices of its strongest channels, by the magnitude of their (folded) weights.

    The score of a channel is the sum, over the layers that write or read it, of its share of their squared weights
    (Li et al., "Pruning filters for efficient ConvNets", 2017, over the whole dependency group).

    Args:
        parameters: ``<layer>.weight`` of every layer, batch norm folded.
        source: The traced network.
        keep: Prune group -> how many channels stay.
    """
    groups = {group.name: group for group in source.groups}
    return {name: np.sort(magnitude_order(parameters, groups[name])[::-1][:count]) for name, count in keep.items()}


def magnitude_order(parameters: Mapping[str, NDArray[np.float32]], group: PruneGroup) -> Indices:
    """All channels of a group, the weakest first; arguments as in `select_channels`."""
    # Of equals the first counts as the strongest.
    return np.argsort(-_scores(parameters, group), kind="stable")[::-1].astype(np.int64)


def slice_module(module: nn.Module, source: SourceModel, kept: Mapping[str, Indices]) -> nn.Module:
    """A copy of `module` in which each group of `kept` has only the channels named there."""
    sliced = copy.deepcopy(module)
    layers = dict(sliced.named_modules())
    state = sliced.state_dict()
    for name, value in take_channels(state, source.groups, kept).items():
        if value.shape != state[name].shape:
            owner, _, attribute = name.rpartition(".")
            _replace(layers[owner], attribute, value)
    for layer in layers.values():
        _resize(layer)
    return sliced


def entries_left(
    weights: Mapping[str, tuple[int, int]], source: SourceModel, kept: Mapping[str, Indices]
) -> dict[str, tuple[Indices, Indices]]:
    """Layer -> output and input entries of its weight that stay, for layers that lose some.

    Args:
        weights: Layer -> first two sizes of its weight.
        source: The traced network.
        kept: Prune group -> channels that stay.
    """
    numbered = {f"{name}.weight": np.arange(size[0] * size[1]).reshape(size) for name, size in weights.items()}
    taken = take_channels(numbered, source.groups, kept)
    return {
        name: (left[:, 0] // columns, left[0] % columns)
        for name, (_, columns) in weights.items()
        if (left := taken[f"{name}.weight"]).size < numbered[f"{name}.weight"].size
    }


def silence_branches(module: nn.Module, branches: Iterable[Branch], norms: Mapping[str, str]) -> None:
    """Make each branch of `module` add exactly zero, in place.

    The branch's layers and the norms behind them (`norms`: layer -> norm) get zero weights and biases, so that
    statistics re-estimated on the module are those of the network without the branch.
    """
    layers = dict(module.named_modules())
    for branch in branches:
        for name in branch.layers:
            for member in (name, norms.get(name)):
                if member is not None:
                    _zero(layers[member])


def pruned(
    module: nn.Module,
    source: SourceModel,
    candidate: Candidate,
    kept: Mapping[str, Indices],
    norms: Mapping[str, str],
) -> nn.Module:
    """The candidate's network: all channels but those `kept` sliced away, dropped branches silent."""
    smaller = slice_module(module, source, kept)
    silence_branches(smaller, [b for b in source.branches if b.name in candidate.dropped], norms)
    return smaller


def _scores(parameters: Mapping[str, NDArray[np.float32]], group: PruneGroup) -> NDArray[np.float64]:
    scores = np.zeros(group.channels)
    for axis in group.axes:
        weight = parameters.get(f"{axis.module}.weight")
        if weight is None:  # a norm that stays in the graph
            continue
        dimension = 0 if axis.side == "out" else 1
        squared = np.square(weight, dtype=np.float64).sum(axis=tuple(d for d in range(weight.ndim) if d != dimension))
        span = squared[axis.offset : axis.offset + group.channels * axis.repeat]
        if span.size == group.channels * axis.repeat:  # a depthwise layer has no input axis of its own
            scores += span.reshape(group.channels, axis.repeat).sum(axis=1) / max(span.sum(), 1e-30)
    return scores


def _replace(layer: nn.Module, attribute: str, value: torch.Tensor) -> None:
    old = getattr(layer, attribute)
    trainable = isinstance(old, nn.Parameter)
    setattr(layer, attribute, nn.Parameter(value, requires_grad=old.requires_grad) if trainable else value)


def _resize(layer: nn.Module) -> None:
    """Make a layer's size attributes agree with its parameters, in place."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
        layer.out_channels = layer.weight.shape[0]
        layer.groups = layer.out_channels if depthwise else layer.groups
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.LayerNorm) and weight is not None:
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.modules.batchnorm._NormBase):  # noqa: SLF001 - the only name of what norms share
        vectors = [value for value in layer.state_dict().values() if value.ndim == 1]
        layer.num_features = len(vectors[0]) if vectors else layer.num_features


def _zero(layer: nn.Module) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if isinstance(value, torch.Tensor):
                value.zero_()
