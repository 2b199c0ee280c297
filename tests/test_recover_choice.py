"""Which models of a search are trained, and by which recipe."""

import dataclasses

import numpy as np
import pytest

from hwsearch.compress.recover import Recipe, untrained
from hwsearch.config import make_study
from hwsearch.errors import ConfigError
from hwsearch.search.guided.predictions import Prediction, Predictions
from hwsearch.search.recovery import Healing, asked_for, most_promising, with_recipe
from hwsearch.types import Accuracy, Artifact, Candidate, Failure, Latency, Success, Trial


def trial(number, accuracy, latency, *, baseline=None, recipe=None, failed=False, feasible=True, higher=True):
    value = Accuracy(
        metric="m", value=accuracy, higher_is_better=higher, examples=100, ci95=None, split="search", data_hash=""
    )
    measured = Latency(
        best_ms=latency, median_ms=latency, p90_ms=latency, p99_ms=latency, ci95_ms=(latency, latency), rounds=1,
        samples=1, batch=1, source="measured", sigma_ms=None,
    )  # fmt: skip
    artifact = Artifact(format="onnx", path="m.onnx", files=("m.onnx",), sha256="", size_bytes=1, portable=True)
    outcome = Success(accuracy=value, latency=measured, artifact=artifact, layers=(), params=1, nonzero=1, macs=1)
    if failed:
        outcome = Failure(stage="recover", error="diverged", message="training diverged")
    return Trial(
        number=number,
        candidate=Candidate(keep={"g": number}, dropped=(), precision={"conv": "int8"}, recipe=recipe or {}),
        baseline=baseline,
        outcome=outcome,
        constraints={} if feasible else {"accuracy_drop_points": 1.0},
        seconds={"recover": 60.0} if recipe else {},
    )


def trained(origin, accuracy, *, failed=False):
    made = trial(origin.candidate.keep["g"], accuracy, origin.outcome.latency.best_ms, failed=failed)
    recipe = Recipe(minutes=1.0, lr=0.01).choices()
    return dataclasses.replace(made, candidate=dataclasses.replace(origin.candidate, recipe=recipe))


def study(**limits):
    return make_study({"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu", "limits": limits})


BASELINES = (trial(0, 0.9, 1.0, baseline="fp32"), trial(1, 0.899, 0.5, baseline="int8"))


def test_the_model_that_training_moves_furthest_is_chosen():
    light, useful, ruined = trial(2, 0.89, 0.48), trial(3, 0.84, 0.30), trial(4, 0.10, 0.29)
    found = most_promising((*BASELINES, light, useful, ruined), None, study())
    assert found.candidate == useful.candidate
    assert found.evaluated
    assert found.lost == pytest.approx(0.06 / 0.9)


def test_a_model_beyond_the_limit_may_come_back_within_it():
    slow, lossy = trial(2, 0.897, 0.45), trial(3, 0.87, 0.3, feasible=False)
    found = most_promising((*BASELINES, slow, lossy), None, study(accuracy_drop_points=2))
    assert found.candidate == lossy.candidate
    hopeless = trial(4, 0.3, 0.1, feasible=False)
    assert most_promising((*BASELINES, hopeless), None, study(accuracy_drop_points=2)) is None


def test_training_may_aim_at_a_tighter_limit_than_the_search():
    light, lossy = trial(2, 0.889, 0.45), trial(3, 0.80, 0.3)
    aimed = make_study(
        {"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu", "limits": {"accuracy_drop_points": 20}}
        | {"recover": {"accuracy_drop_points": 1}}
    )
    assert most_promising((*BASELINES, light, lossy), None, study()).candidate == lossy.candidate
    assert most_promising((*BASELINES, light, lossy), None, aimed).candidate == light.candidate


def test_an_aim_is_to_be_fastest_within_it():
    aimed = make_study(
        {"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu", "limits": {"accuracy_drop_points": 20}}
        | {"recover": {"accuracy_drop_points": 1}}
    )
    safe, daring = trial(2, 0.895, 0.40), trial(3, 0.882, 0.30)
    assert most_promising((*BASELINES, safe, daring), None, aimed).candidate == daring.candidate
    assert most_promising((*BASELINES, safe, daring, trained(daring, 0.895)), None, aimed) is None
    still_short = trained(daring, 0.883)
    assert most_promising((*BASELINES, daring, still_short, trial(4, 0.882, 0.29)), None, study()) is not None


