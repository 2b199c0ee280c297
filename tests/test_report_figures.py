import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from synthetic_run import make_run, make_sensitivity, only_failures

from hwsearch.report import figures, frames, layer_frames, style
from hwsearch.report.html import asset
from hwsearch.report.importance import block_importance, block_work, blocks_of
from hwsearch.report.layer_frames import UNATTRIBUTED
from hwsearch.report.links import filtered, linked, plain
from hwsearch.report.view import units
from hwsearch.report.views import VIEWS, Facts
from hwsearch.types import PRECISIONS


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def evaluations(run):
    return frames.evaluations(run)


@pytest.fixture(scope="module")
def layers(run):
    return layer_frames.layers(run)


def named(figure, start):
    return next(trace for trace in figure.data if (trace.name or "").startswith(start))


def test_pareto_draws_every_evaluation_once(run, evaluations):
    figure = figures.pareto(evaluations, units(run))
    points = [
        (n, x, y) for t in figure.data if "markers" in t.mode for n, x, y in zip(t.meta["rows"], t.x, t.y, strict=True)
    ]
    assert sorted(n for n, _, _ in points) == evaluations["number"].tolist()
    table = evaluations.set_index("number")
    for number, x, y in points:
        assert x == table.loc[number, "latency_ms"]
        assert y == pytest.approx(100 * table.loc[number, "accuracy"])


def test_pareto_separates_what_was_measured_again_from_what_the_search_saw(run, evaluations):
    figure = figures.pareto(evaluations, units(run))
    final = set(evaluations.loc[evaluations["final"], "number"])
    for start in ("front (measured again", "finalist", "uniform baseline"):
        assert set(named(figure, start).meta["rows"]) <= final
    assert not set(named(figure, "searched").meta["rows"]) & final
    so_far = figures.pareto(frames.evaluations(make_run(final=False)), units(run))
    assert named(so_far, "front so far (search split)").marker.symbol == "circle-open"


def test_pareto_bars_are_the_intervals(run, evaluations):
    trace = named(figures.pareto(evaluations, units(run)), "front")
    table = evaluations.set_index("number")
    for i, number in enumerate(trace.meta["rows"]):
        row = table.loc[number]
        assert trace.x[i] + trace.error_x.array[i] == pytest.approx(row["latency_high"])
        assert trace.x[i] - trace.error_x.arrayminus[i] == pytest.approx(row["latency_low"])
        assert trace.y[i] + trace.error_y.array[i] == pytest.approx(100 * row["accuracy_high"])
        assert trace.y[i] - trace.error_y.arrayminus[i] == pytest.approx(100 * row["accuracy_low"])


def test_pareto_area_is_size_and_baselines_are_labelled(run, evaluations):
    trace = named(figures.pareto(evaluations, units(run)), "uniform baseline")
    assert list(trace.text) == ["<b>fp32</b>", "<b>bf16</b>", "<b>int8</b>"]
    sizes = evaluations.set_index("number").loc[list(trace.meta["rows"]), "size_bytes"].to_numpy()
    areas = np.array(trace.marker.size) ** 2
    assert areas / areas[0] == pytest.approx(sizes / sizes[0], rel=1e-6)


def test_pareto_joins_each_tied_pair_once(run, evaluations):
    keys = evaluations["key"].tolist()
    tied = evaluations.assign(tied_with=[(keys[1],), (keys[0],), *[()] * (len(keys) - 2)])
    trace = named(figures.pareto(tied, units(run)), "tied")
    assert sorted(trace.meta["rows"][:2]) == [0, 1]
    assert trace.meta["rows"][2] is None
    assert len(trace.x) == 3


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_line_only_improves(higher):
    run = make_run(metric="loss", higher=higher)
    figure = figures.pareto(frames.evaluations(run), units(run))
    line = next(trace for trace in figure.data if trace.line.shape == "hv")
    assert list(line.x) == sorted(line.x)
    assert list(line.y) == sorted(line.y, reverse=not higher)
    assert len(line.x) > 2


