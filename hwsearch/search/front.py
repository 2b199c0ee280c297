"""From evaluations to a front: who is chosen, in which order, tied with whom, and how much of the chart they cover."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hwsearch.search.pareto import front_mask, hypervolume, hypervolume_gains, intervals_overlap
from hwsearch.types import Accuracy, Device, Energy, Front, FrontPoint, Latency, Success, Trial

Point = tuple[tuple[float, float], Trial]
"""An evaluation with its costs of accuracy and latency."""

MAX_FINALISTS = 16
TRAINED = "F3"  # fidelity of an evaluation after recovery
# Models that lose more than a fifth of the reference's accuracy are not worth area on the chart.
WORTH_KEEPING = 0.8


def choose(trials: Sequence[Trial]) -> list[Trial]:
    """Baselines and the feasible front of the search, fastest first, thinned to the `MAX_FINALISTS` that cover most.

    Every trained model is among them, on the front of the search or not: it has cost minutes, and the examples that
    picked the moment to stop its training judge it too kindly to tell which of two such models is better.

    Energy counts beside accuracy and latency where it was recorded.
    """
    good = [
        (t, costs_of(t.outcome.accuracy, t.outcome.latency))
        for t in trials
        if t.feasible and isinstance(t.outcome, Success)
    ]
    spent = [t.outcome.energy for t, _ in good if isinstance(t.outcome, Success)]
    rows = [(*costs, energy.net_mj if energy else 0.0) for (_, costs), energy in zip(good, spent, strict=True)]
    mask = front_mask(rows).tolist() if good else []
    trained = [(costs, t) for t, costs in good if t.fidelity == TRAINED]
    front = [
        (costs, t)
        for (t, costs), on in zip(good, mask, strict=True)
        if on and t.baseline is None and t.fidelity != TRAINED
    ]
    finalists = sorted(trained + _thinned(front, beside=trained), key=lambda found: found[0][1])
    baselines = [t for t in trials if t.baseline is not None and isinstance(t.outcome, Success)]
    return baselines + [trial for _, trial in finalists]


def _thinned(front: list[Point], *, beside: list[Point]) -> list[Point]:
    """The points that, with those `beside` them, dominate most of the chart, found one after the other."""
    room = max(0, MAX_FINALISTS - len(beside))
    if len(front) <= room:
        return front
    costs, known = (np.array([found for found, _ in points]).reshape(-1, 2) for points in (front, beside))
    # A little beyond the worst, so that the ends of the front count.
    corner = costs.max(axis=0) + 0.1 * np.ptp(costs, axis=0)
    chosen: list[int] = []
    for _ in range(room):
        gains = hypervolume_gains(costs, np.concatenate([known, costs[chosen]]), corner.tolist())
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
    return [front[i] for i in chosen]


def provisional(trials: Sequence[Trial], *, target: str, device: Device, objectives: tuple[str, ...]) -> Front | None:
    """The front as the search saw it, before finalists were measured again; None before the first success."""
    chosen = choose(trials)
    if not chosen:
        return None
    found = {t.candidate.key: t.outcome for t in chosen if isinstance(t.outcome, Success)}
    return assemble(
        chosen,
        {key: outcome.latency for key, outcome in found.items()},
        {key: outcome.accuracy for key, outcome in found.items()},
        target=target,
        device=device,
        objectives=objectives,
        final=False,
        energies={key: outcome.energy for key, outcome in found.items()},
    )


def assemble(
    chosen: Sequence[Trial],
    latencies: dict[str, Latency],
    accuracies: dict[str, Accuracy],
    *,
    target: str,
    device: Device,
    objectives: tuple[str, ...],
    final: bool,
    build_spreads: Mapping[str, float] | None = None,
    energies: Mapping[str, Energy | None] | None = None,
) -> Front:
    """The front of the chosen trials with these numbers."""
    points = []
    for trial in chosen:
        assert isinstance(trial.outcome, Success)
        key = trial.candidate.key
        points.append(
            FrontPoint(
                key=key,
                trial=trial.number,
                baseline=trial.baseline,
                accuracy=accuracies[key],
                latency=latencies[key],
                size_bytes=trial.outcome.size_bytes,
                params=trial.outcome.params,
                macs=trial.outcome.macs,
                on_front=False,
                build_spread=(build_spreads or {}).get(key),
                training_minutes=trial.seconds["recover"] / 60 if "recover" in trial.seconds else None,
                energy=(energies or {}).get(key),
            )
        )
    return judged(points, target=target, device=device, objectives=objectives, final=final)


def judged(
    points: Sequence[FrontPoint], *, target: str, device: Device, objectives: tuple[str, ...], final: bool
) -> Front:
    """The front of these points: which are on it and which tie is worked out anew."""
    points = sorted(points, key=lambda p: p.latency.best_ms)
    winners = undominated(points)
    marked = tuple(
        dataclasses.replace(
            p, on_front=p.key in winners, tied_with=tuple(other.key for other in points if tied(other, p))
        )
        for p in points
    )
    reference = reference_point(marked)
    return Front(
        target=target,
        device=device,
        objectives=objectives,
        points=marked,
        reference=reference,
        hypervolume=relative_hypervolume(marked, reference),
        final=final,
    )


def reference_point(points: Sequence[FrontPoint]) -> tuple[float, float]:
    """(accuracy, latency_ms) a model must beat to count: a fifth below the widest baseline, and that one's latency."""
    widest = max((p for p in points if p.baseline), key=lambda p: p.latency.best_ms, default=points[-1])
    factor = WORTH_KEEPING if widest.accuracy.higher_is_better else 1 / WORTH_KEEPING
    return factor * widest.accuracy.value, widest.latency.best_ms


