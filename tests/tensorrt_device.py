"""A GPU that is not there: stand-ins for TensorRT whose engines are ONNX files that ONNX Runtime computes."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
from tensorrt_standins import Package, Recorder, StandIn

WORDS = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.INT8: "Int8"}
_WORK = ctypes.CFUNCTYPE(None)


def install(answers: dict[tuple[str, str], Any] | None = None) -> Recorder:
    """Put the stand-ins in place of the package ``tensorrt``; what they are asked is in the answer."""
    import tensorrt as real

    trt = getattr(real, "_recorder", None)
    real = trt.trt if trt else real
    recorder = Recorder(real, {**device_answers(real), **(answers or {})})
    package = Package(recorder)
    package.__dict__["__version__"] = real.__version__
    sys.modules["tensorrt"] = package  # type: ignore[assignment]
    return recorder


def device_answers(trt: Any) -> dict[tuple[str, str], Any]:
    """What the device says to each question whose answer matters."""
    return {
        ("OnnxParser", "parse"): _parse,
        ("Builder", "build_serialized_network"): _build,
        ("IBuilderConfig", "create_timing_cache"): lambda config, data: _memory(config, "ITimingCache", bytes(data)),
        ("ITimingCache", "serialize"): lambda cache: _memory(cache, "IHostMemory", cache._state["bytes"] + b"timed "),
        ("Runtime", "deserialize_cuda_engine"): _deserialize,
        ("ICudaEngine", "create_execution_context"): lambda engine: _child(engine, "IExecutionContext"),
        ("ICudaEngine", "create_engine_inspector"): lambda engine: _child(engine, "EngineInspector"),
        ("ICudaEngine", "num_io_tensors"): 2,
        ("ICudaEngine", "get_tensor_name"): lambda engine, index: _value(engine, index).name,
        ("ICudaEngine", "get_tensor_mode"): lambda engine, name: (
            trt.TensorIOMode.INPUT if name == _model(engine).graph.input[0].name else trt.TensorIOMode.OUTPUT
        ),
        ("ICudaEngine", "get_tensor_dtype"): trt.DataType.FLOAT,
        ("ICudaEngine", "get_tensor_shape"): lambda engine, name: trt.Dims(_shape(engine, name)),
        ("IExecutionContext", "execute_async_v3"): _execute,
        ("EngineInspector", "get_engine_information"): _describe,
    }


def _memory(owner: StandIn, kind: str, data: bytes) -> StandIn:
    made = StandIn(owner._recorder, getattr(owner._recorder.trt, kind))
    made._state["bytes"] = data
    return made


def _child(owner: StandIn, kind: str) -> StandIn:
    made = StandIn(owner._recorder, getattr(owner._recorder.trt, kind))
    made._state["owner"] = owner
    return made


def _parse(parser: StandIn, model: bytes) -> bool:
    network, log = parser._state["__init__"]
    log.log(parser._recorder.trt.ILogger.WARNING, "something to mind")
    network._state["model"] = bytes(model)
    return True


def _build(builder: StandIn, network: StandIn, config: StandIn) -> StandIn:
    return _memory(builder, "IHostMemory", network._state["model"])


def _deserialize(runtime: StandIn, data: bytes) -> StandIn | None:
    model = onnx.ModelProto()
    model.ParseFromString(bytes(data))
    engine = _child(runtime, "ICudaEngine")
    engine._state["model"] = model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    engine._state["session"] = onnxruntime.InferenceSession(bytes(data), options, providers=["CPUExecutionProvider"])
    return engine


def _engine(stand_in: StandIn) -> StandIn:
    return stand_in if "model" in stand_in._state else stand_in._state["owner"]


def _model(stand_in: StandIn) -> onnx.ModelProto:
    return _engine(stand_in)._state["model"]


def _value(engine: StandIn, index: int) -> onnx.ValueInfoProto:
    graph = _model(engine).graph
    return (graph.input[0], graph.output[0])[index]


def _shape(engine: StandIn, name: str) -> tuple[int, ...]:
    value = next(v for v in (_value(engine, 0), _value(engine, 1)) if v.name == name)
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)


def _execute(context: StandIn, handle: int) -> bool:
    """Compute at once, or when the graph being captured is launched; not without addresses."""
    if len(context._state.get("set_tensor_address", ())) < 2:
        return False
    driver = ctypes.CDLL("libcuda.so.1")
    if driver.standin_is_capturing():
        work = _WORK(lambda: _compute(context))
        context._state["work"] = work  # keeps it alive
        driver.standin_add_node(work)
    else:
        _compute(context)
    return True


def _compute(context: StandIn) -> None:
    engine = _engine(context)
    addresses = dict(context._state["set_tensor_address"])
    source, target = _value(engine, 0).name, _value(engine, 1).name
    (output,) = engine._state["session"].run(None, {source: _array(addresses[source], _shape(engine, source))})
    _array(addresses[target], _shape(engine, target))[:] = output
    profiler = context._state.get("profiler")
    if profiler is not None:
        for node in _model(engine).graph.node:
            profiler.report_layer_time(node.name, 0.25)


def _array(address: int, shape: tuple[int, ...]) -> np.ndarray:
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(memory, np.float32).reshape(shape)


def _describe(inspector: StandIn, form: Any) -> str:
    """The inspector's document in the form of the version: layers as TensorRT would fuse them, quantisers left out."""
    model = _model(inspector)
    split = inspector._recorder.trt.__version__.startswith("11.")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    layers = []
    for node in model.graph.node:
        if node.op_type.endswith("Linear"):
            continue
        quantized = [
            producer[name] for name in node.input[:2] if name in producer and "dequantize" in producer[name].name
        ]
        integer = len(quantized) == 2 and len(node.input) > 1
        word = WORDS[types[quantized[1].input[0]] if integer else onnx.TensorProto.FLOAT]
        tensor = {"Format": "Row major linear", "DataType": word} if split else {"Format/Datatype": f"{word} linear"}
        layers.append(
            {
                "Name": node.name,
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else node.op_type,
                "Inputs": [{"Name": node.input[0], **tensor}],
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
        )
    return json.dumps({"Layers": layers, ("I/O Tensors" if split else "Bindings"): []})
