"""From what a tensor was seen to hold to the interval it is quantised over. Backend-neutral.

Four range methods: ``minmax`` (all of it), ``percentile`` (99.99 % of it), ``mse`` (least squared error at 8 bits) and
``entropy`` (least Kullback-Leibler divergence at 8 bits, as in Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.types import Observation, TensorRange

LEVELS = 256
BINS = 2048
COVERED = 0.9999
CANDIDATES = 64


def ranges(observations: Mapping[str, Observation], method: str = "minmax") -> dict[str, TensorRange]:
    """Tensor name -> interval, by one of the methods above.

    Raises:
        ConfigError: unknown method.
    """
    methods = {"minmax": _minmax, "percentile": _percentile, "mse": _mse, "entropy": _entropy}
    if method not in methods:
        raise ConfigError(
            f"unknown range method `{method}`", allowed=", ".join(methods), hint=did_you_mean(method, methods)
        )
    return {name: methods[method](seen) for name, seen in observations.items()}


def bins_for(method: str) -> int:
    """How fine a histogram `method` needs; counting into many bins is the slow part of observing."""
    return 1 if method == "minmax" else BINS


def _minmax(seen: Observation) -> TensorRange:
    return TensorRange(low=seen.low, high=seen.high)


def _percentile(seen: Observation) -> TensorRange:
    counts, centers = _histogram(seen)
    cumulative = np.cumsum(counts) / counts.sum()
    tail = (1 - COVERED) / (2 if seen.low < 0 else 1)
    low = centers[np.searchsorted(cumulative, tail)] if seen.low < 0 else seen.low
    return TensorRange(low=float(low), high=float(centers[np.searchsorted(cumulative, 1 - tail)]))


def _mse(seen: Observation) -> TensorRange:
    counts, centers = _histogram(seen)

    def error(interval: TensorRange) -> float:
        return float(np.sum(counts * (centers - _round_trip(centers, interval)) ** 2))

    return min(_shrunk(seen), key=error)


def _entropy(seen: Observation) -> TensorRange:
    counts, centers = _histogram(seen)
    total = counts.sum()

    def divergence(interval: TensorRange) -> float:
        clipped = np.clip(centers, interval.low, interval.high)
        bins = np.searchsorted(centers, clipped)
        reference = np.bincount(np.minimum(bins, centers.size - 1), counts, minlength=centers.size) / total
        level = np.round(_levels(clipped, interval)).astype(int)
        mass = np.bincount(level, counts * (clipped == centers), minlength=LEVELS)
        occupied = np.bincount(level, counts > 0, minlength=LEVELS)
        approximate = np.where(counts > 0, (mass / np.maximum(occupied, 1))[level], 0) / total
        used = reference > 0
        return float(np.sum(reference[used] * np.log(reference[used] / np.maximum(approximate[used], 1e-12))))

    return min(_shrunk(seen), key=divergence)


def _shrunk(seen: Observation) -> list[TensorRange]:
    """The full interval and smaller ones, down to a quarter, towards zero."""
    return [TensorRange(low=seen.low * f, high=seen.high * f) for f in np.linspace(1.0, 0.25, CANDIDATES).tolist()]


def _histogram(seen: Observation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    counts = np.asarray(seen.counts, dtype=np.float64)
    edges = np.linspace(seen.low, seen.high, counts.size + 1)
    return counts, (edges[:-1] + edges[1:]) / 2


def _levels(values: NDArray[np.float64], interval: TensorRange) -> NDArray[np.float64]:
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    return (values - low) / max(high - low, 1e-12) * (LEVELS - 1)


def _round_trip(values: NDArray[np.float64], interval: TensorRange) -> NDArray[np.float64]:
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    step = max(high - low, 1e-12) / (LEVELS - 1)
    return np.round(_levels(np.clip(values, low, high), interval)) * step + low
