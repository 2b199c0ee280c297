"""Over which intervals a candidate's activations are quantised: observed on calibration images, by a range method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from hwsearch.backends.base import Backend
from hwsearch.compress.quantize import bins_for, ranges
from hwsearch.compress.recover import is_trained
from hwsearch.types import PRECISIONS, Candidate, CompressedModel, Observation, TensorRange

Observe = Callable[[Path, Sequence[str], int], dict[str, Observation]]


class RangeFinder:
    """Ranges of what a backend quantises; those of the whole network are observed once.

    Args:
        backend: Says which tensors it quantises.
        observe: Distributions of tensors of a float model on the calibration images, in so many bins.
        method: The study's range method; a candidate may ask for another.
    """

    def __init__(self, backend: Backend, observe: Observe, method: str) -> None:
        self._backend, self._observe, self._method = backend, observe, method
        self._seen: dict[int, dict[str, Observation]] = {}

    def __call__(self, compressed: CompressedModel, candidate: Candidate) -> dict[str, TensorRange]:
        """Tensor -> range, for a candidate bound to its weights; empty if no layer is quantised."""
        integer = next((name for name in compressed.precision.values() if PRECISIONS[name].integer), None)
        if integer is None:
            return {}
        method = candidate.recipe.get("ranges", self._method)
        path, bins = Path(compressed.path), bins_for(method)
        model = onnx.load(compressed.path)
        tensors = self._backend.tensors_to_observe(model, compressed.precision)
        if is_trained(candidate) or not candidate.complete:
            seen = self._observe(path, tensors, bins)
        else:  # the whole network: what one candidate looks at, others will
            seen = self._seen.setdefault(bins, {})
            if not seen.keys() >= set(tensors):
                everywhere = self._backend.tensors_to_observe(model, dict.fromkeys(compressed.precision, integer))
                seen |= self._observe(path, sorted({*tensors, *everywhere}), bins)
        return ranges({name: seen[name] for name in tensors}, method)
