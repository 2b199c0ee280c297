"""The search loop on a backend that needs no runtime, so that everything but the device is real."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from tiny_search import DATA, QUICK, TinyNet, write_target

from hwsearch.config import make_study
from hwsearch.errors import ConfigError, SearchFailedError
from hwsearch.model.data import splits_from
from hwsearch.search import storage
from hwsearch.search.api import search
from hwsearch.search.guided.predictions import read_predictions
from hwsearch.search.run import Run, find_run
from hwsearch.search.study import run_study
from hwsearch.types import Failure, Success, from_json


@pytest.fixture
def target(tmp_path):
    return str(write_target(tmp_path))


def run_search(tmp_path, target, **options):
    # The guided sampler would measure sensitivities in each of these tests.
    settings = {"evaluations": 6, "search": {"sampler": "tpe"}, "measure": QUICK} | options
    return search(TinyNet(), data=DATA, target=target, out=tmp_path / "runs", name="tiny", **settings).run


def test_a_search_records_every_evaluation_and_a_front(tmp_path, target):
    run = run_search(tmp_path, target)
    assert len(run.trials) == 6
    assert [trial.baseline for trial in run.trials[:2]] == ["fp32", "int8"]
    assert len({trial.candidate.key for trial in run.trials}) == 6
    assert all(isinstance(trial.outcome, Success) for trial in run.trials)
    assert run.front is not None
    assert run.front.final
    assert {point.accuracy.split for point in run.front.points} == {"report"}
    assert {"fp32", "int8"} <= {point.baseline for point in run.front.points}
    assert [p.latency.best_ms for p in run.front.points] == sorted(p.latency.best_ms for p in run.front.points)
    assert 0 < run.front.hypervolume <= 1
    assert len(run.to_frame()) == 6


def test_resuming_repeats_and_loses_nothing(tmp_path, target):
    first = run_search(tmp_path, target, evaluations=4)
    again = run_search(tmp_path, target, evaluations=7)
    assert again.trials[:4] == first.trials
    assert len({trial.candidate.key for trial in again.trials}) == 7
    unchanged = run_search(tmp_path, target, evaluations=7)
    assert unchanged.trials == again.trials
    assert unchanged.front == again.front


def test_another_model_in_the_same_folder_is_refused(tmp_path, target):
    run_search(tmp_path, target, evaluations=2)
    other = TinyNet()
    other.head.bias.data += 1
    with pytest.raises(ConfigError, match="another model"):
        search(other, data=DATA, target=target, out=tmp_path / "runs", name="tiny", evaluations=2)


@pytest.mark.parametrize("sampler", ["gp", "nsga2", "random"])
def test_every_sampler_proposes_candidates(tmp_path, target, sampler):
    run = run_search(tmp_path, target, evaluations=5, search={"sampler": sampler})
    assert len(run.trials) == 5


def test_size_as_third_objective(tmp_path, target):
    run = run_search(tmp_path, target, evaluations=4, objectives=["accuracy", "latency", "size"])
    study = optuna.load_study(study_name="tiny/fake", storage=f"sqlite:///{run.path / 'study.db'}")
    assert [len(trial.values) for trial in study.trials] == [3] * len(study.trials)


def test_limits_make_candidates_infeasible_in_their_own_units(tmp_path, target):
    run = run_search(tmp_path, target, limits={"size_mb": 1e-6, "accuracy_drop_points": 50})
    assert not any(trial.feasible for trial in run.trials)
    for trial in run.trials:
        assert trial.constraints["size_mb"] == pytest.approx(trial.outcome.artifact.size_bytes / 1e6 - 1e-6)
    assert all(point.baseline for point in run.front.points)


def test_a_stop_request_keeps_what_is_finished(tmp_path, target):
    stop = threading.Event()

    def watch(moment):
        if moment.stage == "search" and moment.done >= 3:
            stop.set()

    config = make_study(
        {
            "name": "tiny",
            "model": "tests:TinyNet",
            "data": {"source": "python"},
            "target": target,
            "measure": QUICK,
        }
    )
    splits = splits_from(DATA, config.data)
    run = run_study(config, out=tmp_path / "out", module=TinyNet(), splits=splits, progress=watch, stop=stop)[0]
    assert 3 <= len(run.trials) <= 4
    assert run.front is not None
    assert not run.front.final


def test_a_candidate_that_fails_is_recorded_and_the_search_goes_on(tmp_path):
    target = str(write_target(tmp_path, "CrashingBackend"))
    run = run_search(tmp_path, target, evaluations=6)
    failures = [trial for trial in run.trials if isinstance(trial.outcome, Failure)]
    assert failures
    assert len(failures) < len(run.trials)
    assert failures[0].outcome.error == "crash"
    assert failures[0].outcome.stage == "build"


def test_a_search_in_which_everything_fails_says_so(tmp_path):
    target = str(write_target(tmp_path, "FailingBackend"))
    with pytest.raises(SearchFailedError, match="all 3 evaluations failed"):
        run_search(tmp_path, target, evaluations=3)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study import run_search
run_search(Path({out!r}), {target!r}, evaluations=14)
"""


