import dataclasses

import numpy as np
import pytest
from synthetic_run import make_run, only_failures

from hwsearch.report import frames, layer_frames
from hwsearch.report.layer_frames import UNATTRIBUTED
from hwsearch.report.view import units
from hwsearch.search.guided.predictions import Predictions, write_predictions
from hwsearch.types import Failure, LayerTime, Success


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def layers(run):
    return layer_frames.layers(run)


def successes(run):
    return [t for t in run.trials if isinstance(t.outcome, Success)]


def test_every_success_is_one_evaluation_and_every_failure_one_failure(run):
    assert frames.evaluations(run)["key"].tolist() == [t.candidate.key for t in successes(run)]
    failed = frames.failures(run)
    assert len(failed) + len(successes(run)) == len(run.trials)
    assert set(failed["kind"]) == {"timeout", "crash", "Fail"}
    assert failed["hint"].isna().sum() == 1
    assert not any(failed["hint"].isna() & failed["hint"].astype(bool))


def test_finalists_stand_with_their_last_numbers_and_the_others_with_the_search_s(run):
    table = frames.evaluations(run).set_index("number")
    points = {p.trial: p for p in run.front.points}
    for trial in successes(run):
        row, point = table.loc[trial.number], points.get(trial.number)
        source = point or trial.outcome
        assert row["accuracy"] == source.accuracy.value
        assert row["latency_ms"] == source.latency.best_ms
        assert row["split"] == ("report" if point else "search")
        assert row["final"] == (point is not None)
        assert row["search_latency_ms"] == trial.outcome.latency.best_ms
    assert set(table["status"]) == {"front", "finalist", "searched", "infeasible"}


def test_before_finalists_are_measured_nothing_is_final():
    table = frames.evaluations(make_run(final=False))
    assert not table["final"].any()
    assert table["on_front"].any()
    assert set(table["split"]) == {"search"}
    assert "finalist" not in set(table["status"])


def test_a_missing_baseline_is_false(run):
    assert [name for name in frames.evaluations(run)["baseline"] if name] == ["fp32", "bf16", "int8"]


def test_finalists_are_judged_again_on_their_last_numbers():
    run = make_run(limits={"latency_ms": 0.4, "accuracy_drop_points": 1.0})
    table = frames.evaluations(run)
    fp32 = table.loc[table["baseline"] == "fp32", "accuracy"].item()
    for _, row in table[table["final"]].iterrows():
        broken = set()
        if row["latency_ms"] > 0.4:
            broken.add("latency_ms")
        if 100 * (fp32 - row["accuracy"]) > 1.0:
            broken.add("accuracy_drop_points")
        assert set(row["violations"]) == broken
        assert row["feasible"] == (not broken)


def test_a_metric_that_is_not_a_number_is_never_feasible(run):
    trials = list(run.trials)
    accuracy = dataclasses.replace(trials[4].outcome.accuracy, value=float("nan"))
    trials[4] = dataclasses.replace(trials[4], outcome=dataclasses.replace(trials[4].outcome, accuracy=accuracy))
    table = frames.evaluations(dataclasses.replace(run, trials=tuple(trials), front=None))
    assert table.set_index("number").loc[4, "status"] == "infeasible"


def test_hypervolume_grows_to_that_of_the_front():
    run = make_run(final=False)
    history = frames.hypervolume(run)
    shares = history["hypervolume"].to_numpy()
    assert np.all(np.diff(shares) >= 0)
    assert 0 < shares[-1] <= 1
    assert shares[-1] == pytest.approx(run.front.hypervolume)
    assert history["improved"].tolist() == (np.diff(shares, prepend=0.0) > 0).tolist()


def test_stages_hold_all_time_spent(run):
    seconds = frames.stages(run)["seconds"].sum()
    assert seconds == pytest.approx(sum(s for t in run.trials for s in t.seconds.values()))


@pytest.mark.parametrize("table", [frames.evaluations, frames.hypervolume, layer_frames.layers])
def test_without_successes_the_facts_are_empty(run, table):
    assert table(only_failures(run)).empty