def test_no_model_is_trained_twice_even_if_that_failed():
    useful, other = trial(3, 0.84, 0.30), trial(4, 0.84, 0.4)
    for failed in (False, True):
        found = most_promising((*BASELINES, useful, other, trained(useful, 0.88, failed=failed)), None, study())
        assert found is None or found.candidate == other.candidate


def test_a_trained_model_lowers_what_its_neighbours_can_add():
    useful, near = trial(3, 0.84, 0.30), trial(4, 0.84, 0.301)
    assert most_promising((*BASELINES, useful, near, trained(useful, 0.899)), None, study()) is None


def test_a_uniform_number_format_that_loses_much_is_trained_too():
    coarse = trial(1, 0.84, 0.3, baseline="int8")
    found = most_promising((BASELINES[0], coarse), None, study())
    assert found.candidate == coarse.candidate
    assert Recipe.of(with_recipe(found, (BASELINES[0], coarse), study(), 1.0)).qat
    assert most_promising(BASELINES, None, study()) is None


def test_a_study_may_name_the_models_to_train():
    models = [trial(n, 0.9 - 0.01 * n, 0.4 - 0.02 * n) for n in (2, 3, 4)]
    keys = [t.candidate.key for t in models]
    run = (*BASELINES, *models)
    assert asked_for(run, ()) is None
    assert asked_for(run, (keys[1][:6], keys[0])).candidate == models[1].candidate
    run = (*run, trained(models[1], 0.89))
    assert asked_for(run, (keys[1][:6], keys[0])).candidate == models[0].candidate
    assert asked_for((*run, trained(models[0], 0.0, failed=True)), (keys[1], keys[0])) is None
    with pytest.raises(ConfigError, match="no evaluated model has the key `nothing`"):
        asked_for(run, ("nothing",))
    with pytest.raises(ConfigError, match="several models have"):
        asked_for(run, ("",))


def test_predicted_models_count_as_well():
    candidate = Candidate(keep={"g": 9}, dropped=(), precision={"conv": "int8"})
    model = Prediction(candidate=candidate, latency_ms=0.2, latency_sigma_ms=0.01, accuracy=0.85, accuracy_sigma=0.01)
    predictions = Predictions(evaluations=3, models=(model,))
    found = most_promising((*BASELINES, trial(2, 0.89, 0.48)), predictions, study())
    assert found.candidate == candidate
    assert not found.evaluated


def test_a_metric_that_is_better_lower():
    baseline = trial(0, 1.0, 1.0, baseline="fp32", higher=False)
    useful, ruined = trial(2, 1.1, 0.5, higher=False), trial(3, 30.0, 0.4, higher=False)
    found = most_promising((baseline, useful, ruined), None, study())
    assert found.candidate == useful.candidate
    assert found.lost == pytest.approx(0.1)


def test_what_training_undoes_is_learned():
    shares = np.array([0.1])
    before = Healing.learned([])
    assert 0 < before.left(shares)[0] < 0.1
    good, bad = Healing.learned([(0.1, 0.005)] * 4), Healing.learned([(0.1, 0.09)] * 4)
    assert good.left(shares) < before.left(shares) < bad.left(shares)
    assert good.spread < before.spread
    assert before.left(np.array([-0.01, 0.0]))[0] == 0
    assert before.left(np.array([1e-4]), luck=3.0)[0] <= 1e-4


def test_the_recipe_follows_study_and_damage():
    lossy = trial(3, 0.84, 0.3)
    config = make_study(
        {"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu"}
        | {"recover": {"method": "finetune", "flip": True}}
    )
    prospect = most_promising((*BASELINES, lossy), None, config)
    recipe = Recipe.of(with_recipe(prospect, (*BASELINES, lossy), config, 2.5))
    assert (recipe.method, recipe.minutes, recipe.flip, recipe.qat) == ("finetune", 2.5, True, False)
    assert 0.004 < recipe.lr < 0.02
    hurt = (BASELINES[0], dataclasses.replace(trial(1, 0.85, 0.5), baseline="int8"), lossy)
    assert Recipe.of(with_recipe(prospect, hurt, config, 2.5)).qat
    assert untrained(with_recipe(prospect, hurt, config, 2.5)) == lossy.candidate


def test_features_are_those_of_a_teacher():
    wanted = {"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu"}
    with pytest.raises(ConfigError, match="use `distill`"):
        make_study(wanted | {"recover": {"method": "finetune", "features": 1}})
    config, lossy = make_study(wanted | {"recover": {"method": "distill", "features": 1}}), trial(3, 0.84, 0.3)
    prospect = most_promising((*BASELINES, lossy), None, config)
    assert Recipe.of(with_recipe(prospect, BASELINES, config, 1.0)).features == 1
