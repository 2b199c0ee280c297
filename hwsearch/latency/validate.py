"""Is a table any good? Its predictions against whole models, built and measured like any other.

Random models are not enough: a search asks for those that look best, and so finds the table's worst entry if that is
too low. Some of the models are therefore such that, of many, none is predicted faster with as many multiplications.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwsearch.latency.campaign import TRUTH, Progress, measure_jobs
from hwsearch.latency.design import Drawer, references
from hwsearch.latency.files import TableCheck
from hwsearch.latency.grid import multiplications, thinned
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.predictor import Predictor
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import Network
from hwsearch.types import Candidate, Latency, SearchSpace, Target

STRATUM = 6  # candidates drawn for each that is measured
TEMPTING_SHARE = 0.25  # models that look best, for each random one
TEMPTED = 2000  # candidates they are the best of
SEED = 40_000  # unlike the build's


@dataclass(frozen=True, slots=True)
class Point:
    """One whole model: what was predicted, with its standard error, and what was measured (drift removed), in ms."""

    candidate: Candidate
    predicted_ms: float
    sigma_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Outcome of a check.

    Attributes:
        check: Of the table as it is, on all models.
        tempting: Of the table as it is, on the models that looked best; None if hardly any could be run.
        learned: Of the same table on the second half of the models, after learning from the first; None if there
            were too few.
        points: The models measured.
    """

    check: TableCheck
    tempting: TableCheck | None
    learned: TableCheck | None
    points: tuple[Point, ...]


def check_table(
    table: LatencyTable,
    network: Network,
    space: SearchSpace,
    target: Target,
    progress: Progress,
    *,
    models: int = 40,
    extra: Sequence[Candidate] = (),
    seed: int = SEED,
) -> Validation:
    """Measure `models` candidates spread over all latencies, and a quarter as many that look best.

    Args:
        table: To be checked.
        network: It was built for.
        space: Candidates come from here.
        target: Where they run.
        progress: Told what happens.
        models: How many random candidates.
        extra: Further candidates that look best, such as a solver chose.
        seed: Of the draws.

    Raises:
        ConfigError: the table lacks an entry.
        EvaluationError: a model cannot be built or measured.
    """
    predictor = table.predictor(network.source, target, network.template)
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    drawer = Drawer(network, space, reader, seed)
    best = [*tempting(drawer, reader, predictor, max(2, round(TEMPTING_SHARE * models))), *extra]
    candidates = [*_stratified(drawer, predictor, models), *best]
    shared = references(network, space, reader)
    jobs = [drawer.job(drawer.whole(c)) for c in (*shared, *candidates)]
    latencies = measure_jobs(jobs, target, TRUTH, progress)
    drift = _drift(table, dict(zip((c.key for c in shared), latencies, strict=False)))
    latencies = latencies[len(shared) :]
    points = tuple(
        Point(candidate, *predictor(candidate), latency.best_ms / drift)
        for candidate, latency in zip(candidates, latencies, strict=True)
        if latency is not None
    )
    drift_pct = 100 * (drift - 1)
    looked_best = [point for point in points if point.candidate in best]
    return Validation(
        check=summarise(points, drift_pct),
        tempting=summarise(looked_best, drift_pct) if len(looked_best) > 1 else None,
        learned=_after_learning(predictor, points, drift_pct),
        points=points,
    )


def _drift(table: LatencyTable, references: Mapping[str, Latency | None]) -> float:
    """How many times slower the machine runs than when the table was built; 1 if they have no model in common."""
    then = table.manifest.references_ms
    ratios = [now.best_ms / then[key] for key, now in references.items() if now is not None and key in then]
    return statistics.median(ratios) if ratios else 1.0


def summarise(points: Sequence[Point], drift_pct: float = 0.0, learned: int = 0) -> TableCheck:
    """Error figures of some predictions."""
    measured = np.array([point.measured_ms for point in points])
    error = 100 * (np.array([point.predicted_ms for point in points]) / measured - 1)
    return TableCheck(
        models=len(points),
        mape_pct=float(np.abs(error).mean()),
        bias_pct=float(error.mean()),
        max_pct=float(np.abs(error).max()),
        within_5_pct=_share(np.abs(error) <= 5),
        within_10_pct=_share(np.abs(error) <= 10),
        spearman=float(spearmanr([point.predicted_ms for point in points], measured).statistic),
        learned=learned,
        drift_pct=drift_pct,
    )


def _after_learning(predictor: Predictor, points: Sequence[Point], drift_pct: float) -> TableCheck | None:
    half = len(points) // 2
    if half < 10:
        return None
    shuffled = [points[i] for i in np.random.default_rng(SEED).permutation(len(points))]
    for point in shuffled[:half]:
        predictor.learn(point.candidate, point.measured_ms)
    unseen = [Point(p.candidate, *predictor(p.candidate), p.measured_ms) for p in shuffled[half:]]
    return summarise(unseen, drift_pct, learned=half)


def _stratified(drawer: Drawer, predictor: Predictor, models: int) -> list[Candidate]:
    """One candidate of every stretch of predicted latency that holds equally many."""
    drawn = sorted((drawer.candidate(any_width=True) for _ in range(STRATUM * models)), key=lambda c: predictor(c)[0])
    return drawn[STRATUM // 2 :: STRATUM]


def tempting(drawer: Drawer, reader: NetworkUnits, predictor: Predictor, models: int) -> list[Candidate]:
    """At most `models` of the candidates that none of many others beats in both latency and multiplications."""
    drawn = sorted((drawer.candidate(any_width=True) for _ in range(TEMPTED)), key=lambda c: predictor(c)[0])
    most, front = 0.0, []
    for candidate in drawn:
        work = multiplications(reader.counts(candidate))
        if work > most:
            most = work
            front.append(candidate)
    return list(thinned(front, models))


def _share(hits: NDArray[np.bool_]) -> float:
    return 100 * float(np.mean(hits))
