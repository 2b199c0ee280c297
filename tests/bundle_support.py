"""An exported bundle, and what its checks say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from export_support import make_run, mixed_key

from hwsearch.export.bundle import export_bundle
from hwsearch.export.shipped.verify import digest
from hwsearch.export.verify import verify_bundle
from hwsearch.store import sha256_file


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
