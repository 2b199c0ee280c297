"""What an engine really executes: its inspector's layers, traced back to the network's, with profiled times."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hwsearch.backends.cuda import Buffer, Stream
from hwsearch.backends.readback import complete, layer_time
from hwsearch.backends.tensorrt_runtime import failure, load
from hwsearch.backends.tensorrt_session import Engine
from hwsearch.types import LayerTime

_RUNS = 12
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PRODUCT = re.compile(r"conv|gemm|matmul|matrix|fully", re.IGNORECASE)
_FORMATS = (
    ("int4", "w4a16"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bfloat16", "bf16"),
    ("bf16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)
"""Word in a tensor's description -> format, the more telling words first."""


def inspect(path: str, precision: Mapping[str, str]) -> tuple[LayerTime, ...]:
    """Every layer of an engine in order, then the layers of `precision` that none could be traced to.

    ``ms`` is the median over a few profiled runs, which are slower than others.
    """
    trt = load()
    engine = Engine(path)
    inspector = engine.engine.create_engine_inspector()
    document = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return read_layers(document, _profile(trt, engine), precision)


def read_layers(
    document: Mapping[str, Any], times: Mapping[str, float], precision: Mapping[str, str]
) -> tuple[LayerTime, ...]:
    """The inspector's JSON document, of version 10 or 11, as records.

    Args:
        document: ``Layers`` holds an object per layer if the engine was built with detailed verbosity, else a name.
        times: Milliseconds per layer name.
        precision: Layer of the network -> what was asked for.
    """
    layers = [entry if isinstance(entry, Mapping) else {"Name": str(entry)} for entry in document["Layers"]]
    origins = _origins(layers, precision)
    return complete(
        (
            layer_time(
                runtime_layer=entry["Name"],
                kind=str(entry.get("LayerType", "unknown")),
                source_layers=origins[number],
                precision=precision,
                executed=_executed(entry) if origins[number] else None,
                ms=times.get(entry["Name"]),
            )
            for number, entry in enumerate(layers)
        ),
        precision,
    )


def _origins(layers: Sequence[Mapping[str, Any]], precision: Mapping[str, str]) -> list[list[str]]:
    """The network's layers each engine layer computes: products first, then others with what no product claims."""
    found: list[list[str]] = [[] for _ in layers]
    claimed: set[str] = set()
    for products in (True, False):
        for number, entry in enumerate(layers):
            if bool(_PRODUCT.search(f"{entry.get('LayerType', '')} {entry['Name']}")) is products:
                found[number] = [name for name in _nodes(entry) if name in precision and name not in claimed]
                claimed.update(found[number])
    return found


def _nodes(entry: Mapping[str, Any]) -> list[str]:
    """Names of the ONNX nodes an engine layer computes: from its metadata, else from its own name."""
    noted = _ONNX_NODE.findall(str(entry.get("Metadata", "")))
    return list(dict.fromkeys([*noted, *re.split(r"\s*\+\s*|\|\|", entry["Name"])]))


def _executed(entry: Mapping[str, Any]) -> str | None:
    """The narrowest format among what a layer reads, or None if the engine does not say."""
    words = [_words(tensor).lower() for tensor in entry.get("Inputs", ()) if isinstance(tensor, Mapping)]
    name = next((name for word, name in _FORMATS if any(word in text for text in words)), None)
    return "tf32" if name == "fp32" and "tf32" in str(entry.get("TacticName", "")).lower() else name


def _words(tensor: Mapping[str, Any]) -> str:
    """A tensor's type: one field in version 10, one of its own in 11."""
    return str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or "")


def _profile(trt: Any, engine: Engine) -> dict[str, float]:
    """Layer -> median milliseconds of some runs on zeros."""
    seen: dict[str, list[float]] = defaultdict(list)

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            seen[layer_name].append(ms)

    context, stream, profiler = engine.context(), Stream(), Profiler()
    context.profiler = profiler
    buffers = {name: Buffer(4 * math.prod(engine.shape(name))) for name in (engine.input, engine.output)}
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.device)
    buffers[engine.input].view()[:] = bytes(buffers[engine.input].size_bytes)
    buffers[engine.input].upload(stream.handle)
    for _ in range(_RUNS):
        if not context.execute_async_v3(stream.handle):
            raise failure("TensorRT cannot run the engine", engine.log, "inspect")
        stream.wait()
    return {name: statistics.median(times) for name, times in seen.items()}
