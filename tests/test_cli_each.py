"""``search --each``: the kinds of training compared in one go."""

from __future__ import annotations

import dataclasses
import io
import json
from contextlib import redirect_stdout

import pytest

from hwsearch.cli.main import main
from hwsearch.errors import ConfigError
from hwsearch.search.run import Run
from hwsearch.search.together import together

MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""

STUDY = """
name: small
model: model.py:build
data: {source: digits, calibrate: 32, search: 64, report: 64}
target: ort-cpu
reparam: {kind: plain, epochs: 1, fresh: true}
search: {sampler: random, evaluations: 3}
measure: {rounds: 8, seconds: 0.1}
"""

LABELS = ("plain", "qarepvgg")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("each")
    (folder / "model.py").write_text(MODEL)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def searched(study):
    """The document that a search with both kinds prints."""
    out, printed = study.parent / "runs", io.StringIO()
    with redirect_stdout(printed):
        code = main(["search", str(study), "--out", str(out), "--each", f"reparam.kind={','.join(LABELS)}", "--json"])
    assert code == 0
    return json.loads(printed.getvalue())


def runs(study):
    return {label: Run.open(study.parent / "runs" / f"small-{label}" / "ort-cpu") for label in LABELS}


def test_the_models_of_all_kinds_are_one_front(study, searched):
    (joint,) = searched["together"]
    assert {point["key"].partition("/")[0] for point in joint["baselines"]} == set(LABELS)
    assert {point["baseline"] for point in joint["baselines"]} == {"fp32", "int8"}
    everything = [point for run in runs(study).values() for point in run.points()]
    assert max(p["accuracy"] for p in joint["points"]) == max(p.accuracy.value for p in everything)
    for one in joint["points"]:
        assert not any(
            other["accuracy"] > one["accuracy"] and other["latency_ci95_ms"][1] < one["latency_ci95_ms"][0]
            for other in joint["points"]
        )


def test_what_cannot_be_compared_is_refused(study, searched):
    found = runs(study)
    found["qarepvgg"] = dataclasses.replace(found["qarepvgg"], data={**found["qarepvgg"].data, "report": "other"})
    with pytest.raises(ConfigError, match="`qarepvgg` cannot be compared with the others: another set of examples"):
        together(found)


def test_every_kind_is_trained_and_searched_once(study, searched, capsys):
    found = runs(study)
    assert [entry["run"] for entry in searched["runs"]] == [str(found[label].path) for label in LABELS]
    assert found["plain"].source.sha256 != found["qarepvgg"].source.sha256
    trained = study.parent / "runs" / "trained"
    before = {path: path.stat().st_mtime_ns for path in trained.glob("*.pt")}
    assert len(before) == 2
    each = f"reparam.kind={','.join(reversed(LABELS))}"
    assert main(["search", str(study), "--out", str(study.parent / "runs"), "--each", each, "--extend", "1"]) == 0
    assert "together" in capsys.readouterr().out.splitlines()
    assert {path: path.stat().st_mtime_ns for path in trained.glob("*.pt")} == before
    assert {label: len(run.trials) for label, run in runs(study).items()} == dict.fromkeys(LABELS, 4)


@pytest.mark.parametrize("each", ["reparam.kind", "reparam.kind=plain", "reparam.kind=plain,plain", "=a,b", "a=b,"])
def test_a_wrong_list_is_a_usage_error(study, each, capsys):
    assert main(["search", str(study), "--each", each]) == 2
    assert "cannot read `--each" in capsys.readouterr().err


def test_a_wrong_value_is_found_before_anything_is_trained(study, capsys, tmp_path):
    assert main(["search", str(study), "--out", str(tmp_path), "--each", "reparam.kind=plain,orepaa"]) == 2
    assert "did you mean `orepa`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_of_every_variant(study, capsys):
    command = ["search", str(study), "--each", "quantize.ranges=minmax,entropy", "--dry-run", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["variants"]
    assert [entry["run"] for entry in found] == ["runs/small-minmax", "runs/small-entropy"]
    assert [entry["study"]["quantize"]["ranges"] for entry in found] == ["minmax", "entropy"]
