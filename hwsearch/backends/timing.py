"""Measuring latency so that a difference of 2 % can be trusted: rounds, contamination marks, stop rule, estimators.

Candidates and a reference take turns, in random order, in every round, so that slow drift of the machine meets all of
them alike. What ranks a model is the minimum of its round medians, the least disturbed estimate; two models are
compared round by round. Nothing here reads a clock of its own: clock, steps and counters are passed in.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.intervals import Z95, minimum_standard_error, signed_rank_interval
from hwsearch.types import Latency

Clock = Callable[[], int]
"""Nanoseconds from any origin, never decreasing: `time.perf_counter_ns`."""

Verdict = Literal["faster", "slower", "tied"]

REFERENCE_TOLERANCE = 1.05  # a round in which the reference ran above this multiple of its floor is contaminated
LEAST_ROUNDS = 6  # however slow the model: below this no test at the 95 % level exists
MOST_CALLS = 2000  # per round; only models below a few microseconds reach it


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPolicy:
    """How long and how carefully to measure.

    Attributes:
        rounds: Most rounds (never fewer than 6); each runs every model for at least `round_ms`.
        min_rounds: Rounds before precision may end the measurement.
        seconds: Time limit per model; a campaign of n models may take n times as long. Six rounds are run regardless.
        round_ms: Least time one model runs in one round.
        half_width: Stop when the 95 % intervals of every model and of its ratio to the reference are narrower than +/-
            this fraction.
        warmup_seconds: Most time per model until it runs steadily.
        shift: A model runs steadily when its floor fell by less than this fraction in three rounds.
        session_sigma: Relative standard error that rounds cannot show: the same file opened again runs at a slightly
            different speed (memory layout). Added to every interval.
        seed: Of the order within the rounds.
    """

    rounds: int = 60
    min_rounds: int = 20
    seconds: float = 2.0
    round_ms: float = 5.0
    half_width: float = 0.01
    warmup_seconds: float = 1.0
    shift: float = 0.01
    session_sigma: float = 0.002
    seed: int = 0


DEFAULT_POLICY = TimingPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Raw times of one model in one campaign; disturbed rounds are marked, never removed.

    Attributes:
        rounds_ns: One tuple of call times per round.
        contaminated: One mark per round.
        warmup_rounds: Rounds run before, not kept.
        steady: Whether warm-up ended because the model ran steadily, not because time was up.
    """

    rounds_ns: tuple[tuple[int, ...], ...]
    contaminated: tuple[bool, ...]
    warmup_rounds: int
    steady: bool

    @property
    def medians_ms(self) -> NDArray[np.float64]:
        """Median call of each round, [rounds]."""
        return np.array([statistics.median(times) for times in self.rounds_ns]) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Latency of one model as a multiple of another's, paired round by round.

    Attributes:
        ratio: Below 1 when the first is faster.
        ci95: Interval of `ratio`.
        verdict: Of the first model against the second; ``tied`` unless the interval excludes 1.
    """

    ratio: float
    ci95: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One model's turn in one round."""

    times_ns: tuple[int, ...]
    interrupted: bool

    @property
    def median_ns(self) -> float:
        return statistics.median(self.times_ns)


_Round = dict[str, _Chunk]


