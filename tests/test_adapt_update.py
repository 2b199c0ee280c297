"""A pruned int8 bundle follows a scene: rebuilt, adapted, updated, verified, taken back; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from adapt_study import make_bundle, make_scene, make_study
from test_adapt_scene import digits, normalised

from hwsearch.adapt.corruptions import corrupt
from hwsearch.adapt.files import save_adapter
from hwsearch.adapt.migrate import answers
from hwsearch.errors import BundleError, ConfigError
from hwsearch.export.deployed import fit_of, open_deployed
from hwsearch.export.manifest import parse_manifest, read_facts
from hwsearch.export.structure import structure
from hwsearch.export.verify import verify
from hwsearch.export.versions import versions

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ort-cpu"), "ort-cpu")


@pytest.fixture(scope="module")
def exported_openvino(tmp_path_factory) -> Path:
    pytest.importorskip("openvino")
    return make_bundle(tmp_path_factory.mktemp("openvino-cpu"), "openvino-cpu")


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(params=["exported", "exported_openvino"])
def any_bundle(request, tmp_path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "bundle"))


def model_of(bundle):
    facts = read_facts(bundle)
    return parse_manifest(facts)


def served(bundle):
    """What the bundle's own program answers to its own samples."""
    program = "import infer, numpy, sys; numpy.save(sys.argv[1], infer.load(8)(numpy.load('samples.npz')['inputs']))"
    out = bundle.parent / "served.npy"
    subprocess.run([sys.executable, "-B", "-c", program, str(out)], cwd=bundle, check=True, capture_output=True)
    return np.load(out)


# --------------------------------------------------------------------------- rebuilding


def test_the_rebuilt_network_is_the_one_that_was_exported(any_bundle):
    deployed = open_deployed(any_bundle)
    candidate = deployed.manifest.candidate
    assert candidate.keep
    assert set(candidate.precision.values()) == {"int8"}
    for layer, kept in candidate.keep.items():
        assert deployed.base.get_submodule(layer).weight.shape[0] == kept
    images, labels = digits()
    right = answers(deployed.base, normalised(images[1100:])).argmax(1).numpy() == labels[1100:]
    assert right.mean() == pytest.approx(deployed.manifest.figures.accuracy.value, abs=0.05)


def test_a_changed_network_or_bundle_is_refused(bundle, tmp_path):
    study = make_study(tmp_path / "other", "ort-cpu")
    text = (bundle / "study.yaml").read_text()
    weights = next(line for line in text.splitlines() if line.startswith("weights:"))
    (bundle / "study.yaml").write_text(text.replace(weights, f"weights: {study.parent / 'none.pt'}"))
    with pytest.raises(BundleError, match="is damaged"):
        open_deployed(bundle)


def test_weights_trained_after_compression_cannot_be_rebuilt(bundle):
    from hwsearch.export.manifest import write_manifest

    manifest = model_of(bundle)
    manifest.candidate.recipe["recover.minutes"] = "5"
    write_manifest(bundle, manifest)
    with pytest.raises(ConfigError, match="trained after compression"):
        open_deployed(bundle)


# --------------------------------------------------------------------------- updating


def test_an_update_changes_numbers_and_nothing_else(run, any_bundle, tmp_path):
    bundle = any_bundle
    before, old = model_of(bundle), {path.name: path.read_bytes() for path in bundle.iterdir()}
    scene = make_scene(tmp_path / "dark.npz", "contrast")
    code, out, err = run("adapt", "update", bundle, "--data", scene, "--rung", "recalibrate", "--shots", 5, "--json")
    assert code == 0, err
    document = json.loads(out)
    made, after = document["update"], model_of(bundle)
    assert made["after"]["value"] > made["before"]["value"] + 0.3
    assert made["latency_ratio"] == pytest.approx(1, abs=0.25)  # the studies measure it on a quiet machine
    assert after.updates[0].previous_sha256 == before.sha256
    assert (after.key, after.candidate, after.layers) == (before.key, before.candidate, before.layers)
    assert after.figures.accuracy == after.updates[0].after
    assert verify(bundle, timing=False).ok
    assert versions(bundle) == [1]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "bundle.versions" / "1").iterdir()}
    assert kept == old
    assert "## Updates" in (bundle / "README.md").read_text()
    np.testing.assert_allclose(served(bundle), np.load(bundle / "samples.npz")["outputs"], rtol=1e-3, atol=1e-3)
    if after.artifact.format == "onnx":
        one, other = (onnx.load(folder / "model.onnx") for folder in (bundle, tmp_path / "bundle.versions" / "1"))
        assert list(map(str, one.graph.node)) == list(map(str, other.graph.node))
        assert one.graph.initializer != other.graph.initializer


