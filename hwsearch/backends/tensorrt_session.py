"""A deserialised engine with its buffers, run in one stream and timed by the GPU's own clock."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions, check_batch
from hwsearch.backends.cuda import Buffer, Graph, Stopwatch, Stream, use_gpu
from hwsearch.backends.tensorrt_options import read_options
from hwsearch.backends.tensorrt_runtime import create, failure, load, message_log
from hwsearch.errors import EvaluationError

_FLOAT_BYTES = 4


class Engine:
    """An engine, what keeps it alive, and its one input and one output."""

    def __init__(self, path: str) -> None:
        use_gpu()
        trt = load()
        self.log = message_log(trt)
        self._runtime = create(trt.Runtime, self.log, "open")
        self.engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self.engine is None:
            raise failure(
                f"TensorRT cannot load {Path(path).name}, which is bound to GPU and version", self.log, "open"
            )
        self.input = self._only(trt, trt.TensorIOMode.INPUT)
        self.output = self._only(trt, trt.TensorIOMode.OUTPUT)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an input or output, batch first."""
        return tuple(int(size) for size in self.engine.get_tensor_shape(name))

    def context(self) -> Any:
        """A new execution context."""
        context = self.engine.create_execution_context()
        if context is None:
            raise failure("TensorRT gives no execution context", self.log, "open", "memory")
        return context

    def _only(self, trt: Any, mode: Any) -> str:
        engine = self.engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        found = [name for name in names if engine.get_tensor_mode(name) == mode]
        if len(found) != 1 or engine.get_tensor_dtype(found[0]) != trt.DataType.FLOAT:
            raise EvaluationError(
                f"the engine must have one {mode.name.lower()} in fp32, and has {', '.join(found) or 'none'}",
                stage="open",
                kind="invalid",
            )
        return str(found[0])


class TensorRtSession:
    """An engine ready to run. `step` times one inference with CUDA events, by default as a captured graph."""

    def __init__(self, path: str, options: RunOptions) -> None:
        settings = read_options(options.options)
        self._engine = Engine(path)
        shape = self._engine.shape(self._engine.input)
        self._output_shape = self._engine.shape(self._engine.output)
        self._engine_batch = shape[0]
        self.input_shape: tuple[int, ...] = (options.batch, *shape[1:])
        self._transfers = settings.transfers
        self._stream = Stream()
        self._watch = Stopwatch(self._stream)
        self._source = Buffer(_FLOAT_BYTES * math.prod(shape))
        self._result = Buffer(_FLOAT_BYTES * math.prod(self._output_shape))
        self._context = self._engine.context()
        self._context.set_tensor_address(self._engine.input, self._source.device)
        self._context.set_tensor_address(self._engine.output, self._result.device)
        self._enqueue()  # the first run allocates, which a graph cannot hold
        self._stream.wait()
        self._launch = Graph(self._stream, self._enqueue).launch if settings.cuda_graph else self._enqueue

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; the engine runs as often as its own batch size takes."""
        check_batch(batch, self.input_shape[0])
        starts = range(0, len(batch), self._engine_batch)
        return np.concatenate([self._infer(batch[start : start + self._engine_batch]) for start in starts])

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Put a batch on the GPU for the `step` calls that follow."""
        check_batch(batch, self.input_shape[0])
        if self._engine_batch != len(batch):
            raise ValueError(f"the engine was built for batches of {self._engine_batch}, and cannot time {len(batch)}")
        self._infer(batch)

    def step(self) -> int:
        """Nanoseconds one inference took on the GPU."""
        self._watch.start()
        if self._transfers:
            self._source.upload(self._stream.handle)
        self._launch()
        if self._transfers:
            self._result.download(self._stream.handle)
        return self._watch.stop()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise failure("TensorRT cannot run the engine", self._engine.log, "run")

    def _infer(self, examples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs for at most the engine's own batch; missing examples are zeros."""
        source = np.frombuffer(self._source.view(), np.float32).reshape(self._engine_batch, *self.input_shape[1:])
        source[: len(examples)] = examples
        source[len(examples) :] = 0
        self._source.upload(self._stream.handle)
        self._launch()
        self._result.download(self._stream.handle)
        self._stream.wait()
        return np.frombuffer(self._result.view(), np.float32).reshape(self._output_shape)[: len(examples)].copy()
