"""Training in a study: which models are chosen, and what becomes of them, on a device that needs no runtime."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_search import write_target
from torch import nn
from typer.testing import CliRunner

from hwsearch.cli.main import app
from hwsearch.compress.recover import Recipe, Recovery, is_trained, untrained
from hwsearch.config import load_study, make_study
from hwsearch.errors import ConfigError, DataError
from hwsearch.export.bundle import export_bundle
from hwsearch.export.deployed import open_deployed
from hwsearch.export.manifest import parse_manifest, read_facts, write_manifest
from hwsearch.export.verify import verify_bundle
from hwsearch.model.data import splits_from
from hwsearch.model.train import train
from hwsearch.search.api import search
from hwsearch.search.guided.predictions import Prediction, Predictions
from hwsearch.search.prepare import load_subject
from hwsearch.search.recovery import Healing, asked_for, most_promising, with_recipe
from hwsearch.search.rerank import rerank
from hwsearch.search.run import Run
from hwsearch.search.study import run_study
from hwsearch.types import Accuracy, Artifact, Candidate, Failure, Latency, Success, Trial

# --------------------------------------------------------------------------- choosing


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


# --------------------------------------------------------------------------- in a study


class Bars(nn.Module):
    """A residual network that tells apart upright bars, lying bars and checks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.two, self.norm2 = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.two(self.norm1(self.one(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def bars(count, seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, count)
    images = generator.standard_normal((count, 1, 12, 12)).astype(np.float32)
    rows, columns = np.indices((12, 12))
    for kind, phase in enumerate((columns, rows, rows + columns)):
        images[targets == kind] += 0.35 * (-1.0) ** phase
    return images, targets


DATA = {name: bars(count, seed) for seed, (name, count) in enumerate({"train": 900, "test": 160}.items())}
QUICK = {"rounds": 4, "min_rounds": 3, "seconds": 0.05}
# Nothing is repaired, so that there is something to recover.
RECOVER = {"method": "distill", "minutes": 0.06, "top": 2, "repair": "none", "selection": "magnitude"}


def settings(**changes):
    return {
        "search": {"sampler": "random"},
        "measure": QUICK,
        "recover": RECOVER | changes,
        "space": {"drop_branches": False, "precisions": ["int8"]},
    }


@pytest.fixture(scope="module")
def network():
    module = Bars()
    train(module, *DATA["train"], epochs=8, lr=0.1)
    return module


@pytest.fixture
def target(tmp_path):
    return str(write_target(tmp_path))


def run_search(network, tmp_path, target, *, evaluations=4, data=DATA, **changes):
    return search(
        network, data=data, target=target, out=tmp_path / "runs", name="bars", evaluations=evaluations,
        **settings(**changes),
    ).run  # fmt: skip


@pytest.fixture(scope="module")
def finished(network, tmp_path_factory):
    """A run that has trained its best models, and a function that starts it again."""
    folder = tmp_path_factory.mktemp("finished")
    target = str(write_target(folder))
    return run_search(network, folder, target), lambda: run_search(network, folder, target)


def test_trained_models_are_points_of_their_own(finished):
    run, start_again = finished
    found = [t for t in run.trials if is_trained(t.candidate)]
    assert len(run.trials) - len(found) == 4
    assert 1 <= len(found) <= 2
    assert {t.fidelity for t in found} == {"F3"}
    good = [t for t in found if isinstance(t.outcome, Success)]
    assert good
    for t in good:
        before = run.trial(untrained(t.candidate).key)
        assert t.outcome.accuracy.value > before.outcome.accuracy.value
        assert t.outcome.macs == before.outcome.macs
        assert Recipe.of(t.candidate).method == "distill"
    assert sum(t.seconds["recover"] for t in found) < 1.5 * 60 * RECOVER["minutes"]
    points = [p for p in run.front.points if p.training_minutes is not None]
    assert {p.key for p in points} <= {t.candidate.key for t in good}
    assert any(p.on_front for p in points)
    assert {p.accuracy.split for p in points} == {"report"}
    again = start_again()
    assert again.trials == run.trials
    assert again.front == run.front


def test_every_verb_takes_a_trained_model(finished, tmp_path):
    run, _ = finished
    point = next(p for p in run.front.points if p.training_minutes is not None)
    runner = CliRunner()
    for command in (
        ["front", run.path],
        ["show", run.path, point.key],
        ["compare", run.path, point.key, run.trials[0].candidate.key],
    ):
        shown = runner.invoke(app, [str(part) for part in command])
        assert shown.exit_code == 0, shown.output
    assert "recover.method" in runner.invoke(app, ["show", str(run.path), point.key]).stdout
    assert f"trained {point.training_minutes:.1f} min" in runner.invoke(app, ["front", str(run.path)]).stdout
    bundle = export_bundle(run, point.key, tmp_path / "bundle")
    assert verify_bundle(bundle, timing=False).ok


def test_a_bundle_holds_trained_weights_so_that_it_can_follow_its_scene(finished, network, tmp_path):
    run, _ = finished
    found = next(t.candidate for t in run.trials if is_trained(t.candidate) and isinstance(t.outcome, Success))
    bundle = export_bundle(run, found.key, tmp_path / "bundle")
    subject = load_subject(run.config, module=network, splits=splits_from(DATA, run.config.data))
    deployed = open_deployed(bundle, subject=subject)  # compares its answers with the bundle's
    assert (bundle / "weights.npz").exists()
    assert deployed.base.get_submodule("one").weight.shape[0] == found.keep.get("one", 16)
    facts = read_facts(bundle)
    (bundle / "weights.npz").unlink()
    del facts["files"]["weights.npz"]
    write_manifest(bundle, parse_manifest(facts))  # as earlier versions wrote bundles
    with pytest.raises(ConfigError, match="were trained after compression"):
        open_deployed(bundle, subject=subject)


def test_a_front_ranked_again_is_not_trained_again(network, tmp_path, target, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "bars.pt")
    (tmp_path / "things.py").write_text("from test_recover_study import DATA, Bars\n\n\ndef data():\n    return DATA\n")
    facts = {"name": "bars", "model": "things.py:Bars", "weights": "bars.pt", "data": {"source": "things.py:data"}}
    wanted = settings() | {"search": {"sampler": "random", "evaluations": 4}, "target": target}
    (tmp_path / "study.yaml").write_text(json.dumps(facts | wanted))
    first = run_study(load_study(tmp_path / "study.yaml"), out=tmp_path / "runs" / "bars")[0]
    trained = {p.key for p in first.points() if p.on_front and p.training_minutes is not None}
    assert trained
    monkeypatch.delattr(Recovery, "_train")  # whoever trains fails
    again = rerank(first, "ort-cpu").run
    assert again.target.name == "ort-cpu"
    assert all(isinstance(again.trial(key).outcome, Success) for key in trained)


def test_a_search_that_is_finished_can_be_followed_by_training(network, tmp_path, target):
    first = run_search(network, tmp_path, target, method="none")
    assert not any(is_trained(t.candidate) for t in first.trials)
    second = run_search(network, tmp_path, target)
    assert second.trials[: len(first.trials)] == first.trials
    assert any(is_trained(t.candidate) for t in second.trials)


def test_a_diverging_model_is_dropped_and_reported(network, tmp_path, target):
    run = run_search(network, tmp_path, target, lr=1e30, weight_decay=1.0)
    failed = [t for t in run.trials if is_trained(t.candidate)]
    assert failed
    assert {(t.outcome.stage, t.outcome.error) for t in failed} == {("recover", "diverged")}
    assert all(p.training_minutes is None for p in run.front.points)
    assert {untrained(t.candidate).key for t in failed} <= {t.candidate.key for t in run.trials}


def run_again(network, tmp_path, target, *, stop=None, watch=None):
    """One model, trained long enough to be interrupted."""
    wanted = settings(top=1, minutes=0.15)
    config = make_study(
        {"name": "bars", "model": "x:y", "data": {"source": "python"}, "target": target, **wanted}
        | {"search": {"sampler": "random", "evaluations": 4}}
    )
    return run_study(
        config, out=tmp_path / "runs" / "bars", module=network, splits=splits_from(DATA, config.data),
        stop=stop, **({"progress": watch} if watch else {}),
    )[0]  # fmt: skip


def test_a_run_stopped_in_training_goes_on_there(network, tmp_path, target):
    stop = threading.Event()

    def watch(moment):
        if moment.stage == "recover" and moment.message.startswith("epoch"):
            stop.set()

    first = run_again(network, tmp_path, target, stop=stop, watch=watch)
    assert not any(is_trained(t.candidate) for t in first.trials)
    assert list((first.path / "work" / "trained").iterdir())
    stages = []
    second = run_again(network, tmp_path, target, watch=lambda moment: stages.append((moment.stage, moment.message)))
    assert second.trials[:4] == first.trials
    assert any(is_trained(t.candidate) for t in second.trials)
    assert "search" not in {stage for stage, _ in stages}
    assert not next(message for _, message in stages if message.startswith("epoch")).startswith("epoch 1,")


@pytest.mark.slow
def test_a_run_killed_in_training_goes_on(tmp_path, target):
    """By SIGKILL, in the second epoch's report: no evaluation is lost or repeated, and training is not begun anew."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_recover_study import Bars, DATA, run_again, train
        from hwsearch.model import train as training
        training.SAVE_EVERY_S = 0.0
        def watch(moment):
            if moment.stage == "recover" and moment.message.startswith("epoch 2,"):
                os.kill(os.getpid(), signal.SIGKILL)
        module = Bars()
        train(module, *DATA["train"], epochs=8, lr=0.1)
        run_again(module, Path(sys.argv[2]), sys.argv[3], watch=watch)
        """)
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    done = subprocess.run([sys.executable, script, here, tmp_path, target], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    module = Bars()
    train(module, *DATA["train"], epochs=8, lr=0.1)
    before = Run.open(tmp_path / "runs" / "bars" / "fake").trials
    assert len(before) == 4
    epochs = []
    after = run_again(module, tmp_path, target, watch=lambda moment: epochs.append(moment.message)).trials
    assert after[:4] == before
    assert any(is_trained(t.candidate) for t in after)
    assert not next(message for message in epochs if message.startswith("epoch")).startswith("epoch 1,")


def test_features_are_those_of_a_teacher():
    wanted = {"model": "a:b", "data": {"source": "digits"}, "target": "ort-cpu"}
    with pytest.raises(ConfigError, match="use `distill`"):
        make_study(wanted | {"recover": {"method": "finetune", "features": 1}})
    config, lossy = make_study(wanted | {"recover": {"method": "distill", "features": 1}}), trial(3, 0.84, 0.3)
    prospect = most_promising((*BASELINES, lossy), None, config)
    assert Recipe.of(with_recipe(prospect, BASELINES, config, 1.0)).features == 1


def test_training_needs_examples_outside_the_splits(network, tmp_path, target):
    ready = {name: bars(60, seed) for seed, name in enumerate(("calibrate", "search", "report"))}
    with pytest.raises(DataError, match="no training examples"):
        run_search(network, tmp_path, target, data=ready)
    run = run_search(network, tmp_path, target, data=ready | {"train": bars(200, 9)}, top=1)
    assert any(is_trained(t.candidate) for t in run.trials)


def test_training_examples_that_are_judged_on_are_a_leak(network, tmp_path, target):
    ready = {name: bars(60, seed) for seed, name in enumerate(("calibrate", "search", "report"))}
    with pytest.raises(DataError, match="training examples too"):
        run_search(network, tmp_path, target, data=ready | {"train": ready["search"]})


def test_labels_alone_teach_only_classes(network, tmp_path, target):
    with pytest.raises(ConfigError, match="learns from class labels"):
        search(
            network, data=DATA, metric=lambda outputs, targets: float(outputs.mean()), target=target,
            out=tmp_path / "runs", **settings(method="finetune"),
        )  # fmt: skip
