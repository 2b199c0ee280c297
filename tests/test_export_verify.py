"""A bundle is checked here as a stranger would get it: whole, damaged, on another device, with and without hwsearch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from export_support import SHAPE, TARGETS, examples, fp32_key, make_run, mixed_key
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.backends.device import has_bf16
from hwsearch.errors import BackendUnavailableError, BundleError, DataError
from hwsearch.export.bundle import export_bundle
from hwsearch.export.manifest import parse_manifest, read_facts
from hwsearch.export.shipped.verify import digest
from hwsearch.export.verify import verify_bundle
from hwsearch.store import sha256_file

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    run = make_run(folder / "run")
    export_bundle(run, mixed_key(run), folder / "out")
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    """An exported model of both precisions, beside its run."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def checks_of(bundle: Path, **options) -> dict:
    options.setdefault("timing", False)
    return {check.name: check for check in verify_bundle(bundle, **options).checks}


def edit(bundle: Path, change) -> None:
    """Change hwsearch.json and make every digest fit again: an honest bundle that says something else."""
    facts = json.loads((bundle / "hwsearch.json").read_text())
    change(facts)
    facts["files"] = {p.name: sha256_file(p) for p in bundle.iterdir() if p.name != "hwsearch.json"}
    facts["sha256"] = digest(facts)
    (bundle / "hwsearch.json").write_text(json.dumps(facts))


