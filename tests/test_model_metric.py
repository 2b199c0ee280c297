from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import ConfigError
from hwsearch.model.metric import TOP1, load_metric, metric_from, wilson_interval


def test_top1():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [np.nan, 1.0]], np.float32)
    targets = np.array([1, 0, 0, 0])
    assert TOP1.per_example(outputs, targets).tolist() == [True, True, False, False]
    value, interval = TOP1.score(outputs, targets)
    assert value == 0.5
    assert interval == wilson_interval(2, 4)


def test_wilson_interval_matches_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(counts):
    successes, total = counts
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low))


def test_metric_from_a_file(tmp_path):
    (tmp_path / "m.py").write_text("def error(outputs, targets):\n    return abs(outputs[:, 0] - targets).mean()\n")
    metric = load_metric("m.py:error", "minimize", base_dir=tmp_path)
    assert (metric.name, metric.higher_is_better) == ("error", False)
    value, interval = metric.score(np.array([[1.0], [3.0]], np.float32), np.array([1, 1]))
    assert (value, interval) == (1.0, None)
    assert type(value) is float


@pytest.mark.parametrize(
    ("spec", "direction", "message"),
    [
        ("top_1", "maximize", "unknown metric `top_1`(?s:.*)did you mean `top1`"),
        ("top1", "minimize", "top1 is better when it is higher"),
        ("m.py:f", "maximize", "file not found"),
    ],
)
def test_bad_metric(spec, direction, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_metric(spec, direction, base_dir=Path(tmp_path))


@pytest.mark.parametrize("function", [lambda o, t: None, lambda o, t: o[:, 99], lambda o: 1.0])
def test_a_metric_that_fails_is_named(function):
    with pytest.raises(ConfigError, match=r"metric `<lambda>` failed on outputs \(2, 3\) and targets \(2,\)"):
        metric_from(function)(np.zeros((2, 3), np.float32), np.zeros(2))


def test_metric_must_be_a_function():
    with pytest.raises(ConfigError, match="not a function"):
        metric_from(3)
    with pytest.raises(ConfigError, match="unknown direction"):
        metric_from(lambda o, t: 0.0, "up")
