"""What every backend must do, as tests to subclass."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hwsearch.backends.base import Availability, Backend, LowerRequest, RunOptions
from hwsearch.errors import EvaluationError
from hwsearch.store import sha256_files
from hwsearch.testing.networks import NETWORKS, layer_names, residual
from hwsearch.types import PRECISIONS, Artifact, Device, LayerTime, TensorRange, from_json, to_json

CALIBRATION = 8
PATTERNS = ("fp32", "int8", "alternating", "float ends")


class BackendContract:
    """Subclass it in a test module, name the class ``Test…`` and override the fixture `backend`.

    Attributes:
        int8_tolerance: Largest relative error (2-norm) of int8 outputs on the small networks of
            `hwsearch.testing.networks`, which are random and therefore harder than trained ones.
        unsupported: A precision `lower` must refuse.
    """

    int8_tolerance = 0.06
    unsupported = "int2"

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError("override the fixture `backend`")

    @pytest.fixture(autouse=True)
    def _skip_if_absent(self, backend: Backend) -> None:
        state = backend.availability()
        if not state.ok:
            pytest.skip(f"{backend.name}: {state.problem}")

    @pytest.fixture(params=NETWORKS)
    def model(self, request: pytest.FixtureRequest) -> onnx.ModelProto:
        """Each of the small networks."""
        return NETWORKS[request.param]()

    @pytest.fixture(params=PATTERNS)
    def precision(self, request: pytest.FixtureRequest, model: onnx.ModelProto) -> dict[str, str]:
        """Layer -> precision, in several patterns."""
        return assign(request.param, layer_names(model))

    def test_states_whether_it_can_run(self, backend: Backend) -> None:
        """With a version, or a problem and what to install."""
        state = backend.availability()
        assert isinstance(state, Availability)
        assert state.version
        assert isinstance(backend, Backend)

    def test_fingerprint_names_what_runs(self, backend: Backend) -> None:
        """Equal for equal options, different for others, and it survives JSON."""
        device = backend.device(RunOptions(threads=1))
        assert device == backend.device(RunOptions(threads=1))
        assert device.key != backend.device(RunOptions(threads=2)).key
        assert from_json(Device, to_json(device)) == device

    def test_lowering_gives_a_new_valid_model(
        self, backend: Backend, model: onnx.ModelProto, precision: dict[str, str]
    ) -> None:
        """The input is left alone; metadata, inputs and outputs are kept."""
        before = model.SerializeToString(deterministic=True)
        lowered = backend.lower(model, request_for(backend, model, precision))
        assert model.SerializeToString(deterministic=True) == before
        onnx.checker.check_model(lowered)
        assert {entry.key: entry.value for entry in lowered.metadata_props}["hwsearch.key"] == "0123456789ab"
        for kind in ("input", "output"):
            assert [v.name for v in getattr(lowered.graph, kind)] == [v.name for v in getattr(model.graph, kind)]

    def test_outputs_are_close_to_the_float_model(
        self, backend: Backend, model: onnx.ModelProto, precision: dict[str, str], tmp_path: Path
    ) -> None:
        """To rounding in fp32, to `int8_tolerance` in int8, which must make some difference."""
        artifact = build(backend, model, precision, tmp_path)
        inputs = examples(model, 4)
        outputs = backend.open(artifact, RunOptions(batch=4)).run(inputs)
        expected = reference(model, len(inputs))["output"]
        error = np.linalg.norm(outputs - expected) / np.linalg.norm(expected)
        assert outputs.shape == expected.shape
        assert outputs.dtype == np.float32
        if "int8" in precision.values():
            assert 1e-5 < error < self.int8_tolerance
        else:
            assert error < 1e-5

    def test_batches(self, backend: Backend, tmp_path: Path) -> None:
        """A session takes the batch it was opened with and no other; examples do not influence each other."""
        model = residual()
        artifact = build(backend, model, assign("int8", layer_names(model)), tmp_path)
        inputs = examples(model, 3)
        together = backend.open(artifact, RunOptions(batch=3))
        alone = backend.open(artifact, RunOptions(batch=1))
        assert together.input_shape == inputs.shape
        one_by_one = np.concatenate([alone.run(inputs[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(together.run(inputs), one_by_one, atol=1e-5)
        with pytest.raises(ValueError, match="batches of 3, found 2"):
            together.run(inputs[:2])

    def test_a_bound_input_can_be_stepped(self, backend: Backend, tmp_path: Path) -> None:
        """Again and again, and `run` still answers for its own input."""
        model = residual()
        session = backend.open(build(backend, model, assign("fp32", layer_names(model)), tmp_path), RunOptions())
        inputs = examples(model, 2)
        before = session.run(inputs[:1])
        session.bind(inputs[1:])
        for _ in range(3):
            session.step()
        np.testing.assert_array_equal(session.run(inputs[:1]), before)

    def test_artifact_describes_its_files(self, backend: Backend, tmp_path: Path) -> None:
        """All inside the folder, main file among them, with their size and hash, the same in every build."""
        model = residual()
        precision = assign("alternating", layer_names(model))
        artifacts = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            artifact = build(backend, model, precision, folder)
            assert {Path(file) for file in artifact.files} == {file for file in folder.rglob("*") if file.is_file()}
            assert artifact.path in artifact.files
            assert artifact.size_bytes == sum(Path(file).stat().st_size for file in artifact.files)
            assert artifact.sha256 == sha256_files(artifact.files)
            artifacts.append(artifact)
        assert artifacts[0].sha256 == artifacts[1].sha256

    def test_reads_back_what_runs(
        self, backend: Backend, model: onnx.ModelProto, precision: dict[str, str], tmp_path: Path
    ) -> None:
        """Every layer once, with the requested precision beside the executed one; glue belongs to no layer."""
        times = backend.inspect(build(backend, model, precision, tmp_path), precision, RunOptions())
        assert sorted(layer for time in times for layer in time.source_layers) == sorted(precision)
        for time in times:
            self.check_unit(time, precision)

    def check_unit(self, time: LayerTime, precision: Mapping[str, str]) -> None:
        """One unit of the read-back; override it to demand more, such as that nothing fell back."""
        requested = {precision[layer] for layer in time.source_layers}
        assert set(filter(None, (time.requested or "").split("+"))) == requested
        assert time.executed is None or time.executed in PRECISIONS
        assert time.ms is None or (math.isfinite(time.ms) and time.ms >= 0)

    def test_refuses_a_precision_it_cannot_express(self, backend: Backend) -> None:
        """Naming the layer and the precision."""
        model = residual()
        request = LowerRequest(precision=assign(self.unsupported, layer_names(model)))
        with pytest.raises(EvaluationError, match=f"stem.*{self.unsupported}"):
            backend.lower(model, request)

    def test_refuses_an_unknown_float_format(self, backend: Backend, tmp_path: Path) -> None:
        """Instead of running something else."""
        model = residual()
        lowered = backend.lower(model, LowerRequest(precision=assign("fp32", layer_names(model))))
        with pytest.raises(EvaluationError, match="fp12"):
            backend.build(lowered, tmp_path, RunOptions(float_precision="fp12"))

    def test_refuses_unknown_layers_and_bad_ranges(self, backend: Backend) -> None:
        """A layer the model lacks, a range that was not observed, a range that is not finite."""
        model = residual()
        precision = assign("int8", layer_names(model))
        good = request_for(backend, model, precision)
        name = min(good.ranges)
        cases = {
            "no layer `absent`": LowerRequest(precision={**precision, "absent": "int8"}, ranges=good.ranges),
            "no range was observed": LowerRequest(precision=precision),
            f"{name}.* not finite": LowerRequest(
                precision=precision, ranges={**good.ranges, name: TensorRange(low=0.0, high=math.inf)}
            ),
        }
        for message, request in cases.items():
            with pytest.raises(EvaluationError, match=message):
                backend.lower(model, request)


def assign(pattern: str, layers: list[str]) -> dict[str, str]:
    """Layer -> precision: one of `PATTERNS`, or the name of a precision for all."""
    if pattern == "alternating":
        return {layer: ("int8", "fp32")[i % 2] for i, layer in enumerate(layers)}
    if pattern == "float ends":
        return {layer: "fp32" if layer in (layers[0], layers[-1]) else "int8" for layer in layers}
    return dict.fromkeys(layers, pattern)


def examples(model: onnx.ModelProto, count: int) -> NDArray[np.float32]:
    """The same random inputs [count, ...] every time."""
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)


def reference(model: onnx.ModelProto, count: int) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the float model on the first `count` of its `examples`, by the ONNX reference implementation."""
    return _reference(model.SerializeToString(deterministic=True), count)


@functools.cache
def _reference(model: bytes, count: int) -> dict[str, NDArray[np.float32]]:
    loaded = onnx.load_from_string(model)
    evaluator: Any = ReferenceEvaluator(loaded)
    values: dict[str, NDArray[np.float32]] = evaluator.run(None, {"input": examples(loaded, count)}, intermediate=True)
    return values


def request_for(backend: Backend, model: onnx.ModelProto, precision: Mapping[str, str]) -> LowerRequest:
    """The request for `precision`, with min-max ranges on some random inputs."""
    values = reference(model, CALIBRATION)
    names = backend.tensors_to_observe(model, precision)
    ranges = {name: TensorRange(low=float(values[name].min()), high=float(values[name].max())) for name in names}
    return LowerRequest(precision=precision, ranges=ranges)


def build(backend: Backend, model: onnx.ModelProto, precision: Mapping[str, str], folder: Path) -> Artifact:
    """The artifact of `model` lowered to `precision`."""
    folder.mkdir(exist_ok=True)
    return backend.build(backend.lower(model, request_for(backend, model, precision)), folder, RunOptions())