def test_hover_names_formats_size_tail_and_key(run, evaluations):
    figure = figures.pareto(evaluations, units(run))
    text = named(figure, "front").hovertext[0]
    row = evaluations.set_index("number").loc[named(figure, "front").meta["rows"][0]]
    for part in (row["key"], row["precisions"], "p99", "MB", "report split", "the search saw"):
        assert part in text


def test_heat_map_cells_are_the_requested_formats(run, evaluations, layers):
    figure = figures.layer_formats(layers, evaluations, run.source, units(run))
    cells = next(t for t in figure.data if t.type == "heatmap" and t.customdata is not None)
    trials = {t.number: t for t in run.trials}
    assert list(cells.x) == [layer.name for layer in run.source.layers]
    for line, number in zip(cells.customdata, cells.meta["rows"], strict=True):
        for name, cell in zip(cells.x, line, strict=True):
            assert cell == trials[number].candidate.precision.get(name, "dropped")
    latencies = evaluations.set_index("number").loc[list(cells.meta["rows"]), "latency_ms"].tolist()
    assert latencies == sorted(latencies)


def test_heat_map_crosses_out_dropped_branches_and_shows_macs(run, evaluations, layers):
    figure = figures.layer_channels(layers, evaluations, run.source, units(run))
    bars = next(t for t in figure.data if t.type == "bar")
    assert sum(bars.y) == pytest.approx(1.0)
    gone = next(t for t in figure.data if t.type == "heatmap" and "dropped" in t.hovertemplate)
    trials = {t.number: t for t in run.trials}
    for line, number in zip(gone.text, gone.meta["rows"], strict=True):
        crossed = {name for name, cell in zip(gone.x, line, strict=True) if cell}
        inside = {n for b in run.source.branches if b.name in trials[number].candidate.dropped for n in b.layers}
        assert crossed == inside
    kept = next(t for t in figure.data if t.type == "heatmap" and "channels" in t.hovertemplate)
    first = trials[kept.meta["rows"][0]].candidate
    widths = {g.name: g.channels for g in run.source.groups}
    for layer, share in zip(run.source.layers, kept.z[0], strict=True):
        if layer.name in first.precision and layer.width_group:
            full = widths[layer.width_group]
            assert share == first.keep.get(layer.width_group, full) / full


def test_layer_time_of_one_model_adds_up_and_marks_mismatches(run, layers):
    figure = figures.layer_latency(layers)
    bars = [t for t in figure.data if t.type == "bar"]
    total = sum(y for t in bars for y, n in zip(t.y, t.meta["rows"], strict=True) if n == 5)
    assert total == pytest.approx(1.0)
    wrong = [t for t in bars if t.marker.line.color == style.ALERT and t.marker.line.width]
    drawn = sorted((n, x) for t in wrong for n, x in zip(t.meta["rows"], t.x, strict=True))
    position = {name: i for i, name in enumerate(layers["layer"].unique())}
    expected = layers[layers["matched"].isin([False])]
    assert drawn == sorted(zip(expected["number"], expected["layer"].map(position), strict=True))
    assert figure.layout.xaxis.ticktext[-1] == UNATTRIBUTED


def test_stage_time_names_shares_and_cuts_what_dwarfs_the_rest(run):
    figure = figures.stage_time(frames.stages(run))
    assert sum(int(t.name.split()[-1].rstrip("%")) for t in figure.data) == pytest.approx(100, abs=2)
    assert figure.layout.yaxis.range[1] < 120
    assert "2 took longer" in figure.layout.title.subtitle.text


def test_hypervolume_marks_what_widened_the_front(run):
    history = frames.hypervolume(run)
    figure = figures.hypervolume(history)
    marked = [x for t in figure.data if t.mode == "markers" for x in t.x]
    assert sorted(marked) == history.loc[history["improved"], "number"].tolist()


def test_parallel_lines_stay_within_their_axes(run, evaluations):
    figure = figures.parallel(evaluations, units(run))
    values = [y for t in figure.data for y in t.y if y is not None]
    assert min(values) == 0
    assert max(values) == 1
    assert len(figure.layout.xaxis.ticktext) <= 8


