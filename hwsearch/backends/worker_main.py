"""The worker's child process: loads the runtimes, so that a crash costs one candidate and not the search.

``python -m hwsearch.backends.worker_main`` reads one JSON request per line from standard input and writes one JSON
reply per line to its standard output. Whatever a runtime prints goes to the log: the replies travel on a private copy
of the descriptor. torch is never imported here.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hwsearch.backends.base import Backend, LowerRequest, RunOptions, Session, energy_meter, get_backend
from hwsearch.backends.campaign import measure_interleaved
from hwsearch.backends.energy import measure_energy
from hwsearch.backends.timing import TimingPolicy
from hwsearch.errors import BackendUnavailableError, HwSearchError
from hwsearch.types import Artifact, TensorRange, from_json, to_json

_PR_SET_PDEATHSIG = 1
_LARGE_BYTES = 64 * 2**20  # far beyond the caches: weights stream from memory wherever they lie


class Child:
    """The requests a worker answers; every argument and result is plain JSON data."""

    def __init__(self, backend: Backend, options: RunOptions) -> None:
        self._backend = backend
        self._options = options
        self._kept: tuple[dict[str, Any], Session] | None = None

    def device(self) -> Any:
        """Fingerprint of what runs with the worker's options."""
        return to_json(self._backend.device(self._options))

    def observe(self, model: str, tensors: list[str], inputs: str, bins: int) -> Any:
        """Distribution of activation tensors of the float model."""
        from hwsearch.backends.onnxruntime import observe

        examples = np.load(inputs, mmap_mode="r")
        return to_json(observe(Path(model), tensors, examples, bins, threads=self._options.threads))

    def build(self, model: str, precision: dict[str, str], ranges: Any, folder: str, options: Any) -> Any:
        """Lower and build the float model into an emptied folder."""
        import onnx

        request = LowerRequest(precision=precision, ranges=from_json(dict[str, TensorRange], ranges))
        lowered = self._backend.lower(onnx.load(model), request)
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        Path(folder).mkdir(parents=True)
        return to_json(self._backend.build(lowered, Path(folder), self._read(options)))

    def predict(self, artifact: Any, inputs: str, outputs: str, batch: int, options: Any) -> None:
        """Outputs for all examples, from file to file."""
        session = self._backend.open(from_json(Artifact, artifact), replace(self._read(options), batch=batch))
        examples = np.load(inputs, mmap_mode="r")
        parts = [_predict_batch(session, examples[i : i + batch], batch) for i in range(0, len(examples), batch)]
        np.save(outputs, np.concatenate(parts))

    def inspect(self, artifact: Any, precision: dict[str, str], options: Any) -> Any:
        """What the runtime executes, unit by unit."""
        return to_json(list(self._backend.inspect(from_json(Artifact, artifact), precision, self._read(options))))

    def sample(self, models: dict[str, Any], reference: str | None, policy: Any, partial: bool) -> Any:
        """Raw times of all models, opened together and measured in turns on the same random input."""
        rules = from_json(TimingPolicy, policy)
        sessions = self._opened(models, rules.sessions, partial=partial)
        samples = measure_interleaved(
            {name: [session.step for session in opened] for name, opened in sessions.items()},
            rules,
            time.perf_counter_ns,
            context_switches=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            reference=reference,
        )
        return to_json(samples)

    def run(self, model: dict[str, Any], examples: int) -> None:
        """Inferences on so many examples, in whole batches, by a session that is opened once."""
        if self._kept is None or self._kept[0] != model:
            self._kept = model, self._sessions(model, 1)[0]
        session = self._kept[1]
        for _ in range(math.ceil(examples / session.input_shape[0])):
            session.step()

    def energy(self, model: dict[str, Any], seconds: float) -> Any:
        """Energy per example net of idle, or None."""
        meter = energy_meter(self._backend)
        if meter is None:
            return None
        session = self._sessions(model, 1)[0]
        return to_json(measure_energy(session.step, session.input_shape[0], meter, seconds=seconds))

    def cpu_ms(self, model: dict[str, Any], seconds: float) -> float:
        """Processor time per example, over all threads; what comes first, to warm up, does not count."""
        session = self._sessions(model, 1)[0]
        _steps(session, seconds / 4)
        before = time.process_time_ns()
        calls = _steps(session, seconds)
        return (time.process_time_ns() - before) / 1e6 / calls / session.input_shape[0]

    def _opened(self, models: dict[str, Any], count: int, *, partial: bool) -> dict[str, list[Session]]:
        """Sessions of all models; if `partial`, of those that can be opened, and the log says why others cannot."""
        found: dict[str, list[Session]] = {}
        for name, model in models.items():
            try:
                found[name] = self._sessions(model, count)
            except Exception:
                if not partial or (name == list(models)[-1] and not found):
                    raise
                traceback.print_exc()
        return found

    def _sessions(self, model: Any, count: int) -> list[Session]:
        """The model opened `count` times, or once if it is too large for its memory layout to matter."""
        artifact, options = from_json(Artifact, model["artifact"]), from_json(RunOptions, model["options"])
        opened = []
        for _ in range(count if artifact.size_bytes <= _LARGE_BYTES else 1):
            session = self._backend.open(artifact, options)
            session.bind(np.random.default_rng(0).standard_normal(session.input_shape, dtype=np.float32))
            opened.append(session)
        return opened

    def _read(self, options: Any) -> RunOptions:
        return self._options if options is None else from_json(RunOptions, options)