def relative_hypervolume(points: Sequence[FrontPoint], reference: tuple[float, float]) -> float:
    """Share of the box between the reference point and (zero latency, best accuracy seen) that the points dominate."""
    costs = [costs_of(p.accuracy, p.latency) for p in points]
    sign = -1.0 if points[0].accuracy.higher_is_better else 1.0
    corner = (sign * reference[0], reference[1])
    box = (corner[0] - min(cost[0] for cost in costs)) * corner[1]
    return hypervolume(costs, corner) / box if box > 0 else 0.0


def costs_of(accuracy: Accuracy, latency: Latency) -> tuple[float, float]:
    """Accuracy and latency as numbers to be minimised."""
    return (-accuracy.value if accuracy.higher_is_better else accuracy.value, latency.best_ms)


def undominated(points: Sequence[FrontPoint]) -> set[str]:
    """Keys of the points on the front.

    From the most accurate down, a point stays unless one that stays is at least as accurate, not slower beyond the
    noise, and better beyond the noise in something. Accuracies are compared by value, as the examples are the same;
    latencies, and energies where they are known, by their intervals.
    """
    by_accuracy = sorted(points, key=lambda p: costs_of(p.accuracy, p.latency))
    kept: list[FrontPoint] = []
    for point in by_accuracy:
        if not any(_better_beyond_noise(other, point) for other in kept):
            kept.append(point)
    return {point.key for point in kept}


def tied(one: FrontPoint, other: FrontPoint) -> bool:
    """Whether two different points differ by no more than the noise, in accuracy, latency and known energy."""
    energies_differ = _takes_less(one, other) or _takes_less(other, one)
    differ = _accuracies_differ(one, other) or _latencies_differ(one, other) or energies_differ
    return one.key != other.key and not differ


def _better_beyond_noise(one: FrontPoint, other: FrontPoint) -> bool:
    """Whether `one`, which is at least as accurate, leaves no reason to choose `other`."""
    if _takes_less(other, one):
        return False
    if _latencies_differ(one, other):
        return one.latency.best_ms < other.latency.best_ms
    return _accuracies_differ(one, other) or _takes_less(one, other)


def _takes_less(one: FrontPoint, other: FrontPoint) -> bool:
    """Whether `one` takes less energy than `other` by more than the noise; False where energy is not known."""
    if one.energy is None or other.energy is None:
        return False
    return one.energy.ci95_mj[1] < other.energy.ci95_mj[0]


def _latencies_differ(one: FrontPoint, other: FrontPoint) -> bool:
    return not intervals_overlap(one.latency.ci95_ms, other.latency.ci95_ms)


def _accuracies_differ(one: FrontPoint, other: FrontPoint) -> bool:
    return not intervals_overlap(_accuracy_interval(one), _accuracy_interval(other))


def _accuracy_interval(point: FrontPoint) -> tuple[float, float]:
    return point.accuracy.ci95 or (point.accuracy.value, point.accuracy.value)