def test_every_figure_has_a_title_and_survives_a_run_without_successes(run):
    empty = only_failures(run)
    table, layers = frames.evaluations(empty), layer_frames.layers(empty)
    shown = units(empty)
    drawn = [
        figures.pareto(table, shown),
        figures.layer_formats(layers, table, empty.source, shown),
        figures.layer_channels(layers, table, empty.source, shown),
        figures.layer_latency(layers),
        figures.hypervolume(frames.hypervolume(empty)),
        figures.stage_time(frames.stages(empty)),
        figures.parallel(table, shown),
    ]
    assert all(figure.layout.title.text for figure in drawn)


def test_a_linked_trace_has_one_entry_per_row(run, evaluations):
    trace = named(figures.pareto(evaluations, units(run)), "front")
    with pytest.raises(ValueError, match="entries for"):
        linked(trace, trace.meta["rows"][1:], ["x"])


def test_formats_keep_their_order_in_lightness():
    def lightness(colour):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    order = ["fp32", "fp16", "int8", "int4", "int2"]
    values = [lightness(style.FORMATS[name]) for name in order]
    assert values == sorted(values)
    assert all(b - a > 0.05 for a, b in pairwise(values))
    assert set(style.FORMATS) == set(PRECISIONS)


def test_plain_data_hold_no_numpy_and_no_nan():
    assert plain({"a": [np.float64("nan"), np.int64(3), (1.0, float("inf"))]}) == {"a": [None, 3, [1.0, None]]}


def test_an_unknown_format_is_drawn_as_not_known(run):
    unit = dataclasses.replace(run.trials[0].outcome.layers[0], executed="posit8")
    trial = dataclasses.replace(run.trials[0], outcome=dataclasses.replace(run.trials[0].outcome, layers=(unit,)))
    figure = figures.layer_latency(layer_frames.layers(dataclasses.replace(run, trials=(trial,))))
    assert named(figure, "posit8").marker.color == style.UNREPORTED
    assert {int(n) for t in figure.data if t.meta for n in t.meta["rows"]} == {trial.number}


def test_sensitivity_map_has_every_effect_at_its_layers(run):
    found = make_sensitivity(run.source)
    figure = figures.sensitivity_map(found, run.source)
    cells = next(trace for trace in figure.data if trace.type == "heatmap")
    assert list(cells.x) == [layer.name for layer in run.source.layers]
    assert list(cells.y) == [
        "branch dropped", "25% of the channels", "50% of the channels", "75% of the channels", "int8",
    ]  # fmt: skip
    at = {
        (row, layer): words
        for row, line in zip(cells.y, cells.customdata, strict=True)
        for layer, words in zip(cells.x, line, strict=True)
    }
    for branch in run.source.branches:
        loss, sigma = found.loss("drop", branch.name, 1)
        for layer in branch.layers:
            assert at["branch dropped", layer] == f"branch {branch.name} dropped: {loss:.3g} ± {sigma:.1g}"
    assert at["25% of the channels", "conv1"].startswith("4 of 16 channels of conv1: ")
    assert at["25% of the channels", run.source.layers[-1].name] == ""
    assert at["int8", run.source.layers[-1].name].endswith("failed, build: no kernel")
    assert cells.text[-1][-1] == "×"


