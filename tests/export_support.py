"""A finished run with a tiny real model, for the tests of export and verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.config import make_study
from hwsearch.search.run import Run
from hwsearch.space.target import load_target
from hwsearch.types import (
    Accuracy,
    Artifact,
    Candidate,
    Failure,
    Front,
    FrontPoint,
    Latency,
    LayerTime,
    SearchSpace,
    SourceModel,
    Success,
    TensorRange,
    Trial,
)

SHAPE = (3, 8, 8)
CLASSES = 5
EXAMPLES = 24

TARGETS = {"onnxruntime": "ort-cpu", "openvino": "openvino-cpu"}


def tiny_model() -> onnx.ModelProto:
    """Convolution, ReLU, pooling and a linear layer, named as the template names them."""
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.normal(size=(8, 3, 3, 3)),
        "conv.bias": rng.normal(size=8),
        "fc.weight": rng.normal(size=(CLASSES, 8)),
        "fc.bias": np.array([1.0, 6.0, -8.0, 2.0, 3.0]),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.bias"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["output"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def examples() -> np.ndarray:
    """Inputs [24, 3, 8, 8] of several classes."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(EXAMPLES, *SHAPE)) + 2 * rng.normal(size=(EXAMPLES, 3, 1, 1))).astype(np.float32)


def make_run(folder: Path, backend_name: str = "onnxruntime", *, report: bool = True) -> Run:
    """A run of four trials: fp32 and int8 baselines, one mixed candidate, one failure. Skips without the runtime."""
    backend = get_backend(backend_name)
    if not backend.availability().ok:
        pytest.skip(f"{backend_name} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir()
    np.save(folder / "work" / "search.inputs.npy", examples())
    if report:
        (folder / "report.html").write_text("<html>the run's report</html>")
    target = load_target(TARGETS[backend_name])
    trials = (
        _trial(folder, 0, {"conv": "fp32", "fc": "fp32"}, backend_name, baseline="fp32", latency_ms=0.8, value=0.9),
        _trial(folder, 1, {"conv": "int8", "fc": "int8"}, backend_name, baseline="int8", latency_ms=0.4, value=0.875),
        _trial(folder, 2, {"conv": "int8", "fc": "fp32"}, backend_name, baseline=None, latency_ms=0.3, value=0.88),
        Trial(
            number=3,
            candidate=Candidate(keep={"conv": 4}, dropped=(), precision={"conv": "int8", "fc": "int8"}),
            baseline=None,
            outcome=Failure(stage="build", error="crash", message="the worker died", hint="try fp32"),
            constraints={},
            seconds={},
        ),
    )
    device = backend.device(RunOptions(threads=target.threads, batch=target.batch))
    return Run(
        path=folder,
        config=make_study(
            {
                "name": "tiny",
                "model": "tiny:build",
                "data": "digits",
                "target": target.name,
                "search": {"storage": "postgresql://me:secret@host/db"},
            }
        ),
        source=SourceModel(
            name="tiny:build",
            sha256="0" * 64,
            input_shape=SHAPE,
            output_shape=(CLASSES,),
            layers=(),
            groups=(),
            branches=(),
        ),
        target=target,
        space=SearchSpace(target=target.name, widths={}, droppable=(), precisions={}, float_precisions=("fp32",)),
        device=device,
        data={},
        versions={"hwsearch": "0.1.0"},
        created="2026-01-01T00:00:00+00:00",
        trials=trials,
        front=Front(
            target=target.name,
            device=device,
            objectives=("accuracy", "latency"),
            points=tuple(_point(trial) for trial in (trials[2], trials[1], trials[0])),
            reference=(0.7, 0.8),
            hypervolume=0.5,
            final=True,
        ),
    )


def fp32_key(run: Run) -> str:
    return run.trials[0].candidate.key


def mixed_key(run: Run) -> str:
    return run.trials[2].candidate.key


def failed_key(run: Run) -> str:
    return run.trials[3].candidate.key


def _trial(
    folder: Path,
    number: int,
    precision: dict[str, str],
    backend_name: str,
    *,
    baseline: str | None,
    latency_ms: float,
    value: float,
) -> Trial:
    candidate = Candidate(keep={}, dropped=(), precision=precision)
    artifact = _build(folder, candidate, backend_name)
    return Trial(
        number=number,
        candidate=candidate,
        baseline=baseline,
        outcome=Success(
            accuracy=_accuracy(value, "search", 24),
            latency=_latency(latency_ms * 1.1),
            artifact=dataclasses.replace(
                artifact,
                path=str(Path(artifact.path).relative_to(folder)),
                files=tuple(str(Path(file).relative_to(folder)) for file in artifact.files),
            ),
            layers=(
                LayerTime(
                    runtime_layer="conv_kernel",
                    kind="Conv",
                    source_layers=("conv",),
                    requested=precision["conv"],
                    executed=precision["conv"],
                    ms=0.2,
                ),
                LayerTime(
                    runtime_layer="fc_kernel",
                    kind="Gemm",
                    source_layers=("fc",),
                    requested=precision["fc"],
                    executed="fp32",
                    ms=0.1,
                ),
                LayerTime(
                    runtime_layer="reorder", kind="Reorder", source_layers=(), requested=None, executed=None, ms=None
                ),
            ),
            params=269,
            nonzero=269,
            macs=13_864,
        ),
        constraints={},
        seconds={},
    )


def _build(folder: Path, candidate: Candidate, backend_name: str) -> Artifact:
    backend = get_backend(backend_name)
    model = tiny_model()
    tensors = backend.tensors_to_observe(model, candidate.precision)
    ranges = {tensor: TensorRange(low=-4.0, high=4.0) for tensor in tensors}
    lowered = backend.lower(model, LowerRequest(precision=candidate.precision, ranges=ranges))
    home = folder / "work" / "artifacts" / candidate.key
    home.mkdir(parents=True)
    return backend.build(lowered, home, RunOptions())


def _accuracy(value: float, split: str, examples: int) -> Accuracy:
    return Accuracy(
        metric="top1",
        value=value,
        higher_is_better=True,
        examples=examples,
        ci95=(value - 0.05, value + 0.05),
        split=split,
        data_hash="d" * 64,
    )


def _latency(best_ms: float) -> Latency:
    return Latency(
        best_ms=best_ms,
        median_ms=best_ms * 1.02,
        p90_ms=best_ms * 1.1,
        p99_ms=best_ms * 1.3,
        ci95_ms=(best_ms * 0.99, best_ms * 1.01),
        rounds=10,
        samples=100,
        batch=1,
        source="measured",
        sigma_ms=best_ms * 0.005,
        reference_ms=0.8,
    )


def _point(trial: Trial) -> FrontPoint:
    assert isinstance(trial.outcome, Success)
    found = trial.outcome
    return FrontPoint(
        key=trial.candidate.key,
        trial=trial.number,
        baseline=trial.baseline,
        accuracy=_accuracy(found.accuracy.value, "report", 800),
        latency=_latency(found.latency.best_ms / 1.1),
        size_bytes=found.artifact.size_bytes,
        params=found.params,
        macs=found.macs,
        on_front=trial.baseline != "int8",
    )
