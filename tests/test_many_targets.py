"""One study on several targets: compressed in one command, compared, exported, ranked again on another device."""

import dataclasses
import json
from pathlib import Path

import pytest

from hwsearch.cli.main import main
from hwsearch.report import layer_frames
from hwsearch.search.comparison import best_within, remarks, row_of, runs_in
from hwsearch.search.legal import legality
from hwsearch.search.run import Run

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def build():
    torch.manual_seed(0)
    return Net()
"""

STUDY = """
name: small
model: model.py:build
data: {source: digits, calibrate: 32, search: 64, report: 64}
targets: [ort-cpu, ort-cpu-edge, npu-4bit]
measure: {rounds: 4, min_rounds: 3, seconds: 0.05}
sensitivity: {method: measured, images: 32}
quantize: {ranges: minmax}
tables: tables
"""

pytestmark = pytest.mark.slow

NAMES = ["ort-cpu", "ort-cpu-edge", "npu-4bit"]


def called(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One command, three devices."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "model.py").write_text(MODEL)
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        goals = ("--keep", "sparsity", "--sparsity", "0.24", "--max-drop", "100")
        assert main(["compress", "study.yaml", *goals, "--quiet"]) == 0
    return folder


def test_each_target_gets_a_bundle_that_is_legal_there_and_a_page_compares_them(folder):
    runs = runs_in(folder / "runs" / "small")
    assert sorted(run.target.name for run in runs) == sorted(NAMES)
    for run in runs:
        facts = json.loads((run.path / "compressed.json").read_text())
        assert (folder / "out" / f"small-{run.target.name}" / "hwsearch.json").exists()
        assert abs(facts["sparsity"]["goal"] - 0.24) <= 0.02
        found = legality(run, run.trial(facts["row"]["key"]))
        assert found.complete
        assert not found.problems
        assert facts["row"]["latency_source"] == ("modelled" if run.target.backend == "table" else "measured")
        assert (facts["cpu_ms"] is None) == (run.target.backend == "table")
    page = (folder / "runs" / "small" / "targets.html").read_text()
    assert all(name in page for name in NAMES)
    assert "npu-4bit: latency is modelled, not measured" in page


def test_targets_share_what_is_the_same_for_all(folder):
    runs = folder / "runs" / "small"
    log = {name: _kinds(runs / name / "work" / "sensitivity.jsonl") for name in NAMES}
    assert log["ort-cpu"] == {"keep", "drop", "precision"}
    assert log["ort-cpu-edge"] == set(), "the same backend: all is known"
    assert log["npu-4bit"] == {"precision"}, "another way to round"
    assert all(Run.open(runs / name).sensitivity is not None for name in NAMES)
    assert list((runs / "pieces").glob("*.npy"))


def _kinds(path: Path):
    lines = path.read_text().split("\n") if path.exists() else []
    return {json.loads(line)["effect"]["kind"] for line in lines if line}


def test_the_comparison_takes_the_fastest_model_within_the_drop(folder, capsys):
    code, found = called(capsys, "compare-targets", folder / "runs" / "small", "--max-drop", "100")
    assert code == 0
    for run in runs_in(folder / "runs" / "small"):
        row = next(row for row in found["targets"] if row["target"] == run.target.name)
        assert row["latency_ms"] == min(p.latency.best_ms for p in run.points() if p.on_front)
    strict = row_of(run, best_within(run, -100.0))
    early = remarks([dataclasses.replace(strict, split="search")])
    assert early == ["ort-cpu-edge: accuracy is of the search split, since the search is not over"]
    assert (strict.key, strict.ratio, strict.drop_points) == (run.trials[0].candidate.key, 1.0, 0.0)


def test_export_all_writes_one_bundle_per_target(folder, tmp_path, capsys):
    runs = folder / "runs" / "small"
    code, found = called(capsys, "export", runs, "--all", "--max-drop", "100", "--out", tmp_path / "all")
    assert code == 0
    assert sorted(Path(path).name for path in found["bundles"]) == sorted(NAMES)
    assert called(capsys, "verify", tmp_path / "all" / "ort-cpu-edge", "--no-timing")[0] == 0


def test_a_front_is_ranked_again_by_its_finalists_alone(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    first = Run.open(folder / "runs" / "small" / "ort-cpu")
    finalists = {p.key for p in first.points() if p.on_front and p.baseline is None}
    code, found = called(capsys, "rerank", first.path, "--to", "arm-neon")
    assert code == (0 if finalists else 1)  # so small a network need not gain anything where it is measured
    run = Run.open(Path(found["run"]))
    assert run.target.name == "arm-neon"
    assert {t.candidate.key for t in run.trials if t.baseline is None} == finalists
    assert found["refused"] == []
    assert {point["latency_source"] for point in found["points"]} == {"modelled"}


def test_what_ran_in_a_precision_the_target_does_not_take_is_named(folder):
    run = Run.open(folder / "runs" / "small" / "ort-cpu")
    trial = run.trials[1]
    odd = dataclasses.replace(trial.outcome.layers[-1], source_layers=("head",), executed="int4")
    forged = dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, layers=(odd,)))
    found = legality(run, forged)
    assert found.problems == ("head ran in int4; ort-cpu takes fp32, int8",)
    assert not found.complete
    narrow = dataclasses.replace(trial, candidate=dataclasses.replace(trial.candidate, keep={"first": 13}))
    assert "first keeps 13 channels" in legality(run, narrow).problems[0]


def test_what_was_simulated_as_asked_is_no_other_format(folder, capsys):
    run = Run.open(folder / "runs" / "small" / "npu-4bit")
    found = layer_frames.layers(run)
    assert set(found["matched"].dropna()) == {True}
    assert main(["show", str(run.path), run.trials[0].candidate.key]) == 0
    shown = capsys.readouterr().out
    assert "simulated fp32" in shown
    assert "not as requested" not in shown
