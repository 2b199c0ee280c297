"""Where runtimes run: a child process that builds, predicts, inspects and measures for the search.

A child that crashes, hangs or exhausts its memory becomes an `EvaluationError`; the next call starts a new child.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.process import Exit, ExitedError, LineProcess, NoAnswerError
from hwsearch.backends.timing import DEFAULT_POLICY, Samples, TimingPolicy, summarise
from hwsearch.errors import BackendUnavailableError, ConfigError, EvaluationError
from hwsearch.types import Artifact, Device, Energy, Latency, LayerTime, Observation, from_json, to_json

START_TIMEOUT_S = 120.0  # loading a runtime from a cold disk
_TAIL_BYTES = 4000
_OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|bad allocation|[Cc]annot allocate memory|[Oo]ut of memory")
_START_ERRORS = {"BackendUnavailableError": BackendUnavailableError, "ConfigError": ConfigError}


class Worker:
    """A backend in a child process of its own, started by the first call.

    Every call blocks, asleep, until the child answers. Calls raise `EvaluationError` with the call's name as stage and
    as kind ``crash``, ``timeout``, ``memory`` or the name of the exception raised in the child. Not for use by several
    threads at once.

    Args:
        backend: Name of the backend, or ``package.module:Class``.
        options: How models are built, run and inspected where a call has no options of its own. `options.cpus` pins the
            child; the cores in a call's own options do not move it.
        memory_bytes: Most private memory the child may take; None for no limit.
        log: File the output of the runtimes is appended to; None for a temporary file.
        policy: How `measure` and `sample` measure.
    """

    def __init__(
        self,
        backend: str,
        options: RunOptions,
        *,
        memory_bytes: int | None = None,
        log: Path | None = None,
        policy: TimingPolicy = DEFAULT_POLICY,
    ) -> None:
        _check_cpus(options.cpus)
        self._start = {"backend": backend, "options": to_json(options), "memory_bytes": memory_bytes}
        self._memory_bytes = memory_bytes
        self._policy = policy
        self._log = _open_log(log)
        self._child: LineProcess | None = None
        self._starter = threading.current_thread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and close the log; the worker cannot be used again."""
        self._stop()
        self._log.close()

    def device(self) -> Device:
        """Fingerprint of what the child runs on.

        Raises:
            BackendUnavailableError: the runtime is not here.
        """
        return from_json(Device, self._call("device", START_TIMEOUT_S))

    def observe(
        self, model: Path, tensors: Sequence[str], inputs: Path, *, bins: int = 2048, timeout_s: float
    ) -> dict[str, Observation]:
        """Distribution of each tensor of the float ONNX `model` over `inputs`, a ``.npy`` file [examples, ...].

        It runs in ONNX Runtime whatever the backend; ``bins=1`` is faster and enough for min-max ranges.
        """
        reply = self._call("observe", timeout_s, model=str(model), tensors=list(tensors), inputs=str(inputs), bins=bins)
        return from_json(dict[str, Observation], reply)

    def build(
        self, model: Path, request: LowerRequest, folder: Path, *, timeout_s: float, options: RunOptions | None = None
    ) -> Artifact:
        """The artifact of the float ONNX `model`, lowered and built into `folder`; what was in there is removed."""
        reply = self._call(
            "build",
            timeout_s,
            model=str(model),
            precision=dict(request.precision),
            ranges=to_json(dict(request.ranges)),
            folder=str(folder),
            options=to_json(options),
        )
        return from_json(Artifact, reply)

    def predict(
        self,
        artifact: Artifact,
        inputs: Path,
        outputs: Path,
        *,
        batch: int,
        timeout_s: float,
        options: RunOptions | None = None,
    ) -> None:
        """Write the outputs, float32 [examples, ...], for all examples of a ``.npy`` file to another."""
        self._call(
            "predict",
            timeout_s,
            artifact=to_json(artifact),
            inputs=str(inputs),
            outputs=str(outputs),
            batch=batch,
            options=to_json(options),
        )

    def inspect(
        self, artifact: Artifact, precision: Mapping[str, str], *, timeout_s: float, options: RunOptions | None = None
    ) -> tuple[LayerTime, ...]:
        """What the runtime executes, unit by unit."""
        reply = self._call(
            "inspect",
            timeout_s,
            artifact=to_json(artifact),
            precision=dict(precision),
            options=to_json(options),
        )
        return from_json(tuple[LayerTime, ...], reply)

    def measure(
        self,
        artifacts: Mapping[str, tuple[Artifact, RunOptions]],
        *,
        reference: str | None = None,
        timeout_s: float,
        partial: bool = False,
    ) -> dict[str, Latency]:
        """Latency of every artifact, all measured in turns; `reference` names one of them.

        If `partial`, what the runtime cannot open is left out; else it is an error.
        """
        samples = self.sample(artifacts, reference=reference, timeout_s=timeout_s, stage="measure", partial=partial)
        base = None if reference is None else samples[reference]
        return {
            name: summarise(samples[name], base, policy=self._policy, batch=options.batch)
            for name, (_, options) in artifacts.items()
            if name in samples
        }

    def run(self, artifact: Artifact, options: RunOptions, examples: int, *, timeout_s: float) -> None:
        """Run the model on so many examples, in whole batches; its session stays open for the next call."""
        model = {"artifact": to_json(artifact), "options": to_json(options)}
        self._call("run", timeout_s, model=model, examples=examples)

    def energy(
        self, artifact: Artifact, options: RunOptions, *, seconds: float = 2.0, timeout_s: float
    ) -> Energy | None:
        """Energy per example net of idle, from so many seconds of inference; None where the machine counts none."""
        model = {"artifact": to_json(artifact), "options": to_json(options)}
        found = self._call("energy", timeout_s, model=model, seconds=seconds)
        return None if found is None else from_json(Energy, found)

    def cpu_ms(self, artifact: Artifact, options: RunOptions, *, seconds: float, timeout_s: float) -> float:
        """Processor time per example over all threads of the runtime, from about so many seconds of inference."""
        model = {"artifact": to_json(artifact), "options": to_json(options)}
        found: float = self._call("cpu_ms", timeout_s, model=model, seconds=seconds)
        return found

    def sample(
        self,
        artifacts: Mapping[str, tuple[Artifact, RunOptions]],
        *,
        reference: str | None = None,
        timeout_s: float,
        stage: str = "sample",
        partial: bool = False,
    ) -> dict[str, Samples]:
        """The raw times behind `measure`, for comparing models round by round."""
        models = {
            name: {"artifact": to_json(artifact), "options": to_json(options)}
            for name, (artifact, options) in artifacts.items()
        }
        reply = self._call(
            "sample",
            timeout_s,
            stage=stage,
            models=models,
            reference=reference,
            policy=to_json(self._policy),
            partial=partial,
        )
        return {name: _read_samples(data) for name, data in reply.items()}

    def _call(self, method: str, timeout_s: float, *, stage: str | None = None, **arguments: Any) -> Any:
        child = self._running_child()
        return self._ask(child, {"method": method, **arguments}, stage or method, timeout_s)

    def _running_child(self) -> LineProcess:
        """The child; a new one if there is none, or if it ended between two calls.

        The parent-death signal also comes when only the thread that started the child ends, a moment later.
        """
        if self._child is not None and (self._child.has_exited() or not self._starter.is_alive()):
            self._stop()
        if self._child is None:
            command = [sys.executable, "-m", "hwsearch.backends.worker_main", str(os.getpid())]
            self._child = LineProcess(command, _environment(), self._log)
            self._starter = threading.current_thread()
            self._ask(self._child, {"method": "start", **self._start}, "worker", START_TIMEOUT_S)
        return self._child

    def _ask(self, child: LineProcess, request: dict[str, Any], stage: str, timeout_s: float) -> Any:
        log_start = self._log_size()
        try:
            reply = child.ask(request, timeout_s)
        except NoAnswerError:
            self._stop()
            raise EvaluationError(
                f"no answer within {timeout_s:g} s", stage=stage, kind="timeout", log=self._tail(log_start)
            ) from None
        except ExitedError:
            ended = self._stop(exited=True)
            raise self._crash(ended, stage, self._tail(log_start)) from None
        except BaseException:  # Ctrl-C: the answer to this request must not be taken for the next one's
            self._stop()
            raise
        if "error" in reply:
            raise self._failure(reply["error"], stage, self._tail(log_start))
        return reply["result"]

    def _crash(self, ended: Exit | None, stage: str, log: str) -> EvaluationError:
        peak = ended.peak_bytes if ended else 0
        if _OUT_OF_MEMORY.search(log) or peak > 0.8 * _memory_available(self._memory_bytes):
            return self._out_of_memory(f"the worker ran out of memory and {ended}", stage, log)
        return EvaluationError(f"the worker {ended}", stage=stage, kind="crash", log=log)

    def _failure(self, error: dict[str, Any], stage: str, log: str) -> Exception:
        if stage == "worker":
            self._stop()
            if known := _START_ERRORS.get(error["type"]):
                return known(error["message"], where=error["where"], hint=error["hint"])
        kind = error["kind"] or error["type"]
        if kind == "MemoryError" or _OUT_OF_MEMORY.search(error["message"]):
            self._stop()  # what is left of it may fail anywhere
            return self._out_of_memory(f"the worker ran out of memory: {error['message']}", stage, log)
        return EvaluationError(error["message"], stage=error["stage"] or stage, kind=kind, hint=error["hint"], log=log)

    def _out_of_memory(self, message: str, stage: str, log: str) -> EvaluationError:
        limit = "" if self._memory_bytes is None else f" (limit {self._memory_bytes / 1e6:.0f} MB)"
        return EvaluationError(message + limit, stage=stage, kind="memory", log=log)

    def _stop(self, *, exited: bool = False) -> Exit | None:
        child, self._child = self._child, None
        return None if child is None else child.kill(exited=exited)

    def _tail(self, start: int) -> str:
        """The last lines the child wrote since `start`."""
        end = self._log_size()
        start = max(start, end - _TAIL_BYTES)
        return os.pread(self._log.fileno(), end - start, start).decode(errors="replace").strip()

    def _log_size(self) -> int:
        return os.fstat(self._log.fileno()).st_size


def _environment() -> dict[str, str]:
    """Ours, with the import path made explicit, so that the child finds what we find."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _open_log(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile("ab+")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab+")
    except OSError as error:
        raise ConfigError(f"cannot write the worker's log {path}: {error.strerror}") from error


def _read_samples(data: dict[str, Any]) -> Samples:
    """`from_json` for the one record large enough to be worth reading by hand."""
    rounds = tuple(tuple(times) for times in data.pop("rounds_ns"))
    return Samples(rounds_ns=rounds, contaminated=tuple(data.pop("contaminated")), **data)


def _check_cpus(cpus: Sequence[int]) -> None:
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("this system cannot pin a process to cores", where=f"cpus = {list(cpus)}", allowed="[]")
    usable = os.sched_getaffinity(0)
    if missing := sorted(set(cpus) - usable):
        raise ConfigError(
            f"core {missing[0]} cannot be used", where=f"cpus = {list(cpus)}", allowed=str(sorted(usable))
        )


def _memory_available(limit: int | None) -> float:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(limit or physical, physical)
