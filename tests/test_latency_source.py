"""When a search asks the table, and when it asks the device."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hwsearch.config import StudyConfig
from hwsearch.errors import ConfigError
from hwsearch.model.graph import trace
from hwsearch.search.latency import LatencySource, latency_source, record_explanation
from hwsearch.search.run import LATENCY_FILE
from hwsearch.space.target import load_target
from hwsearch.store import read_json
from hwsearch.types import Accuracy, Artifact, Candidate, Latency, Success, Trial
from hwsearch.zoo.resnet import ResNet

EXAMPLE = Path(__file__).parents[1] / "latency_tables" / "example-edge-asic"
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


def test_a_candidate_for_which_the_table_lacks_an_entry_is_measured_if_the_device_is_here():
    class Gap(Table):
        def __call__(self, candidate):
            raise ConfigError("no entry")

        learn = __call__

    device = Device()
    found = LatencySource(measure=device, batch=1, predictor=Gap())
    assert ask(found, 5.0, 0.1).source == "measured"
    found.always_predict = True
    with pytest.raises(ConfigError, match="no entry"):
        ask(found, 5.0, 0.1)


@pytest.fixture(scope="module")
def network():
    return trace(ResNet(1, 10).eval(), np.zeros((1, 3, 32, 32), np.float32), name="resnet8")


def config(**settings):
    return StudyConfig.model_validate({"name": "s", "model": "m:f", "data": {"source": "digits"}, **settings})


def test_it_says_which_table_answers_or_why_none_does(network, tmp_path):
    here = config(target="ort-cpu", tables=str(tmp_path))
    found = latency_source(network, load_target("ort-cpu"), here, Device())
    assert "measured: no latency table in" in found.explanation
    asked = here.model_copy(update={"latency": "measure"})
    assert "the study asks" in latency_source(network, load_target("ort-cpu"), asked, Device()).explanation
    edge = load_target(str(EXAMPLE / "edge-asic-4bit.yaml"))
    found = latency_source(network, edge, config(target="ort-cpu"), Device())
    assert "the latency table alone" in record_explanation(found, tmp_path)
    assert str(EXAMPLE) in read_json(tmp_path / LATENCY_FILE)["explanation"]


def test_a_refused_table_ends_a_search_that_asked_for_nothing_else(network, tmp_path):
    only = config(target="ort-cpu", tables=str(tmp_path), latency="table")
    with pytest.raises(ConfigError, match="no latency table"):
        latency_source(network, load_target("ort-cpu"), only, Device())


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
