"""Weights and multiply-accumulates of each layer at any width, from the traced network alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwsearch.latency.kernels import Width
from hwsearch.patterns import DENSE, packed_bits
from hwsearch.search.solver.problem import Floats, Integers
from hwsearch.types import PRECISIONS, LayerInfo, SourceModel

BIAS_BITS = 32


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """How the size of a layer follows from its channel counts.

    Attributes:
        inputs, outputs: Its channels, in terms of prune groups.
        taps: Weights per pair of input and output channel (depthwise: per channel).
        positions: Outputs per output channel: multiply-accumulates per weight.
        op: As in `LayerInfo`.
    """

    inputs: Width
    outputs: Width
    taps: float
    positions: float
    op: str

    def macs(self, inputs: int, outputs: int) -> float:
        """Multiply-accumulates for one example at some channel counts."""
        return self.positions * self.taps * outputs * (1 if self.op == "depthwise" else inputs)

    def size_bytes(self, keep: Mapping[str, Integers], precision: str, pattern: str = DENSE) -> Floats:
        """Size of weights and bias for arrays of channels left of every prune group (arrays that broadcast).

        Zeros by a pattern are counted as a packed file holds them.
        """
        inputs, outputs = _channels(self.inputs, keep), _channels(self.outputs, keep)
        weights = self.taps * outputs * (1 if self.op == "depthwise" else inputs)
        return (weights * packed_bits(PRECISIONS[precision].weight_bits, pattern) + outputs * BIAS_BITS) / 8


def layer_counts(source: SourceModel) -> dict[str, LayerCounts]:
    """Layer -> how its size follows from its channel counts."""
    return {layer.name: _counts(layer, source) for layer in source.layers}


def _counts(layer: LayerInfo, source: SourceModel) -> LayerCounts:
    side = -1 if layer.op == "linear" else 0
    full_in, full_out = layer.in_shape[side], layer.out_shape[side]
    weights = layer.params - full_out
    pairs = full_out if layer.op == "depthwise" else full_in * full_out
    return LayerCounts(
        inputs=_width(layer.name, "in", full_in, source),
        outputs=_width(layer.name, "out", full_out, source),
        taps=weights / pairs,
        positions=layer.macs / weights,
        op=layer.op,
    )


def _width(layer: str, side: str, channels: int, source: SourceModel) -> Width:
    tied = [(g, a.repeat) for g in source.groups for a in g.axes if (a.module, a.side) == (layer, side)]
    pruned = sum(group.channels * repeat for group, repeat in tied)
    return Width(channels - pruned, tuple((group.name, repeat) for group, repeat in tied))


def _channels(width: Width, keep: Mapping[str, Integers]) -> Integers:
    return sum((repeat * keep[group] for group, repeat in width.groups), np.array(width.fixed))
