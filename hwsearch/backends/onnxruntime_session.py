"""How ONNX Runtime is set up here, and a loaded model whose buffers are allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions, check_batch

BATCH_AXIS = "N"
"""Name of the symbolic batch dimension of the models."""

_ERRORS_ONLY = 3


def session_options(options: RunOptions, *, any_batch: bool = False) -> Any:
    """ONNX Runtime's ``SessionOptions``: sequential, all graph optimisations, batch axis fixed unless `any_batch`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = _ERRORS_ONLY
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    if not any_batch:
        settings.add_free_dimension_override_by_name(BATCH_AXIS, options.batch)
    return settings


def load(model: Path | str | bytes, settings: Any) -> Any:
    """An ``InferenceSession`` on the CPU for a file or a serialised model."""
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


class OnnxRuntimeSession:
    """A loaded model; `step` runs on buffers bound once."""

    def __init__(self, path: str, options: RunOptions) -> None:
        self._session = load(path, session_options(options))
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.input_shape: tuple[int, ...] = tuple(self._session.get_inputs()[0].shape)
        self._binding = self._session.io_binding()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; N is the batch the session was opened with."""
        check_batch(batch, self.input_shape[0])
        output: NDArray[np.float32] = self._session.run([self._output], {self._input: batch})[0]
        return output

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Fix the input of the `step` calls that follow, and allocate their output."""
        from onnxruntime import OrtValue

        output = self.run(batch)
        self._binding.bind_ortvalue_input(self._input, OrtValue.ortvalue_from_numpy(batch))
        self._binding.bind_ortvalue_output(self._output, OrtValue.ortvalue_from_numpy(output))

    def step(self) -> None:
        """One inference on the bound input."""
        self._session.run_with_iobinding(self._binding)
