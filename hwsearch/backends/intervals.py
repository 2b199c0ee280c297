"""Intervals for the two estimators that latency rests on, without assumptions about the shape of the noise.

The minimum of round medians has no valid ordinary bootstrap: a resample contains the minimum itself 63 % of the time,
and the interval comes out half as wide as it should be. A bootstrap of half the size (m out of n) is valid (Bickel,
Götze and van Zwet 1997), and for a minimum its distribution is known in closed form, so nothing is drawn at random.

A ratio of two models is taken round by round, where both met the same disturbance. If the models are equal, the
random order within the round makes each log-ratio symmetric about zero, so Wilcoxon's signed-rank interval is exact.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.96


def minimum_standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of ``values.min()``, [rounds], by the exact bootstrap of half the size; inf for one value.

    On simulated noise (Gaussian, exponential, gamma, bursts; 8 to 30 rounds) the difference of two such minima lies
    within 1.96 combined standard errors in 93 to 98 % of cases; with the ordinary bootstrap, in 77 to 94 %.
    """
    n = len(values)
    if n < 2:
        return math.inf
    draws = math.ceil(n / 2)
    survival = (np.arange(n, -1, -1) / n) ** draws  # P(minimum of the draws is not among the j smallest values)
    probability = survival[:-1] - survival[1:]
    ordered = np.sort(values)
    mean = float(probability @ ordered)
    return math.sqrt(float(probability @ (ordered - mean) ** 2))


def signed_rank_interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Hodges-Lehmann estimate of the centre of `differences`, [rounds], and its 95 % interval: (estimate, low, high).

    The interval is infinite for fewer than six differences, where no test at this level exists.
    """
    n = len(differences)
    first, second = np.triu_indices(n)
    walsh = np.sort((differences[first] + differences[second]) / 2)
    estimate = float(np.median(walsh)) if n else 0.0
    rank = _critical_rank(n)
    if rank == 0:
        return estimate, -math.inf, math.inf
    return estimate, float(walsh[rank - 1]), float(walsh[-rank])


@functools.cache
def _critical_rank(n: int, level: float = 0.05) -> int:
    """Largest k with P(signed-rank statistic <= k - 1) <= level / 2, so that the k-th Walsh averages bound the centre.

    The statistic is the sum of a random subset of 1..n; its distribution is counted by convolution.
    """
    counts = np.ones(1)
    for rank in range(1, n + 1):
        counts = np.convolve(counts, np.concatenate(([0.5], np.zeros(rank - 1), [0.5])))
    return int(np.searchsorted(np.cumsum(counts), level / 2, side="right"))