def test_migrate_writes_an_adapter_that_updates_and_rollback_takes_it_back(run, bundle, tmp_path):
    scene, adapter = make_scene(tmp_path / "invert.npz", "invert"), tmp_path / "adapter"
    first = read_facts(bundle)
    code, out, err = run("adapt", "migrate", bundle, "--data", scene, "--out", adapter, "--rank", 4, "--steps", 120)
    assert code == 0, err
    assert read_facts(bundle) == first
    assert "migrate" in out
    assert "next: hwsearch adapt update" in err
    code, out, err = run("adapt", "update", bundle, "--data", scene, "--adapter", adapter, "--no-timing")
    assert code == 0, err
    updated = model_of(bundle).updates[-1]
    assert updated.labels == 100
    assert "migrate" in updated.rungs
    assert updated.after.value >= 1.2 * updated.before.value
    again = open_deployed(bundle)  # knows its adapter
    inputs = np.load(bundle / "samples.npz")["inputs"]
    assert not np.allclose(answers(again.current, inputs), answers(again.base, inputs), atol=0.1)
    assert run("adapt", "rollback", bundle)[0] == 0
    assert read_facts(bundle) == first
    assert verify(bundle, timing=False).ok
    assert run("adapt", "rollback", bundle)[0] == 2


def test_what_does_not_help_does_not_go_in(run, bundle, tmp_path):
    first, scene = read_facts(bundle), make_scene(tmp_path / "clean.npz", "noise", 1)
    deployed = open_deployed(bundle)
    worse = deployed.base
    worse.head.bias.data[3] += 50
    save_adapter(tmp_path / "worse", worse, open_deployed(bundle).base, None, identity=deployed.identity)
    code, _, err = run("adapt", "update", bundle, "--data", scene, "--adapter", tmp_path / "worse", "--no-timing")
    assert code == 1
    assert "does not help" in err
    assert read_facts(bundle) == first
    assert versions(bundle) == []


def test_without_labels_the_scene_is_followed_and_not_scored(run, bundle, tmp_path):
    scene = make_scene(tmp_path / "dark.npz", "contrast", labels=False)
    code, out, err = run("adapt", "update", bundle, "--data", scene, "--rung", "recalibrate", "--no-timing", "--json")
    assert code == 0, err
    made = json.loads(out)["update"]
    assert made["before"] is made["after"] is None
    assert made["labels"] == 0


def test_watching_a_stream_updates_the_bundle_when_the_scene_changes(run, bundle, tmp_path):
    pytest.importorskip("river")
    images, labels = digits()
    images, labels = images[1100:], labels[1100:]
    stream = np.concatenate([images[:256], corrupt(images[256:], "contrast", 5)])
    np.savez(tmp_path / "day.npz", images=stream.transpose(0, 2, 3, 1), labels=labels)
    page = tmp_path / "day.html"
    options = ("--tolerance", 0.2, "--rank", 4, "--steps", 60, "--timeline", page, "--json")
    code, out, err = run("adapt", "watch", bundle, "--data", tmp_path / "day.npz", *options)
    assert code == 0, err
    found = json.loads(out)
    drifts = [event["window"] for event in found["events"] if event["drift"]]
    assert min(drifts) in range(8, 13)
    assert "update accepted" in err
    assert len(found["updates"]) == len(versions(bundle)) >= 1
    assert found["updates_per_hour"] == pytest.approx(3600 / found["seconds_per_update"])
    assert verify(bundle, timing=False).ok
    assert model_of(bundle).updates[0].scene.startswith("day.npz, window")
    assert "drift noticed" in page.read_text()
    again = run("adapt", "watch", bundle, "--data", tmp_path / "day.npz", "--dry-run", "--trigger", "fixed", "--json")
    assert again[0] == 0, again[2]
    assert json.loads(again[1])["updates"] == []
    assert len(versions(bundle)) == len(found["updates"])


