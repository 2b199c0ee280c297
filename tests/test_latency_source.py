"""When a search asks the table, and when it asks the device."""

from types import SimpleNamespace

import pytest

from hwsearch.search.latency import LatencySource
from hwsearch.types import Accuracy, Artifact, Candidate, Latency, Success, Trial

ARTIFACT = Artifact(path="m", files=("m",), format="onnx", sha256="", size_bytes=1, portable=True)


class Device:
    """Runs every model in the time its only layer is named after, and counts how often it is asked."""

    def __init__(self, slowness=1.0):
        self.asked = []
        self.slowness = slowness

    def __call__(self, models):
        self.asked += list(models)
        return {key: measured(milliseconds(c) * self.slowness) for key, (_, c) in models.items()}


class Table:
    """Predicts with 10 % standard error, and notes what it is taught."""

    def __init__(self):
        self.learned = []

    def __call__(self, candidate):
        return milliseconds(candidate), 0.1 * milliseconds(candidate)

    def learn(self, candidate, latency_ms):
        self.learned.append((milliseconds(candidate), latency_ms))


def model(ms):
    return Candidate(keep={}, dropped=(), precision={str(ms): "int8"})


def milliseconds(candidate):
    return float(next(iter(candidate.precision)))


def measured(ms, reference_ms=1.0):
    return Latency(
        best_ms=ms,
        median_ms=ms,
        p90_ms=ms,
        p99_ms=ms,
        ci95_ms=(ms, ms),
        rounds=1,
        samples=1,
        batch=1,
        source="measured",
        sigma_ms=0.0,
        reference_ms=reference_ms,
        reference_ratio=ms / reference_ms,
        reference_ratio_ci95=(ms / reference_ms, ms / reference_ms),
    )


def accuracy(value):
    return Accuracy(
        metric="top1",
        value=value,
        higher_is_better=True,
        examples=1000,
        ci95=(value - 0.01, value + 0.01),
        split="search",
        data_hash="",
    )


def trial(ms, value, latency, baseline=None):
    outcome = Success(
        accuracy=accuracy(value), latency=latency, artifact=ARTIFACT, layers=(), params=1, nonzero=1, macs=1
    )
    return Trial(number=0, candidate=model(ms), baseline=baseline, outcome=outcome, constraints={}, seconds={})


def source(device, **options):
    return LatencySource(measure=device, batch=1, predictor=Table(), **options)


def ask(found, ms, value, *, baseline=False):
    return found(model(ms), ARTIFACT, accuracy(value), baseline=baseline)


def test_a_hopeless_candidate_is_not_measured():
    device = Device()
    found = source(device)
    found.remember(trial(1.0, 0.9, measured(1.0)))
    latency = ask(found, 2.0, 0.8)
    assert not device.asked
    assert latency.source == "table"
    assert latency.ci95_ms[0] < 2.0 < latency.ci95_ms[1]
    assert latency.median_ms is None


@pytest.mark.parametrize(("ms", "value"), [(0.5, 0.5), (1.15, 0.85), (2.0, 0.95), (1.0, 0.895)])
def test_what_may_reach_the_front_is_measured(ms, value):
    device = Device()
    found = source(device)
    found.remember(trial(1.0, 0.9, measured(1.0)))
    assert ask(found, ms, value).source == "measured"
    assert len(device.asked) == 1


def test_baselines_are_always_measured_and_the_table_learns_only_from_measurements():
    device = Device()
    found = source(device)
    found.remember(trial(1.0, 0.9, measured(1.0), baseline="fp32"))
    assert ask(found, 3.0, 0.5, baseline=True).source == "measured"
    found.remember(trial(2.0, 0.5, ask(found, 2.0, 0.5)))
    assert found.predictor.learned == [(1.0, 1.0)]


def test_the_table_alone_answers_where_the_study_says_so():
    device = Device()
    found = source(device, always_predict=True)
    assert ask(found, 1.0, 0.9, baseline=True).source == "table"
    finalists = found.together({"a": (ARTIFACT, model(1.0))})
    assert finalists["a"].source == "measured"


def test_a_device_that_is_not_here_is_never_measured():
    device = Device()
    found = source(device, device_present=False, label="modelled")
    finalists = found.together({"a": (ARTIFACT, model(1.0))})
    assert finalists["a"].source == "modelled"
    assert not device.asked


def test_campaigns_on_a_slow_moment_are_brought_to_the_scale_of_the_reference():
    device = Device()
    found = LatencySource(measure=device, batch=1)
    found.remember(trial(1.0, 0.9, measured(1.0), baseline="fp32"))
    slow = SimpleNamespace(reference=1.2)
    found.measure = lambda models: {
        key: measured(1.2 * milliseconds(c), slow.reference) for key, (_, c) in models.items()
    }
    assert ask(found, 0.5, 0.9).best_ms == pytest.approx(0.5)


@pytest.mark.parametrize(("ms", "value", "hopeless"), [(2.0, 0.8, True), (0.5, 0.5, False), (1.0, 0.895, False)])
def test_first_examples_rule_out_what_is_slower_and_worse_beyond_doubt(ms, value, hopeless):
    found = source(Device())
    found.remember(trial(1.0, 0.9, measured(1.0)))
    assert found.rules_out(model(ms), accuracy(value)) is hopeless
    without_table = LatencySource(measure=Device(), batch=1)
    without_table.remember(trial(1.0, 0.9, measured(1.0)))
    assert not without_table.rules_out(model(ms), accuracy(value))
