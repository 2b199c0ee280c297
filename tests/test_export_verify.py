"""A bundle is checked here as a stranger would get it: whole and damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_support import bundle, checks_of, edit, exported, stand_alone
from export_support import SHAPE, TARGETS, fp32_key, make_run, mixed_key
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwsearch.backends.device import has_bf16
from hwsearch.errors import BundleError
from hwsearch.export.bundle import export_bundle
from hwsearch.export.manifest import parse_manifest, read_facts
from hwsearch.export.shipped.verify import digest
from hwsearch.export.verify import verify_bundle

__all__ = ["bundle", "exported"]  # fixtures
ROOT = Path(__file__).parent.parent


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
