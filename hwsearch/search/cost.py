"""What an example costs beside time: processor seconds, over all threads."""

from __future__ import annotations

from hwsearch.backends.worker import Worker
from hwsearch.search.evaluate import Evaluator
from hwsearch.space.profile import TABLE
from hwsearch.types import Success, Trial

SECONDS = 1.0


def cpu_ms(evaluator: Evaluator, one: Trial, other: Trial) -> tuple[float, float] | None:
    """Processor time per example of two models, in ms, one after the other in one process; None without the device."""
    if evaluator.target.backend == TABLE:
        return None
    log = evaluator.work / "logs" / "cost.log"
    with Worker(evaluator.target.backend, evaluator.run_options("fp32"), log=log) as worker:
        return _cpu_ms(evaluator, worker, one), _cpu_ms(evaluator, worker, other)


def _cpu_ms(evaluator: Evaluator, worker: Worker, trial: Trial) -> float:
    assert isinstance(trial.outcome, Success)
    options = evaluator.run_options(trial.candidate.float_precision)
    return worker.cpu_ms(evaluator.located(trial.outcome.artifact), options, seconds=SECONDS, timeout_s=60 * SECONDS)
