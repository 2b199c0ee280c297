"""The facts of a run as pandas frames; figures and tables are drawn from these and from nothing else.

Values are stored as the records store them: milliseconds, bytes, the metric in its own unit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from hwsearch.config import LimitsConfig
from hwsearch.report.view import RunView
from hwsearch.search.front import costs_of
from hwsearch.search.guided.predictions import read_predictions
from hwsearch.search.pareto import hypervolume as dominated_area
from hwsearch.types import Accuracy, Candidate, Failure, FrontPoint, Latency, SourceModel, Success, Trial

ORDERS = 20  # in which random candidates are drawn, to average over
NOWHERE = (np.inf, np.inf)  # costs of what dominates nothing

EVALUATION_COLUMNS = [
    "number",
    "key",
    "baseline",
    "status",
    "on_front",
    "final",
    "feasible",
    "violations",
    "split",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "latency_ms",
    "latency_low",
    "latency_high",
    "median_ms",
    "p90_ms",
    "p99_ms",
    "source",
    "search_accuracy",
    "search_latency_ms",
    "search_latency_low",
    "search_latency_high",
    "search_source",
    "size_bytes",
    "energy_mj",
    "energy_source",
    "params",
    "macs",
    "macs_ratio",
    "precisions",
    "integer_ratio",
    "kept_ratio",
    "dropped",
    "tied_with",
    "seconds",
    "training_minutes",
]
FAILURE_COLUMNS = ("number", "key", "stage", "kind", "message", "hint", "log")


def evaluations(run: RunView) -> pd.DataFrame:
    """One row per successful evaluation, in order, at its best-founded numbers.

    Finalists stand with what was measured again at the end (`final`, `split` = report); everything else with what the
    search saw. `status` is ``front``, ``finalist``, ``searched`` or ``infeasible``; `tied_with` lists keys.
    """
    points = {p.trial: p for p in run.front.points} if run.front else {}
    final = run.front is not None and run.front.final
    fp32 = next((p.accuracy for p in points.values() if p.baseline == "fp32"), None)
    rows = [
        _evaluation(run, trial, trial.outcome, points.get(trial.number), final, fp32)
        for trial in run.trials
        if isinstance(trial.outcome, Success)
    ]
    frame = pd.DataFrame(rows, columns=list(EVALUATION_COLUMNS))
    return with_none(frame.astype({"energy_mj": float}), "baseline", "energy_source")


def failures(run: RunView) -> pd.DataFrame:
    """One row per failed evaluation: where, what kind, message, hint, the worker's last lines."""
    rows = [
        (t.number, t.candidate.key, t.outcome.stage, t.outcome.error, t.outcome.message, t.outcome.hint, t.outcome.log)
        for t in run.trials
        if isinstance(t.outcome, Failure)
    ]
    return with_none(pd.DataFrame(rows, columns=list(FAILURE_COLUMNS)), "hint")


def stages(run: RunView) -> pd.DataFrame:
    """Seconds per evaluation and stage, long form, stages in the order in which they first ran."""
    keyed = [(trial, trial.candidate.key) for trial in run.trials]
    rows = [(trial.number, key, stage, s) for trial, key in keyed for stage, s in trial.seconds.items()]
    return pd.DataFrame(rows, columns=["number", "key", "stage", "seconds"])


def hypervolume(run: RunView) -> pd.DataFrame:
    """Share of the chart dominated after each evaluation, 0 to 1, by what the search saw of feasible candidates.

    The box lies between the front's reference point and (zero latency, best value of the metric seen), as in
    `Front.hypervolume`. Empty without a front.
    """
    columns = ["number", "key", "baseline", "hypervolume", "improved"]
    chart = _chart(run)
    found = _successes(run) if chart else []
    shares = _shares([costs_of(o.accuracy, o.latency) if t.feasible else NOWHERE for t, o in found], chart)
    rows = [
        (trial.number, trial.candidate.key, trial.baseline, share, share > before)
        for (trial, _), before, share in zip(found, [0.0, *shares], shares, strict=False)
    ]
    return with_none(pd.DataFrame(rows, columns=columns), "baseline")


def random_search(run: RunView) -> list[float]:
    """Share of the chart that the baselines and then candidates drawn at random are expected to cover, by evaluation.

    The mean over several orders of the draws the search predicted; empty if it predicted none.
    """
    chart, expected = _chart(run), read_predictions(run.path)
    if chart is None or expected is None or not expected.random:
        return []
    sign = -1.0 if _successes(run)[0][1].accuracy.higher_is_better else 1.0
    known = [costs_of(o.accuracy, o.latency) for t, o in _successes(run) if t.baseline is not None]
    drawn = [(sign * accuracy, latency) for accuracy, latency in expected.random]
    count = max(0, len(run.trials) - len(known))
    orders = (np.random.default_rng(seed).permutation(len(drawn)) for seed in range(ORDERS))
    shares = [[0.0, *_shares([*known, *(drawn[i] for i in order[:count])], chart)][len(known) :] for order in orders]
    means: list[float] = np.mean(shares, axis=0).tolist()
    return means


def _successes(run: RunView) -> list[tuple[Trial, Success]]:
    return [(t, t.outcome) for t in run.trials if isinstance(t.outcome, Success)]


