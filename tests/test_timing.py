"""Timing on simulated machines, where the truth is known."""

import dataclasses
import gc
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.backends.campaign import measure_interleaved
from hwsearch.backends.intervals import minimum_standard_error, signed_rank_interval
from hwsearch.backends.timing import (
    Samples,
    TimingPolicy,
    between_campaigns,
    combined,
    compare,
    summarise,
    through_reference,
)
from hwsearch.types import Latency, from_json, to_json


class Machine:
    """A clock that only models advance, with the disturbances of a shared virtual machine."""

    def __init__(self, seed=0, *, jitter=0.0, burst_every_ms=math.inf, burst_ms=0.0, drift=0.0):
        self.now = 0.0
        self.calls = []
        self.switches = 0
        self._random = random.Random(seed)
        self._jitter, self._drift = jitter, drift
        self._burst_every_ms, self._burst_ms = burst_every_ms, burst_ms
        self._next_burst = self._gap()

    def clock(self):
        return int(self.now)

    def model(self, name, ms, *, cold_ms=()):
        """A step that takes `ms`; its first calls take `cold_ms`."""
        cold = list(cold_ms)

        def step():
            self.calls.append(name)
            self._advance(cold.pop(0) if cold else ms)

        return step

    def _advance(self, ms):
        slow = 1 + self._drift * (1 + math.sin(self.now / 4e8)) / 2
        self.now += 1e6 * ms * slow * (1 + self._jitter * self._random.expovariate(1))
        if self.now / 1e6 > self._next_burst:
            self.now += 1e6 * self._burst_ms * self._random.random()
            self.switches += 1
            self._next_burst = self.now / 1e6 + self._gap()

    def _gap(self):
        return self._random.expovariate(1 / self._burst_every_ms) if self._burst_every_ms < math.inf else math.inf


def busy(seed):
    return Machine(seed, jitter=0.02, burst_every_ms=12, burst_ms=4, drift=0.15)


def samples(medians_ms):
    """One call per round."""
    rounds = tuple((round(ms * 1e6),) for ms in medians_ms)
    return Samples(rounds_ns=rounds, contaminated=(False,) * len(rounds), warmup_rounds=4, steady=True)


FAST = TimingPolicy(rounds=30, min_rounds=30)
positive = st.lists(st.floats(0.1, 10), min_size=6, max_size=40)


# --------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(("n", "statistic"), [(6, 0), (7, 2), (8, 3), (10, 8), (15, 25), (20, 52), (30, 137)])
def test_signed_rank_interval_uses_the_published_critical_values(n, statistic):
    differences = np.arange(1.0, n + 1) ** 3
    walsh = np.sort([(differences[i] + differences[j]) / 2 for i in range(n) for j in range(i, n)])
    _, low, high = signed_rank_interval(differences)
    assert (low, high) == (walsh[statistic], walsh[-statistic - 1])


def test_signed_rank_interval_is_infinite_where_no_test_exists():
    assert signed_rank_interval(np.arange(5.0))[1:] == (-math.inf, math.inf)


def test_minimum_standard_error_is_that_of_resampling_half():
    values = np.random.default_rng(0).exponential(size=11)
    drawn = np.random.default_rng(1).choice(values, (200_000, 6)).min(axis=1)
    assert minimum_standard_error(values) == pytest.approx(drawn.std(), rel=0.01)


@pytest.mark.parametrize("rounds", [8, 20, 40])
@pytest.mark.parametrize("shape", ["normal", "exponential", "gamma"])
def test_two_minima_differ_by_less_than_their_errors_say(rounds, shape):
    draw = np.random.default_rng(0)
    noise = {"normal": draw.normal, "exponential": draw.exponential, "gamma": lambda size: draw.gamma(2, size=size)}
    pairs = 1 + 0.01 * noise[shape](size=(1500, 2, rounds))
    minima = pairs.min(axis=2)
    errors = np.apply_along_axis(minimum_standard_error, 2, pairs)
    inside = np.abs(minima[:, 0] - minima[:, 1]) < 1.96 * np.hypot(errors[:, 0], errors[:, 1])
    assert inside.mean() > 0.9


@given(positive, st.floats(0.1, 10))
def test_standard_error_scales_with_the_unit(values, unit):
    values = np.array(values)
    assert minimum_standard_error(values * unit) == pytest.approx(unit * minimum_standard_error(values), abs=1e-9)


