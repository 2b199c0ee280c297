"""Measuring models in turns: rounds, warm-up, contamination marks, stop rule.

All models of a campaign run in every round, in random order, so that slow drift of the machine meets all of them alike.
Every model is opened several times, because a session keeps the memory layout it happened to get, which is worth 0.1 to
1.3 % in either direction. Clock, steps and counters are passed in.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hwsearch.backends.intervals import Z95, minimum_standard_error
from hwsearch.backends.timing import LEAST_ROUNDS, Samples, TimingPolicy

Clock = Callable[[], int]
"""Nanoseconds from any origin, never decreasing: `time.perf_counter_ns`."""

Step = Callable[[], int | None]
"""One inference; its nanoseconds by the device's own clock, or None where ours is to be used."""

REFERENCE_TOLERANCE = 1.05  # a round in which the reference ran above this multiple of its floor is contaminated
PATIENCE = 4  # as many times the rounds asked for are run where the core is taken away again and again
MOST_CALLS = 2000  # per round; only models below a few microseconds reach it


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
    steps: Mapping[str, Sequence[Step]],
    policy: TimingPolicy,
    clock: Clock,
    *,
    context_switches: Callable[[], int] = lambda: 0,
    reference: str | None = None,
) -> dict[str, Samples]:
    """Times of every model, measured in turns until the intervals are narrow or time is up.

    Args:
        steps: Model name -> one inference of each of its sessions; a round uses one of them, all equally often.
        policy: How long and how carefully.
        clock: Nanoseconds.
        context_switches: Count of involuntary context switches so far; a turn in which it grew is contaminated.
        reference: The model whose slow rounds contaminate all models' rounds.
    """
    if reference is not None and reference not in steps:
        raise ValueError(f"the reference `{reference}` is not among the models measured")
    order = random.Random(policy.seed)  # noqa: S311 - a shuffle, not a secret
    turns = {name: _endlessly_shuffled(sessions, order) for name, sessions in steps.items()}
    campaign = _Campaign(turns, clock, context_switches, order)
    with _garbage_collection_off():
        for step in itertools.chain.from_iterable(steps.values()):
            step()  # the first run of a session allocates
        warmup, steady = _warm_up(campaign, policy)
        calls = _calls_per_round(warmup, policy)
        rounds = _measure(campaign, calls, policy)
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
    turns: Mapping[str, Iterator[Step]]
    clock: Clock
    context_switches: Callable[[], int]
    order: random.Random

    def round(self, calls: Mapping[str, int]) -> _Round:
        """Every model's turn, in random order."""
        names = self.order.sample(list(self.turns), len(self.turns))
        return {name: self._turn(next(self.turns[name]), calls[name]) for name in names}

    def _turn(self, step: Step, calls: int) -> _Chunk:
        clock = self.clock
        if calls > 1:
            step()  # refills the caches the previous model used
        times = []
        switches = self.context_switches()
        start = clock()
        for _ in range(calls):
            own = step()
            end = clock()
            times.append(end - start if own is None else own)
            start = end
        return _Chunk(tuple(times), self.context_switches() > switches)


def _endlessly_shuffled(sessions: Sequence[Step], order: random.Random) -> Iterator[Step]:
    """All of them in random order, again and again."""
    while True:
        yield from order.sample(sessions, len(sessions))


def _warm_up(campaign: _Campaign, policy: TimingPolicy) -> tuple[list[_Round], dict[str, bool]]:
    """Rounds until every model is steady or time is up, and which models are."""
    rounds: list[_Round] = []
    deadline = campaign.clock() + policy.warmup_seconds * len(campaign.turns) * 1e9
    calls = dict.fromkeys(campaign.turns, 1)
    while True:
        rounds.append(campaign.round(calls))
        calls = _calls_per_round(rounds, policy)
        steady = {name: _is_steady([r[name].median_ns for r in rounds], policy.shift) for name in campaign.turns}
        if all(steady.values()) or campaign.clock() >= deadline:
            return rounds, steady


def _is_steady(medians: list[float], shift: float) -> bool:
    """Whether the floor fell by less than `shift` in the last three rounds (noise only ever adds to it)."""
    return len(medians) > 3 and min(medians[-3:]) >= (1 - shift) * min(medians[:-3])


def _calls_per_round(rounds: list[_Round], policy: TimingPolicy) -> dict[str, int]:
    """Calls that take at least `round_ms` at the fastest pace seen."""
    floors = {name: min(r[name].median_ns for r in rounds) for name in rounds[0]}
    return {name: min(math.ceil(policy.round_ms * 1e6 / max(floor, 1)), MOST_CALLS) for name, floor in floors.items()}


def _measure(campaign: _Campaign, calls: Mapping[str, int], policy: TimingPolicy) -> list[_Round]:
    rounds: list[_Round] = []
    medians: dict[str, list[float]] = {name: [] for name in calls}
    undisturbed = 0.0  # rounds, each counted by the share of its turns
    deadline = campaign.clock() + policy.seconds * len(calls) * 1e9
    while not _enough(medians, undisturbed, policy, campaign.clock() >= deadline):
        rounds.append(campaign.round(calls))
        undisturbed += statistics.mean(not chunk.interrupted for chunk in rounds[-1].values())
        for name, chunk in rounds[-1].items():
            medians[name].append(chunk.median_ns)
    return rounds


def _enough(medians: Mapping[str, list[float]], undisturbed: float, policy: TimingPolicy, time_is_up: bool) -> bool:
    done, most = len(next(iter(medians.values()), [])), max(policy.rounds, LEAST_ROUNDS)
    if not medians or undisturbed >= most or done >= PATIENCE * most or (time_is_up and done >= LEAST_ROUNDS):
        return True
    return undisturbed >= policy.min_rounds and all(
        Z95 * minimum_standard_error(np.array(values)) < policy.half_width * min(values) for values in medians.values()
    )


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