# --------------------------------------------------------------------------- what is refused


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_data_that_do_not_fit_are_refused_before_anything_is_computed(run, bundle, tmp_path):
    images, labels = np.zeros((40, 16, 16, 1), np.uint8), np.arange(40) % 10
    (tmp_path / "text.npz").write_text("not what it is called")
    whole = archive(tmp_path / "whole.npz", images=images, labels=labels)
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cases = {
        "text.npz": tmp_path / "text.npz",
        "cut short": tmp_path / "half.npz",
        "cannot read the arrays": archive(tmp_path / "pickled.npz", images=np.array([{}], object), labels=labels),
        "no file at": tmp_path / "nothing.npz",
        "shape": archive(tmp_path / "a.npz", images=np.zeros((40, 16, 16, 3), np.uint8), labels=labels),
        "12 classes": archive(tmp_path / "b.npz", images=images, labels=labels, classes=np.arange(12)),
        "labels of c.npz are 0 to 12": archive(tmp_path / "c.npz", images=images, labels=np.arange(40) % 13),
        "examples of class 4": archive(tmp_path / "d.npz", images=images, labels=np.arange(40) % 4),
        "40 examples and 39 labels": archive(tmp_path / "e.npz", images=images, labels=labels[1:]),
        "holds pictures": archive(tmp_path / "f.npz", pictures=images),
        "no data at": tmp_path / "nothing",
    }
    for message, path in cases.items():
        started = time.perf_counter()
        code, _, err = run("adapt", "update", bundle, "--data", path, "--shots", 2)
        assert code == 2
        assert message in err
        assert "rebuilding" not in err
        assert time.perf_counter() - started < 20
    assert versions(bundle) == []


def test_a_folder_with_another_number_of_classes_is_refused(run, bundle, tmp_path):
    for name in ("cat", "dog", "horse"):
        (tmp_path / "animals" / name).mkdir(parents=True)
    code, _, err = run("adapt", "migrate", bundle, "--data", tmp_path / "animals", "--out", tmp_path / "out")
    assert code == 2
    assert "3 classes and the model 10 outputs" in err


def test_what_makes_no_sense_is_refused_before_anything_is_computed(run, bundle, tmp_path):
    scene = make_scene(tmp_path / "dark.npz")
    (tmp_path / "photos").mkdir()
    images, labels = np.zeros((40, 16, 16, 1), np.uint8), np.arange(40) % 10
    short = archive(tmp_path / "short.npz", images=images[:20], labels=labels[:20])
    cases = {
        "is a bundle": ("migrate", bundle, "--data", scene, "--out", bundle),
        "is a file": ("migrate", bundle, "--data", scene, "--out", scene),
        "no bundle at": ("rollback", tmp_path / "nothing"),
        "which says nothing of when": ("watch", bundle, "--data", tmp_path / "photos"),
        "unknown rung `recalibrat`": ("update", bundle, "--data", scene, "--rung", "recalibrat"),
        "unknown kind of adapter": ("update", bundle, "--data", scene, "--kind", "prompt"),
        "short.npz has 20 examples": ("watch", bundle, "--data", short, "--trigger", "fixed"),
    }
    for message, command in cases.items():
        code, _, err = run("adapt", *command)
        assert code == 2, err
        assert message in err
    assert read_facts(bundle)["updates"] == []


def test_fit_is_read_from_the_bundle(bundle):
    fit = fit_of(model_of(bundle))
    assert (fit.shape, fit.classes) == ((1, 16, 16), 10)
    assert fit.normalize.mean == (0.3,)


# --------------------------------------------------------------------------- interruption


def test_an_interrupted_update_leaves_the_old_version_serving(exported, bundle, tmp_path):
    """Killed at several moments, the last of which come after the new model was built."""
    first, scene = read_facts(bundle), make_scene(tmp_path / "dark.npz", "contrast")
    answer = served(bundle)
    command = [sys.executable, "-m", "hwsearch", "adapt", "update", bundle, "--data", scene, "--rung", "recalibrate"]
    kill, interrupt = signal.SIGKILL, signal.SIGINT
    signal.signal(interrupt, signal.default_int_handler)  # ignored where tests run in the background, by children, too
    for line, how in (("rebuilding", kill), ("calibrating", interrupt), ("scoring", kill), ("replacing", kill)):
        child = subprocess.Popen(
            [*map(str, command), "--no-timing"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        assert any(told.startswith(line) for told in child.stderr)
        os.killpg(child.pid, how)  # as a terminal does on Ctrl-C
        rest = child.stderr.read()
        if how is interrupt:
            assert child.wait() == 130
            assert rest == f"interrupted: {bundle} serves what was exported\n"
        child.wait()
        if line != "replacing":  # then either one may serve
            assert read_facts(bundle) == first
            assert np.array_equal(served(bundle), answer)
        assert verify(bundle, timing=False).ok


def test_structures_differ_when_formats_do(tmp_path):
    from export_support import fp32_key, make_run, mixed_key

    run = make_run(tmp_path / "run")
    one, other = run.artifact(fp32_key(run)), run.artifact(mixed_key(run))
    assert structure(one) == structure(one) != structure(other)
