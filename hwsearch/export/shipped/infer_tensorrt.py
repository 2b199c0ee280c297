"""Run the model: python infer.py [inputs.npy]

The inputs are float32 [N, ...], preprocessed as hwsearch.json says. Without a file the stored samples run. The engine
runs on the GPU, driver and TensorRT version it was built for; elsewhere, build it again from model.onnx:
trtexec --onnx=model.onnx --saveEngine=model.engine (--stronglyTyped, with TensorRT 10).
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

FOLDER = Path(__file__).resolve().parent
FACTS = json.loads((FOLDER / "hwsearch.json").read_text())
CUDA = ctypes.CDLL("libcuda.so.1")


def cuda(name: str, *arguments: Any) -> None:
    """Call the CUDA driver; raises RuntimeError if it fails."""
    if code := getattr(CUDA, name)(*arguments):
        raise RuntimeError(f"{name} failed with CUDA error {code}")


def allocate(size_bytes: int) -> int:
    """Address of device memory."""
    pointer = ctypes.c_uint64()
    cuda("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
    return pointer.value


def load(batch: int) -> Callable[[np.ndarray], np.ndarray]:  # noqa: ARG001 - an engine's batch size is its own
    """The model as a function from inputs [N, ...] to outputs [N, ...]."""
    context = ctypes.c_void_p()
    cuda("cuInit", 0)
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    cuda("cuCtxSetCurrent", context)
    runtime = trt.Runtime(trt.Logger(trt.ILogger.WARNING))
    engine = runtime.deserialize_cuda_engine((FOLDER / FACTS["artifact"]["path"]).read_bytes())
    if engine is None:
        raise SystemExit("this engine was built for another GPU, driver or TensorRT: build it again from model.onnx")
    names = [FACTS["input"]["name"], FACTS["output"]["name"]]
    arrays = [np.zeros(tuple(engine.get_tensor_shape(name)), np.float32) for name in names]
    addresses = [allocate(array.nbytes) for array in arrays]
    execution = engine.create_execution_context()
    for name, address in zip(names, addresses, strict=True):
        execution.set_tensor_address(name, address)
    stream = ctypes.c_void_p()
    cuda("cuStreamCreate", ctypes.byref(stream), 1)
    (source, result), (device_source, device_result) = arrays, addresses

    def copy(name: str, to: int, of: int, size_bytes: int) -> None:
        cuda(name, ctypes.c_void_p(to), ctypes.c_void_p(of), ctypes.c_size_t(size_bytes), stream)

    def infer(examples: np.ndarray) -> np.ndarray:
        source[: len(examples)] = examples
        copy("cuMemcpyHtoDAsync_v2", device_source, source.ctypes.data, source.nbytes)
        execution.execute_async_v3(stream.value)
        copy("cuMemcpyDtoHAsync_v2", result.ctypes.data, device_result, result.nbytes)
        cuda("cuStreamSynchronize", stream)
        return result[: len(examples)].copy()

    infer.keeps = runtime, engine  # type: ignore[attr-defined]  # a context does not keep them alive
    step = len(source)
    return lambda inputs: np.concatenate([infer(inputs[i : i + step]) for i in range(0, len(inputs), step)])


def main() -> None:
    """Print the top class of each example."""
    samples = np.load(FOLDER / "samples.npz")
    inputs = np.load(sys.argv[1]) if len(sys.argv) > 1 else samples["inputs"]
    outputs = load(len(inputs))(inputs.astype(np.float32))
    expected = samples["outputs"] if len(sys.argv) == 1 else [None] * len(outputs)
    for number, (output, stored) in enumerate(zip(outputs, expected, strict=True)):
        match = "" if stored is None else "  as stored" if output.argmax() == stored.argmax() else "  DIFFERS"
        print(f"{number}: class {output.argmax()}{match}")


if __name__ == "__main__":
    main()