def test_sensitivity_map_is_darker_where_more_is_lost(run):
    found = make_sensitivity(run.source)
    cells = figures.sensitivity_map(found, run.source).data[-1]
    row = dict(zip(cells.x, cells.z[list(cells.y).index("50% of the channels")], strict=True))
    halves = {group.name: group.channels // 2 for group in run.source.groups}
    asked = [effect for effect in found.effects if effect.kind == "keep" and halves[effect.name] == effect.value]
    shades = [row[effect.name] for effect in sorted(asked, key=lambda effect: effect.loss)]
    assert len(shades) == len(halves)
    assert shades == sorted(shades)
    assert cells.zmin <= shades[0] < shades[-1] <= cells.zmax


def test_importance_finds_the_block_that_decides(run):
    evaluations, layers = frames.evaluations(run), layer_frames.layers(run)
    work = block_work(layers, run.source)
    share = work.loc[evaluations["number"], "layer2.1"].to_numpy()
    shares = block_importance(
        evaluations.assign(search_latency_ms=1.0 + share, search_accuracy=0.9 - share), layers, run.source
    ).set_index("block")
    assert shares.sum().to_numpy() == pytest.approx([1.0, 1.0])
    assert shares["latency"].idxmax() == "layer2.1"
    assert shares["accuracy"].idxmax() == "layer2.1"
    assert shares.index.tolist() == list(dict.fromkeys(blocks_of(run.source).values()))


def test_importance_needs_models_to_tell_from(run):
    few = make_run(evaluations=12)
    assert block_importance(frames.evaluations(few), layer_frames.layers(few), few.source).empty


def test_a_block_stands_for_bits_and_channels_left(run, layers):
    work = block_work(layers, run.source)
    assert work.loc[0].to_numpy() == pytest.approx(np.ones(work.shape[1]))
    assert work.loc[2].to_numpy() == pytest.approx(np.full(work.shape[1], 8 / 32))
    dropped = next(t for t in run.trials if t.candidate.dropped)
    assert work.loc[dropped.number, dropped.candidate.dropped[0]] == 0.0


def test_importance_bars_are_the_shares(run):
    facts = Facts(run)
    shares = block_importance(facts.evaluations, facts.layers, run.source)
    drawn = {trace.name: list(trace.y) for trace in figures.importance(shares, facts.units).data}
    assert drawn == {"top-1 accuracy": shares["accuracy"].tolist(), "latency": shares["latency"].tolist()}


def test_agreement_sets_every_finalist_against_what_the_search_saw(run, evaluations):
    figure = figures.agreement(evaluations.assign(search_source=["table", *["measured"] * (len(evaluations) - 1)]))
    table = evaluations[evaluations["final"]].set_index("number")
    points = [trace for trace in figure.data if trace.meta]
    assert {trace.name for trace in points} == {"measured in the search", "from the table"}
    assert sorted(n for trace in points for n in trace.meta["rows"]) == sorted(table.index)
    for trace in points:
        rows = table.loc[list(trace.meta["rows"])]
        assert list(trace.x) == rows["latency_ms"].tolist()
        assert list(trace.y) == rows["search_latency_ms"].tolist()
        assert np.add(trace.y, trace.error_y.array) == pytest.approx(rows["search_latency_high"].to_numpy())


def test_every_view_draws_or_has_nothing_to_draw(run):
    facts = Facts(run)
    assert {name for name, view in VIEWS.items() if view.draw(facts) is None} == {"sensitivity"}
    empty = Facts(only_failures(run))
    assert {name for name, view in VIEWS.items() if view.draw(empty) is None} == {
        "agreement",
        "importance",
        "sensitivity",
    }


def test_filtering_keeps_the_rows_of_an_evaluation_along_every_attribute(run, evaluations):
    number = int(evaluations.loc[evaluations["status"] == "front", "number"].iloc[0])
    figure = filtered(figures.pareto(evaluations, units(run)), lambda n: n == number)
    kept = [trace for trace in figure.data if trace.meta and trace.meta["rows"]]
    assert {n for trace in kept for n in trace.meta["rows"]} == {number, None}  # None: the gaps between ties
    for trace in kept:
        assert len(trace.x) == len(trace.y) == len(trace.meta["rows"])
    again = figures.pareto(evaluations, units(run))
    assert filtered(again, lambda _: True).to_plotly_json() == again.to_plotly_json()


def test_the_themes_are_those_of_the_page():
    page = asset("report.css")
    light, dark = page.split('[data-theme="dark"]')
    for text, theme in ((light, "light"), (dark, "dark")):
        for name, colour in style.THEMES[theme].items():
            assert f"--{name}: {colour};" in text.split("}")[0]