def stand_alone(bundle: Path, *command: object, path: str = "") -> subprocess.CompletedProcess[str]:
    """The bundle's own verify.py, in a child that does not see hwsearch."""
    return subprocess.run(
        [*(map(str, command) or ()), str(bundle / "verify.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


# --------------------------------------------------------------------------- sound bundles


@pytest.mark.parametrize("backend", TARGETS)
@pytest.mark.parametrize("key_of", [fp32_key, mixed_key])
def test_a_fresh_bundle_passes(tmp_path, backend, key_of):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, key_of(run), tmp_path / "out")
    report = verify_bundle(bundle)
    assert report.ok
    assert report.key == key_of(run)
    assert [(check.name, check.ok, check.warning) for check in report.checks] == [
        ("files", True, False),
        ("device", True, False),
        ("runtime", True, False),
        ("samples", True, False),
        ("accuracy", None, False),
        ("latency", True, False),
    ]
    assert stand_alone(bundle, sys.executable).returncode == 0
    assert verify_bundle(bundle, timing=False).ok  # running the programs leaves nothing that counts as damage


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")
def test_a_bf16_model_is_run_in_bf16_everywhere(tmp_path):
    run = make_run(tmp_path / "run", "openvino")
    wide = run.trials[0]
    candidate = dataclasses.replace(wide.candidate, precision={"conv": "bf16", "fc": "bf16"})
    run = dataclasses.replace(run, trials=(dataclasses.replace(wide, candidate=candidate),), front=None)
    bundle = export_bundle(run, candidate.key, tmp_path / "out")
    assert parse_manifest(read_facts(bundle)).float_precision == "bf16"
    assert "outputs differ by 0.0e+00" in checks_of(bundle)["samples"].detail
    assert "outputs differ by 0.0e+00" in stand_alone(bundle, sys.executable).stdout
    (bundle / "infer.py").write_text((bundle / "infer.py").read_text().replace('"bf16": "bf16"', '"bf16": "f32"'))
    edit(bundle, lambda facts: None)
    assert "outputs differ by 0.0e+00" not in stand_alone(bundle, sys.executable).stdout  # the check above can fail


def test_the_manifest_reads_back_as_it_was_written(bundle):
    facts = read_facts(bundle)
    assert facts["sha256"] == digest(facts)
    manifest = parse_manifest(facts)
    assert manifest.input.shape == SHAPE
    assert manifest.figures.ratio_to(manifest.baselines["int8"]) == pytest.approx(0.75)


def test_the_report_as_json(bundle):
    found = verify_bundle(bundle, timing=False).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["schema_version"] == 1
    assert found["ok"] is True
    assert found["checks"][0] == {"name": "files", "ok": True, "detail": "9 files unchanged", "warning": False}


def test_verify_loads_no_heavy_library():
    code = (
        "import sys; from hwsearch.export.verify import verify_bundle; "
        "print(sorted({'torch', 'optuna', 'plotly', 'pandas', 'onnx', 'onnxruntime', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["model.onnx", "samples.npz", "infer.py", "README.md", "study.yaml", "layers.csv"])
def test_a_flipped_byte_fails_and_names_the_file(bundle, name):
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = verify_bundle(bundle, timing=False)
    assert not report.ok
    assert report.checks[0].detail == f"{name}: changed"
    alone = stand_alone(bundle, sys.executable)
    assert (alone.returncode, alone.stdout.strip()) == (1, f"FAILED  {name}: changed")


def test_a_damaged_model_is_not_run(bundle):
    (bundle / "model.onnx").write_bytes(b"\x00" * 100)
    found = checks_of(bundle)
    assert found["samples"].ok is None
    assert set(found) == {"files", "samples"}


def test_a_better_number_in_hwsearch_json_fails(bundle):
    text = (bundle / "hwsearch.json").read_text()
    (bundle / "hwsearch.json").write_text(text.replace('"value": 0.88', '"value": 0.98'))
    assert checks_of(bundle)["files"].detail == "hwsearch.json: changed"


def test_missing_and_foreign_files_are_named(bundle):
    (bundle / "layers.csv").unlink()
    (bundle / "numpy.py").write_text("raise SystemExit")
    found = checks_of(bundle)["files"]
    assert found.ok is False
    assert found.detail == "layers.csv: missing; numpy.py: not part of the bundle"


def test_a_missing_model_is_named(bundle):
    (bundle / "model.onnx").unlink()
    assert checks_of(bundle)["files"].detail == "model.onnx: missing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "a', "is damaged"),
        ("[]", "is not of a form"),
        ('{"schema_version": 99}', "is not of a form"),
        ('{"schema_version": 1}', "is damaged"),
    ],
)
def test_a_broken_hwsearch_json_is_one_clear_error(bundle, content, message):
    (bundle / "hwsearch.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        verify_bundle(bundle)


def test_every_entry_of_hwsearch_json_is_needed(bundle):
    whole = read_facts(bundle)
    for name in whole.keys() - {"sha256", "schema_version", "updates"}:  # a bundle without updates may leave them out
        with pytest.raises(BundleError, match="damaged"):
            parse_manifest({key: value for key, value in whole.items() if key != name})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def victim(exported, tmp_path_factory):
    return shutil.copytree(exported / "out", tmp_path_factory.mktemp("victim") / "out")


@given(data=st.data(), value=ANYTHING)
@settings(max_examples=150, deadline=None)
def test_whatever_hwsearch_json_holds_is_an_error_or_a_failed_check(exported, victim, data, value):
    facts = read_facts(exported / "out")
    entry = facts
    while isinstance(entry, dict) and entry:
        parent, name = entry, data.draw(st.sampled_from(sorted(entry)))
        entry = entry[name] if data.draw(st.booleans()) else None
    assume(parent[name] != value)
    parent[name] = value
    (victim / "hwsearch.json").write_text(json.dumps(facts))
    with contextlib.suppress(BundleError):
        assert not verify_bundle(victim).ok


@pytest.mark.parametrize("name", [".", "nowhere", "run", "out/README.md"])
def test_what_is_no_bundle_is_refused(tmp_path, bundle, name):
    with pytest.raises(BundleError, match="is not a bundle"):
        verify_bundle(tmp_path / name)


def test_a_model_outside_the_bundle_is_refused(bundle):
    edit(bundle, lambda facts: facts["artifact"].update(path="../run/work/artifacts/x/model.onnx"))
    with pytest.raises(BundleError, match="not in the bundle"):
        verify_bundle(bundle)


# --------------------------------------------------------------------------- other behaviour, other devices


def nudge_samples(bundle: Path, by: float) -> None:
    """Stored outputs that differ by a share of the largest, and agree on the class."""
    samples = np.load(bundle / "samples.npz")
    outputs = samples["outputs"] * (1 + by)
    np.savez(bundle / "samples.npz", inputs=samples["inputs"], outputs=outputs)


def elsewhere(facts: dict) -> None:
    facts["device"].update(chip="Other Chip", isa=["avx2"])


def test_outputs_that_differ_on_the_same_device_fail(bundle):
    nudge_samples(bundle, 0.02)
    edit(bundle, lambda facts: None)
    found = checks_of(bundle)
    assert found["samples"].ok is False
    assert "2.0e-02" in found["samples"].detail
    assert "accuracy" not in found


def test_int8_may_round_differently_on_another_device_and_the_report_says_so(bundle):
    nudge_samples(bundle, 0.02)
    edit(bundle, elsewhere)
    report = verify_bundle(bundle, timing=False)
    found = {check.name: check for check in report.checks}
    assert report.ok
    assert found["device"].warning
    assert "recorded on Other Chip (avx2)" in found["device"].detail
    assert "8 of 8 top classes agree" in found["samples"].detail
    assert "another device" in found["samples"].detail


def test_fp32_must_agree_on_any_device(tmp_path):
    run = make_run(tmp_path / "run")
    bundle = export_bundle(run, fp32_key(run), tmp_path / "out")
    nudge_samples(bundle, 0.02)
    edit(bundle, elsewhere)
    assert checks_of(bundle)["samples"].ok is False
    assert stand_alone(bundle, sys.executable).returncode == 1


def test_other_classes_fail_on_any_device(bundle):
    samples = np.load(bundle / "samples.npz")
    np.savez(bundle / "samples.npz", inputs=samples["inputs"], outputs=-samples["outputs"])
    edit(bundle, elsewhere)
    assert checks_of(bundle)["samples"].ok is False
    assert "FAILED  0 of 8 top classes agree" in stand_alone(bundle, sys.executable).stdout


def test_another_runtime_version_is_stated(bundle):
    edit(bundle, lambda facts: facts["device"].update(backend_version="0.0.1"))
    found = checks_of(bundle)
    assert found["runtime"].ok
    assert found["runtime"].warning
    assert "recorded with 0.0.1" in found["runtime"].detail


def test_a_file_bound_to_its_device_is_not_run_elsewhere(bundle):
    def bound(facts):
        elsewhere(facts)
        facts["artifact"]["portable"] = False

    edit(bundle, bound)
    found = checks_of(bundle)
    assert found["samples"].ok is None
    assert "only on the device" in found["samples"].detail


def test_a_model_that_does_not_load_is_a_failed_check(bundle):
    (bundle / "model.onnx").write_bytes(b"not a model")
    edit(bundle, lambda facts: None)
    found = checks_of(bundle)
    assert found["samples"].ok is False
    assert "does not run here" in found["samples"].detail


def test_a_missing_runtime_says_how_to_install_it(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError) as caught:
        verify_bundle(bundle)
    assert "requirements.txt" in caught.value.hint


# --------------------------------------------------------------------------- accuracy and latency


def labels(bundle: Path) -> np.ndarray:
    manifest = parse_manifest(read_facts(bundle))
    artifact = make_absolute(bundle, manifest)
    session = get_backend("onnxruntime").open(artifact, RunOptions(batch=24))
    return session.run(examples()).argmax(axis=1)


def make_absolute(bundle: Path, manifest):
    from hwsearch.export.manifest import located

    return located(manifest.artifact, bundle)


def test_accuracy_within_the_intervals_passes(bundle):
    found = checks_of(bundle, data=(examples(), labels(bundle)))["accuracy"]
    assert found.ok is True
    assert found.detail == "top1 1.0000 on 24 examples; recorded 0.8800 on 800 of the report split"


def test_accuracy_outside_the_intervals_fails(bundle):
    found = checks_of(bundle, data=(examples(), (labels(bundle) + 1) % 5))["accuracy"]
    assert found.ok is False


def test_as_many_examples_as_asked(bundle):
    found = checks_of(bundle, data=(examples(), labels(bundle)), examples=7)["accuracy"]
    assert "on 7 examples" in found.detail


def test_a_metric_of_ones_own_is_scored(tmp_path, bundle):
    (tmp_path / "mine.py").write_text("def spread(outputs, targets):\n    return float(outputs.shape[0])\n")

    def own(facts):
        facts["metric"] = f"{tmp_path / 'mine.py'}:spread"
        facts["figures"]["accuracy"].update(metric="spread", value=24.0, ci95=None)

    edit(bundle, own)
    assert checks_of(bundle, data=(examples(), np.zeros(24)))["accuracy"].ok is True
    assert checks_of(bundle, data=(examples(), np.zeros(24)), examples=20)["accuracy"].ok is False
    (tmp_path / "mine.py").unlink()
    found = checks_of(bundle, data=(examples(), np.zeros(24)))["accuracy"]
    assert found.ok is None
    assert "cannot be loaded" in found.detail


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (np.zeros((4, 3, 9, 9), np.float32), np.zeros(4)),
        (np.zeros((4, *SHAPE), np.float32), np.zeros(3)),
        (np.zeros((0, *SHAPE), np.float32), np.zeros(0)),
    ],
)
def test_data_that_do_not_fit_are_refused(bundle, inputs, targets):
    with pytest.raises(DataError, match="do not fit"):
        verify_bundle(bundle, data=(inputs, targets), timing=False)


