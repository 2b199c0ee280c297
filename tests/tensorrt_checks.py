"""Run by `test_tensorrt_bindings.py` in a child process that sees NVIDIA's bindings of one version."""

from __future__ import annotations

import ast
import ctypes
import importlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt as real
from tensorrt_device import install
from tensorrt_standins import ContractError, Recorder, StandIn

import hwsearch.backends
from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.errors import EvaluationError
from hwsearch.testing import BackendContract
from hwsearch.testing.contract import assign, build, examples, request_for
from hwsearch.testing.networks import layer_names, residual

TOUCHING = ("tensorrt_runtime", "tensorrt_build", "tensorrt_session", "tensorrt_inspect")
"""The files that use the package ``tensorrt``."""

SOURCES = {name: Path(hwsearch.backends.__path__[0]) / f"{name}.py" for name in TOUCHING}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --------------------------------------------------------------------------- real bindings, nothing behind them


def test_without_the_library_the_builder_is_where_it_ends(tmp_path):
    """On the bindings alone, the backend gets as far as the first object the library must give."""
    sys.modules["tensorrt"] = real
    model = residual()
    with pytest.raises(EvaluationError, match="cannot start its Builder") as caught:
        build(get_backend("tensorrt"), model, assign("int8", layer_names(model)), tmp_path)
    assert caught.value.stage == "build"
    assert caught.value.kind == "tensorrt"


# --------------------------------------------------------------------------- the whole contract on stand-ins


class TestTensorRtBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        install()
        return get_backend("tensorrt")

    def check_unit(self, time, precision):
        super().check_unit(time, precision)
        if time.source_layers:
            assert time.executed == time.requested
            assert time.ms == 0.25

    def test_fingerprint_names_what_runs(self, backend):
        super().test_fingerprint_names_what_runs(backend)
        device = backend.device(RunOptions())
        assert device.backend_version == real.__version__
        assert device.chip == "Stand-in GPU"
        assert device.isa == ("sm_89", "int8", "fp16", "tf32", "bf16", "fp8")
        assert device.options["clock"] == "cuda events"
        assert device.key != backend.device(RunOptions(options={"transfers": "on"})).key

    @pytest.mark.skip(reason="the timing cache grows from build to build, as the real one does")
    def test_artifact_describes_its_files(self):
        """See `test_the_artifact_is_bound_to_the_device`."""


def test_the_artifact_is_bound_to_the_device(tmp_path):
    install()
    model = residual()
    artifacts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        artifacts.append(build(get_backend("tensorrt"), model, assign("int8", layer_names(model)), folder))
        assert sorted(file.name for file in folder.iterdir()) == ["model.engine", "model.onnx", "timing.cache"]
    assert not artifacts[0].portable
    assert artifacts[0].format == "tensorrt-engine"
    caches = [(tmp_path / name / "timing.cache").read_bytes() for name in ("one", "two")]
    assert caches == [b"timed ", b"timed timed "]  # the second build starts from what the first has learnt


def test_batches_of_another_size_go_through_the_engine_piece_by_piece(tmp_path):
    install()
    model = residual()
    backend = get_backend("tensorrt")
    lowered = backend.lower(model, request_for(backend, model, assign("int8", layer_names(model))))
    (tmp_path / "a").mkdir()
    artifact = backend.build(lowered, tmp_path / "a", RunOptions(batch=4))
    inputs = examples(model, 6)
    six, four = backend.open(artifact, RunOptions(batch=6)), backend.open(artifact, RunOptions(batch=4))
    np.testing.assert_allclose(six.run(inputs)[:4], four.run(inputs[:4]), atol=1e-5)
    with pytest.raises(ValueError, match="built for batches of 4, and cannot time 6"):
        six.bind(inputs)


@pytest.mark.parametrize("graph", ["on", "off"])
@pytest.mark.parametrize("transfers", ["on", "off"])
def test_a_step_returns_the_nanoseconds_between_two_events(tmp_path, graph, transfers):
    install()
    model = residual()
    backend = get_backend("tensorrt")
    session = backend.open(
        build(backend, model, assign("fp32", layer_names(model)), tmp_path),
        RunOptions(options={"cuda_graph": graph, "transfers": transfers}),
    )
    session.bind(examples(model, 1))
    assert session.step() > 1000


def test_the_first_inference_is_not_part_of_the_graph(tmp_path):
    recorder = install()
    model = residual()
    backend = get_backend("tensorrt")
    artifact = build(backend, model, assign("fp32", layer_names(model)), tmp_path)
    recorder.asked.clear()
    backend.open(artifact, RunOptions())
    assert recorder.asked.count(("IExecutionContext", "execute_async_v3")) == 2
    recorder.asked.clear()
    backend.open(artifact, RunOptions(options={"cuda_graph": "off"}))
    assert recorder.asked.count(("IExecutionContext", "execute_async_v3")) == 1