def measure_interleaved(
    steps: Mapping[str, Callable[[], None]],
    policy: TimingPolicy,
    clock: Clock,
    *,
    context_switches: Callable[[], int] = lambda: 0,
    reference: str | None = None,
) -> dict[str, Samples]:
    """Times of every model, measured in turns until the intervals are narrow or time is up.

    Args:
        steps: Model name -> one inference.
        policy: How long and how carefully.
        clock: Nanoseconds.
        context_switches: Count of involuntary context switches so far; a turn in which it grew is contaminated.
        reference: The model whose slow rounds contaminate all models' rounds.
    """
    if reference is not None and reference not in steps:
        raise ValueError(f"the reference `{reference}` is not among the models measured")
    order = random.Random(policy.seed)  # noqa: S311 - a shuffle, not a secret
    campaign = _Campaign(steps, clock, context_switches, order)
    with _garbage_collection_off():
        warmup, steady = _warm_up(campaign, policy)
        calls = _calls_per_round(warmup, policy)
        rounds = _measure(campaign, calls, policy, reference)
    marks = _slow_rounds([r[reference] for r in rounds]) if reference is not None else [False] * len(rounds)
    return {
        name: Samples(
            rounds_ns=tuple(r[name].times_ns for r in rounds),
            contaminated=tuple(mark or r[name].interrupted for mark, r in zip(marks, rounds, strict=True)),
            warmup_rounds=len(warmup),
            steady=steady[name],
        )
        for name in steps
    }


@dataclass(frozen=True, slots=True)
class _Campaign:
    steps: Mapping[str, Callable[[], None]]
    clock: Clock
    context_switches: Callable[[], int]
    order: random.Random

    def round(self, calls: Mapping[str, int]) -> _Round:
        """Every model's turn, in random order."""
        return {name: self._turn(name, calls[name]) for name in self.order.sample(list(self.steps), len(self.steps))}

    def _turn(self, name: str, calls: int) -> _Chunk:
        step, clock = self.steps[name], self.clock
        if calls > 1:
            step()  # refills the caches the previous model used
        times = []
        switches = self.context_switches()
        start = clock()
        for _ in range(calls):
            step()
            end = clock()
            times.append(end - start)
            start = end
        return _Chunk(tuple(times), self.context_switches() > switches)


def _warm_up(campaign: _Campaign, policy: TimingPolicy) -> tuple[list[_Round], dict[str, bool]]:
    """Rounds until every model is steady or time is up, and which models are."""
    rounds: list[_Round] = []
    deadline = campaign.clock() + policy.warmup_seconds * len(campaign.steps) * 1e9
    calls = dict.fromkeys(campaign.steps, 1)
    while True:
        rounds.append(campaign.round(calls))
        calls = _calls_per_round(rounds, policy)
        steady = {name: _is_steady([r[name].median_ns for r in rounds], policy.shift) for name in campaign.steps}
        if all(steady.values()) or campaign.clock() >= deadline:
            return rounds, steady


def _is_steady(medians: list[float], shift: float) -> bool:
    """Whether the floor fell by less than `shift` in the last three rounds (noise only ever adds to it)."""
    return len(medians) > 3 and min(medians[-3:]) >= (1 - shift) * min(medians[:-3])


def _calls_per_round(rounds: list[_Round], policy: TimingPolicy) -> dict[str, int]:
    """Calls that take at least `round_ms` at the fastest pace seen."""
    floors = {name: min(r[name].median_ns for r in rounds) for name in rounds[0]}
    return {name: min(math.ceil(policy.round_ms * 1e6 / max(floor, 1)), MOST_CALLS) for name, floor in floors.items()}


def _measure(
    campaign: _Campaign, calls: Mapping[str, int], policy: TimingPolicy, reference: str | None
) -> list[_Round]:
    rounds: list[_Round] = []
    deadline = campaign.clock() + policy.seconds * len(calls) * 1e9
    most = max(policy.rounds, LEAST_ROUNDS)
    while calls and len(rounds) < most:
        rounds.append(campaign.round(calls))
        time_is_up = campaign.clock() >= deadline and len(rounds) >= LEAST_ROUNDS
        if time_is_up or (_worth_checking(len(rounds), policy) and _is_precise(rounds, policy, reference)):
            break
    return rounds


def _worth_checking(done: int, policy: TimingPolicy) -> bool:
    """Every fifth round: the intervals cost more than a short round."""
    return done >= policy.min_rounds and (done - policy.min_rounds) % 5 == 0


