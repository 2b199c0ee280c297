"""The TensorRT backend on NVIDIA's real Python bindings of both versions, without a GPU."""

import json
import os
import re
import subprocess
import sys

import pytest
from tensorrt_bindings import HERE, VERSIONS, build_driver, unpack_bindings


@pytest.fixture(scope="module", params=VERSIONS)
def child(request, tmp_path_factory):
    """A function that runs a Python program in a process that sees the bindings of one version and a GPU."""
    folder = tmp_path_factory.mktemp("tensorrt")
    unpack_bindings(request.param, folder)
    build_driver(folder)
    paths = [str(folder), str(HERE), str(HERE.parent)]

    def run(*arguments, gpu=True):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        environment |= {"LD_LIBRARY_PATH": str(folder)} if gpu else {}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, check=False)

    run.version = VERSIONS[request.param]
    return run


def test_the_backend_uses_nothing_the_bindings_do_not_have(child):
    done = child("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", HERE / "tensorrt_checks.py")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 90
    assert "1 skipped" in done.stdout


def test_bindings_without_a_gpu_are_told_apart_from_no_bindings(child):
    done = child("-m", "hwsearch", "doctor", "--json", "--seconds", "0", gpu=False)
    facts = {entry["name"]: entry for entry in json.loads(done.stdout)["backends"]}
    assert facts["tensorrt"]["version"] == child.version
    assert "no NVIDIA driver" in facts["tensorrt"]["problem"]
    assert "not installed" not in facts["tensorrt"]["problem"]
