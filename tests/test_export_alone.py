"""A bundle without hwsearch: its programs need numpy and the runtime alone."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from bundle_support import stand_alone
from export_support import TARGETS, make_run, mixed_key
from packaging.requirements import Requirement

from hwsearch.export.bundle import export_bundle


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
