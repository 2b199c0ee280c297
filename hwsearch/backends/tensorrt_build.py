"""From a typed ONNX model to a serialised engine, through TensorRT's parser and builder: one code for 10 and 11."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from hwsearch.backends.base import RunOptions
from hwsearch.backends.qdq import output_axis
from hwsearch.backends.tensorrt_options import read_options
from hwsearch.backends.tensorrt_runtime import create, failure, load, message_log
from hwsearch.errors import EvaluationError
from hwsearch.store import atomic_write

FLOATS = ("fp32", "tf32", "fp16", "bf16")
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_MEGABYTE = 2**20


def build_engine(model: onnx.ModelProto, options: RunOptions, timing_cache: Path) -> bytes:
    """A serialised engine for one batch size, the model's own; the timing cache is read, used and written back.

    Raises:
        EvaluationError: TensorRT refused, in its own words.
    """
    trt = load()
    log = message_log(trt)
    builder = create(trt.Builder, log, "build")
    network = builder.create_network(_network_flags(trt))
    _parse(trt, network, model, log)
    config = _configure(trt, builder, model, options)
    cache = _attach_cache(config, timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise failure("TensorRT built no engine", log, "build")
    with atomic_write(timing_cache) as stream:
        stream.write(bytes(cache.serialize()))
    return bytes(engine)


def _network_flags(trt: Any) -> int:
    """Strongly typed; version 11 knows nothing else and may drop the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: Any, network: Any, model: onnx.ModelProto, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse(model.SerializeToString()):
        return
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    said = "; ".join(f"{error.desc()} (node `{error.node_name()}`, {error.node_operator()})" for error in errors)
    raise failure(f"TensorRT's parser refuses the model: {said}", log, "build")


def _configure(trt: Any, builder: Any, model: onnx.ModelProto, options: RunOptions) -> Any:
    config = builder.create_builder_config()
    workspace = read_options(options.options).workspace_mb * _MEGABYTE
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector would only know names
    if options.float_precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if has_sparse_weights(model):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    return config


def _attach_cache(config: Any, path: Path) -> Any:
    """The timing cache in use: the one in the file, or an empty one if TensorRT does not take it."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def cache_file(chip: str, driver: str, version: str) -> Path:
    """Where timings of kernels are kept between builds: one file per GPU, driver and TensorRT version."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = "-".join(part.replace(" ", "_").replace("/", "_") for part in (chip, driver, version))
    return root / "hwsearch" / "tensorrt" / f"{name}.timing"


def fix_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose input has a fixed first axis."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    return fixed


def check_float(model: onnx.ModelProto, precision: str) -> None:
    """Refuse a float format that TensorRT lacks, and a 16-bit one that a strongly typed network would not run.

    Raises:
        EvaluationError: says which.
    """
    if precision not in FLOATS:
        raise EvaluationError(
            f"tensorrt has no float format {precision}", stage="build", kind="invalid", hint=f"use {', '.join(FLOATS)}"
        )
    kind = _TYPES.get(precision)
    if kind is not None and not any(tensor.data_type == kind for tensor in model.graph.initializer):
        raise EvaluationError(
            f"the model holds nothing in {precision}: TensorRT would run it as it is written",
            stage="build",
            kind="invalid",
            hint=f"lower it with layers in {precision} first",
        )


def has_sparse_weights(model: onnx.ModelProto) -> bool:
    """Whether some layer's weight has two zeros in every four inputs, which sparse tensor cores skip."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        if (source := producer.get(name)) is not None and source.op_type == "DequantizeLinear":
            name = source.input[0]
        if name in constants and is_two_four(numpy_helper.to_array(constants[name]), 1 - output_axis(node)):
            return True
    return False


def is_two_four(weight: NDArray[Any], axis: int) -> bool:
    """Whether at most two of every four neighbours along `axis` are not zero, and some are."""
    if weight.ndim < 2 or weight.shape[axis] % 4:
        return False
    groups = np.moveaxis(weight != 0, axis, -1).reshape(-1, 4)
    return bool(groups.any() and (groups.sum(axis=1) <= 2).all())
