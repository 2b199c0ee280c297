"""Which layers quantise badly, told from their weights alone, and what the search may still choose for them.

Merging adds batch-normed 1×1 and identity branches to the centre of a kernel. Where their scale is large, a few huge
weights stretch the quantisation step of all the others (Chu et al., "Make RepVGG Greater Again", AAAI 2024). Cures, in
this order: train in the form `qarepvgg`; quantise activations over a range that leaves outliers out (``quantize.ranges:
entropy``, ``percentile`` or ``mse``); train on with batch norms inserted again (`hwsearch.reparam.cures`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.model.graph import Network
from hwsearch.types import PRECISIONS, SearchSpace

Weights = NDArray[np.float64]

MAX_KURTOSIS, MAX_PEAK = 20.0, 12.0
"""Beyond either, fewer than 8 bits are not offered."""

MIN_DB = 25.0
"""A layer whose int8 weights, one scale per channel, carry more noise than this (0.3 % of their energy) stays float."""

EXACT_DB = 100.0
BITS = (8, 6, 4)
SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """How a layer's weights are spread, and what rounding them costs.

    Attributes:
        name: The layer.
        kurtosis: Fourth moment over squared variance: 3 for a normal distribution.
        peak: Largest magnitude over standard deviation.
        channel_ratio: Largest magnitude of a channel, over the median of the channels.
        per_tensor_db, per_channel_db: Bits -> signal-to-quantisation-noise ratio of symmetric integers with one scale,
            or with one per output channel; infinite where rounding changes nothing.
    """

    name: str
    kurtosis: float
    peak: float
    channel_ratio: float
    per_tensor_db: dict[int, float]
    per_channel_db: dict[int, float]

    @property
    def fragile(self) -> bool:
        """Whether quantisation is likely to cost accuracy."""
        exact = self.per_tensor_db[min(BITS)] > EXACT_DB  # such as a kernel of zeros and ones
        return not exact and (self.kurtosis > MAX_KURTOSIS or self.peak > MAX_PEAK or self.least_bits > 8)

    @property
    def least_bits(self) -> int:
        """Fewest weight bits to offer: 16 stands for floating point."""
        if self.per_channel_db[8] < MIN_DB:
            return 16
        return 8 if self.kurtosis > MAX_KURTOSIS or self.peak > MAX_PEAK else 0


def inspect(network: Network) -> tuple[LayerHealth, ...]:
    """The health of every layer, batch norms folded, in execution order."""
    tensors = network.template.initializers
    return tuple(
        health(name, onnx.numpy_helper.to_array(tensors[f"{name}.weight"])) for name in network.template.layers
    )


def health(name: str, weight: NDArray[np.floating]) -> LayerHealth:
    """The health of one layer.

    Args:
        name: Of the layer.
        weight: [O, ...].
    """
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    spread = max(float(rows.std()), 1e-30)
    peaks = np.abs(rows).max(axis=1)
    return LayerHealth(
        name=name,
        kurtosis=float(np.mean(((rows - rows.mean()) / spread) ** 4)),
        peak=float(peaks.max()) / spread,
        channel_ratio=float(peaks.max() / max(np.median(peaks), 1e-30)),
        per_tensor_db={bits: sqnr_db(rows, bits, per_channel=False) for bits in BITS},
        per_channel_db={bits: sqnr_db(rows, bits, per_channel=True) for bits in BITS},
    )


def sqnr_db(rows: Weights, bits: int, *, per_channel: bool) -> float:
    """10 · log10 of the energy of `rows` [O, n] over that of their rounding errors."""
    noise = float(np.sum((rows - rounded(rows, bits, per_channel=per_channel)) ** 2))
    energy = float(np.sum(rows**2))
    return 10 * math.log10(energy / noise) if noise > 0 and energy > 0 else math.inf


def rounded(rows: Weights, bits: int, *, per_channel: bool) -> Weights:
    """`rows` [O, n] as symmetric integers of so many bits, times their scale or one scale per row."""
    peak = np.abs(rows).max(axis=1, keepdims=True) if per_channel else np.abs(rows).max()
    step = np.maximum(peak / (2 ** (bits - 1) - 1), 1e-30)
    return np.asarray(np.round(rows / step) * step)


def bounded(space: SearchSpace, found: Sequence[LayerHealth]) -> SearchSpace:
    """`space` without the precisions too narrow for fragile layers; `refused` names the layers that lost some."""
    least = {layer.name: layer.least_bits for layer in found if layer.fragile}
    precisions = {
        name: tuple(p for p in offered if PRECISIONS[p].weight_bits >= least.get(name, 0)) or offered[-1:]
        for name, offered in space.precisions.items()
    }
    lost = [layer for layer in found if precisions.get(layer.name) != space.precisions.get(layer.name)]
    return dataclasses.replace(space, precisions=precisions, refused=(*space.refused, *([_note(lost)] if lost else [])))


def _note(lost: Sequence[LayerHealth]) -> str:
    worst = max(lost, key=lambda layer: layer.kurtosis)
    names = ", ".join(layer.name for layer in lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
    return (
        f"low precision for {len(lost)} layers whose weights quantise badly ({names}): in `{worst.name}` the largest "
        f"is {worst.peak:.0f} standard deviations, kurtosis {worst.kurtosis:.0f}; `reparam.kind: qarepvgg` avoids it"
    )
