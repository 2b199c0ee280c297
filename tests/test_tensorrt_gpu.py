"""Checks for a machine with an NVIDIA GPU and TensorRT 10 or 11: ``pytest -m gpu``. Skipped elsewhere.

Written against the documented behaviour of TensorRT; not yet run on a GPU (see the README).
"""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.testing import BackendContract
from hwsearch.testing.contract import assign, build, examples, reference, request_for
from hwsearch.testing.networks import layer_names, residual

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not get_backend("tensorrt").availability().ok, reason="TensorRT or a GPU is missing"),
]


class TestTensorRtBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        return get_backend("tensorrt")

    @pytest.mark.skip(reason="builds are not deterministic")
    def test_artifact_describes_its_files(self):
        """An engine differs from build to build."""


@pytest.mark.parametrize("name", ["tf32", "fp16", "bf16", "int8", "fp8"])
def test_layers_run_in_the_format_asked_for(tmp_path, name):
    backend = get_backend("tensorrt")
    if name not in backend.device(RunOptions()).isa:
        pytest.skip(f"this GPU does not multiply {name}")
    model = residual()
    precision = assign(name, layer_names(model))
    options = RunOptions(float_precision=name if name in ("tf32", "fp16", "bf16") else "fp32")
    artifact = backend.build(backend.lower(model, request_for(backend, model, precision)), tmp_path, options)
    outputs = backend.open(artifact, RunOptions(batch=4)).run(examples(model, 4))
    expected = reference(model, 4)["output"]
    assert np.linalg.norm(outputs - expected) < 0.15 * np.linalg.norm(expected)
    times = [time for time in backend.inspect(artifact, precision, RunOptions()) if time.source_layers]
    executed = Counter(time.executed for time in times)
    assert executed.most_common(1)[0][0] == name
    assert {layer for time in times for layer in time.source_layers} == set(precision)


def test_an_int8_convolution_takes_the_addition_and_the_relu_along(tmp_path):
    """The form of the quantisers is right if the residual block becomes one kernel per convolution."""
    backend = get_backend("tensorrt")
    model = residual()
    precision = assign("int8", layer_names(model))
    times = backend.inspect(build(backend, model, precision, tmp_path), precision, RunOptions())
    fused = next(time for time in times if "a.conv2" in time.source_layers)
    assert "add" in fused.runtime_layer.lower()


@pytest.mark.parametrize("graph", ["on", "off"])
def test_the_gpus_clock_agrees_with_ours(tmp_path, graph):
    import time

    backend = get_backend("tensorrt")
    model = residual()
    options = RunOptions(options={"cuda_graph": graph})
    session = backend.open(build(backend, model, assign("fp32", layer_names(model)), tmp_path), options)
    session.bind(examples(model, 1))
    for _ in range(200):
        session.step()
    started = time.perf_counter_ns()
    own = [session.step() for _ in range(500)]
    assert 0 < sum(own) < time.perf_counter_ns() - started


STUDY = """
model: {model}
data: {{source: digits, calibrate: 128, search: 400}}
target: tensorrt-gpu
search: {{evaluations: {evaluations}, timeout_s: 900, memory_mb: 32768}}
"""


@pytest.mark.parametrize(
    ("name", "model", "evaluations"),
    [("resnet20", "hwsearch.zoo.resnet:resnet20", 12), ("resnet50", "hwsearch.zoo.resnet_imagenet:resnet50", 8)],
)
def test_search_table_export_and_verify(tmp_path, name, model, evaluations):
    (tmp_path / "study.yaml").write_text(f"name: {name}\n" + STUDY.format(model=model, evaluations=evaluations))

    def hwsearch(*arguments):
        command = [sys.executable, "-m", "hwsearch", *map(str, arguments), "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout)

    hwsearch("search", "study.yaml", "--set", "latency=measure")
    run = tmp_path / "runs" / name / "tensorrt-gpu"
    front = hwsearch("front", run)
    assert {point["baseline"] for point in front["baselines"]} >= {"fp32", "fp16", "int8"}
    assert all(point["build_spread"] is not None for point in front["baselines"])
    hwsearch("table", "build", "study.yaml")
    hwsearch("export", run, "--key", front["points"][0]["key"], "--out", tmp_path / "out")
    assert all(check["ok"] is not False for check in hwsearch("verify", tmp_path / "out")["checks"])