def test_a_lower_is_better_metric_is_shown_as_it_is():
    shown = units(make_run(metric="loss", higher=False))
    assert shown.show(0.12345) == "0.1235"
    assert "lower is better" in shown.axis
    assert units(make_run()).show(0.9123) == "91.23 %"
    assert units(make_run()).show(0.87125) == "87.13 %"  # as JavaScript rounds it


# --------------------------------------------------------------------------- layers


def test_each_evaluation_has_one_row_per_layer_and_one_for_the_rest(run, layers):
    names = [layer.name for layer in run.source.layers]
    for _, rows in layers.groupby("number"):
        assert rows["layer"].tolist() == [*names, UNATTRIBUTED]
        assert rows["share"].sum() == pytest.approx(1.0)


def test_time_of_glue_is_attributed_to_no_layer(run, layers):
    trial = successes(run)[5]
    glue = sum(unit.ms for unit in trial.outcome.layers if not unit.source_layers)
    mine = layers[layers["number"] == trial.number].set_index("layer")
    assert mine.loc[UNATTRIBUTED, "ms"] == pytest.approx(glue)


def test_a_kernel_of_two_layers_is_split_by_their_macs(run):
    trial = run.trials[0]
    first, second = run.source.layers[0], run.source.layers[1]
    unit = LayerTime(
        runtime_layer="fused",
        kind="Fused",
        source_layers=(first.name, second.name),
        requested="fp32",
        executed="fp32",
        ms=1.0,
    )
    found = dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, layers=(unit,)))
    table = layer_frames.layers(dataclasses.replace(run, trials=(found,))).set_index("layer")
    whole = first.macs + second.macs
    assert table.loc[first.name, "ms"] == pytest.approx(first.macs / whole)
    assert table.loc[second.name, "ms"] == pytest.approx(second.macs / whole)
    assert table.loc[run.source.layers[2].name, "executed"] is None


def test_choices_stand_per_layer(run, layers):
    for trial in successes(run):
        mine = layers[layers["number"] == trial.number].set_index("layer")
        for layer in run.source.layers:
            row = mine.loc[layer.name]
            assert row["dropped"] == (layer.name not in trial.candidate.precision)
            if not row["dropped"]:
                assert row["requested"] == trial.candidate.precision[layer.name]
                assert row["kept"] == trial.candidate.keep.get(layer.width_group, row["channels"])


def test_summary_counts_what_did_not_run_as_asked(run, layers):
    found = layer_frames.summary(layers)
    for trial in successes(run):
        units_of = [u for u in trial.outcome.layers if u.source_layers]
        wrong = sum(u.executed is not None and u.executed != u.requested for u in units_of)
        assert found.loc[trial.number, "mismatched"] == wrong
        assert found.loc[trial.number, "unreported"] == sum(u.executed is None for u in units_of)
    assert found["mismatched"].sum() > 0


def test_without_profile_there_is_no_time(run):
    trial = run.trials[0]
    silent = tuple(dataclasses.replace(unit, ms=None) for unit in trial.outcome.layers)
    found = dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, layers=silent))
    table = layer_frames.layers(dataclasses.replace(run, trials=(found,)))
    assert table["ms"].isna().all()
    assert table["share"].isna().all()


def test_failures_have_no_layers(run, layers):
    failed = {t.number for t in run.trials if isinstance(t.outcome, Failure)}
    assert failed
    assert not failed & set(layers["number"])


def test_random_search_covers_what_its_predicted_candidates_do(tmp_path):
    run = dataclasses.replace(make_run(), path=tmp_path)
    assert frames.random_search(run) == []
    fp32 = run.trials[0].outcome
    one = (fp32.accuracy.value, fp32.latency.best_ms / 2)
    write_predictions(tmp_path, Predictions(evaluations=60, models=(), random=(one,) * 5))
    shares = frames.random_search(run)
    assert len(shares) == 1 + 5  # after the baselines, and after every draw
    assert shares[0] < shares[1] == shares[-1] <= 1
