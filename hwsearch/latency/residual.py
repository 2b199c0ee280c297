"""What whole models cost beyond the sum of their units: a ridge regression that keeps learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CORRECTION = 0.03  # prior standard deviation of a family's relative correction
SCALE = 0.05  # of one that all share: the machine may run faster or slower than when the table was built


class Residual:
    """One relative correction per family of units, updated by recursive least squares.

    Args:
        families: How many families there are.
        model_error: Relative standard error of a measured model that corrections cannot explain.
    """

    def __init__(self, families: int, model_error: float) -> None:
        self._model_error = model_error
        self._correction = np.zeros(families)
        self._covariance = np.eye(families) * CORRECTION**2 + SCALE**2
        self.learned = 0

    def apply(self, totals: Sequence[float]) -> tuple[float, float]:
        """Corrected total, and the variance that corrections and model error leave.

        Args:
            totals: Predicted cost of each family, in any unit.
        """
        costs = np.array(totals)
        total = float(costs.sum() + costs @ self._correction)
        # Before anything is learnt the corrections are not a source of error: the entries' own errors are all there is.
        spread = float(costs @ self._covariance @ costs) if self.learned else 0.0
        return total, spread + (self._model_error * total) ** 2

    def learn(self, totals: Sequence[float], measured: float) -> None:
        """Take in a whole model: what its families were predicted to cost, and what it cost in total."""
        costs = np.array(totals)
        reached = self._covariance @ costs
        gain = reached / (costs @ reached + (self._model_error * measured) ** 2)
        self._correction += gain * (measured - costs.sum() - costs @ self._correction)
        self._covariance -= np.outer(gain, reached)
        self.learned += 1
