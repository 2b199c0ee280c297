"""How OpenVINO is set up here, and a compiled model whose buffers are allocated."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import RunOptions, check_batch
from hwsearch.backends.device import has_bf16
from hwsearch.errors import EvaluationError

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Float precision -> ``INFERENCE_PRECISION_HINT``, without which the plugin may pick bf16 for an fp32 model."""


@functools.cache
def core() -> Any:
    """The process's ``openvino.Core``; creating one takes a while."""
    import openvino

    return openvino.Core()


def settings(options: RunOptions) -> dict[str, Any]:
    """Plugin properties: one stream, explicit float format, threads pinned only if the process is."""
    return {
        "ENABLE_CPU_PINNING": bool(options.cpus),
        "INFERENCE_NUM_THREADS": options.threads,
        "INFERENCE_PRECISION_HINT": HINTS[options.float_precision],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


def check_float(options: RunOptions) -> None:
    """Refuse a float format the processor would emulate.

    Raises:
        EvaluationError: says what is missing.
    """
    name = options.float_precision
    if name == "fp32" or (name == "bf16" and has_bf16()):
        return
    reason = "this processor has neither AVX512-BF16 nor AMX" if name == "bf16" else "it offers bf16 and fp32"
    raise EvaluationError(f"openvino cannot run {name} here: {reason}", stage="build", kind="invalid", hint="use fp32")


def compile_model(path: str, options: RunOptions, **properties: Any) -> Any:
    """A ``CompiledModel`` for batches of ``options.batch``.

    Raises:
        EvaluationError: the plugin would run another float format than asked for.
    """
    check_float(options)
    model = core().read_model(path)
    shape = model.inputs[0].partial_shape
    shape[0] = options.batch
    model.reshape(shape)
    wanted = settings(options)
    compiled = core().compile_model(model, "CPU", {**wanted, **properties})
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if hint != wanted["INFERENCE_PRECISION_HINT"]:
        raise EvaluationError(
            f"openvino was asked for {wanted['INFERENCE_PRECISION_HINT']} and chose {hint}",
            stage="build",
            kind="invalid",
        )
    return compiled


class OpenVinoSession:
    """A compiled model; `step` runs on the input bound once."""

    def __init__(self, path: str, options: RunOptions) -> None:
        compiled = compile_model(path, options)
        self._request = compiled.create_infer_request()
        self.input_shape: tuple[int, ...] = tuple(compiled.inputs[0].shape)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs [N, ...] for inputs [N, ...]; N is the batch the session was opened with. Ends a binding."""
        self.bind(batch)
        self.step()
        output: NDArray[np.float32] = self._request.get_output_tensor(0).data.copy()
        return output

    def bind(self, batch: NDArray[np.float32]) -> None:
        """Fix the input of the `step` calls that follow."""
        import openvino

        check_batch(batch, self.input_shape[0])
        self._request.set_input_tensor(openvino.Tensor(np.array(batch, np.float32, order="C")))

    def step(self) -> None:
        """One inference on the bound input."""
        self._request.infer(share_outputs=True)
