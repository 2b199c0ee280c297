"""How far the outputs of a changed network are from those of the original on the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Outputs = NDArray[np.float32]
Measure = Literal["kl", "relative_error"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Divergence of one network from another.

    Attributes:
        per_example: [N], none negative.
        measure: ``kl``: Kullback-Leibler divergence of the class probabilities, KL(original ‖ changed), in nats.
            ``relative_error``: squared error of the outputs, relative to the mean squared deviation of the original's
            outputs from their mean; what the changed network leaves unexplained.
    """

    per_example: NDArray[np.float64]
    measure: Measure

    @property
    def mean(self) -> float:
        """Over the examples."""
        return float(self.per_example.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean, for examples drawn independently; infinite for a single one."""
        count = len(self.per_example)
        return float(self.per_example.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")


def divergence(changed: Outputs, original: Outputs, *, probabilities: bool) -> Divergence:
    """Divergence of the `changed` outputs [N, ...] from the `original` ones.

    Args:
        changed: Of the changed network.
        original: Of the original network on the same examples.
        probabilities: Whether the outputs [N, classes] are logits of class probabilities, compared by their KL
            divergence.
    """
    if probabilities:
        p, q = _log_softmax(original), _log_softmax(changed)
        found = (np.exp(p) * (p - q)).sum(axis=1)
        return Divergence(np.maximum(found, 0.0), "kl")  # rounding must not make it negative
    axes = tuple(range(1, original.ndim))
    energy = np.square(original - original.mean(axis=0), dtype=np.float64).sum(axis=axes).mean()
    error = np.square(changed - original, dtype=np.float64).sum(axis=axes)
    return Divergence(error / max(float(energy), 1e-30), "relative_error")


def _log_softmax(logits: Outputs) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