def test_standard_error_of_one_round_is_unknown():
    assert minimum_standard_error(np.array([1.0])) == math.inf


# --------------------------------------------------------------------------- measuring


def test_every_round_runs_every_model_for_long_enough():
    machine = Machine()
    steps = {"quick": [machine.model("quick", 0.3)], "slow": [machine.model("slow", 40)]}
    found = measure_interleaved(steps, TimingPolicy(min_rounds=10), machine.clock)
    for name, per_round in (("quick", 17), ("slow", 1)):
        assert len(found[name].rounds_ns) == 10
        assert all(len(times) == per_round and sum(times) >= 5e6 for times in found[name].rounds_ns)


def test_order_is_random_and_repeatable():
    def run(seed):
        machine = Machine()
        steps = {name: [machine.model(name, 10)] for name in "abc"}
        measure_interleaved(steps, TimingPolicy(seed=seed), machine.clock)
        return [tuple(machine.calls[i : i + 3]) for i in range(3, len(machine.calls), 3)]

    rounds = run(0)
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6
    assert run(0) == rounds != run(1)


def test_warm_up_lasts_until_the_model_runs_steadily():
    machine = Machine()
    cold = np.geomspace(50, 10, 12)
    found = measure_interleaved({"a": [machine.model("a", 10, cold_ms=cold)]}, TimingPolicy(), machine.clock)["a"]
    assert found.steady
    assert found.warmup_rounds >= 12
    assert {times for round_ in found.rounds_ns for times in round_} == {10_000_000}


def test_warm_up_gives_up_when_its_time_is_up_and_says_so():
    machine = Machine()
    cold = np.geomspace(50, 0.5, 200)
    policy = TimingPolicy(warmup_seconds=0.3)
    assert not measure_interleaved({"a": [machine.model("a", 10, cold_ms=cold)]}, policy, machine.clock)["a"].steady


def test_measuring_stops_when_the_intervals_are_narrow():
    still, noisy = Machine(jitter=0.0001), Machine(jitter=0.5)
    policy = TimingPolicy(rounds=50, min_rounds=8)
    assert len(measure_interleaved({"a": [still.model("a", 10)]}, policy, still.clock)["a"].rounds_ns) == 8
    assert len(measure_interleaved({"a": [noisy.model("a", 10)]}, policy, noisy.clock)["a"].rounds_ns) > 8


def test_all_sessions_of_a_model_take_turns_equally_often():
    machine = Machine()
    sessions = [machine.model(name, 10 + i) for i, name in enumerate("abcd")]
    found = measure_interleaved({"m": sessions}, TimingPolicy(rounds=40, min_rounds=40), machine.clock)["m"]
    times = [round_[0] for round_ in found.rounds_ns]
    assert {times.count(time) for time in times} <= {9, 10, 11}  # the warm-up ends within a cycle
    assert len(set(times)) == 4
    assert times != sorted(times, key=times.index)


@pytest.mark.parametrize(("ms", "rounds"), [(10, 50), (5000, 6)])
def test_measuring_stops_when_time_is_up_but_not_before_six_rounds(ms, rounds):
    machine = Machine(jitter=0.001)
    policy = TimingPolicy(rounds=1000, min_rounds=1000, seconds=0.5)
    found = measure_interleaved({"a": [machine.model("a", ms)]}, policy, machine.clock)["a"]
    assert len(found.rounds_ns) == pytest.approx(rounds, abs=1)


def test_rounds_with_a_slow_reference_are_marked_for_all_and_kept():
    machine = Machine()
    calls = [10] * 40 + [11, 11] + [10] * 13 + [11]  # one a round
    steps = {"reference": [machine.model("reference", 10, cold_ms=calls)], "b": [machine.model("b", 20)]}
    found = measure_interleaved(steps, TimingPolicy(rounds=60, min_rounds=60), machine.clock, reference="reference")
    times = np.array(found["reference"].rounds_ns)[:, 0]
    assert len(times) == 60
    assert (times > 10.5e6).sum() == 3
    for name in steps:
        assert found[name].contaminated == tuple(times > 10.5e6)


