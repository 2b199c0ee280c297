import pandas as pd
import pytest
from synthetic_run import make_run

from hwsearch.config import LimitsConfig
from hwsearch.report import frames
from hwsearch.report.verdict import verdict
from hwsearch.report.view import units

TOP1 = units(make_run(evaluations=3))
LOSS = units(make_run(evaluations=3, metric="loss", higher=False))


def model(key, ms, accuracy, *, baseline=None, feasible=True, final=True, noise_ms=0.002, noise=0.004):
    return {
        "key": key,
        "baseline": baseline,
        "feasible": feasible,
        "final": final,
        "accuracy": accuracy,
        "accuracy_low": accuracy - noise,
        "accuracy_high": accuracy + noise,
        "latency_ms": ms,
        "latency_low": ms - noise_ms,
        "latency_high": ms + noise_ms,
    }


FP32 = model("aaa", 0.800, 0.917, baseline="fp32")
INT8 = model("bbb", 0.360, 0.915, baseline="int8")


def judge(*models, shown=TOP1, **limits):
    return verdict(frames.with_none(pd.DataFrame(models), "baseline"), shown, LimitsConfig(**limits))


def test_the_fastest_model_that_keeps_99_percent_is_shipped():
    found = judge(FP32, INT8, model("ccc", 0.300, 0.912), model("ddd", 0.100, 0.80))
    assert found.key == "ccc"
    assert found.headline == (
        "Ship ccc: 0.300 ms at 91.20 % top-1 accuracy, 2.67× faster than fp32, 0.5 points below fp32, "
        "1.20× faster than uniform int8."
    )


def test_who_may_lose_little_is_told_the_fastest_that_keeps_99_percent():
    careful = model("ccc", 0.300, 0.912)
    found = judge(FP32, INT8, careful, model("ddd", 0.100, 0.88), accuracy_drop_points=5)
    assert found.key == "ddd"
    assert "The fastest within 1 % of fp32: ccc, 0.300 ms at 91.20 %." in found.reason
    assert "within 1 %" not in judge(FP32, INT8, careful, accuracy_drop_points=1).reason


def test_nothing_beats_int8_when_the_gain_is_within_the_noise():
    found = judge(FP32, INT8, model("ccc", 0.358, 0.914))
    assert found.key == "bbb"
    assert found.headline.startswith("Nothing beats uniform int8: 0.360 ms at 91.50 %")


def test_nothing_beats_int8_when_it_is_fastest_itself():
    found = judge(FP32, INT8, model("ccc", 0.5, 0.917))
    assert found.key == "bbb"
    assert found.headline.startswith("Nothing beats uniform int8")


def test_int8_that_misses_the_rule_is_no_rival():
    found = judge(FP32, model("bbb", 0.3, 0.85, baseline="int8"), model("ccc", 0.45, 0.916))
    assert found.key == "ccc"
    assert "which uniform int8 misses" in found.reason
    assert "1.50× slower than uniform int8" in found.headline


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"latency_ms": 0.4}, "eee"),
        ({"size_mb": 1.0}, "eee"),
        ({"accuracy_drop_points": 2.0}, "ccc"),
        ({"latency_ms": 0.4, "accuracy_drop_points": 2.0}, "eee"),
    ],
)
def test_limits_of_the_study_make_the_rule(limits, key):
    slow = model("fff", 0.9, 0.99, feasible=False)
    found = judge(FP32 | {"feasible": False}, model("ccc", 0.2, 0.90), model("eee", 0.39, 0.916), slow, **limits)
    assert found.key == key


def test_only_what_was_measured_again_is_recommended_once_it_exists():
    found = judge(FP32, INT8, model("ccc", 0.1, 0.917, final=False), model("ddd", 0.3, 0.914))
    assert found.key == "ddd"
    assert "report split" in found.reason


def test_numbers_of_the_search_are_called_so():
    found = judge(*(m | {"final": False} for m in (FP32, INT8, model("ccc", 0.3, 0.914))))
    assert found.key == "ccc"
    assert "not been measured again" in found.reason


def test_no_model_within_the_limits_is_said_so():
    found = judge(FP32 | {"feasible": False}, INT8 | {"feasible": False}, latency_ms=0.1)
    assert found.key is None
    assert found.headline == "No model meets the limits."


def test_no_success_is_said_so():
    run = make_run(evaluations=3)
    empty = frames.evaluations(run).iloc[:0]
    assert verdict(empty, TOP1, LimitsConfig()).key is None


def test_a_lower_metric_can_be_the_better_one():
    found = judge(
        model("aaa", 0.8, 1.000, baseline="fp32"), model("ccc", 0.3, 1.005), model("ddd", 0.2, 1.05), shown=LOSS
    )
    assert found.key == "ccc"
    assert "0.0050 above fp32" in found.headline


def test_a_metric_without_intervals_is_compared_by_speed_alone():
    found = judge(*(m | {"accuracy_low": None, "accuracy_high": None} for m in (FP32, INT8, model("ccc", 0.3, 0.914))))
    assert found.key == "ccc"
