import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import ConfigError
from hwsearch.model.metric import wilson_interval
from hwsearch.search.front import MAX_FINALISTS, choose, tied, undominated
from hwsearch.search.pareto import front_mask, pick
from hwsearch.types import Accuracy, Artifact, Candidate, FrontPoint, Latency, Success, Trial


def point(key, correct, ms, examples=1000, half_width=0.01):
    return FrontPoint(
        key=key,
        trial=0,
        baseline=None,
        accuracy=Accuracy(
            metric="top1",
            value=correct / examples,
            higher_is_better=True,
            examples=examples,
            ci95=wilson_interval(correct, examples),
            split="report",
            data_hash="",
        ),
        latency=Latency(
            best_ms=ms,
            median_ms=ms,
            p90_ms=ms,
            p99_ms=ms,
            ci95_ms=(ms * (1 - half_width), ms * (1 + half_width)),
            rounds=1,
            samples=1,
            batch=1,
            source="measured",
            sigma_ms=0.0,
        ),
        size_bytes=1,
        params=1,
        macs=1,
        on_front=False,
    )


def searched(value, ms, number):
    found = point(str(number), round(1e5 * value), ms, examples=100_000)
    artifact = Artifact(path="m", files=("m",), format="onnx", sha256="", size_bytes=1, portable=True)
    outcome = Success(
        accuracy=found.accuracy, latency=found.latency, artifact=artifact, layers=(), params=1, nonzero=1, macs=1
    )
    candidate = Candidate(keep={"group": number}, dropped=(), precision={"layer": "int8"})
    return Trial(number=number, candidate=candidate, baseline=None, outcome=outcome, constraints={}, seconds={})


def test_a_model_as_fast_and_clearly_more_accurate_hides_the_other():
    assert undominated([point("good", 900, 1.0), point("bad", 700, 0.999)]) == {"good"}


def test_a_chain_of_overlapping_accuracies_does_not_collapse():
    chain = [point(str(i), 870 + 5 * i, 1.0 + 0.1 * i) for i in range(10)]
    assert undominated(chain) == {p.key for p in chain}


def test_a_chain_of_overlapping_latencies_keeps_its_ends():
    chain = [point(str(i), 300 + 100 * i, 1.0 + 0.015 * i) for i in range(5)]
    found = undominated(chain)
    assert "4" in found
    assert "0" in found


def test_points_within_the_noise_of_each_other_all_stay_and_are_tied():
    a, b = point("a", 900, 1.0), point("b", 902, 1.005)
    assert undominated([a, b]) == {"a", "b"}
    assert tied(a, b)
    assert not tied(a, a)


# Latencies differ: of two models equally fast and tied in accuracy, both stay.
points = st.lists(
    st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1, max_size=8, unique_by=lambda point: point[1]
)


@given(points)
def test_without_noise_in_latency_it_is_the_plain_front(values):
    found = undominated([point(str(i), 10 * c, ms, half_width=0.0) for i, (c, ms) in enumerate(values)])
    mask = front_mask([(-c, ms) for c, ms in values])
    assert found == {str(i) for i in np.flatnonzero(mask)}


def test_trained_models_are_finalists_however_crowded_the_front_and_whatever_the_search_says():
    crowd = [searched(0.8 + 0.001 * n, 0.2 + 0.01 * n, n) for n in range(2 * MAX_FINALISTS)]
    on_front, beaten, lossy = (searched(0.8101, 0.3, 90), searched(0.82, 0.45, 91), searched(0.5, 0.1, 92))
    trained = [
        dataclasses.replace(t, fidelity="F3", constraints=limits)
        for t, limits in ((on_front, {}), (beaten, {}), (lossy, {"accuracy_drop_points": 3.0}))
    ]
    chosen = choose([*crowd, *trained])
    assert {90, 91} <= {t.number for t in chosen}
    assert 92 not in {t.number for t in chosen}, "beyond the study's limits"
    assert len(chosen) == MAX_FINALISTS
    latencies = [t.outcome.latency.best_ms for t in chosen]
    assert latencies == sorted(latencies)


def test_a_crowded_front_is_thinned_where_it_is_crowded():
    """Forty models between 0.86 and 0.90, and two between there and 0.95, all on the front."""
    crowd = [(0.86 + 0.001 * n, 1.0 + 0.01 * n) for n in range(40)]
    lonely = [(0.93, 2.0), (0.95, 3.0)]
    trials = [searched(value, ms, number) for number, (value, ms) in enumerate([*crowd, *lonely])]
    chosen = [(t.outcome.accuracy.value, t.outcome.latency.best_ms) for t in choose(trials)]
    assert len(chosen) == MAX_FINALISTS
    assert chosen == sorted(chosen, key=lambda point: point[1])
    assert set(lonely) < set(chosen)
    assert crowd[0] in chosen


def test_an_accuracy_in_percent_is_pointed_out():
    with pytest.raises(ConfigError, match=r"top1 runs from 0 to 1: did you mean 0\.91\?"):
        pick([point("a", 900, 1.0)], min_accuracy=91)
