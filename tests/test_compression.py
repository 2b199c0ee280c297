"""`hwsearch compress` on a backend that needs no runtime: goals met, accuracy kept, the run gone on with, exported."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import hwsearch as hs
from hwsearch.cli.main import main
from hwsearch.errors import ConfigError
from hwsearch.search.effects.narrowing import Lost, best_ranges
from hwsearch.types import Accuracy, Candidate, Sparsity

TARGET = """
backend: {backend}
ops:
  conv: {{accepts: [fp32, int8], accelerates: [int8]}}
  linear: {{accepts: [fp32, int8], accelerates: [int8]}}
granularity: 1
min_keep: 0.1
{more}
"""


class Residual(nn.Module):
    """A residual branch with a width of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def examples(count, seed):
    """Inputs, and what the network itself says of them, so that there is accuracy to lose."""
    inputs = np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        return inputs, Residual().eval()(torch.from_numpy(inputs)).argmax(1).numpy()


DATA = {"calibrate": examples(16, 0), "search": examples(48, 1), "report": examples(48, 2)}
QUICK = {
    "measure": {"rounds": 3, "min_rounds": 3, "seconds": 0.02},
    "sensitivity": {"method": "measured", "images": 16},
    "quantize": {"ranges": "minmax"},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "fake.yaml"
    path.write_text(TARGET.format(backend="hwsearch.testing:FakeBackend", more="sparsity: {metric: macs, goal: 0.3}"))
    return str(path)


def compressed(folder, target, limits=None, **goals):
    settings = QUICK | {"limits": limits or {}}
    return hs.compress(
        Residual(), data=DATA, target=target, goals=hs.Goals(**goals), out=folder / "runs", name="tiny", **settings
    )


@pytest.fixture(scope="module")
def met(tmp_path_factory, target):
    """The target's goal of 30 % put first."""
    folder = tmp_path_factory.mktemp("met")
    return folder, compressed(folder, target, keep="sparsity", max_drop=20)


def test_a_goal_put_first_is_met_whatever_it_costs(met):
    _, found = met
    assert found.goal == Sparsity(metric="macs", goal=0.3)
    assert abs(found.sparsity.goal - 0.3) <= 0.02
    chosen = found.run.trial(found.key)
    assert set(chosen.candidate.precision.values()) == {"int8"}
    original = found.run.trials[0].outcome
    assert 1 - chosen.outcome.macs / original.macs == pytest.approx(found.sparsity.goal, abs=1e-6)
    assert found.row.ratio < 1
    assert all(cost > 0 for cost in found.cpu_ms)
    assert any("points of accuracy are lost" in line for line in found.unmet) == (found.row.drop_points > 20)


def test_the_run_keeps_no_more_than_the_baselines_and_two_models(met):
    _, found = met
    assert [trial.baseline for trial in found.run.trials] == ["fp32", "int8", None]
    assert found.run.sensitivity is not None
    facts = json.loads((found.run.path / "compressed.json").read_text())
    assert (facts["row"]["key"], facts["goal"]) == (found.key, {"metric": "macs", "goal": 0.3})


def test_another_goal_is_met_in_the_same_run_and_a_search_goes_on_from_it(met, target):
    folder, found = met
    more = compressed(folder, target, keep="sparsity", max_drop=20, sparsity=Sparsity(metric="params", goal=0.6))
    assert abs(more.sparsity.goal - 0.6) <= 0.02
    assert more.run.path == found.run.path
    study = hs.search(Residual(), data=DATA, target=target, out=folder / "runs", name="tiny", evaluations=6, **QUICK)
    run = study.run
    assert [t.candidate.key for t in run.trials[: len(more.run.trials)]] == [t.candidate.key for t in more.run.trials]
    assert len(run.trials) == 6


def test_it_is_exported_like_any_other_model(met, tmp_path):
    _, found = met
    bundle = hs.export(found, tmp_path / "bundle")
    assert hs.verify(bundle, timing=False).ok


def test_accuracy_is_kept_where_it_comes_first(tmp_path, target):
    goal = Sparsity(metric="macs", goal=0.9)
    strict = compressed(tmp_path, target, limits={"size_mb": 1e-4}, max_drop=0.0, sparsity=goal)
    assert strict.sparsity.goal < 0.88
    assert any("--keep sparsity" in line for line in strict.unmet)
    assert any(line.startswith("limits.size_mb is exceeded by") for line in strict.unmet)
    judged = [trial.outcome.accuracy.value for trial in (strict.run.trial(strict.key), strict.run.trials[0])]
    assert judged[0] >= judged[1]


def test_range_methods_are_judged_by_accuracy_and_the_default_wins_ties():
    losses = {"minmax": 2.0, "percentile": 0.5, "mse": 0.5}

    def score(candidate):
        value = 0.9 - losses[candidate.recipe.get("ranges", "minmax")] / 100
        return dataclasses.replace(ACCURACY, value=value)

    lost = Lost(score, ACCURACY)
    assert best_ranges(lost, CANDIDATE, ("minmax", "percentile", "mse")) == "percentile"
    assert best_ranges(lost, CANDIDATE, ("minmax",)) == "minmax"


ACCURACY = Accuracy(
    metric="top1", value=0.9, higher_is_better=True, examples=1, ci95=None, split="search", data_hash=""
)  # fmt: skip
CANDIDATE = Candidate(keep={}, dropped=(), precision={"a": "int8"})


def test_the_command_line_refuses_a_model_without_data(capsys):
    assert main(["compress", "net.py:build", "--target", "ort-cpu", "--json"]) == 2
    assert "a model needs data" in json.loads(capsys.readouterr().out)["message"]
    with pytest.raises(ConfigError, match="unknown target"):
        hs.compress(Residual(), data=DATA, target="ort-cup")
