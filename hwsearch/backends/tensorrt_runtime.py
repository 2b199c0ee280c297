"""TensorRT's Python package: whether it and a GPU are here, and what it says while it works."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from hwsearch.backends import cuda
from hwsearch.backends.base import Availability
from hwsearch.errors import BackendUnavailableError, EvaluationError

VERSIONS = ("10", "11")
INSTALL = "pip install 'hwsearch[tensorrt]'"
DOWNLOAD = "NVIDIA's package from https://developer.nvidia.com/tensorrt with its lib folder on LD_LIBRARY_PATH"

_BINDINGS = ("tensorrt", *(f"tensorrt-cu{cuda_version}-bindings" for cuda_version in (13, 12)))
_MOST_MESSAGES = 50


def load() -> Any:
    """The package ``tensorrt``.

    Raises:
        BackendUnavailableError: it is not here, its libraries are not, or it is of another version.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"the Python package tensorrt is not installed ({error})", hint=INSTALL
        ) from error
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"TensorRT's Python bindings are installed, but not its libraries ({error})", hint=_libraries()
        ) from error
    version = str(tensorrt.__version__)
    if version.partition(".")[0] not in VERSIONS:
        raise BackendUnavailableError(
            f"TensorRT {version} is installed; {' or '.join(VERSIONS)} is needed", hint=f"{INSTALL} --upgrade"
        )
    return tensorrt


def _libraries() -> str:
    """How to get the libraries that belong to the bindings installed here."""
    for name in _BINDINGS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        libraries = name.removesuffix("-bindings") + ("-libs" if name.endswith("-bindings") else "")
        return f"pip install {libraries}=={version}, or {DOWNLOAD}"
    return f"{INSTALL}, or {DOWNLOAD}"


def availability() -> Availability:
    """Whether TensorRT and a GPU are here; what is missing, all of it at once, and how to get it."""
    version: str | None = None
    missing: list[BackendUnavailableError] = []
    try:
        version = str(load().__version__)
    except BackendUnavailableError as error:
        missing.append(error)
    try:
        cuda.driver()
    except BackendUnavailableError as error:
        missing.append(error)
    if not missing:
        return Availability(version=version)
    problem = "; ".join(error.message for error in missing)
    return Availability(version=version, problem=problem, install="; ".join(str(error.hint) for error in missing))


def message_log(trt: Any) -> Any:
    """A TensorRT logger that keeps warnings and errors in its list ``messages`` and prints nothing."""

    class MessageLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.WARNING and len(self.messages) < _MOST_MESSAGES:
                self.messages.append(msg)

    return MessageLog()


def failure(message: str, log: Any, stage: str, kind: str = "tensorrt") -> EvaluationError:
    """The error of something TensorRT refused, with its own last words."""
    said = f": {log.messages[-1]}" if log.messages else ""
    return EvaluationError(f"{message}{said}", stage=stage, kind=kind, log="\n".join(log.messages))


def create(factory: Any, log: Any, stage: str) -> Any:
    """A builder or runtime; TensorRT gives none where driver, GPU or libraries do not serve.

    Raises:
        EvaluationError: in TensorRT's words.
    """
    try:
        return factory(log)
    except TypeError as error:  # the bindings' way to say that the library returned nothing
        raise failure(f"TensorRT cannot start its {factory.__name__} ({error})", log, stage) from error
