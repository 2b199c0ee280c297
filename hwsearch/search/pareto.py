"""Pareto fronts under noise: dominance, hypervolume, ties, picking. numpy only.

Points are rows of costs: every column is to be minimised. A row with a NaN or an infinity dominates nothing and is
never on a front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwsearch.errors import ConfigError
from hwsearch.types import FrontPoint

Floats = NDArray[np.float64]


def front_mask(costs: ArrayLike) -> NDArray[np.bool_]:
    """For each row of `costs` [n, objectives], whether no other row dominates it. Equal rows are all kept."""
    points = np.atleast_2d(np.asarray(costs, dtype=float))
    finite = np.isfinite(points).all(axis=1)
    mask: NDArray[np.bool_] = finite.copy()
    for i in np.flatnonzero(finite):
        others = points[finite]
        beaten = np.all(others <= points[i], axis=1) & np.any(others < points[i], axis=1)
        mask[i] = not beaten.any()
    return mask


def hypervolume(costs: ArrayLike, reference: Sequence[float]) -> float:
    """Area between two-objective `costs` [n, 2] and the reference point that they dominate; 0 if none reaches it."""
    points = np.atleast_2d(np.asarray(costs, dtype=float))
    if points.size == 0:
        return 0.0
    inside = np.isfinite(points).all(axis=1) & (points < np.asarray(reference)).all(axis=1)
    area, ceiling = 0.0, float(reference[1])
    for x, y in sorted(map(tuple, points[inside])):
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return float(area)


def hypervolume_gains(points: ArrayLike, costs: ArrayLike, reference: Sequence[float]) -> Floats:
    """For each of two-objective `points` [m, 2], the area it would add to what `costs` [n, 2] dominate."""
    new = np.asarray(points, dtype=float).reshape(-1, 2)
    old = np.asarray(costs, dtype=float).reshape(-1, 2)
    old = old[np.isfinite(old).all(axis=1) & (old < np.asarray(reference)).all(axis=1)]
    steps = np.unique(np.concatenate([old[:, 0], [float(reference[0])]]))
    heights = np.array([min(old[old[:, 0] <= x, 1], default=float(reference[1])) for x in steps])
    # Left of the first step nothing is dominated yet; between steps, all above `heights` is.
    left = np.concatenate([[-np.inf], steps[:-1]])
    ceiling = np.concatenate([[float(reference[1])], heights[:-1]])
    width = np.clip(steps[None, :] - np.maximum(left[None, :], new[:, :1]), 0.0, None)
    height = np.clip(ceiling[None, :] - new[:, 1:], 0.0, None)
    gains: Floats = (width * height).sum(axis=1)
    return gains


def intervals_overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two closed intervals share a point."""
    return a[0] <= b[1] and b[0] <= a[1]


def knee(costs: ArrayLike) -> int | None:
    """Row of the front farthest below the line between the front's ends, objectives scaled to 0..1; None if empty.

    Branke et al., "Finding knees in multi-objective optimization", 2004.
    """
    points = np.atleast_2d(np.asarray(costs, dtype=float))
    rows = np.flatnonzero(front_mask(points)) if points.size else np.array([], dtype=int)
    if rows.size == 0:
        return None
    front = points[rows]
    span = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int(rows[np.argmin(scaled.sum(axis=1))])


def pick(
    points: Sequence[FrontPoint],
    *,
    max_latency_ms: float | None = None,
    min_accuracy: float | None = None,
    max_size_mb: float | None = None,
) -> FrontPoint:
    """The most accurate point within the limits; the fastest one when only accuracy is limited; else the knee.

    Raises:
        ConfigError: no point satisfies the limits; the message names the nearest.
    """
    if not points:
        raise ConfigError("the front is empty", hint="no evaluation has succeeded yet")
    sign = 1.0 if points[0].accuracy.higher_is_better else -1.0
    fits = [p for p in points if _misses(p, sign, max_latency_ms, min_accuracy, max_size_mb) == 0]
    if not fits:
        nearest = min(points, key=lambda p: _misses(p, sign, max_latency_ms, min_accuracy, max_size_mb))
        raise ConfigError(
            "no point of the front satisfies the limits",
            where=f"nearest: {nearest.key} at {nearest.latency.best_ms:.3f} ms, {nearest.accuracy.metric} "
            f"{nearest.accuracy.value:.4f}, {nearest.size_bytes / 1e6:.2f} MB",
            hint=_advice(nearest.accuracy.metric, min_accuracy),
        )
    if max_latency_ms is not None or max_size_mb is not None:
        return max(fits, key=lambda p: (sign * p.accuracy.value, -p.latency.best_ms))
    if min_accuracy is not None:
        return min(fits, key=lambda p: (p.latency.best_ms, -sign * p.accuracy.value))
    best = knee([(p.latency.best_ms, -sign * p.accuracy.value) for p in fits])
    return fits[best or 0]


def _advice(metric: str, min_accuracy: float | None) -> str:
    if metric == "top1" and min_accuracy is not None and min_accuracy > 1:
        return f"top1 runs from 0 to 1: did you mean {min_accuracy / 100:g}?"
    return "loosen a limit, or search on with --extend"


def _misses(
    point: FrontPoint, sign: float, latency_ms: float | None, accuracy: float | None, size_mb: float | None
) -> float:
    """Sum of relative violations; 0 within all limits."""
    found = 0.0
    if latency_ms is not None:
        found += max(0.0, point.latency.best_ms / latency_ms - 1)
    if accuracy is not None:
        found += max(0.0, sign * (accuracy - point.accuracy.value) / max(abs(accuracy), 1e-12))
    if size_mb is not None:
        found += max(0.0, point.size_bytes / 1e6 / size_mb - 1)
    return found
