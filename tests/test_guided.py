"""The guided search: calibration of sensitivities, the end of a search, predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import make_run

from hwsearch.errors import ConfigError
from hwsearch.search.guided.calibrate import calibrate
from hwsearch.search.guided.predictions import Prediction, Predictions, read_predictions, write_predictions
from hwsearch.search.stopping import stalled
from hwsearch.types import Candidate

ORIGINAL = 0.92


def evaluated(models, *, weights, power=1.2, noise=0.05, seed=0):
    """Features, divergences and accuracies of models whose segments count differently than their sensitivities say."""
    rng = np.random.default_rng(seed)
    features = rng.gamma(0.3, 0.1, size=(models, len(weights)))
    divergence = 1.5 * (features @ weights) ** power * np.exp(rng.normal(0, noise, models))
    return features, divergence, ORIGINAL - 0.25 * np.sqrt(divergence)


def test_calibration_finds_which_segments_count_more_than_their_sensitivity_says():
    weights = np.array([0.4, 1.0, 2.5, 1.0, 0.6, 1.7])
    features, divergence, accuracy = evaluated(40, weights=weights)
    before = calibrate(features[:0], [], [], ORIGINAL)
    after = calibrate(features, divergence, accuracy, ORIGINAL)
    unseen, _, truth = evaluated(100, weights=weights, noise=0, seed=1)
    errors = [np.abs(c.accuracy(unseen @ c.weights)[0] - truth).mean() for c in (before, after)]
    ranks = [
        np.corrcoef(np.argsort(np.argsort(unseen @ c.weights)), np.argsort(np.argsort(-truth)))[0, 1]
        for c in (before, after)
    ]
    assert errors[1] < 0.3 * errors[0]
    assert ranks[1] > max(0.98, ranks[0])
    assert np.argmax(after.weights) == 2


@given(st.integers(0, 30), st.integers(0, 1000))
def test_more_damage_never_promises_more_accuracy(models, seed):
    features, divergence, accuracy = evaluated(models, weights=np.ones(4), noise=0.5, seed=seed)
    found = calibrate(features, divergence, accuracy, ORIGINAL)
    expected, sigma = found.accuracy(np.linspace(0, 5, 200))
    assert (np.diff(expected) <= 1e-12).all()
    assert expected[0] <= ORIGINAL + 1e-12
    assert sigma > 0


def test_a_metric_that_is_better_lower_is_calibrated_with_its_sign_turned():
    features, divergence, _ = evaluated(20, weights=np.ones(3))
    loss = -(0.5 + divergence)  # the metric is a loss of 0.5 and more
    found = calibrate(features, divergence, loss, -0.5)
    expected, _ = found.accuracy(np.array([0.0, 0.5]))
    assert expected[0] > expected[1] > -3


def test_failed_and_unchanged_models_teach_nothing():
    features = np.array([[0.0, 0.0], [0.2, np.inf], [0.1, 0.3]])
    found = calibrate(features, [0.0, 0.4, np.nan], [ORIGINAL, 0.8, 0.85], ORIGINAL)
    assert found.weights.tolist() == [1.0, 1.0]


def test_predictions_survive_the_disk_and_answer_a_limit(tmp_path):
    models = tuple(
        Prediction(
            candidate=Candidate(keep={"a": kept}, dropped=(), precision={"a": "int8"}),
            latency_ms=kept / 10,
            latency_sigma_ms=0.01,
            accuracy=0.8 + kept / 100,
            accuracy_sigma=0.01,
        )
        for kept in (2, 4, 8)
    )
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, Predictions(evaluations=5, models=models))
    found = read_predictions(tmp_path)
    assert found == Predictions(evaluations=5, models=models)
    assert found.within(0.5).candidate.keep == {"a": 4}
    assert found.within(0.1) is None


def test_damaged_predictions_are_refused(tmp_path):
    (tmp_path / "predicted.json").write_text('{"predictions": {"models": 3}}')
    with pytest.raises(ConfigError, match="damaged"):
        read_predictions(tmp_path)


def test_a_search_has_stalled_when_its_last_evaluations_widened_nothing():
    run = make_run(evaluations=60)
    worst = (-0.8 * run.trials[0].outcome.accuracy.value, run.trials[0].outcome.latency.best_ms)
    improving = next(n for n in range(20, 60) if not stalled(run.trials[:n], worst, 5))
    assert stalled((*run.trials[:improving], *[run.trials[improving - 1]] * 5), worst, 5)
    assert not stalled((*run.trials[:improving], *[run.trials[improving - 1]] * 5), worst, None)
    assert not stalled(run.trials[:5], worst, 20)
