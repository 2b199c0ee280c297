"""As much of the CUDA driver as inference needs: memory, streams, events and graphs of one GPU.

`libcuda.so.1` comes with NVIDIA's driver, so nothing has to be installed and every CUDA version serves. Each function's
argument types are declared below as `cuda.h` has them; every call's result is checked.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from hwsearch.errors import BackendUnavailableError, EvaluationError

LIBRARY = "libcuda.so.1"

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuMemAlloc_v2": (POINTER(c_ulonglong), c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
}
"""Function -> argument types; all return CUresult, 0 for success."""

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_NON_BLOCKING = 1
_THREAD_LOCAL_CAPTURE = 1
_OUT_OF_MEMORY = 2
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76
_NAME_BYTES = 256

FEATURES = (("int8", (7, 5)), ("fp16", (7, 5)), ("tf32", (8, 0)), ("bf16", (8, 0)), ("fp8", (8, 9)), ("fp4", (10, 0)))
"""Format -> first compute capability whose tensor cores multiply it (7.5 is the least TensorRT 10 and 11 run on)."""


@functools.cache
def driver() -> Any:
    """The driver library, initialised.

    Raises:
        BackendUnavailableError: no driver, one that is too old, or no GPU.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendUnavailableError(
            f"there is no NVIDIA driver ({error})", hint="install NVIDIA's driver, or run where there is a GPU"
        ) from error
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise BackendUnavailableError(f"the NVIDIA driver is too old: it has no {name}", hint="update the driver")
        function.argtypes, function.restype = arguments, c_int
    if code := library.cuInit(0):
        raise BackendUnavailableError(f"no NVIDIA GPU can be used: {_explain(library, code)}", hint="see nvidia-smi")
    return library


@functools.cache
def use_gpu() -> None:
    """Make the first GPU's primary context, which TensorRT works in too, current in this thread."""
    device = _new("cuDeviceGet", c_int, 0)
    call("cuCtxSetCurrent", _new("cuDevicePrimaryCtxRetain", c_void_p, device))


def call(name: str, *arguments: Any) -> None:
    """Call a driver function.

    Raises:
        EvaluationError: it failed; says why.
    """
    library = driver()
    if code := getattr(library, name)(*arguments):
        kind = "memory" if code == _OUT_OF_MEMORY else "cuda"
        raise EvaluationError(f"{name}: {_explain(library, code)}", stage="run", kind=kind)


def _explain(library: Any, code: int) -> str:
    text = c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"{text.value.decode() if text.value else 'unknown error'} (CUDA error {code})"


def _new(name: str, kind: Any, *arguments: Any) -> Any:
    """What a driver function writes through its first argument."""
    result = kind()
    call(name, ctypes.byref(result), *arguments)
    return result.value


# --------------------------------------------------------------------------- the device


def gpu_name() -> str:
    """The GPU's name as the driver gives it."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    call("cuDeviceGetName", text, _NAME_BYTES, 0)
    return text.value.decode()


def gpu_bus_id() -> str:
    """The GPU's PCI address, by which the driver's other libraries know it, too."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    call("cuDeviceGetPCIBusId", text, _NAME_BYTES, 0)
    return text.value.decode()


def compute_capability() -> tuple[int, int]:
    """Major and minor number, e.g. (8, 9)."""
    return (
        _new("cuDeviceGetAttribute", c_int, _COMPUTE_MAJOR, 0),
        _new("cuDeviceGetAttribute", c_int, _COMPUTE_MINOR, 0),
    )


def gpu_features(capability: tuple[int, int]) -> tuple[str, ...]:
    """``sm_<number>`` and the formats of `FEATURES` that a GPU of this compute capability multiplies."""
    return (f"sm_{capability[0]}{capability[1]}", *(name for name, first in FEATURES if capability >= first))


def driver_version() -> str:
    """The driver's version, e.g. ``580.65.06``, or where it does not say, its CUDA version, e.g. ``CUDA 13.0``."""
    if _KERNEL_MODULE.is_file() and (found := re.search(r"\b\d+\.\d+(\.\d+)?\b", _KERNEL_MODULE.read_text())):
        return found.group()
    number = _new("cuDriverGetVersion", c_int)
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


# --------------------------------------------------------------------------- memory, streams, events, graphs


class Buffer:
    """Device memory with a page-locked host copy of the same size."""

    def __init__(self, size_bytes: int) -> None:
        use_gpu()
        self.size_bytes = max(size_bytes, 1)
        self.device: int = _new("cuMemAlloc_v2", c_ulonglong, self.size_bytes)
        self.host: int = _new("cuMemHostAlloc", c_void_p, self.size_bytes, 0)

    def upload(self, stream: int) -> None:
        """Host to device, in the stream."""
        call("cuMemcpyHtoDAsync_v2", self.device, self.host, self.size_bytes, stream)

    def download(self, stream: int) -> None:
        """Device to host, in the stream."""
        call("cuMemcpyDtoHAsync_v2", self.host, self.device, self.size_bytes, stream)

    def view(self) -> memoryview:
        """The host copy as bytes, writable."""
        return memoryview((ctypes.c_ubyte * self.size_bytes).from_address(self.host)).cast("B")

    def close(self) -> None:
        """Give both back."""
        call("cuMemFree_v2", self.device)
        call("cuMemFreeHost", self.host)


class Stream:
    """A stream of work that waits for no other."""

    def __init__(self) -> None:
        use_gpu()
        self.handle: int = _new("cuStreamCreate", c_void_p, _NON_BLOCKING)

    def wait(self) -> None:
        """Return when everything in the stream is done."""
        call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Give it back."""
        call("cuStreamDestroy_v2", self.handle)


class Graph:
    """What `work` puts into a stream, recorded once and launched as a whole."""

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        recorded = c_void_p()
        call("cuStreamBeginCapture_v2", stream.handle, _THREAD_LOCAL_CAPTURE)
        try:
            work()
        finally:
            call("cuStreamEndCapture", stream.handle, ctypes.byref(recorded))
        self._stream = stream
        self._handle: int = _new("cuGraphInstantiateWithFlags", c_void_p, recorded, 0)
        call("cuGraphDestroy", recorded)

    def launch(self) -> None:
        """Put the recorded work into the stream."""
        call("cuGraphLaunch", self._handle, self._stream.handle)

    def close(self) -> None:
        """Give it back."""
        call("cuGraphExecDestroy", self._handle)


class Stopwatch:
    """Two events around work in a stream: the GPU's own clock, which host and queueing do not touch."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._start: int = _new("cuEventCreate", c_void_p, 0)
        self._end: int = _new("cuEventCreate", c_void_p, 0)

    def start(self) -> None:
        """Mark the beginning."""
        call("cuEventRecord", self._start, self._stream.handle)

    def stop(self) -> int:
        """Mark the end, wait for it, and return the nanoseconds between."""
        call("cuEventRecord", self._end, self._stream.handle)
        call("cuEventSynchronize", self._end)
        return int(_new("cuEventElapsedTime", c_float, self._start, self._end) * 1e6)

    def close(self) -> None:
        """Give both events back."""
        call("cuEventDestroy_v2", self._start)
        call("cuEventDestroy_v2", self._end)
