"""Search by an exact solver, guided by sensitivities that are corrected by what was evaluated.

A candidate is a latency budget and one multiplier per segment of the network: the solver turns them into the choice
per layer that minimises the sum of weighted sensitivities within the budget. Most proposals take the multipliers from
the calibration, and as budget, in turns, that of the largest expected gain in hypervolume (first of all the study's own
limit) and the middle of the largest gap of the front; every few proposals are left to Optuna's sampler, which searches
budget and multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import NDArray

from hwsearch.search import storage
from hwsearch.search.front import costs_of
from hwsearch.search.guided.calibrate import LEAST_SIGMA, Calibration, calibrate
from hwsearch.search.guided.gaps import front_gaps
from hwsearch.search.pareto import hypervolume_gains
from hwsearch.search.pricing.pricing import Chart, Pricing
from hwsearch.search.proposals import LayerProposer, enqueue, queued_candidate
from hwsearch.types import Candidate, Success, Trial

Floats = NDArray[np.float64]

SEEDS = (0.985, 0.95, 0.9, 0.85)  # shares of the original's accuracy that the first proposals are expected to keep
EXPLORE, SETTLED = 4, 12  # every so many proposals, once there are so many evaluations, is the sampler's
RECALIBRATE = 2  # evaluations after which the sensitivities are corrected again
MOST = 3.0  # natural logarithm of the largest multiplier
DIGITS = 3  # of a logarithm, for the memory of solved problems
DRAWS, SPREAD = 100, 0.5  # random multipliers tried, and the standard deviation of their logarithms
CHARTS = 64  # solved problems kept in memory
BUDGET = "budget"
WEIGHT = "weight:"


class Guides(Protocol):
    """What a guided search is guided by."""

    def pricing(self, trials: Sequence[Trial]) -> Pricing | None:
        """The priced space, following what was measured; None if the search is stopped before it is ready."""

    def corner(self, trials: Sequence[Trial]) -> tuple[float, float] | None:
        """Costs of accuracy and latency beyond which a model does not count; None before the first success."""

    def limits(self, trials: Sequence[Trial]) -> dict[str, float]:
        """What the solver's models may use beside time, by resource."""

    def lean(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Limits within which the next proposal is to be the most accurate, whatever its latency; mostly empty."""

    def predict(self, candidate: Candidate) -> tuple[float, float]:
        """Latency of a whole candidate and its standard error, in ms."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the solver's models are expected to be.

    Attributes:
        chart: Non-dominated models of one set of weights, fastest first.
        accuracy: Of each, higher is better whatever the metric.
        sigma: Standard error of an accuracy.
    """

    chart: Chart
    accuracy: Floats
    sigma: float


class GuidedProposer:
    """Proposes what the solver expects to gain most.

    Args:
        study: The Optuna study.
        layers: Takes over where the solver has nothing new to say.
        guidance: The priced space, and what counts; asked when the first proposal is needed.
        limit_ms: The study's latency limit: the best model within it comes first.
        seed: Of the study.
    """

    def __init__(
        self,
        study: optuna.Study,
        layers: LayerProposer,
        guidance: Guides,
        *,
        limit_ms: float | None,
        seed: int,
    ) -> None:
        self._study, self._layers, self.guidance = study, layers, guidance
        self._limit_ms, self._seed = limit_ms, seed
        self._pricing: Pricing | None = None
        self._expected: tuple[int, Expectation] | None = None
        self._limits: dict[str, float] = {}
        self._useful: tuple[float, float] | None = None
        self._chart = lru_cache(maxsize=CHARTS)(self._solved)

    def numbers(self, candidate: Candidate) -> dict[str, float]:  # noqa: ARG002 - of the protocol
        """Empty: a baseline is no solution of the solver's."""
        return {}

    def queue(self, trials: Sequence[Trial]) -> None:
        """Queue the solver's most promising model; on the sampler's turn, or if none promises a gain, nothing."""
        self._pricing = self.guidance.pricing(trials)
        corner = self.guidance.corner(trials)
        searched = sum(trial.baseline is None for trial in trials)
        samplers_turn = searched >= SETTLED and searched % EXPLORE == 0
        if self._pricing is None or corner is None:
            return
        expected = self.expectation(trials)
        self._useful = _useful(expected, corner)
        lean = self.guidance.lean(trials)
        if samplers_turn or (lean and self._queue_lean(expected.chart.weights, lean, trials)):
            return
        for row in self._rows(expected, trials, corner):
            candidate = expected.chart.candidate(row)
            if not _evaluated(candidate, trials):
                self._enqueue(candidate, expected.chart, row)
                return

    def _queue_lean(self, weights: Floats, limits: dict[str, float], trials: Sequence[Trial]) -> bool:
        """Queue the most accurate model expected within limits, unless it is known."""
        chart = self.pricing.chart(weights, limits)
        candidate = chart.candidate(len(chart) - 1)
        if _evaluated(candidate, trials):
            return False
        self._enqueue(candidate, chart, len(chart) - 1)
        return True

    def _rows(self, expected: Expectation, trials: Sequence[Trial], corner: tuple[float, float]) -> Iterator[int]:
        """Rows of the chart in the order in which they are worth evaluating."""
        at_limit = None if self._limit_ms is None else expected.chart.within(self._limit_ms)
        if at_limit is not None:
            yield at_limit
        original, searched = _original(trials), sum(trial.baseline is None for trial in trials)
        for share in SEEDS[searched:]:
            yield int(np.abs(expected.accuracy - (original - (1 - share) * abs(original))).argmin())
        if searched % 2:
            yield from _bisecting(expected, trials, corner)
        yield from _promising(expected, trials, corner)

    def candidate(self, running: optuna.Trial) -> Candidate:
        """The candidate a trial was queued with, or the one the solver makes of its budget and multipliers."""
        queued = queued_candidate(running)
        if queued is not None and not running.user_attrs[storage.NUMBERED]:
            return queued
        logs = [running.suggest_float(f"{WEIGHT}{name}", -MOST, MOST) for name in self.pricing.segments]
        budget = running.suggest_float(BUDGET, 0.0, 1.0)
        if queued is not None:
            return queued
        chart = self._chart(_rounded(logs))
        fastest, slowest = self._useful or chart.latency_ms[[0, -1]]
        limit = max(fastest * (slowest / fastest) ** budget, chart.latency_ms[0])
        return chart.candidate(int(np.searchsorted(chart.latency_ms, limit, side="right")) - 1)

    def queue_unseen(self, trials: Sequence[Trial]) -> bool:
        """Queue a solution under random multipliers; a random choice per layer if those are all known."""
        rng = np.random.default_rng((self._seed, len(self._study.get_trials(deepcopy=False))))
        centre = np.log(self.expectation(trials).chart.weights)
        for _ in range(DRAWS):
            chart = self._chart(_rounded(centre + rng.normal(0.0, SPREAD, len(centre))))
            row = int(rng.integers(len(chart.latency_ms)))
            candidate = chart.candidate(row)
            if not _evaluated(candidate, trials):
                self._enqueue(candidate, chart, row)
                return True
        return self._layers.queue_unseen(trials)

    @property
    def ready(self) -> bool:
        """Whether there is a priced space."""
        return self._pricing is not None

    @property
    def pricing(self) -> Pricing:
        """The priced space; there after the first call of `queue`."""
        assert self._pricing is not None
        return self._pricing

    def expectation(self, trials: Sequence[Trial], *, anew: bool = False) -> Expectation:
        """The solver's models under weights calibrated by the evaluations so far: by all if `anew`, else by most."""
        if anew or self._expected is None or len(trials) >= self._expected[0] + RECALIBRATE:
            self._chart.cache_clear()  # prices have followed what was measured since
            self._limits = self.guidance.limits(trials)
            calibration = calibrated(self.pricing, trials)
            chart = self._chart(_rounded(np.log(calibration.weights)))
            accuracy, sigma = calibration.accuracy(chart.loss)
            self._expected = len(trials), Expectation(chart, accuracy, sigma)
        return self._expected[1]

    def expected_accuracy(self, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> Floats:
        """What calibration expects of any candidates, higher being better."""
        calibration = calibrated(self.pricing, trials)
        return calibration.accuracy(np.array([self.pricing.surrogate(c, calibration.weights) for c in candidates]))[0]

    def _solved(self, logs: tuple[float, ...]) -> Chart:
        return self.pricing.chart(np.exp(np.array(logs)), self._limits)

    def _enqueue(self, candidate: Candidate, chart: Chart, row: int) -> None:
        fastest, slowest = self._useful or chart.latency_ms[[0, -1]]
        budget = math.log(chart.latency_ms[row] / fastest) / max(math.log(slowest / fastest), 1e-9)
        logs = np.clip(np.log(chart.weights), -MOST, MOST)
        numbers = {f"{WEIGHT}{name}": float(log) for name, log in zip(self.pricing.segments, logs, strict=True)}
        enqueue(self._study, candidate, numbers | {BUDGET: min(1.0, max(0.0, budget))})


def calibrated(pricing: Pricing, trials: Sequence[Trial]) -> Calibration:
    """What evaluations teach about the sensitivities."""
    found = [(t.candidate, t.outcome.accuracy) for t in trials if isinstance(t.outcome, Success)]
    seen = [(c, a) for c, a in found if a.divergence is not None]
    features = np.array([pricing.features(candidate) for candidate, _ in seen])
    return calibrate(
        features.reshape(len(seen), len(pricing.segments)),
        [a.divergence or 0.0 for _, a in seen],
        [a.value if a.higher_is_better else -a.value for _, a in seen],
        _original(trials),
    )


def _promising(expected: Expectation, trials: Sequence[Trial], corner: tuple[float, float]) -> list[int]:
    """Rows of the chart that are expected to improve the front, the largest gain in hypervolume first."""
    feasible = (t.outcome for t in trials if t.feasible)
    known = [costs_of(o.accuracy, o.latency) for o in feasible if isinstance(o, Success)]
    gains = hypervolume_gains(np.column_stack([-expected.accuracy, expected.chart.latency_ms]), known, corner)
    return [int(row) for row in np.argsort(-gains, kind="stable") if gains[row] > 0]


def _bisecting(expected: Expectation, trials: Sequence[Trial], corner: tuple[float, float]) -> Iterator[int]:
    """Rows of the chart in the middle of the front's gaps, the largest gap first."""
    found = (t.outcome for t in trials)
    costs = [costs_of(o.accuracy, o.latency) for o in found if isinstance(o, Success)]
    latency = expected.chart.latency_ms
    for low, high in front_gaps(costs, corner, float(latency[0]), LEAST_SIGMA * abs(_original(trials))):
        inside = np.flatnonzero((latency > low) & (latency < high))
        if len(inside):
            yield int(inside[np.abs(latency[inside] - math.sqrt(low * high)).argmin()])


def _useful(expected: Expectation, corner: tuple[float, float]) -> tuple[float, float]:
    """Latencies between which a budget can pay: from where a model is expected to count to where it loses nothing."""
    latency, accuracy = expected.chart.latency_ms, expected.accuracy
    counts, whole = accuracy >= -corner[0], accuracy >= accuracy.max() - expected.sigma / 2
    first, last = (float(latency[mask.argmax()]) for mask in (counts, whole))
    return (first, last) if first < last else (float(latency[0]), float(latency[-1]))


def _original(trials: Sequence[Trial]) -> float:
    """Metric of the first model evaluated, the widest baseline, signed so that higher is better."""
    found = (t.outcome for t in trials)
    return next((-costs_of(o.accuracy, o.latency)[0] for o in found if isinstance(o, Success)), 0.0)


def _rounded(logs: Sequence[float] | Floats) -> tuple[float, ...]:
    return tuple(round(float(log), DIGITS) for log in logs)


def _evaluated(candidate: Candidate, trials: Sequence[Trial]) -> bool:
    return any(trial.candidate.key == candidate.key for trial in trials)
