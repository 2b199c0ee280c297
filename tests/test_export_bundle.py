"""What an export writes, refuses, and leaves behind when it cannot finish."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from export_support import CLASSES, SHAPE, TARGETS, examples, failed_key, fp32_key, make_run, mixed_key

from hwsearch.config import load_study
from hwsearch.errors import ConfigError
from hwsearch.export.bundle import export, export_bundle, export_front
from hwsearch.search.api import Chosen
from hwsearch.store import sha256_file

COMMON = {
    "hwsearch.json",
    "study.yaml",
    "infer.py",
    "verify.py",
    "samples.npz",
    "README.md",
    "requirements.txt",
    "layers.csv",
    "report.html",
}
MODEL = {"onnxruntime": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}}
TESTS = Path(__file__).parent


@pytest.fixture(params=TARGETS)
def backend(request):
    return request.param


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def facts_of(bundle: Path) -> dict:
    return json.loads((bundle / "hwsearch.json").read_text())


def python(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A child that finds hwsearch and the support module."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --------------------------------------------------------------------------- what is written


def test_a_bundle_holds_the_model_and_its_proof_and_nothing_else(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "deep" / "out")
    assert bundle == tmp_path / "deep" / "out"
    assert {path.name for path in bundle.iterdir()} == COMMON | MODEL[backend]
    assert [path.name for path in bundle.parent.iterdir()] == ["out"]
    assert {path.stat().st_mode & 0o777 for path in bundle.iterdir()} == {0o666 & ~umask()}
    facts = facts_of(bundle)
    assert facts["schema_version"] == 1
    assert facts["files"] == {p.name: sha256_file(p) for p in bundle.iterdir() if p.name != "hwsearch.json"}
    assert facts["input"] == {"name": "input", "shape": list(SHAPE), "dtype": "float32"}
    assert facts["output"] == {"name": "output", "shape": [CLASSES], "dtype": "float32"}


def test_the_numbers_are_those_of_the_front_with_intervals(tmp_path, run):
    facts = facts_of(export_bundle(run, mixed_key(run), tmp_path / "out"))
    assert facts["figures"]["accuracy"]["split"] == "report"
    assert facts["figures"]["accuracy"]["examples"] == 800
    assert facts["figures"]["latency"]["ci95_ms"] == pytest.approx([0.297, 0.303])
    assert set(facts["baselines"]) == {"fp32", "int8"}
    assert [(layer["requested"], layer["executed"]) for layer in facts["layers"][:2]] == [
        ("int8", "int8"),
        ("fp32", "fp32"),
    ]


def test_a_candidate_off_the_front_keeps_the_numbers_of_its_trial(tmp_path, run):
    object.__setattr__(run, "front", None)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    assert facts_of(bundle)["figures"]["accuracy"]["split"] == "search"
    assert "optimistic" in (bundle / "README.md").read_text()


def test_the_onnx_file_carries_its_key(tmp_path, run):
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    properties = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    assert properties["hwsearch.key"] == mixed_key(run)


def test_samples_are_what_the_shipped_model_answers(tmp_path, run):
    import onnxruntime

    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    samples = np.load(bundle / "samples.npz")
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(samples["inputs"], examples()[:8])
    np.testing.assert_allclose(samples["outputs"], session.run(None, {"input": samples["inputs"]})[0], rtol=1e-5)
    assert len(set(samples["outputs"].argmax(axis=1))) > 1


def test_the_study_loads_and_holds_no_password(tmp_path, run):
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    assert "secret" not in (bundle / "study.yaml").read_text()
    assert load_study(bundle / "study.yaml").name == "tiny"
    assert yaml.safe_load((bundle / "study.yaml").read_text())["search"]["storage"] is None


def test_requirements_are_the_installed_versions(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    expected = [f"{name}=={metadata.version(name)}" for name in ("numpy", backend)]
    assert (bundle / "requirements.txt").read_text().split() == expected


def test_the_card_says_how_good_how_fast_on_what_and_where_it_fell_back(tmp_path, run):
    bundle = export_bundle(run, run.trials[1].candidate.key, tmp_path / "out")
    card = (bundle / "README.md").read_text()
    assert "| accuracy | 87.50 % [82.50 %, 92.50 %] | 90.00 %" in card
    assert "800 examples of the report split" in card
    assert "| latency, ms | 0.4 [0.396, 0.404] | 0.8 [0.792, 0.808] |" in card
    assert "| this model takes |  | 0.500 of its time | 1.000 of its time |" in card
    assert "| int8 | fp32 (not as requested) | 1 |" in card
    assert run.device.chip in card
    assert "hwsearch search study.yaml" in card
    assert "less [0.305, 0.305, 0.305]" in card


def test_layers_table_has_a_row_per_unit(tmp_path, run):
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    rows = (bundle / "layers.csv").read_text().splitlines()
    assert rows[0] == "runtime_layer,kind,source_layers,requested,executed,ms"
    assert rows[1] == "conv_kernel,Conv,conv,int8,int8,0.2"
    assert rows[3] == "reorder,Reorder,,,,"


def test_the_report_is_copied_or_else_written(tmp_path, run):
    bundle = export_bundle(run, mixed_key(run), tmp_path / "copied", write_report=lambda path: path.write_text("new"))
    assert (bundle / "report.html").read_text() == "<html>the run's report</html>"
    (run.path / "report.html").unlink()
    bundle = export_bundle(run, mixed_key(run), tmp_path / "written", write_report=lambda path: path.write_text("new"))
    assert (bundle / "report.html").read_text() == "new"
    bundle = export_bundle(run, mixed_key(run), tmp_path / "none")
    assert not (bundle / "report.html").exists()


def test_a_chosen_point_exports_by_itself(tmp_path, run):
    bundle = export(Chosen(run, run.front.points[0]), tmp_path / "out")
    assert facts_of(bundle)["key"] == mixed_key(run)


def test_front_export_makes_one_named_folder_per_point(tmp_path, run):
    bundles = export_front(run, tmp_path / "front")
    assert [bundle.name for bundle in bundles] == [
        f"0.300ms-0.8800-{mixed_key(run)}",
        f"0.800ms-0.9000-{fp32_key(run)}",
    ]
    assert [facts_of(bundle)["key"] for bundle in bundles] == [mixed_key(run), fp32_key(run)]
    object.__setattr__(run, "front", None)
    with pytest.raises(ConfigError, match="no front"):
        export_front(run, tmp_path / "other")


# --------------------------------------------------------------------------- the programs in it


def test_infer_prints_the_class_of_each_sample(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    classes = np.load(bundle / "samples.npz")["outputs"].argmax(axis=1)
    found = python(bundle / "infer.py", cwd=tmp_path)
    assert found.stdout.splitlines() == [f"{i}: class {c}  as stored" for i, c in enumerate(classes)], found.stderr
    np.save(tmp_path / "mine.npy", examples()[:3])
    found = python(bundle / "infer.py", tmp_path / "mine.npy")
    assert found.stdout.splitlines() == [f"{i}: class {c}" for i, c in enumerate(classes[:3])], found.stderr


def test_infer_says_when_a_sample_differs(tmp_path, run):
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    samples = np.load(bundle / "samples.npz")
    np.savez(bundle / "samples.npz", inputs=samples["inputs"], outputs=-samples["outputs"])
    assert python(bundle / "infer.py").stdout.count("DIFFERS") == 8


def test_infer_is_short(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    assert len((bundle / "infer.py").read_text().splitlines()) <= 40


# --------------------------------------------------------------------------- what is refused


def test_an_unknown_key_names_a_close_one(tmp_path, run):
    wrong = mixed_key(run)[:-1] + ("0" if mixed_key(run)[-1] != "0" else "1")
    with pytest.raises(ConfigError, match=f"no candidate `{wrong}`") as caught:
        export_bundle(run, wrong, tmp_path / "out")
    assert mixed_key(run) in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_failed_candidate_says_why_it_failed(tmp_path, run):
    with pytest.raises(ConfigError, match="failed, so there is no model") as caught:
        export_bundle(run, failed_key(run), tmp_path / "out")
    assert caught.value.where == "build: the worker died"


@pytest.mark.parametrize("gone", ["work/artifacts", "work/search.inputs.npy"])
def test_missing_run_files_are_named(tmp_path, run, gone):
    (run.path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="gone"):
        export_bundle(run, mixed_key(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_kept_unless_forced(tmp_path, run):
    bundle = export_bundle(run, fp32_key(run), tmp_path / "out")
    with pytest.raises(ConfigError, match="exists") as caught:
        export_bundle(run, mixed_key(run), bundle)
    assert "--force" in caught.value.hint
    assert facts_of(bundle)["key"] == fp32_key(run)
    export_bundle(run, mixed_key(run), bundle, force=True)
    assert facts_of(bundle)["key"] == mixed_key(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_force_replaces_nothing_but_bundles(tmp_path, run):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(ConfigError):
            export_bundle(run, mixed_key(run), tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_used(tmp_path, run):
    (tmp_path / "out").mkdir()
    assert (export_bundle(run, mixed_key(run), tmp_path / "out") / "model.onnx").exists()


# --------------------------------------------------------------------------- what cannot finish

EXPORT = """
import resource, sys, time
from pathlib import Path
from export_support import make_run, mixed_key
from hwsearch.errors import ConfigError
from hwsearch.export.bundle import export_bundle
folder, out, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run = make_run(folder, report=False)
def hang(path):
    print("writing", flush=True)
    time.sleep(60)
