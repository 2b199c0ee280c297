"""Where the front may still grow: the gaps between neighbours in latency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def front_gaps(
    costs: Sequence[tuple[float, float]], corner: tuple[float, float], fastest_ms: float, resolution: float
) -> list[tuple[float, float]]:
    """Latencies between which nothing was evaluated, the gap with most to gain first.

    Between two neighbours in latency the hypervolume can grow at most by the rectangle between the best accuracy up to
    the first and the next better accuracy from the second on. A model that did not improve the front splits its gap.
    Left of the fastest model that counts, every model on the way there that was too bad halves the hope.

    Args:
        costs: (cost of accuracy, latency in ms) of every evaluated model, on the front or not.
        corner: Costs beyond which a model does not count.
        fastest_ms: Latency below which there is no model.
        resolution: Difference in accuracy that is not worth an evaluation.
    """
    points = [(fastest_ms, -corner[0]), *((latency, -cost) for cost, latency in costs if fastest_ms < latency)]
    latency, accuracy = np.array(sorted(points)).T
    best = np.maximum.accumulate(np.maximum(accuracy, -corner[0]))
    better = np.searchsorted(best, best, side="right")
    gaps = [k for k in range(len(best) - 1) if better[k] < len(best) and latency[k] < min(latency[k + 1], corner[1])]
    first = int(np.argmax(best > -corner[0]))

    def hope(gap: int) -> float:
        gain = max(best[better[gap]] - best[gap] - resolution, 0.0)
        return float((latency[gap + 1] - latency[gap]) * gain * 0.5 ** max(first - gap - 1, 0))

    return [(float(latency[k]), float(latency[k + 1])) for k in sorted(gaps, key=hope, reverse=True)]