def _is_precise(rounds: list[_Round], policy: TimingPolicy, reference: str | None) -> bool:
    """Whether every model's interval, and that of its ratio to the reference, is narrow enough."""
    logs = {name: np.log([r[name].median_ns for r in rounds]) for name in rounds[0]}
    return all(_is_narrow(values, logs.get(reference or ""), policy.half_width) for values in logs.values())


def _is_narrow(logs: NDArray[np.float64], reference: NDArray[np.float64] | None, half_width: float) -> bool:
    if Z95 * minimum_standard_error(logs) > half_width:
        return False
    if reference is None:
        return True
    _, low, high = signed_rank_interval(logs - reference)
    return (high - low) / 2 < half_width


def _slow_rounds(chunks: list[_Chunk]) -> list[bool]:
    medians = [chunk.median_ns for chunk in chunks]
    return [median > REFERENCE_TOLERANCE * min(medians) for median in medians]


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def summarise(
    samples: Samples, reference: Samples | None = None, *, policy: TimingPolicy = DEFAULT_POLICY, batch: int = 1
) -> Latency:
    """Latency of one model: best, median, tails, interval, and its ratio to a reference of the same campaign.

    All samples count, those of disturbed rounds too.
    """
    medians = samples.medians_ms
    best = float(medians.min())
    sigma = math.hypot(minimum_standard_error(medians), policy.session_sigma * best)
    times_ms = np.concatenate([np.array(times) for times in samples.rounds_ns]) / 1e6
    median, p90, p99 = (float(q) for q in np.percentile(times_ms, (50, 90, 99)))
    against = None if reference is None else compare(samples, reference, policy=policy)
    return Latency(
        best_ms=best,
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        ci95_ms=(best - Z95 * sigma, best + Z95 * sigma),
        rounds=len(medians),
        samples=len(times_ms),
        batch=batch,
        source="measured",
        sigma_ms=sigma,
        reference_ms=None if reference is None else float(reference.medians_ms.min()),
        contaminated=sum(samples.contaminated),
        reference_ratio=None if against is None else against.ratio,
        reference_ratio_ci95=None if against is None else against.ci95,
    )


def through_reference(latency: Latency, floor_ms: float) -> Latency:
    """The latency the model would have where its reference takes `floor_ms`: comparable between campaigns.

    A virtual machine can run 15 % slower for seconds. No round of a short campaign is then undisturbed, but the
    reference was slowed alike, so the ratio holds.
    """
    if latency.reference_ratio is None or latency.reference_ratio_ci95 is None:
        raise ValueError("the latency was measured without a reference")
    best = latency.reference_ratio * floor_ms
    low, high = (bound * floor_ms for bound in latency.reference_ratio_ci95)
    scale = best / latency.best_ms
    return dataclasses.replace(
        latency,
        best_ms=best,
        median_ms=latency.median_ms * scale,
        p90_ms=latency.p90_ms * scale,
        p99_ms=latency.p99_ms * scale,
        ci95_ms=(low, high),
        sigma_ms=(high - low) / (2 * Z95),
        reference_ms=floor_ms,
    )


def compare(first: Samples, second: Samples, *, policy: TimingPolicy = DEFAULT_POLICY) -> Comparison:
    """How `first` runs against `second`, both of one campaign.

    The signed-rank interval of the log-ratios, widened by what two sessions of the same file differ. Marked rounds
    take part: the pairing cancels most of what disturbed them, and the test is exact only without a selection.
    """
    if len(first.rounds_ns) != len(second.rounds_ns):
        raise ValueError("only models of one campaign can be compared: the rounds do not pair up")
    centre, low, high = signed_rank_interval(np.log(first.medians_ms) - np.log(second.medians_ms))
    session = Z95 * math.sqrt(2) * policy.session_sigma
    low, high = centre - math.hypot(centre - low, session), centre + math.hypot(high - centre, session)
    verdict: Verdict = "faster" if high < 0 else "slower" if low > 0 else "tied"
    return Comparison(ratio=math.exp(centre), ci95=(math.exp(low), math.exp(high)), verdict=verdict)