@pytest.mark.slow
def test_kill_at_any_moment_loses_no_finished_evaluation_and_repeats_none(tmp_path, target):
    script = KILLED.format(tests=Path(__file__).parent.as_posix(), out=str(tmp_path), target=target)
    run_search(tmp_path, target, evaluations=2)
    folder = tmp_path / "runs" / "tiny" / "fake"
    finished = Run.open(folder).trials
    for delay in (2.5, 3.1, 3.7):
        process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        survived = Run.open(folder).trials
        assert survived[: len(finished)] == finished
        finished = survived
    run = run_search(tmp_path, target, evaluations=14)
    assert run.trials[: len(finished)] == finished
    assert len(run.trials) == 14
    assert len({trial.candidate.key for trial in run.trials}) == 14


def test_a_kill_between_record_and_tell_is_mended(tmp_path, target):
    run = run_search(tmp_path, target, evaluations=3)
    url = f"sqlite:///{run.path / 'study.db'}"
    study = optuna.load_study(study_name="tiny/fake", storage=url)
    owner = json.loads((run.path / "run.json").read_text())["owner"]
    recorded, empty = study.ask(), study.ask()
    for trial in (recorded, empty):
        trial.set_user_attr(storage.OWNER, owner)
    copy = json.loads(study.trials[1].user_attrs[storage.RECORD])
    copy["number"] = recorded.number
    copy["candidate"]["recipe"] = {"made": "up"}
    recorded.set_user_attr(storage.RECORD, json.dumps(copy))
    storage.reclaim(study, owner)
    states = [trial.state.name for trial in study.trials]
    assert states[recorded.number] == "COMPLETE"
    assert states[empty.number] == "FAIL"
    assert from_json(storage.Trial, copy) in Run.open(run.path).trials


def mean_confidence(outputs, targets):
    return float(outputs[np.arange(len(targets)), targets].mean())


def test_any_function_can_be_the_metric(tmp_path, target):
    study = search(
        TinyNet(), data=DATA, metric=mean_confidence, target=target, out=tmp_path, name="tiny", evaluations=3
    )
    accuracy = study.trials[0].outcome.accuracy
    assert accuracy.metric == "mean_confidence"
    assert accuracy.ci95 is None
    best = study.front().pick(max_latency_ms=1e6)
    assert best.accuracy == max(chosen.accuracy for chosen in study.front())


def test_a_small_space_is_searched_to_its_end_and_no_further(tmp_path, target):
    run = run_search(tmp_path, target, evaluations=100, space={"prune": False, "drop_branches": False})
    assert len(run.trials) == 2**3


def test_a_database_that_fails_in_the_middle_is_one_clear_error(tmp_path, target):
    run = run_search(tmp_path, target, evaluations=2)
    finished = run.trials

    def break_database(moment):
        if moment.stage == "search":
            (run.path / "study.db").chmod(0o600)
            connection = sqlite3.connect(run.path / "study.db")
            connection.execute("ALTER TABLE trials RENAME TO lost")
            connection.commit()
            connection.close()

    with pytest.raises(ConfigError, match="the study storage failed"):
        run_search(tmp_path, target, evaluations=4, progress=break_database)
    connection = sqlite3.connect(run.path / "study.db")
    connection.execute("ALTER TABLE lost RENAME TO trials")
    connection.commit()
    connection.close()
    assert Run.open(run.path).trials[:2] == finished


def test_one_command_searches_every_target(tmp_path, target):
    other = tmp_path / "other.yaml"
    other.write_text(Path(target).read_text().replace("granularity: 4", "granularity: 2"))
    settings = {
        "name": "tiny",
        "model": "tests:TinyNet",
        "data": "python",
        "targets": [target, str(other)],
        "search": {"evaluations": 3},
        "measure": {"rounds": 4, "seconds": 0.05},
    }
    config = make_study(settings)
    runs = run_study(config, out=tmp_path / "out", module=TinyNet(), splits=splits_from(DATA, config.data))
    assert [run.path.name for run in runs] == ["fake", "other"]
    assert [len(run.trials) for run in runs] == [3, 3]
    with pytest.raises(ConfigError, match="several targets"):
        find_run(tmp_path / "out")
    assert find_run(tmp_path / "out", "other").target.name == "other"


def test_a_guided_search_measures_sensitivities_once_and_tells_what_it_expects(tmp_path, target):
    options = {"search": {"sampler": "guided"}, "sensitivity": {"images": 16}}
    run = run_search(tmp_path, target, evaluations=8, **options)
    assert len({trial.candidate.key for trial in run.trials}) == 8
    known = (run.path / "work" / "sensitivity.jsonl").read_text()
    again = run_search(tmp_path, target, evaluations=10, **options)
    assert again.trials[:8] == run.trials
    assert (run.path / "work" / "sensitivity.jsonl").read_text() == known
    expected = read_predictions(run.path)
    latencies = [model.latency_ms for model in expected.models]
    assert latencies == sorted(latencies)
    assert expected.evaluations == 10
    assert len(expected.random) > 100


def test_a_guided_search_keeps_to_the_limits_of_the_study(tmp_path, target):
    options = {"search": {"sampler": "guided"}, "sensitivity": {"images": 16}}
    whole = run_search(tmp_path / "whole", target, evaluations=2, **options).trials
    smallest = min(trial.outcome.artifact.size_bytes for trial in whole)
    limit = 0.98 * smallest / 1e6  # most of so small a file is not weights
    run = run_search(tmp_path / "limited", target, evaluations=6, limits={"size_mb": limit}, **options)
    searched = [trial for trial in run.trials if trial.baseline is None]
    assert searched
    assert all(trial.outcome.artifact.size_bytes <= 1e6 * limit for trial in searched)
