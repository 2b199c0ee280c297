"""Files of latency tables: which are refused, and when a table may be used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hwsearch.errors import ConfigError
from hwsearch.latency.build import target_device
from hwsearch.latency.files import ENTRIES, MANIFEST, TableCheck
from hwsearch.latency.table import LatencyTable, gate, import_table, table_folder
from hwsearch.space.target import load_target

EXAMPLE = Path(__file__).parents[1] / "latency_tables" / "example-edge-asic"


@pytest.fixture
def copy(tmp_path):
    for name in (ENTRIES, MANIFEST):
        (tmp_path / name).write_bytes((EXAMPLE / name).read_bytes())
    return tmp_path


def rewrite(folder, old, new):
    """Change the entries and make the manifest agree, as somebody who edits a table by hand would."""
    text = (folder / ENTRIES).read_text()
    assert old in text
    (folder / "edited.csv").write_text(text.replace(old, new, 1))
    return folder / "edited.csv"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latency_us", "latency", "lacks the column `latency_us`"),
        ("Add,mixed,16x16,fp32,8,8,", "Add,mixed,16x16,fp32,8,8,-", "wrong value"),
        ("Add,mixed,16x16,fp32,8,8,", "Add,mixed,16x16,fp32,8,8,nan", "wrong value"),
        ("Add,mixed,16x16,fp32,8,8,", "Add,mixed,16x16,fp32,half,8,", "wrong value"),
        ("Add,mixed,16x16,fp32,8,8,", "Add,mixed,16x16,fp32,8,8,1,", "stray comma"),
        ("Add,mixed,16x16,fp32,16,16", "Add,mixed,16x16,fp32,8,8", "same unit twice"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(copy, old, new, message):
    path = rewrite(copy, old, new)
    with pytest.raises(ConfigError, match=message):
        import_table(path, copy / "out", LatencyTable.load(copy).manifest.device, batch=1, source="modelled", origin="")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MANIFEST, b"{", "not a JSON file"),
        (MANIFEST, b"[]", "not the manifest"),
        (MANIFEST, b'{"format": 1, "batch": 1}', "manifest .* is damaged"),
        (ENTRIES, b"unit,window\nconv", "is damaged"),
        (ENTRIES, b"", "is damaged"),
        (ENTRIES, None, "has no entries.csv"),
        (MANIFEST, None, "no latency table"),
    ],
)
def test_a_damaged_table_is_refused(copy, name, content, message):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        LatencyTable.load(copy)


def test_a_truncated_table_is_refused(copy):
    data = (copy / ENTRIES).read_bytes()
    (copy / ENTRIES).write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        LatencyTable.load(copy)


def test_a_table_of_another_device_or_version_is_refused(copy):
    device = LatencyTable.load(copy).manifest.device
    for change in ({"chip": "another"}, {"backend_version": "2"}, {"threads": 4}):
        with pytest.raises(ConfigError, match="does not hold here"):
            LatencyTable.open(copy, dataclasses.replace(device, **change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"within_10_pct": 90.0}, "within 10 %"),
        ({"spearman": 0.9}, "Spearman"),
        ({"models": 5}, "not checked"),
    ],
)
def test_the_gate(copy, change, reason):
    check = TableCheck(models=40, mape_pct=2, bias_pct=0, max_pct=8, within_5_pct=95, within_10_pct=100, spearman=0.99)
    manifest = LatencyTable.load(copy).manifest
    measured = dataclasses.replace(manifest, source="measured", check=dataclasses.replace(check, **change))
    problem = gate(measured)
    assert problem is None if reason is None else reason in problem
    assert "not checked" in gate(dataclasses.replace(measured, check=None))
    misled = dataclasses.replace(measured, check=check, tempting=dataclasses.replace(check, within_10_pct=80.0))
    assert "look best" in gate(misled)


def test_a_checked_table_keeps_its_figures(copy):
    check = TableCheck(
        models=40, mape_pct=2, bias_pct=0, max_pct=8, within_5_pct=95, within_10_pct=100, spearman=0.99, drift_pct=1
    )
    before = LatencyTable.load(copy)
    before.checked(check)
    after = LatencyTable.load(copy)
    assert after.manifest.check == check
    assert after.entries == before.entries
    assert json.loads((copy / MANIFEST).read_text())["model_error"] == pytest.approx(0.025)


def test_folders_are_apart_for_devices_and_studies():
    device = target_device(load_target(str(EXAMPLE / "edge-asic-4bit.yaml")))
    folder = table_folder(device, "digits")
    assert folder.parts[:2] == ("latency_tables", "table")
    assert folder != table_folder(dataclasses.replace(device, threads=2), "digits") != table_folder(device, "other")