def test_a_driver_error_is_told_in_the_drivers_words():
    from hwsearch.backends.cuda import Buffer

    with pytest.raises(EvaluationError, match=r"out of memory.*error 2") as caught:
        Buffer(2**41)
    assert caught.value.kind == "memory"


def test_what_the_stream_and_its_parts_took_is_given_back():
    from hwsearch.backends.cuda import Buffer, Graph, Stopwatch, Stream

    live = ctypes.CDLL("libcuda.so.1").standin_live
    before = live()
    stream = Stream()
    parts = [Buffer(8), Stopwatch(stream), Graph(stream, lambda: None), stream]
    assert live() > before
    for part in parts:
        part.close()
    assert live() == before


# --------------------------------------------------------------------------- refusals become failures


def refused(recorder: Recorder, message: str) -> bool:
    """Let every logger of the backend say something, as TensorRT does before it returns nothing."""
    for owner in LOGS:
        owner.log(recorder.trt.ILogger.ERROR, message)
    return False


LOGS: list = []


def noting_logs(monkeypatch):
    from hwsearch.backends import tensorrt_build, tensorrt_runtime, tensorrt_session

    def message_log(trt):
        LOGS[:] = [tensorrt_runtime.message_log(trt)]
        return LOGS[0]

    for module in (tensorrt_build, tensorrt_session):
        monkeypatch.setattr(module, "message_log", message_log)


def parser_error(parser: StandIn, index: int) -> StandIn:
    return StandIn(parser._recorder, parser._recorder.trt.ParserError)


@pytest.mark.parametrize(
    ("answers", "stage", "message"),
    [
        (
            {
                ("OnnxParser", "parse"): False,
                ("OnnxParser", "num_errors"): 1,
                ("OnnxParser", "get_error"): parser_error,
                ("ParserError", "desc"): "unsupported thing",
                ("ParserError", "node_name"): "stem",
                ("ParserError", "node_operator"): "Conv",
            },
            "build",
            r"refuses the model: unsupported thing \(node `stem`, Conv\)",
        ),
        ({("Builder", "build_serialized_network"): None}, "build", "built no engine: no kernel fits"),
        ({("Runtime", "deserialize_cuda_engine"): None}, "open", "cannot load model.engine.*: no kernel fits"),
        ({("ICudaEngine", "create_execution_context"): None}, "open", "no execution context"),
        ({("IExecutionContext", "execute_async_v3"): False}, "run", "cannot run the engine"),
    ],
)
def test_refusals_become_failures_in_tensorrts_words(tmp_path, monkeypatch, answers, stage, message):
    noting_logs(monkeypatch)
    recorder = install()
    recorder.answers |= {
        key: (lambda *_, value=value: refused(recorder, "no kernel fits") or value) if value in (None, False) else value
        for key, value in answers.items()
    }
    model = residual()
    backend = get_backend("tensorrt")
    with pytest.raises(EvaluationError, match=message) as caught:
        backend.open(build(backend, model, assign("fp32", layer_names(model)), tmp_path), RunOptions())
    assert caught.value.stage == stage


def test_warnings_are_kept_and_chatter_is_not():
    from hwsearch.backends.tensorrt_runtime import message_log

    log = message_log(real)
    for severity in (real.ILogger.INFO, real.ILogger.WARNING, real.ILogger.VERBOSE, real.ILogger.INTERNAL_ERROR):
        log.log(severity, str(severity))
    assert log.messages == [str(real.ILogger.WARNING), str(real.ILogger.INTERNAL_ERROR)]


def test_a_timing_cache_of_another_device_is_replaced_by_an_empty_one(tmp_path):
    takes = iter([False, True])
    recorder = install({("IBuilderConfig", "set_timing_cache"): lambda *_: next(takes)})
    model = residual()
    backend = get_backend("tensorrt")
    build(backend, model, assign("fp32", layer_names(model)), tmp_path)
    assert recorder.asked.count(("IBuilderConfig", "create_timing_cache")) == 2


# --------------------------------------------------------------------------- the contract notices