def _chart(run: RunView) -> tuple[float, float, float] | None:
    """The corner of the box in costs of accuracy and latency, and its area; None without a front."""
    found = _successes(run)
    if run.front is None or not found:
        return None
    higher = found[0][1].accuracy.higher_is_better
    corner = (-run.front.reference[0] if higher else run.front.reference[0], run.front.reference[1])
    best = min((costs_of(o.accuracy, o.latency)[0] for t, o in found if t.feasible), default=corner[0])
    return (*corner, (corner[0] - best) * corner[1])


def _shares(costs: list[tuple[float, float]], chart: tuple[float, float, float] | None) -> list[float]:
    """Share of the chart dominated after each of `costs`; only what no earlier point dominates changes it."""
    if chart is None or chart[2] <= 0:
        return [0.0] * len(costs)
    shares = [0.0]
    front: list[tuple[float, float]] = []
    for x, y in costs:
        if any(a <= x and b <= y for a, b in front):
            shares.append(shares[-1])
        else:
            front = [(a, b) for a, b in front if a < x or b < y] + [(x, y)]
            shares.append(dominated_area(front, chart[:2]) / chart[2])
    return shares[1:]


def with_none(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """`frame` with missing entries of `columns` as None, which is false, and not as NaN, which is true."""
    return frame.assign(**{name: frame[name].astype(object).where(frame[name].notna(), None) for name in columns})


# --------------------------------------------------------------------------- one evaluation


def _evaluation(
    run: RunView, trial: Trial, found: Success, point: FrontPoint | None, final: bool, fp32: Accuracy | None
) -> dict[str, Any]:
    remeasured = point is not None and final
    accuracy = point.accuracy if point else found.accuracy
    latency = point.latency if point else found.latency
    energy = point.energy if point else found.energy
    violations = _violations(run.config.limits, point, fp32) if point and remeasured else trial.constraints
    broken = {name: amount for name, amount in violations.items() if amount > 0}
    finite = bool(np.isfinite([accuracy.value, latency.best_ms]).all())
    row = {
        "number": trial.number,
        "key": trial.candidate.key,
        "baseline": trial.baseline,
        "status": _status(point, final, feasible=finite and not broken),
        "on_front": point is not None and point.on_front,
        "final": remeasured,
        "feasible": finite and not broken,
        "violations": broken,
        "search_accuracy": found.accuracy.value,
        "search_latency_ms": found.latency.best_ms,
        "search_latency_low": found.latency.ci95_ms[0],
        "search_latency_high": found.latency.ci95_ms[1],
        "search_source": found.latency.source,
        "size_bytes": found.size_bytes,
        "energy_mj": energy.net_mj if energy else None,
        "energy_source": energy.source if energy else None,
        "params": found.params,
        "macs": found.macs,
        "macs_ratio": found.macs / max(1, sum(layer.macs for layer in run.source.layers)),
        "tied_with": point.tied_with if point else (),
        "seconds": sum(trial.seconds.values()),
        "training_minutes": trial.seconds.get("recover", 0.0) / 60,
    }
    return row | _measured(accuracy, latency) | _choices(trial.candidate, run.source)


def _status(point: FrontPoint | None, final: bool, *, feasible: bool) -> str:
    if not feasible:
        return "infeasible"
    if point is not None and point.on_front:
        return "front"
    return "finalist" if point is not None and final else "searched"


def _measured(accuracy: Accuracy, latency: Latency) -> dict[str, Any]:
    low, high = accuracy.ci95 or (None, None)
    return {
        "split": accuracy.split,
        "accuracy": accuracy.value,
        "accuracy_low": low,
        "accuracy_high": high,
        "latency_ms": latency.best_ms,
        "latency_low": latency.ci95_ms[0],
        "latency_high": latency.ci95_ms[1],
        "median_ms": latency.median_ms,
        "p90_ms": latency.p90_ms,
        "p99_ms": latency.p99_ms,
        "source": latency.source,
    }


def _choices(candidate: Candidate, source: SourceModel) -> dict[str, Any]:
    """The candidate in a few words and ratios: layers per format, and the mean share of channels kept per group."""
    counts = Counter(candidate.precision.values())
    kept = [candidate.keep.get(group.name, group.channels) / group.channels for group in source.groups]
    integer = sum(n for name, n in counts.items() if name.startswith("int"))
    return {
        "precisions": ", ".join(f"{n} × {name}" for name, n in counts.most_common()),
        "integer_ratio": integer / max(1, len(candidate.precision)),
        "kept_ratio": float(np.mean(kept)) if kept else 1.0,
        "dropped": ", ".join(candidate.dropped),
    }


def _violations(limits: LimitsConfig, point: FrontPoint, fp32: Accuracy | None) -> dict[str, float]:
    """By how much a re-measured point misses the study's limits, judged on the new numbers."""
    found: dict[str, float] = {}
    if limits.latency_ms is not None:
        found["latency_ms"] = point.latency.best_ms - limits.latency_ms
    if limits.size_mb is not None:
        found["size_mb"] = point.size_bytes / 1e6 - limits.size_mb
    if limits.energy_mj is not None and point.energy is not None:
        found["energy_mj"] = point.energy.net_mj - limits.energy_mj
    if limits.accuracy_drop_points is not None and fp32 is not None:
        loss = fp32.value - point.accuracy.value
        found["accuracy_drop_points"] = 100 * (loss if fp32.higher_is_better else -loss) - limits.accuracy_drop_points
    return found
