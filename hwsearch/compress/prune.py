"""Which channels and branches go, and the network without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

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
    return {name: _strongest(_scores(parameters, groups[name]), count) for name, count in keep.items()}


def slice_module(module: nn.Module, source: SourceModel, kept: Mapping[str, Indices]) -> nn.Module:
    """A copy of `module` in which each group of `kept` has only the channels named there."""
    sliced = copy.deepcopy(module)
    layers = dict(sliced.named_modules())
    for (name, side), entries in _removed(source, kept).items():
        _slice(layers[name], side, entries)
    return sliced


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
    parameters: Mapping[str, NDArray[np.float32]],
    norms: Mapping[str, str],
) -> nn.Module:
    """The candidate's network: weak channels sliced away, dropped branches silent."""
    kept = select_channels(parameters, source, candidate.keep)
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


def _strongest(scores: NDArray[np.float64], count: int) -> Indices:
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int64)


def _removed(source: SourceModel, kept: Mapping[str, Indices]) -> dict[tuple[str, str], Indices]:
    """(module, side) -> entries of that axis to remove, over all groups that share it (a concatenation has several)."""
    removed: dict[tuple[str, str], list[Indices]] = {}
    for group in source.groups:
        if group.name in kept:
            gone = np.setdiff1d(np.arange(group.channels), kept[group.name])
            for axis in group.axes:
                entries = axis.offset + gone[:, None] * axis.repeat + np.arange(axis.repeat)
                removed.setdefault((axis.module, axis.side), []).append(entries.ravel())
    return {key: np.concatenate(parts) for key, parts in removed.items()}


def _slice(layer: nn.Module, side: str, removed: Indices) -> None:
    """Remove entries of one side of a layer, in place, and keep its size attributes true."""
    if isinstance(layer, nn.Linear):
        _slice_weight(layer, side, removed)
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        depthwise = layer.groups > 1
        if depthwise and side == "in":
            return  # its output side removes both
        _slice_weight(layer, side, removed)
        layer.out_channels = layer.weight.shape[0]
        layer.groups = layer.out_channels if depthwise else 1
        layer.in_channels = layer.weight.shape[1] * layer.groups
    else:
        _slice_norm(layer, removed)


def _slice_weight(layer: nn.Module, side: str, removed: Indices) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    dimension = 0 if side == "out" else 1
    layer.weight = _without(weight, dimension, removed)
    if side == "out" and isinstance(bias, torch.Tensor):
        layer.bias = _without(bias, 0, removed)


def _slice_norm(layer: nn.Module, removed: Indices) -> None:
    """Batch, layer and other norms: every vector they hold loses the same entries."""
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value is not None and value.ndim == 1:
            setattr(layer, name, _without(value, 0, removed))
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features -= removed.size
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (layer.normalized_shape[0] - removed.size,)


def _without(tensor: torch.Tensor, dimension: int, removed: Indices) -> torch.Tensor:
    left = np.setdiff1d(np.arange(tensor.shape[dimension]), removed)
    chosen = tensor.detach().index_select(dimension, torch.from_numpy(left)).contiguous()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(chosen, requires_grad=tensor.requires_grad)
    return chosen


def _zero(layer: nn.Module) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if isinstance(value, torch.Tensor):
                value.zero_()