def exercise(folder: Path) -> list[tuple[str, str]]:
    """Everything the backend asks TensorRT for in its life, in order; its modules are imported anew."""
    takes = iter([False, True, True])
    recorder = install({("IBuilderConfig", "set_timing_cache"): lambda *_: next(takes)})
    model = residual()
    for tensor in model.graph.initializer:
        if tensor.name == "head.weight":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:, ::2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    backend = get_backend("tensorrt")
    lowered = backend.lower(model, request_for(backend, model, assign("int8", layer_names(model))))
    for number, precision in enumerate(("fp32", "tf32")):
        (folder / str(number)).mkdir(parents=True)
        artifact = backend.build(lowered, folder / str(number), RunOptions(float_precision=precision))
    recorder.answers |= {
        ("OnnxParser", "parse"): False,
        ("OnnxParser", "num_errors"): 1,
        ("OnnxParser", "get_error"): parser_error,
    }
    (folder / "refused").mkdir()
    with pytest.raises(EvaluationError):
        backend.build(lowered, folder / "refused", RunOptions())
    session = backend.open(artifact, RunOptions())
    session.bind(examples(model, 1))
    session.step()
    backend.inspect(artifact, {}, RunOptions())
    return recorder.asked


USED = {
    "tensorrt": "Builder BuilderFlag DataType ILogger IProfiler LayerInformationFormat MemoryPoolType "
    "NetworkDefinitionCreationFlag OnnxParser ProfilingVerbosity Runtime TensorIOMode",
    "Builder": "build_serialized_network create_builder_config create_network",
    "BuilderFlag": "SPARSE_WEIGHTS TF32",
    "DataType": "FLOAT",
    "EngineInspector": "get_engine_information",
    "IBuilderConfig": "clear_flag create_timing_cache profiling_verbosity= set_flag set_memory_pool_limit "
    "set_timing_cache",
    "ICudaEngine": "create_engine_inspector create_execution_context get_tensor_dtype get_tensor_mode get_tensor_name "
    "get_tensor_shape num_io_tensors",
    "IExecutionContext": "execute_async_v3 profiler= set_tensor_address",
    "IHostMemory": "bytes",
    "ITimingCache": "serialize",
    "LayerInformationFormat": "JSON",
    "MemoryPoolType": "WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "get_error num_errors parse",
    "ParserError": "desc node_name node_operator",
    "ProfilingVerbosity": "DETAILED",
    "Runtime": "deserialize_cuda_engine",
    "TensorIOMode": "INPUT OUTPUT",
}
"""Everything of TensorRT that the backend relies on."""


def test_what_is_used_is_exactly_this(tmp_path):
    found: dict[str, set[str]] = {}
    for owner, member in exercise(tmp_path):
        found.setdefault(owner, set()).add(member)
    assert sorted((o, " ".join(sorted(m))) for o, m in found.items()) == sorted(USED.items())


def uses(tree: ast.Module) -> list[ast.Attribute]:
    """Places in a file that name a member of TensorRT."""
    names = {name.rstrip("=") for members in USED.values() for name in members.split()} - {"bytes"}
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in names]


def deletable(tree: ast.Module) -> list[ast.stmt]:
    """Statements that only tell TensorRT something: calls whose answer is not used, and properties that are set."""
    members = {id(node) for node in uses(tree)}
    found = []
    for node in ast.walk(tree):
        target = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else target
        if id(target) in members:
            found.append(node)
    return found


def mutants() -> list[tuple[str, str, str]]:
    """File, line and source of the backend with one use of TensorRT misspelt or deleted."""
    found = []
    for name, path in SOURCES.items():
        text = path.read_text()
        for number in range(len(uses(ast.parse(text)))):
            tree = ast.parse(text)
            node = uses(tree)[number]
            node.attr += "_misspelt"
            found.append((name, f"{node.lineno} {node.attr}", ast.unparse(tree)))
        for number in range(len(deletable(ast.parse(text)))):
            tree = ast.parse(text)
            node = deletable(tree)[number]
            where = f"{node.lineno} deleted {ast.unparse(node)}"
            for parent in ast.walk(tree):
                for field in ("body", "orelse"):
                    lines = getattr(parent, field, [])
                    if isinstance(lines, list) and node in lines:
                        lines[lines.index(node)] = ast.Pass()
            found.append((name, where, ast.unparse(ast.fix_missing_locations(tree))))
    return found


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("hwsearch.backends.tensorrt")]:
        del sys.modules[name]


def test_every_misspelt_or_deleted_use_is_noticed(tmp_path, monkeypatch):
    forget()
    expected = exercise(tmp_path / "whole")
    survivors = []
    for number, (module, where, source) in enumerate(mutants()):
        forget()
        loaded = type(sys)(f"hwsearch.backends.{module}")
        sys.modules[loaded.__name__] = loaded
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        exec(compile(source, module, "exec"), loaded.__dict__)
        try:
            if exercise(tmp_path / str(number)) == expected:
                survivors.append(f"{module}:{where}")
        except (ContractError, AttributeError, EvaluationError):
            continue
    forget()
    importlib.import_module("hwsearch.backends.tensorrt")
    assert len(mutants()) > 40
    assert not survivors