def test_turns_with_context_switches_are_marked_for_that_model_only():
    machine = Machine(3, burst_every_ms=100, burst_ms=3)
    steps = {name: [machine.model(name, 10)] for name in "ab"}
    found = measure_interleaved(steps, FAST, machine.clock, context_switches=lambda: machine.switches)
    for name in "ab":
        interrupted = [any(time > 10_000_000 for time in times) for times in found[name].rounds_ns]
        assert list(found[name].contaminated) == interrupted
        assert any(interrupted)
    assert found["a"].contaminated != found["b"].contaminated


def test_interrupted_turns_come_on_top_within_limits():
    def marks(seconds, burst_every_ms):
        machine = Machine(3, burst_every_ms=burst_every_ms, burst_ms=3)
        policy = TimingPolicy(rounds=40, min_rounds=40, seconds=seconds)
        steps = {name: [machine.model(name, 10)] for name in "ab"}
        found = measure_interleaved(steps, policy, machine.clock, context_switches=lambda: machine.switches)
        return np.array([found[name].contaminated for name in "ab"])

    some = marks(10, 100)
    assert 40 <= (~some).mean(axis=0).sum() < 41 < some.shape[1] < 160
    assert marks(0.2, 100).shape[1] == 20
    assert marks(100, 1).shape[1] == 160


def test_garbage_is_not_collected_while_measuring():
    machine = Machine()
    states = []
    step = machine.model("a", 10)

    def fail():
        states.append(gc.isenabled())
        step()
        if len(states) > 20:
            raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        measure_interleaved({"a": [fail]}, TimingPolicy(), machine.clock)
    assert not any(states)
    assert gc.isenabled()


def test_a_reference_that_is_not_measured_is_refused():
    with pytest.raises(ValueError, match="`gone`"):
        measure_interleaved({}, TimingPolicy(), lambda: 0, reference="gone")


# --------------------------------------------------------------------------- estimators


def test_the_best_round_ignores_bursts_that_the_tail_shows():
    machine = Machine(1, jitter=0.001, burst_every_ms=50, burst_ms=30)
    steps = {name: [machine.model(name, 2)] for name in "ab"}
    found = measure_interleaved(steps, FAST, machine.clock)
    latency = summarise(found["a"], found["b"], batch=4)
    assert latency.best_ms == pytest.approx(2, rel=0.003)
    assert latency.p99_ms > 2 * latency.median_ms
    assert (latency.rounds, latency.samples, latency.batch) == (30, 90, 4)
    assert latency.ci95_ms[0] < 2 < latency.ci95_ms[1]


@given(positive)
def test_a_summary_is_ordered_and_survives_json(medians):
    latency = summarise(samples(medians), samples(medians))
    assert latency.ci95_ms[0] <= latency.best_ms <= latency.ci95_ms[1]
    assert latency.best_ms <= latency.median_ms <= latency.p90_ms <= latency.p99_ms
    assert latency.ratio == 1
    assert from_json(Latency, to_json(latency)) == latency


@given(positive, st.data())
def test_comparing_the_other_way_round_is_the_inverse(first, data):
    second = data.draw(st.lists(st.floats(0.1, 10), min_size=len(first), max_size=len(first)))
    there, back = compare(samples(first), samples(second)), compare(samples(second), samples(first))
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.ci95 == pytest.approx((1 / back.ci95[1], 1 / back.ci95[0]))
    assert there.ci95[0] <= there.ratio <= there.ci95[1]
    assert {there.verdict, back.verdict} in ({"tied"}, {"faster", "slower"})


@given(positive, st.floats(1.02, 5))
def test_a_steady_ratio_is_found_whatever_the_machine_does(machine_speed, ratio):
    found = compare(samples([ratio * ms for ms in machine_speed]), samples(machine_speed))
    assert found.ratio == pytest.approx(ratio, rel=1e-4)
    assert found.verdict == "slower"


def test_interruptions_that_hit_the_slower_model_more_often_do_not_change_the_ratio():
    draw = np.random.default_rng(0)
    interrupted = [
        ms * np.where(draw.random(60) < share, draw.uniform(2, 5, 60), 1) for ms, share in ((1, 0.3), (4, 0.9))
    ]
    found = compare(*(samples(list(rounds)) for rounds in interrupted))
    assert found.ratio == pytest.approx(0.25, rel=0.01)
    assert found.ci95[0] < 0.25 * 0.8  # such a campaign is not to be trusted much


def test_models_of_different_campaigns_cannot_be_compared():
    with pytest.raises(ValueError, match="one campaign"):
        compare(samples([1.0] * 8), samples([1.0] * 9))


