"""What to make of measured times: latency with intervals, and whether two models differ.

What ranks a model is the minimum of its round medians, the least disturbed estimate. Nothing here reads a clock.
`campaign` measures, by the same `TimingPolicy`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.intervals import Z95, minimum_standard_error, signed_rank_interval
from hwsearch.types import Latency

Verdict = Literal["faster", "slower", "tied"]

LEAST_ROUNDS = 6  # however slow the model: below this no test at the 95 % level exists
SLOW_SECONDS = math.log(1.2)  # a virtual machine runs some 15 % slower for seconds while its other core is busy

FULL_SPEED = 1.05
"""A reference that is slower than so many times its known latency was slow in every round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPolicy:
    """How long and how carefully to measure.

    Attributes:
        rounds: Most undisturbed rounds (never fewer than 6); each runs every model for at least `round_ms`. What
            the system took away by giving the core to somebody else comes on top, up to four times as many rounds.
        min_rounds: Rounds before precision may end the measurement.
        seconds: Time limit per model; a campaign of n models may take n times as long. Six rounds are run regardless.
        round_ms: Least time one model runs in one round.
        half_width: Stop when every model's 95 % interval is narrower than +/- this fraction.
        warmup_seconds: Most time per model until it runs steadily.
        shift: A model runs steadily when its floor fell by less than this fraction in three rounds.
        sessions: How often each model is opened; every round uses one of the sessions.
        session_sigma: Relative standard error that is left: the fastest of other sessions would differ by so much.
            Added to every interval.
        seed: Of the order within the rounds.
    """

    rounds: int = 60
    min_rounds: int = 24
    seconds: float = 2.0
    round_ms: float = 5.0
    half_width: float = 0.01
    warmup_seconds: float = 1.0
    shift: float = 0.01
    sessions: int = 4
    session_sigma: float = 0.003
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
    """Latency of one model as a multiple of another's.

    Attributes:
        ratio: Below 1 when the first is faster.
        ci95: Interval of `ratio`.
        verdict: Of the first model against the second; ``tied`` unless the interval excludes 1.
    """

    ratio: float
    ci95: tuple[float, float]
    verdict: Verdict


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


def between_campaigns(latency: Latency, floor_ms: float) -> Latency:
    """The latency on the scale of campaigns in which the reference takes `floor_ms`.

    Where the reference came near that, the machine ran at full speed in some of the rounds, and the ratio of the two
    minima tells: paired rounds hold what interrupted one of the models more often. Else `through_reference`.
    """
    if latency.reference_ms is None or latency.reference_ms > FULL_SPEED * floor_ms:
        return through_reference(latency, floor_ms)
    ratio, low, high = (ms / latency.reference_ms for ms in (latency.best_ms, *latency.ci95_ms))
    of_minima = dataclasses.replace(latency, reference_ratio=ratio, reference_ratio_ci95=(low, high))
    return through_reference(of_minima, floor_ms)


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
        median_ms=_scaled(latency.median_ms, scale),
        p90_ms=_scaled(latency.p90_ms, scale),
        p99_ms=_scaled(latency.p99_ms, scale),
        ci95_ms=(low, high),
        sigma_ms=(high - low) / (2 * Z95),
        reference_ms=floor_ms,
    )


def combined(one: Latency, other: Latency) -> Latency:
    """`one` made more certain by another campaign with the same reference; ratios are weighted by their precision.

    A model keeps the memory layout it got when it was opened, so another campaign tells more than a longer one.
    """
    if one.reference_ratio is None or one.reference_ms is None or other.reference_ratio is None:
        return one
    weights = [1 / _ratio_sigma(found) ** 2 for found in (one, other)]
    ratio = (weights[0] * one.reference_ratio + weights[1] * other.reference_ratio) / sum(weights)
    half = Z95 / math.sqrt(sum(weights))
    joined = dataclasses.replace(one, reference_ratio=ratio, reference_ratio_ci95=(ratio - half, ratio + half))
    found = through_reference(joined, one.reference_ms)
    return dataclasses.replace(found, rounds=one.rounds + other.rounds, samples=one.samples + other.samples)


def _ratio_sigma(latency: Latency) -> float:
    assert latency.reference_ratio_ci95 is not None
    low, high = latency.reference_ratio_ci95
    return max((high - low) / (2 * Z95), 1e-9)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def compare(first: Samples, second: Samples, *, policy: TimingPolicy = DEFAULT_POLICY) -> Comparison:
    """How `first` runs against `second`, both of one campaign.

    The ratio of the two minima, held within the 95 % signed-rank interval of the ratios in each round. The minima alone
    err by up to 10 % when only one model met a fast moment of the machine; the rounds alone keep what the sessions'
    memory layouts add. The interval joins the narrower of the two errors, their disagreement and `session_sigma`.
    Marked rounds take part: both estimates withstand some. Where the two disagree by more than slow seconds of the
    machine explain, a model was interrupted in most rounds, the slower one more often; then the minima alone tell.
    """
    if len(first.rounds_ns) != len(second.rounds_ns):
        raise ValueError("only models of one campaign can be compared: the rounds do not pair up")
    logs = np.log(first.medians_ms), np.log(second.medians_ms)
    of_minima = float(logs[0].min() - logs[1].min())
    _, low, high = signed_rank_interval(logs[0] - logs[1])
    centre = min(max(of_minima, low), high)
    pulled = abs(of_minima - centre)
    if pulled > SLOW_SECONDS:
        centre = of_minima
    of_rounds = min(Z95 * math.hypot(*map(minimum_standard_error, logs)), (high - low) / 2)
    half_width = math.hypot(of_rounds, pulled, Z95 * math.sqrt(2) * policy.session_sigma)
    verdict: Verdict = "tied" if abs(centre) <= half_width else "faster" if centre < 0 else "slower"
    interval = math.exp(centre - half_width), math.exp(centre + half_width)
    return Comparison(ratio=math.exp(centre), ci95=interval, verdict=verdict)
