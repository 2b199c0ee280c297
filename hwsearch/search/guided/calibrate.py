"""What evaluations teach about sensitivities: how much each segment's really count, and what a loss costs in accuracy.

Sensitivities of single changes add up well near the original and fall short for models with many changes. So

    divergence ≈ scale · S ** power,   S = Σ weight_segment · sensitivity_segment

with weights near 1 by Bayesian linear regression, and accuracy falls with the divergence by isotonic regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]

PRIOR_SPREAD = 0.7  # standard deviation of a segment's weight around 1
NOISE = 0.2  # relative standard error of a divergence that the model explains no further
POWER_SPREAD, SCALE_SPREAD = 0.3, 1.0  # of the prior on the power (around 1) and on the logarithm of the scale
ROUNDS = 3
LEAST_WEIGHT, MOST_WEIGHT = 0.05, 20.0
LEAST_SIGMA = 0.003  # of a predicted accuracy, relative to the original's

# Until evaluations say better: shares of its accuracy that a classifier keeps at a divergence of so many nats.
ASSUMED_DIVERGENCE = np.array([0.0, 0.03, 0.1, 0.3, 1.0, 3.0])
ASSUMED_SHARE = np.array([1.0, 0.995, 0.985, 0.95, 0.83, 0.3])
FEW = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """Weights of the segments, and predictions from sums of weighted sensitivities.

    Attributes:
        weights: One per segment, around 1.
        scale, power: divergence = scale · S ** power.
    """

    weights: Floats
    scale: float
    power: float
    _divergences: Floats
    _values: Floats
    _sigma: float

    def divergence(self, total: Floats) -> Floats:
        """Expected divergence of models with weighted sums `total`."""
        found: Floats = self.scale * np.maximum(total, 0.0) ** self.power
        return found

    def accuracy(self, total: Floats) -> tuple[Floats, float]:
        """Expected metric of models with weighted sums `total`, and its standard error."""
        return np.interp(self.divergence(total), self._divergences, self._values), self._sigma


def calibrate(features: Floats, divergence: Sequence[float], values: Sequence[float], original: float) -> Calibration:
    """Fit to what was evaluated.

    Args:
        features: Sensitivity per evaluated model and segment [models, segments].
        divergence: Of each model from the original.
        values: Metric of each model, signed so that higher is better.
        original: Metric of the original, likewise.
    """
    observed, metric = np.asarray(divergence, dtype=float), np.asarray(values, dtype=float)
    good = np.isfinite(features).all(axis=1) & np.isfinite(observed) & (observed > 0) & (features.sum(axis=1) > 0)
    rows, observed = features[good], observed[good]
    weights = np.ones(features.shape[1])
    scale, power = 1.0, 1.0
    for _ in range(ROUNDS if len(observed) else 0):
        scale, power = _power_law(rows @ weights, observed)
        weights = _weights(rows, (observed / scale) ** (1 / power))
    expected = scale * (rows @ weights) ** power
    return Calibration(weights, scale, power, *_falling(expected, metric[good], original))


def _power_law(total: Floats, observed: Floats) -> tuple[float, float]:
    """Scale and power, by ridge regression on logarithms towards 1 and 1."""
    x, y = np.log(total), np.log(observed)
    design = np.column_stack([np.ones_like(x), x])
    precision = np.diag([1 / SCALE_SPREAD**2, 1 / POWER_SPREAD**2])
    gram = design.T @ design / NOISE**2 + precision
    log_scale, power = np.linalg.solve(gram, design.T @ y / NOISE**2 + precision @ [0.0, 1.0])
    return float(np.exp(log_scale)), float(np.clip(power, 0.5, 2.0))


def _weights(rows: Floats, target: Floats) -> Floats:
    """Posterior mean of the segments' weights, every row with the same relative error."""
    relative = rows / target[:, None]
    gram = relative.T @ relative / NOISE**2 + np.eye(rows.shape[1]) / PRIOR_SPREAD**2
    pull = relative.sum(axis=0) / NOISE**2 + np.ones(rows.shape[1]) / PRIOR_SPREAD**2
    return np.clip(np.linalg.solve(gram, pull), LEAST_WEIGHT, MOST_WEIGHT)


def _falling(divergence: Floats, values: Floats, original: float) -> tuple[Floats, Floats, float]:
    """Support points (divergence, metric) of a falling function, and the standard error around it.

    Beyond the most damaged model seen, and everywhere before `FEW` are, stands what is assumed.
    """
    seen = len(values)
    needed = (divergence.max() if seen >= FEW else 0.0) < ASSUMED_DIVERGENCE
    divergence = np.concatenate([divergence, ASSUMED_DIVERGENCE[needed]])
    values = np.concatenate([values, original - abs(original) * (1 - ASSUMED_SHARE[needed])])
    order = np.argsort(divergence)
    x = np.concatenate([[0.0], divergence[order]])
    y = np.concatenate([[original], values[order]])
    real = np.concatenate([[True], order < seen])
    fitted = isotonic_regression(y, weights=np.where(real, 1.0, 0.1), increasing=False).x
    sigma = max(LEAST_SIGMA * abs(original), float(np.std((y - fitted)[real])))
    return *_knots(x, fitted), sigma


def _knots(x: Floats, fitted: Floats) -> tuple[Floats, Floats]:
    """One support point in the middle of each level step, so that the function slopes between them."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(fitted) != 0]))
    ends = np.concatenate([starts[1:], [len(fitted)]]) - 1
    return (x[starts] + x[ends]) / 2, fitted[starts]
