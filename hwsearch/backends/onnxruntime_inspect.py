"""What ONNX Runtime really executes: its optimised graph, traced back to the layers, with profiled times."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwsearch.backends.base import RunOptions
from hwsearch.backends.onnxruntime_session import load, session_options
from hwsearch.backends.readback import complete, layer_time
from hwsearch.backends.rewrite import Graph
from hwsearch.types import LayerTime

_RUNS = 12
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_GLUE = ("Quantize", "Dequantize", "Reorder", "Transpose", "Reshape", "Cast")
_SUFFIX = re.compile(r"(_nchwc|_token_\d+)+$")
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}


def inspect(path: str, precision: Mapping[str, str], options: RunOptions) -> tuple[LayerTime, ...]:
    """Every kernel in execution order, then the layers of `precision` that no kernel could be traced to.

    ``executed`` is the type a kernel reads at run time; ``ms`` the median over a few profiled runs.
    """
    origins = layer_origins(onnx.load(path), precision)
    with tempfile.TemporaryDirectory() as folder:
        nodes, events = _profile(path, options, Path(folder))
    times = []
    for node in nodes:
        is_product = any(word in node.op_type for word in _PRODUCTS)
        layer = _origin(node, origins) if is_product else None
        times.append(
            layer_time(
                runtime_layer=node.name,
                kind=node.op_type,
                source_layers=[] if layer is None else [layer],
                precision=precision,
                executed=_executed(node, events[node.name]),
                ms=statistics.median(e["dur"] for e in events[node.name]) / 1e3 if events[node.name] else None,
            )
        )
    return complete(times, precision)


def layer_origins(model: onnx.ModelProto, layers: Iterable[str]) -> dict[str, str]:
    """Name of a node, of a tensor it writes or of a constant it reads -> layer.

    The runtime names fused nodes after the node or its output; blocked and quantised constants get new names.
    """
    graph = Graph(model)
    origins: dict[str, str] = {}
    for node in graph.nodes:
        if node.name not in layers:
            continue
        origins |= dict.fromkeys((node.name, node.output[0], graph.folded_output(node)), node.name)
        for name in node.input[1:]:
            producer = graph.producer.get(name)
            origins |= dict.fromkeys([name, *(producer.input[:1] if producer else [])], node.name)
    return origins


def _origin(node: onnx.NodeProto, origins: Mapping[str, str]) -> str | None:
    """The layer a product node computes: by its name, by the names in its name, by the constants it reads."""
    names = [node.name, _SUFFIX.sub("", node.name), *node.input[1:]]
    return next((origins[name] for name in names if name in origins), None)


def _profile(path: str, options: RunOptions, folder: Path) -> tuple[list[onnx.NodeProto], dict[str, list[Any]]]:
    """Nodes of the optimised graph, and the profiler's events per node name."""
    settings = session_options(options)
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "profile")
    session = load(path, settings)
    source = session.get_inputs()[0]
    batch = np.zeros([options.batch, *source.shape[1:]], np.float32)
    for _ in range(_RUNS):
        session.run(None, {source.name: batch})
    events: dict[str, list[Any]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node":
            events[event["name"].removesuffix("_kernel_time")].append(event)
    return list(onnx.load(folder / "optimized.onnx").graph.node), events


def _executed(node: onnx.NodeProto, events: list[Any]) -> str | None:
    """The format of the first tensor a kernel reads; None for glue, and if the profiler does not say."""
    if node.op_type.startswith(_GLUE) or not events:
        return None
    types = [next(iter(entry)) for entry in events[0]["args"].get("input_type_shape", []) if entry]
    return _PRECISIONS.get(types[0]) if types else None
