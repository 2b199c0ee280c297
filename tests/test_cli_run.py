"""The command line on a real, small search: what each verb prints, interrupting, resuming, extending, exporting."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.cli.main import main
from hwsearch.search.effects.effects import Effect, Sensitivity, write_sensitivity
from hwsearch.search.run import Run

MODEL = """
from torch import nn
import torch

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""

STUDY = """
name: small
model: model.py:build
data: {source: digits, calibrate: 32, search: 64, report: 64}
target: ort-cpu
search: {sampler: random, evaluations: 4}
measure: {rounds: 8, seconds: 0.1}
"""


def make(folder: Path, text: str = STUDY) -> Path:
    (folder / "model.py").write_text(MODEL)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """The run folder of a finished search."""
    folder = tmp_path_factory.mktemp("searched")
    assert main(["search", str(make(folder)), "--out", str(folder / "runs"), "--quiet"]) == 0
    return folder / "runs" / "small"


def start(study: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwsearch", "search", str(study), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_evaluations(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if (folder / "run.json").exists() and (folder / "study.db").exists() and len(Run.open(folder).trials) >= count:
            return
        time.sleep(0.2)
    raise AssertionError(process.communicate()[1])


# --------------------------------------------------------------------------- before a search


def test_check_counts_what_can_be_chosen(run, tmp_path):
    code, out, err = run("check", make(tmp_path))
    assert code == 0
    assert "prune groups" in out
    assert f"next: hwsearch search {tmp_path / 'study.yaml'}" in err
    document = json.loads(run("check", tmp_path / "study.yaml", "--json")[1])
    assert (document["plans"][0]["layers"], document["plans"][0]["groups"]) == (3, 2)


def test_a_dry_run_touches_nothing(run, tmp_path):
    code, out, _ = run("search", make(tmp_path), "--out", tmp_path / "runs", "--dry-run")
    assert code == 0
    assert "sampler: random" in out
    assert re.search(r"ort-cpu: about \d+ s: \d+ evaluations of \d", out)
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_found(run, tmp_path):
    code, _, err = run("check", make(tmp_path), "--set", "model=model.py:biuld")
    assert code == 2
    assert "did you mean `build`?" in err


# --------------------------------------------------------------------------- after a search


def test_front_prints_the_promised_document(run, searched):
    code, out, _ = run("front", searched, "--json")
    document = json.loads(out)
    assert code == 0
    expected = ["schema_version", "device", "target", "objectives", "baselines", "points", "latency_explanation"]
    assert list(document) == expected
    assert "every model is measured: no latency table in" in document["latency_explanation"]
    assert {point["baseline"] for point in document["baselines"]} == {"int8", "fp32"}
    for point in document["points"] + document["baselines"]:
        assert list(point) == [
            "key",
            "accuracy",
            "accuracy_ci95",
            "latency_ms",
            "latency_ci95_ms",
            "size_bytes",
            "baseline",
            "split",
            "latency_source",
            "build_spread",
            "training_minutes",
            "energy",
        ]
        assert point["split"] == "report"
        assert point["latency_ci95_ms"][0] <= point["latency_ms"] <= point["latency_ci95_ms"][1]


def test_front_shows_the_same_points_to_people(run, searched):
    keys = [point["key"] for point in json.loads(run("front", searched, "--json")[1])["points"]]
    lines = run("front", searched)[1].splitlines()
    assert [line.split()[0] for line in lines if "*" in line] == keys


def test_limits_leave_out_points_and_an_empty_front_exits_with_1(run, searched):
    points = json.loads(run("front", searched, "--json")[1])["points"]
    fastest = points[0]["latency_ms"]
    inside = json.loads(run("front", searched, "--json", "--max-latency-ms", fastest)[1])["points"]
    assert [point["key"] for point in inside] == [points[0]["key"]]
    code, out, _ = run("front", searched, "--json", "--max-latency-ms", fastest / 2)
    assert (code, json.loads(out)["points"]) == (1, [])


def test_show_and_compare(run, searched):
    baselines = {b["baseline"]: b["key"] for b in json.loads(run("front", searched, "--json")[1])["baselines"]}
    code, out, _ = run("show", searched, baselines["int8"])
    assert code == 0
    assert "precision 0" in out
    assert "QLinearConv" in out
    code, out, _ = run("compare", searched, baselines["fp32"], baselines["int8"], "--json")
    differing = json.loads(out)["choices_that_differ"]
    assert code == 0
    assert differing["precision 0"] == ["fp32", "int8"]
    assert not any(name.startswith("keep") for name in differing)


def test_show_what_single_choices_do(run, searched):
    code, _, err = run("show", searched, "--sensitivity")
    assert code == 2
    assert "no sensitivities are known" in err
    assert "search.sampler = random" in err
    known = Effect(kind="keep", name="0", value=8, loss=0.125, sigma=0.0125)
    failed = Effect(kind="precision", name="2", value="int8", loss=math.inf, sigma=0.0, problem="build: crash")
    same = Effect(kind="keep", name="0", value=16, loss=0.0, sigma=0.0)
    found = Sensitivity(images=64, measure="kl", method="measured", effects=(known, failed, same))
    write_sensitivity(Run.open(searched / "ort-cpu").path, found)
    code, out, _ = run("show", searched, "--sensitivity")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines == [
        ["choice", "of", "value", "kl"],
        ["keep", "0", "8", "0.12500", "±", "0.01250"],
        ["precision", "2", "int8", "inf", "build:", "crash"],
    ]
    document = json.loads(run("show", searched, "--sensitivity", "--json")[1])["sensitivity"]
    assert [effect["loss"] for effect in document["effects"]] == [0.125, None, 0.0]
    (searched / "ort-cpu" / "sensitivity.json").write_text("{}")
    code, _, err = run("show", searched, "--sensitivity")
    assert code == 2
    assert "is damaged" in err
    (searched / "ort-cpu" / "sensitivity.json").unlink()


def test_show_needs_a_key_or_a_question(run, searched):
    code, _, err = run("show", searched)
    assert code == 2
    assert "allowed: the KEY of a candidate, or --sensitivity" in err


def test_a_key_that_does_not_exist(run, searched):
    code, _, err = run("show", searched, "zzzz")
    assert code == 2
    assert "no candidate `zzzz`" in err


def test_report_writes_one_file(run, searched, tmp_path):
    code, out, _ = run("report", searched, "--out", tmp_path / "r.html")
    assert (code, out.strip()) == (0, str(tmp_path / "r.html"))
    assert (tmp_path / "r.html").read_text().startswith("<!")


def test_export_then_verify_then_damage(run, searched, tmp_path):
    out = tmp_path / "bundle"
    assert run("export", searched, "--min-accuracy", "0", "--out", out, "--dry-run")[0] == 0
    assert not out.exists()
    code, printed, err = run("export", searched, "--min-accuracy", "0", "--out", out)
    assert (code, printed.strip()) == (0, str(out))
    assert f"next: hwsearch verify {out}" in err
    code, printed, _ = run("verify", out, "--json", "--no-timing")
    assert (code, json.loads(printed)["ok"]) == (0, True)
    model = out / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0\0")
    code, printed, _ = run("verify", out, "--no-timing")
    assert code == 1
    assert "model.onnx: changed" in printed


def test_verify_scores_again_where_data_are_given(run, searched, tmp_path):
    run("export", searched, "--min-accuracy", "0", "--out", tmp_path / "bundle")
    code, out, _ = run("verify", tmp_path / "bundle", "--json", "--no-timing", "--data", tmp_path / "bundle/study.yaml")
    accuracy = next(check for check in json.loads(out)["checks"] if check["name"] == "accuracy")
    assert (code, accuracy["ok"]) == (0, True)


def test_benchmark_times_the_built_models(run, searched):
    models = sorted(searched.glob("*/work/artifacts/*/*.onnx"))[:2]
    code, out, _ = run("benchmark", *models, "--json")
    rows = json.loads(out)["models"]
    assert code == 0
    assert rows[0]["against_first"] is None
    assert rows[1]["against_first"]["verdict"] in {"faster", "slower", "tied"}


# --------------------------------------------------------------------------- going on


def test_a_finished_search_is_not_repeated_and_can_be_extended(run, tmp_path):
    study, out = make(tmp_path, STUDY.replace("evaluations: 4", "evaluations: 2")), tmp_path / "runs"
    assert run("search", study, "--out", out)[0] == 0
    first = Run.open(out / "small" / "ort-cpu").trials
    assert run("search", study, "--out", out)[0] == 0
    assert Run.open(out / "small" / "ort-cpu").trials == first
    assert run("search", study, "--out", out, "--extend", "1")[0] == 0
    extended = Run.open(out / "small" / "ort-cpu").trials
    assert extended[: len(first)] == first
    assert len(extended) == len(first) + 1
    code, _, err = run("search", study, "--out", out, "--no-resume")
    assert code == 2
    assert "holds a run already" in err


def test_nothing_feasible_exits_with_1(run, tmp_path):
    study = make(tmp_path, STUDY.replace("evaluations: 4", "evaluations: 2"))
    code, _, err = run("search", study, "--out", tmp_path / "runs", "--set", "limits.latency_ms=1e-6")
    assert code == 1
    assert "no evaluation is within the study's limits" in err


def test_every_evaluation_failing_exits_with_4(run, tmp_path):
    study = make(tmp_path, STUDY.replace("evaluations: 4", "evaluations: 2"))
    code, _, err = run("search", study, "--out", tmp_path / "runs", "--set", "search.timeout_s=0.001")
    assert code == 4
    assert "evaluations failed" in err


def test_another_model_in_the_same_run_folder_is_refused(run, searched, tmp_path):
    study = make(tmp_path)
    (tmp_path / "model.py").write_text(MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    code, _, err = run("search", study, "--out", searched.parent)
    assert code == 2
    assert str(searched) in err or "another" in err


@pytest.mark.slow
def test_ctrl_c_keeps_everything_and_says_how_to_resume(tmp_path):
    study, out = make(tmp_path), tmp_path / "runs"
    process = start(study, out, "--set", "search.evaluations=500")
    wait_for_evaluations(out / "small" / "ort-cpu", 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"resume: hwsearch search {study} --out {out} --set search.evaluations=500" in err
    kept = Run.open(out / "small" / "ort-cpu").trials
    assert len(kept) >= 3
    assert main(["search", str(study), "--out", str(out), "--set", f"search.evaluations={len(kept)}", "--quiet"]) == 0
    assert Run.open(out / "small" / "ort-cpu").trials == kept


@pytest.mark.slow
def test_kill_loses_no_finished_evaluation_and_repeats_none(tmp_path):
    study, out = make(tmp_path), tmp_path / "runs"
    process = start(study, out, "--set", "search.evaluations=500")
    wait_for_evaluations(out / "small" / "ort-cpu", 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = Run.open(out / "small" / "ort-cpu").trials
    wanted = len(kept) + 1
    assert main(["search", str(study), "--out", str(out), "--set", f"search.evaluations={wanted}", "--quiet"]) == 0
    trials = Run.open(out / "small" / "ort-cpu").trials
    assert trials[: len(kept)] == kept
    assert len({trial.candidate.key for trial in trials}) == len(trials) == wanted
