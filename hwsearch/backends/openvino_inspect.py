"""What OpenVINO really executes: the plugin's own graph, traced back to the layers, with profiled times."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from hwsearch.backends.base import RunOptions
from hwsearch.backends.openvino_session import compile_model
from hwsearch.backends.readback import complete, layer_time
from hwsearch.types import LayerTime

_WARM_UPS, _RUNS = 2, 20
_PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_SILENT = frozenset({"Reorder", "Reshape", "Transpose", "Convert", "Subgraph"})
_SUFFIXES = re.compile(r"(/.*|\.bias_add|\.weight(_quantized)?)$")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}


def inspect(path: str, precision: Mapping[str, str], options: RunOptions) -> tuple[LayerTime, ...]:
    """Every node that runs, in order, then the layers of `precision` that no node could be traced to.

    ``ms`` is the mean over a few profiled runs. The plugin states one precision for a fused subgraph, whatever is
    inside: there ``executed`` is unknown.
    """
    compiled = compile_model(path, options, PERF_COUNT=True)
    times = _profile(compiled)
    nodes = [_facts(node) for node in _executed_nodes(compiled)]
    origins = _origins(nodes, precision)
    return complete((_time(facts, times, origins, precision) for facts in nodes), precision)


def _executed_nodes(compiled: Any) -> list[Any]:
    """Nodes that run for every inference, in order: neither ends of the graph nor computed from constants only.

    The profiler's own status is no help: it also calls nodes of less than a microsecond not executed.
    """
    constant: set[str] = set()
    executed = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = _facts(node)["layerType"]
        sources = _facts(node)["inputs"]
        if kind == "Const" or (sources and constant.issuperset(sources.split(","))):
            constant.add(node.get_friendly_name())
        elif kind not in ("Input", "Output"):
            executed.append(node)
    return executed


def _origins(nodes: Sequence[Mapping[str, str]], layers: Container[str]) -> dict[str, list[str]]:
    """Node -> the layers it computes: products first, then fused subgraphs with what no product accounts for."""
    origins: dict[str, list[str]] = {}
    claimed: set[str] = set()
    executed = {facts["name"] for facts in nodes}
    for kinds in (_PRODUCTS, {"Subgraph"}):
        for facts in nodes:
            if facts["layerType"] in kinds:
                # A scale that moved past the bias takes the product's name along; the constants keep theirs.
                constants = [name for name in facts["inputs"].split(",") if name not in executed]
                originals = [*facts.get("originalLayersNames", "").split(","), *constants]
                names = dict.fromkeys(_SUFFIXES.sub("", name) for name in originals)
                origins[facts["name"]] = [name for name in names if name in layers and name not in claimed]
                claimed.update(origins[facts["name"]])
    return origins


def _profile(compiled: Any) -> dict[str, float]:
    """Node -> mean milliseconds, without the first runs, in which kernels are still compiled.

    The plugin's counters only give means since the beginning, hence the difference of two totals.
    """
    request = compiled.create_infer_request()
    batch = np.zeros(compiled.inputs[0].shape, np.float32)
    for _ in range(_WARM_UPS):
        request.infer({0: batch})
    before = _means(request)
    for _ in range(_RUNS):
        request.infer({0: batch})
    after = _means(request)
    all_runs = _WARM_UPS + _RUNS
    return {name: max(0.0, all_runs * after[name] - _WARM_UPS * before[name]) / _RUNS for name in after}


def _means(request: Any) -> dict[str, float]:
    return {info.node_name: info.real_time.total_seconds() * 1e3 for info in request.profiling_info}


def _facts(node: Any) -> dict[str, str]:
    facts = {name: str(value.astype(str)) for name, value in node.get_rt_info().items()}
    inputs = (node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size()))
    return {"name": node.get_friendly_name(), "inputs": ",".join(inputs), **facts}


def _time(
    facts: Mapping[str, str],
    times: Mapping[str, float],
    origins: Mapping[str, Sequence[str]],
    precision: Mapping[str, str],
) -> LayerTime:
    kind = facts["layerType"]
    return layer_time(
        runtime_layer=facts["name"],
        kind=kind,
        source_layers=origins.get(facts["name"], ()),
        precision=precision,
        executed=None if kind in _SILENT else _PRECISIONS.get(facts.get("runtimePrecision", "")),
        ms=times.get(facts["name"]),
    )