def no_room(path):
    path.write_bytes(bytes(10_000_000))
if mode == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    export_bundle(run, mixed_key(run), out, write_report=hang if mode == "hang" else no_room)
except ConfigError as error:
    print(error)
"""


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    out = tmp_path / "shelf" / "out"
    found = python("-c", EXPORT, tmp_path / "run", out, "limit")
    assert f"cannot write {out}: File too large" in found.stdout, found.stderr
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 1 MB."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if not hasattr(libc, "mount") or libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    libc.umount(str(disk).encode())


def test_a_full_disk_leaves_nothing_and_keeps_the_old_bundle(tmp_path, small_disk):
    run = make_run(tmp_path / "first")
    export_bundle(run, fp32_key(run), small_disk / "old")
    found = python("-c", EXPORT, tmp_path / "run", small_disk / "out", "full")
    assert "the disk is full" in found.stdout, found.stderr
    assert [path.name for path in small_disk.iterdir()] == ["old"]


def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(tmp_path):
    out = tmp_path / "shelf" / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", EXPORT, tmp_path / "run", out, "hang"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1  # hidden, and known by its dead process
    run = make_run(tmp_path / "again")
    export_bundle(run, mixed_key(run), out)
    assert list(out.parent.iterdir()) == [out]


def test_ctrl_c_leaves_nothing(tmp_path):
    run = make_run(tmp_path / "run", report=False)

    def interrupted(_path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(run, mixed_key(run), tmp_path / "shelf" / "out", write_report=interrupted)
    assert list((tmp_path / "shelf").iterdir()) == []