def _predict_batch(session: Session, examples: Any, batch: int) -> Any:
    """Outputs for up to `batch` examples; the session only takes full batches, so the last is padded by repetition."""
    count = len(examples)
    full = examples if count == batch else np.take(examples, np.arange(batch) % count, axis=0)
    return session.run(np.ascontiguousarray(full, dtype=np.float32))[:count].astype(np.float32)


def _steps(session: Session, seconds: float) -> int:
    """Inferences made in about so many seconds; at least one."""
    calls, end = 0, time.monotonic() + seconds
    while not calls or time.monotonic() < end:
        session.step()
        calls += 1
    return calls


def start(backend: str, options: Any, memory_bytes: int | None) -> Child:
    """Limits first, then the runtime, so that its threads inherit the cores.

    `RLIMIT_DATA` counts private writable memory (Linux 4.7 and later). Unlike `RLIMIT_AS` it leaves out address space
    that is only reserved, of which GPU runtimes take hundreds of gigabytes; unlike watching the resident size it
    needs no one to watch.
    """
    parsed = from_json(RunOptions, options)
    if parsed.cpus:
        os.sched_setaffinity(0, parsed.cpus)
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    runtime = get_backend(backend)
    state = runtime.availability()
    if not state.ok:
        raise BackendUnavailableError(f"backend `{backend}` cannot run here: {state.problem}", hint=state.install)
    return Child(runtime, parsed)


def serve(requests: IO[str], reply: Callable[[Any], None]) -> None:
    """Answer requests until the parent closes its end; the first must be ``start``."""
    child: Child | None = None
    for line in requests:
        request = json.loads(line)
        method = request.pop("method")
        try:
            if method == "start":
                child, result = start(**request), None
            else:
                result = getattr(child, method)(**request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into a Failure
            traceback.print_exc()
            sys.stderr.flush()
            reply({"error": describe(error)})
        else:
            reply({"result": result})


def describe(error: Exception) -> dict[str, Any]:
    """The facts of `error` that the parent needs to raise it again."""
    known = error if isinstance(error, HwSearchError) else None
    return {
        "type": type(error).__name__,
        "message": known.message if known else " ".join(str(error).split()) or type(error).__name__,
        "kind": getattr(error, "kind", None),
        "stage": getattr(error, "stage", None),
        "where": known.where if known else None,
        "hint": known.hint if known else None,
    }


def _private_streams() -> tuple[IO[str], IO[str]]:
    """Requests and replies on copies of descriptors 0 and 1; the originals become the null device and the log."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return os.fdopen(requests, "r"), os.fdopen(replies, "w")


def _die_with_parent(parent: int) -> None:
    """Ask Linux for SIGKILL when the parent ends, however it ends; elsewhere the closed pipe ends us when idle."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)


def main() -> None:
    """Run the child; its only argument is the parent's process id."""
    _die_with_parent(int(sys.argv[1]))
    requests, replies = _private_streams()
    faulthandler.enable()

    def reply(message: Any) -> None:
        replies.write(json.dumps(message, separators=(",", ":")) + "\n")
        replies.flush()

    serve(requests, reply)
    os._exit(0)  # runtimes may hang or crash in their own teardown


if __name__ == "__main__":
    main()