def test_through_the_reference_campaigns_agree_although_one_ran_on_a_slow_machine():
    def campaign(speed):
        return summarise(samples([3 * speed] * 8), samples([2 * speed] * 8))

    undisturbed, slow = campaign(1.0), campaign(1.15)
    assert slow.best_ms == pytest.approx(1.15 * undisturbed.best_ms)
    rescaled = through_reference(slow, undisturbed.reference_ms)
    assert rescaled.best_ms == pytest.approx(undisturbed.best_ms)
    assert rescaled.median_ms == pytest.approx(undisturbed.median_ms)
    assert rescaled.ci95_ms[0] < 3 < rescaled.ci95_ms[1]


def test_where_the_reference_ran_at_full_speed_the_best_rounds_tell():
    """The model was interrupted in most rounds, the reference in few."""
    hit, spared = [3.0, 3.3, 3.3, 3.35, 3.3, 3.4, 3.3, 3.3], [2.0] * 8
    found = summarise(samples(hit), samples(spared))
    assert found.reference_ratio > 1.55
    settled = between_campaigns(found, 1.98)
    assert settled.best_ms == pytest.approx(3.0 * 1.98 / 2.0)
    assert settled.ratio == pytest.approx(1.5)
    assert settled.ci95_ms[0] < settled.best_ms < settled.ci95_ms[1]
    slow = between_campaigns(found, 2 / 1.1)  # the machine was 10 % slower throughout
    assert slow == through_reference(found, 2 / 1.1)


def test_through_the_reference_needs_one():
    with pytest.raises(ValueError, match="without a reference"):
        through_reference(summarise(samples([1.0] * 8)), 1.0)


# --------------------------------------------------------------------------- error rates


def verdicts(ratio, layout_sigma, campaigns=800):
    """Comparisons of two models whose latencies differ by `ratio` on busy machines, opened anew each time.

    A session's memory layout costs it up to a few times `layout_sigma`.
    """
    draw = random.Random(0)
    for seed in range(campaigns):
        machine = busy(seed)
        steps = {
            name: [machine.model(name, 1.7 * factor * (1 + abs(draw.gauss(0, layout_sigma)))) for _ in range(4)]
            for name, factor in (("a", ratio), ("b", 1.0))
        }
        found = measure_interleaved(steps, FAST, machine.clock)
        yield compare(found["a"], found["b"])


@pytest.mark.parametrize("layout_sigma", [0.0, 0.005])
def test_equal_models_are_called_different_in_at_most_5_percent(layout_sigma):
    found = [c.verdict for c in verdicts(1.0, layout_sigma)]
    assert sum(verdict != "tied" for verdict in found) <= 0.05 * len(found)


def test_a_difference_of_2_percent_gets_the_right_sign():
    found = list(verdicts(1.02, 0.005))
    assert sum(c.ratio > 1 for c in found) >= 0.95 * len(found)
    assert not any(c.verdict == "faster" for c in found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_marks_never_remove_data(seed):
    machine = busy(seed)
    steps = {name: [machine.model(name, 3)] for name in "ab"}
    found = measure_interleaved(steps, FAST, machine.clock, context_switches=lambda: machine.switches, reference="a")
    for one in found.values():
        assert len(one.rounds_ns) == len(one.contaminated) >= 30
        assert {len(times) for times in one.rounds_ns} == {2}


def test_two_campaigns_together_are_surer_than_each():
    def campaign(ratio, half):
        return Latency(
            best_ms=ratio, median_ms=ratio, p90_ms=None, p99_ms=None, ci95_ms=(ratio - half, ratio + half), rounds=24,
            samples=100, batch=1, source="measured", sigma_ms=half / 2, reference_ms=1.0, reference_ratio=ratio,
            reference_ratio_ci95=(ratio - half, ratio + half),
        )  # fmt: skip

    found = combined(campaign(0.50, 0.01), campaign(0.53, 0.02))
    assert found.best_ms == pytest.approx(0.506)  # the surer campaign weighs four times as much
    assert found.ci95_ms[1] - found.ci95_ms[0] < 0.02
    assert (found.rounds, found.samples) == (48, 200)
    alone = dataclasses.replace(campaign(0.5, 0.01), reference_ratio=None)
    assert combined(alone, campaign(0.53, 0.02)) == alone
