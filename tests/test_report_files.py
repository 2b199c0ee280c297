"""What a report leaves beside the page: tables as CSV and Parquet, figures as images."""

import dataclasses
import json
import shutil
from importlib.util import find_spec

import pandas as pd
import pytest
from synthetic_run import make_run, make_sensitivity

from hwsearch.errors import BackendUnavailableError, ConfigError
from hwsearch.report import images, tables
from hwsearch.report.images import figure, write_images
from hwsearch.report.tables import to_frames, write_tables

RUN = make_run()


def test_frames_are_joined_by_number():
    found = to_frames(dataclasses.replace(RUN, sensitivity=make_sensitivity(RUN.source)))
    assert list(found) == ["evaluations", "layers", "measurements", "stages", "failures", "sensitivity"]
    numbers = set(found["evaluations"]["number"])
    assert set(found["layers"]["number"]) == numbers
    assert set(found["failures"]["number"]).isdisjoint(numbers)
    assert len(found["sensitivity"])


def test_measurements_hold_both_what_the_search_saw_and_the_final_ones():
    found = to_frames(RUN)["measurements"].set_index(["phase", "number"])
    for point in RUN.front.points:
        assert found.loc[("final", point.trial), "best_ms"] == point.latency.best_ms
        assert found.loc[("search", point.trial), "best_ms"] == RUN.trials[point.trial].outcome.latency.best_ms
    assert set(to_frames(make_run(final=False))["measurements"]["phase"]) == {"search"}


@pytest.mark.parametrize(("kind", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_tables_are_read_back(tmp_path, kind, read):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    paths = write_tables(RUN, tmp_path / "tables", kind)
    for path, (name, frame) in zip(paths, to_frames(RUN).items(), strict=True):
        assert path.name == f"{name}.{kind}"
        again = read(path)
        assert again.columns.tolist() == frame.columns.tolist()
        assert len(again) == len(frame)
    evaluations = read(paths[0])
    assert evaluations["latency_ms"].tolist() == pytest.approx(to_frames(RUN)["evaluations"]["latency_ms"].tolist())
    assert [json.loads(text) for text in evaluations["violations"]] == to_frames(RUN)["evaluations"][
        "violations"
    ].tolist()


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r"hwsearch\[parquet\]"):
        write_tables(RUN, tmp_path, "parquet")


def test_a_taken_name_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_tables(RUN, tmp_path / "file")


def test_a_figure_on_paper_has_its_title_and_the_colours_of_a_theme():
    light, dark = figure(RUN, "hypervolume"), figure(RUN, "hypervolume", dark=True)
    assert light.layout.title.text == "Progress of the search"
    assert light.layout.paper_bgcolor == "#ffffff"
    assert dark.layout.paper_bgcolor == "#1a2027"


@pytest.mark.parametrize(("name", "message"), [("parteo", "did you mean `pareto`"), ("sensitivity", "nothing to draw")])
def test_a_view_that_cannot_be_drawn_is_an_error(name, message):
    with pytest.raises(ConfigError, match=message):
        figure(RUN, name)


def test_images_without_kaleido_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r"hwsearch\[figures\]"):
        write_images(RUN, tmp_path)


@pytest.mark.browser
@pytest.mark.skipif(not (find_spec("kaleido") and shutil.which("chromium")), reason="kaleido or chromium is missing")
@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_images_are_drawn(tmp_path, kind, start):
    (path,) = write_images(RUN, tmp_path / "images", ["hypervolume"], kind=kind)
    assert path.name == f"hypervolume.{kind}"
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 5000
