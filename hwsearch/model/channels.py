"""Which entries of which parameters a prune group's channels are, and taking some of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hwsearch.types import ChannelAxis, PruneGroup

Array = TypeVar("Array")

Indices = Sequence[int] | NDArray[np.int64]
Kept = Mapping[str, Indices]
Part = tuple[ChannelAxis, int, Indices]


def take_channels(arrays: Mapping[str, Array], groups: Iterable[PruneGroup], kept: Kept) -> dict[str, Array]:
    """The arrays with only the kept channels of some groups, in the given order.

    Args:
        arrays: State dict of the whole network, or its folded parameters; NumPy arrays or tensors.
        groups: The network's prune groups.
        kept: Group name -> channels to keep; groups that are not named stay whole. A permutation of all channels is
            allowed and leaves the network's function as it is.
    """
    taken = dict(arrays)
    for (module, side), axes in _axes_of(groups, kept).items():
        for name in _entries(taken, module, side):
            taken[name] = _take(taken[name], 0 if side == "out" else 1, axes)
    return taken


def axis_indices(size: int, axes: Iterable[Part]) -> NDArray[np.int64]:
    """Entries left of an axis of `size` entries.

    Args:
        size: Length of the whole axis.
        axes: Channel axis, channels of its group, channels kept; several when groups are concatenated.
    """
    pieces, end = [], 0
    for axis, channels, keep in sorted(axes, key=lambda item: item[0].offset):
        pieces.append(np.arange(end, axis.offset))
        starts = axis.offset + np.asarray(keep, np.int64) * axis.repeat
        pieces.append((starts[:, None] + np.arange(axis.repeat)).ravel())
        end = axis.offset + channels * axis.repeat
    pieces.append(np.arange(end, size))
    return np.concatenate(pieces)


def _axes_of(groups: Iterable[PruneGroup], kept: Kept) -> dict[tuple[str, str], list[Part]]:
    found: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for group in groups:
        if group.name in kept:
            for axis in group.axes:
                found[axis.module, axis.side].append((axis, group.channels, kept[group.name]))
    return found


def _entries(arrays: Mapping[str, Any], module: str, side: str) -> list[str]:
    """Names of a module's own arrays that have the axis: every vector and the weight, or the weight alone."""
    if side == "in":
        return [f"{module}.weight"]
    own = [name for name in arrays if name.rpartition(".")[0] == module]
    return [name for name in own if arrays[name].ndim > 0]


def _take(array: Any, dim: int, axes: Iterable[Part]) -> Any:
    index = axis_indices(array.shape[dim], axes)
    return array[index] if dim == 0 else array[:, index]
