"""A bundle on another device, with other versions, other data, another speed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from bundle_support import bundle, checks_of, edit, exported, stand_alone
from export_support import SHAPE, examples, fp32_key, make_run

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.errors import BackendUnavailableError, DataError
from hwsearch.export.bundle import export_bundle
from hwsearch.export.manifest import parse_manifest, read_facts
from hwsearch.export.verify import verify_bundle

__all__ = ["bundle", "exported"]  # fixtures


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
