"""Where the front may still grow: the gaps between neighbours in latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def front_gaps(
    costs: Sequence[tuple[float, float]], corner: tuple[float, float], fastest_ms: float
) -> list[tuple[float, float]]:
    """Latencies between which nothing was evaluated, the gap with most to gain first.

    Between two neighbours in latency the hypervolume can grow at most by the rectangle between the best accuracy up to
    the first and the next better accuracy from the second on. A model that did not improve the front splits its gap.
    Left of the fastest model that counts only the gap next to it is listed: what is faster than a model that is too
    bad is likely worse.

    Args:
        costs: (cost of accuracy, latency in ms) of every evaluated model, on the front or not.
        corner: Costs beyond which a model does not count.
        fastest_ms: Latency below which there is no model.
    """
    points = [(fastest_ms, -corner[0]), *((latency, -cost) for cost, latency in costs if fastest_ms < latency)]
    latency, accuracy = np.array(sorted(points)).T
    best = np.maximum.accumulate(np.maximum(accuracy, -corner[0]))
    better = np.searchsorted(best, best, side="right")
    worth = (latency[:-1] < np.minimum(latency[1:], corner[1])) & (better[:-1] < len(best)) & (best[1:] > -corner[0])
    gaps = np.flatnonzero(worth).tolist()
    gaps.sort(key=lambda k: -(latency[k + 1] - latency[k]) * (best[better[k]] - best[k]))
    return [(float(latency[k]), float(latency[k + 1])) for k in gaps]
