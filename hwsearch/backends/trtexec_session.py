"""An engine run by ``trtexec``: outputs for given inputs, times in batches, and what it executes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions, check_batch
from hwsearch.backends.tensorrt_build import fix_batch, has_sparse_weights
from hwsearch.backends.tensorrt_inspect import read_layers
from hwsearch.backends.tensorrt_options import read_options
from hwsearch.backends.trtexec_command import (
    Tool,
    build_command,
    infer_command,
    inspect_command,
    read_output,
    read_profile,
    read_times,
    time_command,
)
from hwsearch.backends.trtexec_host import Host
from hwsearch.errors import EvaluationError
from hwsearch.types import Artifact, LayerTime


def build_there(
    host: Host, tool: Tool, model: onnx.ModelProto, options: RunOptions, timings: bytes
) -> tuple[bytes, bytes]:
    """An engine built on the host, and the timing cache after it.

    Raises:
        EvaluationError: trtexec refused, in its own words.
    """
    with host.folder() as there:
        names = {name: f"{there}/{name}" for name in ("model.onnx", "model.engine", "timing.cache")}
        host.put(model.SerializeToString(), names["model.onnx"])
        if timings:
            host.put(timings, names["timing.cache"])
        command = build_command(
            tool,
            read_options(options.options),
            model=names["model.onnx"],
            engine=names["model.engine"],
            cache=names["timing.cache"],
            tf32=options.float_precision == "tf32",
            sparse=has_sparse_weights(model),
        )
        host.run(command, stage="build")
        return host.get(names["model.engine"]), host.get(names["timing.cache"])


def inspect(host: Host, tool: Tool, artifact: Artifact, precision: Mapping[str, str]) -> tuple[LayerTime, ...]:
    """Every layer of an engine in order, then the layers of `precision` that none could be traced to."""
    with host.folder() as there:
        host.put(Path(artifact.path).read_bytes(), f"{there}/engine")
        command = inspect_command(
            tool, engine=f"{there}/engine", layers=f"{there}/layers.json", profile=f"{there}/profile.json"
        )
        host.run(command, stage="inspect")
        layers = json.loads(host.get(f"{there}/layers.json"))
        profile = json.loads(host.get(f"{there}/profile.json"))
    return read_layers(layers, read_profile(profile), precision)


class TrtexecSession:
    """One engine on a host. `step` hands out the times of runs made some hundred at once."""

    def __init__(self, host: Host, tool: Tool, artifact: Artifact, options: RunOptions) -> None:
        self._host, self._tool, self._options = host, tool, options
        self._settings = read_options(options.options)
        model = onnx.load(_companion(artifact))
        self._names = model.graph.input[0].name, model.graph.output[0].name
        sizes = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
        self._output_shape = [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim[1:]]
        self.input_shape: tuple[int, ...] = (options.batch, *sizes[1:])
        if sizes[0] == options.batch:
            self._engine = Path(artifact.path).read_bytes()
        else:
            self._engine, _ = build_there(host, tool, fix_batch(model, options.batch), options, b"")
        self._times: deque[int] = deque()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; N is the batch the session was opened with."""
        check_batch(batch, self.input_shape[0])
        source, target = self._names
        with self._host.folder() as there:
            self._host.put(self._engine, f"{there}/engine")
            self._host.put(np.ascontiguousarray(batch, np.float32).tobytes(), f"{there}/input")
            command = infer_command(
                self._tool, engine=f"{there}/engine", inputs={source: f"{there}/input"}, outputs=f"{there}/output.json"
            )
            self._host.run(command, stage="accuracy")
            values = read_output(json.loads(self._host.get(f"{there}/output.json")), target)
        return np.array(values, np.float32).reshape(len(batch), *self._output_shape)

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Check the batch; the tool times an engine on values of its own."""
        check_batch(batch, self.input_shape[0])

    def step(self) -> int:
        """Nanoseconds of one inference."""
        if not self._times:
            self._times.extend(self._measure())
        return self._times.popleft()

    def _measure(self) -> list[int]:
        with self._host.folder() as there:
            self._host.put(self._engine, f"{there}/engine")
            times = f"{there}/times.json"
            self._host.run(
                time_command(self._tool, self._settings, engine=f"{there}/engine", times=times), stage="measure"
            )
            found = read_times(json.loads(self._host.get(times)), transfers=self._settings.transfers)
        if not found:
            raise EvaluationError("trtexec timed no run", stage="measure", kind="tensorrt")
        return found


def _companion(artifact: Artifact) -> str:
    """The ONNX file an engine was built from.

    Raises:
        EvaluationError: it is not beside the engine.
    """
    for file in artifact.files:
        if file.endswith(".onnx"):
            return file
    raise EvaluationError(
        f"{Path(artifact.path).name} comes without the ONNX file it was built from, which trtexec needs for shapes",
        stage="open",
        kind="invalid",
    )
