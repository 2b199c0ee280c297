"""Ranges of activation tensors, seen by running the float model in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions
from hwsearch.backends.onnxruntime_session import load, session_options
from hwsearch.types import Observation

_HELD_BYTES = 64 * 2**20


def observe(
    model_path: Path, tensors: Sequence[str], inputs: NDArray[np.float32], bins: int = 2048, *, threads: int = 1
) -> dict[str, Observation]:
    """Distribution of activation tensors when the float model runs on `inputs`.

    The model runs twice, first for the smallest and largest values, then for the histograms; with ``bins=1``, which
    is all that min-max ranges need, only once and several times faster. Few examples are held at a time.

    Args:
        model_path: Float ONNX file.
        tensors: Names of activation tensors; the network's input may be among them.
        inputs: Examples [N, ...], possibly memory-mapped.
        bins: Per histogram.
        threads: Intra-op threads.
    """
    tap = _Tap(model_path, tensors, threads)
    low, high = dict.fromkeys(tensors, np.inf), dict.fromkeys(tensors, -np.inf)
    counts = {name: np.zeros(bins, np.int64) for name in tensors}
    for name, values in tap.values(inputs):
        low[name] = float(np.minimum(low[name], values.min()))
        high[name] = float(np.maximum(high[name], values.max()))
        counts[name][0] += values.size
    if bins > 1:
        counts = {name: np.zeros(bins, np.int64) for name in tensors}
        for name, values in tap.values(inputs):
            counts[name] += histogram(values, low[name], high[name], bins)
    return {name: Observation(low=low[name], high=high[name], counts=tuple(counts[name].tolist())) for name in tensors}


def histogram(values: NDArray[np.float32], low: float, high: float, bins: int) -> NDArray[np.int64]:
    """Counts [bins] of equal bins from `low` to `high`; all in the first if there is no finite width.

    Several times faster than `numpy.histogram`, whose bin edges are exact to the last digit; these are float32's.
    """
    width = high - low
    if not (np.isfinite(width) and width > 0):
        return np.bincount([0], [values.size], minlength=bins).astype(np.int64)
    index = ((values - np.float32(low)) * np.float32(bins / width)).astype(np.int64)
    return np.bincount(np.minimum(index, bins - 1).ravel(), minlength=bins)


class _Tap:
    """A float model with inner tensors as extra outputs."""

    def __init__(self, model_path: Path, tensors: Sequence[str], threads: int) -> None:
        model = onnx.load(model_path)
        self._input = model.graph.input[0].name
        self._tensors = list(tensors)
        self._computed = [name for name in tensors if name != self._input]
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in self._computed if n not in present)
        settings = session_options(RunOptions(threads=threads), any_batch=True)
        self._session = load(model.SerializeToString(), settings)

    def values(self, inputs: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Pairs of tensor name and values, over all inputs, as many examples at a time as are small enough to hold."""
        start, step = 0, 1
        while start < len(inputs):
            batch = np.ascontiguousarray(inputs[start : start + step])
            outputs = self._session.run(self._computed, {self._input: batch}) if self._computed else []
            found = {self._input: batch, **dict(zip(self._computed, outputs, strict=True))}
            yield from ((name, found[name]) for name in self._tensors)
            start += len(batch)
            step = max(1, _HELD_BYTES * len(batch) // sum(values.nbytes for values in found.values()))