def test_a_much_slower_model_is_a_warning_only(bundle):
    edit(bundle, lambda facts: facts["figures"]["latency"].update(best_ms=1e-6))
    report = verify_bundle(bundle)
    latency = report.checks[-1]
    assert report.ok
    assert (latency.name, latency.ok, latency.warning) == ("latency", True, True)
    assert "times the 1e-06 ms recorded" in latency.detail


def test_latency_elsewhere_is_no_warning_but_says_so(bundle):
    def slow_elsewhere(facts):
        elsewhere(facts)
        facts["figures"]["latency"].update(best_ms=1e-6)

    edit(bundle, slow_elsewhere)
    latency = verify_bundle(bundle).checks[-1]
    assert (latency.ok, latency.warning) == (True, False)
    assert "another device" in latency.detail


# --------------------------------------------------------------------------- with numpy and the runtime alone


def link_packages(folder: Path, *names: str) -> None:
    """Make a folder in which only these distributions and what they require can be imported."""
    for file in {Path(f.parts[0]) for name in closure(names) for f in metadata.files(name)}:
        origin = Path(metadata.distribution(names[0]).locate_file(file))
        if origin.exists() and file.name not in ("..", "__pycache__"):
            (folder / file.name).symlink_to(origin)


def closure(names) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and importlib.metadata.files(name):
            found.add(name)
            required = [Requirement(text) for text in metadata.requires(name) or []]
            waiting += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize("backend", TARGETS)
def test_the_programs_need_numpy_and_the_runtime_only(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(packages, "numpy", backend)
    found = stand_alone(bundle, sys.executable, "-S", path=str(packages))
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("ok      9 files unchanged" if backend == "onnxruntime" else "ok      10 files")


@pytest.mark.slow
@pytest.mark.parametrize("backend", TARGETS)
def test_a_bundle_passes_in_a_fresh_environment(tmp_path, backend):
    run = make_run(tmp_path / "run", backend)
    bundle = export_bundle(run, mixed_key(run), tmp_path / "out")
    shutil.rmtree(run.path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-r", bundle / "requirements.txt"]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    found = stand_alone(bundle, python)
    assert found.returncode == 0, found.stdout + found.stderr
    inferred = subprocess.run([python, bundle / "infer.py"], check=True, capture_output=True, text=True, env={})
    assert inferred.stdout.count("as stored") == 8
    content = bytearray((bundle / "infer.py").read_bytes())
    content[3] ^= 1
    (bundle / "infer.py").write_bytes(content)
    assert stand_alone(bundle, python).stdout == "FAILED  infer.py: changed\n"
