"""The TensorRT backend on NVIDIA's real Python bindings of both versions, without a GPU."""

import json
import os
import re
import subprocess
import sys

import pytest
from tensorrt_bindings import HERE, VERSIONS, build_driver, install_device, unpack_bindings


@pytest.fixture(scope="module", params=VERSIONS)
def child(request, tmp_path_factory):
    """A function that runs a Python program in a process that sees the bindings of one version and a GPU."""
    folder = tmp_path_factory.mktemp("tensorrt")
    unpack_bindings(request.param, folder)
    build_driver(folder)
    install_device(folder)
    paths = [str(folder), str(HERE), str(HERE.parent)]

    def run(*arguments, gpu=True, **variables):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}
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


STUDY = """
name: standin
model: hwsearch.zoo.resnet:resnet20
model_args: {width: 0.5}
data: {source: digits, calibrate: 64, search: 100, report: 100}
target: tensorrt-gpu
space: {prune: false, precisions: [fp32, fp16, int8]}
search: {evaluations: 4, sampler: random}
measure: {rounds: 6, min_rounds: 6, seconds: 0.2}
recover: {repair: none}
latency: measure
"""


@pytest.mark.slow
@pytest.mark.parametrize("child", ["11.4"], indirect=True)
def test_a_search_ends_in_a_bundle_that_verifies(child, tmp_path):
    """Search, finalists built twice, export with engine, ONNX file and timing cache, verify, infer: on stand-ins."""
    (tmp_path / "study.yaml").write_text(STUDY)
    variables = {"STANDIN_DEVICE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def hwsearch(*arguments):
        done = child("-m", "hwsearch", *arguments, "--json", **variables)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout)

    hwsearch("search", tmp_path / "study.yaml", "--out", tmp_path / "runs")
    run = tmp_path / "runs" / "standin" / "tensorrt-gpu"
    front = hwsearch("front", run)
    assert front["device"]["backend"] == "tensorrt"
    assert front["device"]["backend_version"] == child.version
    assert {point["baseline"] for point in front["baselines"]} >= {"fp32", "int8"}
    assert all(point["build_spread"] >= 0 for point in front["baselines"])
    bundle = tmp_path / "out"
    hwsearch("export", run, "--key", front["baselines"][0]["key"], "--out", bundle)
    assert {"model.engine", "model.onnx", "model.cache"} <= {file.name for file in bundle.iterdir()}
    assert f"tensorrt=={child.version}" in (bundle / "requirements.txt").read_text()
    checks = {check["name"]: check["ok"] for check in hwsearch("verify", bundle)["checks"]}
    assert checks["files"]
    assert checks["samples"]
    for program in ("infer.py", "verify.py"):
        done = child(bundle / program, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "DIFFERS" not in done.stdout
