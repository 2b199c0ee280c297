"""Training in a study: which models are chosen, and what becomes of them, on a device that needs no runtime."""

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
from hwsearch.search.prepare import load_subject
from hwsearch.search.rerank import rerank
from hwsearch.search.run import Run
from hwsearch.search.study import run_study
from hwsearch.types import Success


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


def test_the_model_that_a_study_names_is_trained_first(network, tmp_path, target):
    first = run_search(network, tmp_path, target, method="none")
    named = max(
        (t for t in first.trials if isinstance(t.outcome, Success)), key=lambda t: t.outcome.latency.best_ms
    ).candidate  # the slowest, which would not be chosen
    second = run_search(network, tmp_path, target, models=[named.key[:8]], top=1)
    assert [untrained(t.candidate).key for t in second.trials if is_trained(t.candidate)] == [named.key]


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
