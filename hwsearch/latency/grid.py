"""Costs of one kind of unit over its channel counts: known at nodes, linear (hence monotone) between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TypeVar

from hwsearch.latency.kernels import LAYER_KINDS, Column, Kind, Node

Item = TypeVar("Item")

VECTOR = 16
"""Channels a processor computes at once: it rounds up to a multiple."""

MATRICES = ("conv", "linear")
"""Units whose input and output channels are counted apart."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Channel counts at which a kind's cost is known; `tied` when input and output channels are the same thing."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tied: bool

    def nodes(self) -> list[Node]:
        """Every pair of channel counts."""
        if self.tied:
            return [(c, c) for c in self.inputs]
        return [(a, b) for a in self.inputs for b in self.outputs]

    def weights(self, node: Node) -> dict[Node, float] | None:
        """How much each node counts at a pair of channel counts; None beyond the nodes."""
        if self.tied:
            line = _line(self.inputs, node[0])
            return None if line is None else {(c, c): w for c, w in line.items()}
        across, along = _line(self.inputs, node[0]), _line(self.outputs, node[1])
        if across is None or along is None:
            return None
        return {(a, b): v * w for a, v in across.items() for b, w in along.items()}


def axes_of(kind: Kind, nodes: Iterable[Node]) -> Axes:
    """The axes that `nodes` span."""
    inputs, outputs = (tuple(sorted(set(side))) for side in zip(*nodes, strict=True))
    return Axes(inputs, outputs, tied=kind.unit not in MATRICES)


def thinned(listed: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most `most` of some items in their order: all, or evenly spread with both ends kept."""
    if len(listed) <= most:
        return tuple(listed)
    last = len(listed) - 1
    return tuple(listed[round(i * last / (most - 1))] for i in range(most))


def _line(points: Sequence[int], value: int) -> dict[int, float] | None:
    """Weights of the neighbours of `value` among ascending `points`; None outside."""
    i = bisect_left(points, value)
    if i < len(points) and points[i] == value:
        return {value: 1.0}
    if i in (0, len(points)):
        return None
    low, high = points[i - 1], points[i]
    share = (value - low) / (high - low)
    return {low: 1 - share, high: share}


def features(kind: Kind, node: Node) -> tuple[float, ...]:
    """What a cost grows with: the call, values moved, multiply-accumulates (also in whole vectors of channels).

    Weights count apart from activations: there is a new set for every layer, while activations stay in the cache.
    """
    taps, positions, reached = extent(kind)
    a, b = node
    moved = positions * a + reached * b
    padded_in, padded_out = (VECTOR * ceil(channels / VECTOR) for channels in node)
    if kind.unit == "depthwise":
        return (1.0, moved, reached * taps * b, reached * taps * padded_out)
    if kind.unit in MATRICES:
        work = reached * taps
        return (1.0, moved, taps * a * b, work * a * b, work * a * padded_out, work * padded_in * padded_out)
    return (1.0, moved)


def multiplications(counts: Mapping[Column, float]) -> float:
    """Multiply-accumulates of the layers among some units."""
    total = 0.0
    for (kind, (a, b)), count in counts.items():
        if kind.unit in LAYER_KINDS:
            taps, _, reached = extent(kind)
            total += count * reached * taps * b * (1 if kind.unit == "depthwise" else a)
    return total


def extent(kind: Kind) -> tuple[int, float, float]:
    """Taps of the window (1 if there is none), positions on which it lies, and positions it computes."""
    taps, stride = _window(kind.window)
    positions = prod(float(part) for part in kind.size.split("x"))
    return taps, positions, positions / stride**2


def _window(text: str) -> tuple[int, int]:
    """Taps and stride of e.g. ``3x3/2``."""
    kernel, _, stride = text.partition("/")
    return prod(int(part) for part in kernel.split("x")) if kernel[:1].isdigit() else 1, int(stride or 1)
