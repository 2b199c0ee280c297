"""One folder in place of another: nothing in between, and the old one kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwsearch.errors import BundleError
from hwsearch.export.folder import exchange
from hwsearch.export.versions import KEPT, next_version, roll_back, versions

ROOT = Path(__file__).parents[1]


def bundle_of(folder, text):
    folder.mkdir(parents=True)
    (folder / "hwsearch.json").write_text(text)
    (folder / "model.onnx").write_text(text)
    return folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_new_version_serves_and_the_old_is_kept(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "one")
    with next_version(bundle, 1) as part:
        (part / "hwsearch.json").write_text("two")
        assert content(bundle)["hwsearch.json"] == "one"
    assert content(bundle) == {"hwsearch.json": "two"}
    assert versions(bundle) == [1]
    assert content(tmp_path / "bundle.versions" / "1") == {"hwsearch.json": "one", "model.onnx": "one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.versions"]


def test_a_failed_update_changes_nothing(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "one")
    with pytest.raises(ZeroDivisionError), next_version(bundle, 1) as part:
        (part / "hwsearch.json").write_text(str(1 // 0))
    assert content(bundle)["hwsearch.json"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_only_the_last_versions_are_kept_and_rolling_back_takes_the_newest(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "0")
    for number in range(1, KEPT + 3):
        with next_version(bundle, number) as part:
            (part / "hwsearch.json").write_text(str(number))
    assert versions(bundle) == list(range(3, KEPT + 3))
    assert roll_back(bundle) == KEPT + 2
    assert content(bundle)["hwsearch.json"] == str(KEPT + 1)
    assert versions(bundle) == list(range(3, KEPT + 2))


def test_without_an_earlier_version_there_is_no_way_back(tmp_path):
    with pytest.raises(BundleError, match="no earlier version"):
        roll_back(bundle_of(tmp_path / "bundle", "one"))


def test_rolling_back_the_only_update_leaves_no_trace(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "one")
    with next_version(bundle, 1) as part:
        (part / "hwsearch.json").write_text("two")
    roll_back(bundle)
    assert content(bundle)["model.onnx"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_names_are_swapped_where_the_kernel_cannot_do_it_at_once(tmp_path, monkeypatch):
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    one, other = bundle_of(tmp_path / "one", "1"), bundle_of(tmp_path / "other", "2")
    exchange(one, other)
    assert (content(one)["model.onnx"], content(other)["model.onnx"]) == ("2", "1")


LOOP = """
import sys
from pathlib import Path
from hwsearch.export.versions import next_version
bundle, number = Path(sys.argv[1]), 1
print("ready", flush=True)
while True:
    with next_version(bundle, number, keep=2) as part:
        for name in ("hwsearch.json", "model.onnx"):
            (part / name).write_text(str(number))
    number += 1
"""


def test_whenever_an_update_is_killed_a_whole_version_serves(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "0")
    for attempt in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(bundle)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout.readline()
        time.sleep(0.02 + 0.017 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = content(bundle)
        assert found.keys() == {"hwsearch.json", "model.onnx"}
        assert len(set(found.values())) == 1
