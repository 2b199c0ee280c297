"""A batch split over two devices, so that both are done at the same time: the throughput of the pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.worker import Worker
from hwsearch.types import Artifact

TIMEOUT_S = 600.0

Run = Callable[[int], None]
"""Processes so many examples on one device, and returns when they are done."""

Clock = Callable[[], float]
"""Seconds from any origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """What two devices do together.

    Attributes:
        alone: Examples per second of each device on its own, on whole batches.
        split: Examples of a batch that each takes.
        together: Examples per second of both at once.
    """

    alone: tuple[float, float]
    split: tuple[int, int]
    together: float

    @property
    def efficiency(self) -> float:
        """Share of the sum of both throughputs that is reached."""
        return self.together / sum(self.alone)


def measure_pair(
    first: Run, second: Run, batch: int, *, seconds: float = 2.0, clock: Clock = time.perf_counter
) -> PairResult:
    """Measure two devices alone, split `batch` by that, and measure them together.

    Args:
        first: One device; called from a thread of its own, never twice at once.
        second: The other.
        batch: Examples, at least two.
        seconds: Of each of the three measurements, about.
        clock: Seconds.
    """
    alone = rate(lambda: first(batch), batch, seconds, clock), rate(lambda: second(batch), batch, seconds, clock)
    share = best_split(batch, alone)
    with ThreadPoolExecutor(2) as pool:

        def both() -> None:
            running = [pool.submit(first, share), pool.submit(second, batch - share)]
            for future in running:
                future.result()

        together = rate(both, batch, seconds, clock)
    return PairResult(alone=alone, split=(share, batch - share), together=together)


def pair_on_cores(
    path: Path, backends: tuple[str, str], options: tuple[RunOptions, RunOptions], batch: int, *, seconds: float = 2.0
) -> PairResult:
    """`measure_pair` of an ONNX file in two runtimes, each in a process of its own, pinned to the cores in its options.

    Raises:
        BackendUnavailableError: a runtime is not here.
        EvaluationError: a model cannot be built or run.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="hwsearch-")))
        workers = [stack.enter_context(Worker(name, own)) for name, own in zip(backends, options, strict=True)]
        runs = []
        for number, (worker, own) in enumerate(zip(workers, options, strict=True)):
            request = LowerRequest(precision={})
            artifact = worker.build(path, request, folder / str(number), timeout_s=TIMEOUT_S)
            runs.append(partial(_run, worker, artifact, own))
        return measure_pair(runs[0], runs[1], batch, seconds=seconds)


def _run(worker: Worker, artifact: Artifact, options: RunOptions, examples: int) -> None:
    if examples:
        worker.run(artifact, options, examples, timeout_s=TIMEOUT_S)


def best_split(batch: int, throughputs: tuple[float, float]) -> int:
    """How many examples of a batch the first of two devices takes, so that the slower to finish is done soonest."""
    one, other = throughputs
    return min(range(batch + 1), key=lambda count: max(count / one, (batch - count) / other))


def rate(work: Callable[[], None], examples: int, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Examples per second, without the first call, which allocates."""
    work()
    started, calls = clock(), 0
    while not calls or clock() - started < seconds:
        work()
        calls += 1
    return calls * examples / (clock() - started)
