"""``hwsearch table`` on files: import, show, and the figure of a check. Nothing is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hwsearch.latency.files import ENTRIES
from hwsearch.latency.validate import Point
from hwsearch.report.latency_figures import scatter, write_scatter
from hwsearch.types import Candidate

EXAMPLE = Path(__file__).parents[1] / "latency_tables" / "example-edge-asic"
TARGET = EXAMPLE / "edge-asic-4bit.yaml"


def test_an_imported_table_shows_what_it_is_of_and_what_units_cost(run, tmp_path):
    code, out, _ = run(
        "table", "import", EXAMPLE / ENTRIES, tmp_path / "mine", "--target", TARGET, "--origin", "a data sheet"
    )
    assert code == 0
    rows = (EXAMPLE / ENTRIES).read_text().count("\n") - 1
    assert str(rows) in out
    code, out, _ = run("table", "show", tmp_path / "mine")
    assert code == 0
    assert "modelled: a data sheet" in out
    assert "edge-asic-4bit" in out
    assert "conv 3x3 on 32x32 int4" in out


def test_a_measured_table_that_nobody_checked_is_imported_and_refused_for_a_search(run, tmp_path):
    options = ("--target", TARGET, "--origin", "measured on a board", "--measured")
    assert run("table", "import", EXAMPLE / ENTRIES, tmp_path / "mine", *options)[0] == 0
    code, out, _ = run("table", "show", tmp_path / "mine", "--json")
    assert code == 0
    shown = json.loads(out)
    assert "not checked" in shown["refused"]
    assert shown["manifest"]["source"] == "measured"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [("latency_us", "latency_ms", "lacks the column `latency_us`"), (",32x32,", ",32x32", "cut off or has a stray")],
)
def test_a_file_that_is_no_table_is_refused_and_leaves_nothing(run, tmp_path, old, new, problem):
    path = tmp_path / "wrong.csv"
    path.write_text((EXAMPLE / ENTRIES).read_text().replace(old, new, 1))
    code, _, err = run("table", "import", path, tmp_path / "mine", "--target", TARGET, "--origin", "x")
    assert code != 0
    assert problem in err
    assert not (tmp_path / "mine").exists()


def test_a_damaged_table_is_not_shown(run, tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "mine")
    (tmp_path / "mine" / ENTRIES).write_text("unit,window\nconv")
    code, out, err = run("table", "show", tmp_path / "mine")
    assert code != 0
    assert not out
    assert "is damaged" in err


def test_the_figure_of_a_check_has_every_model_and_ten_percent_around_the_diagonal(tmp_path):
    models = [Candidate(keep={}, dropped=(), precision={str(i): "int8"}) for i in range(3)]
    points = [
        Point(model, predicted, 0.05, measured)
        for model, predicted, measured in zip(models, (1.0, 2.1, 2.9), (1.0, 2.0, 3.0), strict=True)
    ]
    *lines, dots = scatter(points).data
    assert list(dots.x) == [1.0, 2.0, 3.0]
    assert list(dots.y) == [1.0, 2.1, 2.9]
    assert list(dots.error_y.array) == [0.05] * 3
    assert list(dots.text) == [model.key for model in models]
    assert sorted(round(line.y[1] / line.x[1], 6) for line in lines) == [0.9, 1.0, 1.1]
    write_scatter(points, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    assert models[0].key in page
    assert "Plotly.newPlot" in page
