"""The fronts of several searches as one: their models measured in turns and judged against each other.

Searches that ran at different times are told apart by what the machine did meanwhile, too. Their finalists need one
campaign before a choice among them means anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from hwsearch.backends.timing import TimingPolicy
from hwsearch.backends.worker import START_TIMEOUT_S, Worker
from hwsearch.errors import ConfigError
from hwsearch.search.evaluate import CAMPAIGN_SLACK
from hwsearch.search.front import judged
from hwsearch.search.run import Run
from hwsearch.search.run_options import latency_options
from hwsearch.types import Front, FrontPoint, Latency

TABLE = "table"


def together(runs: Mapping[str, Run], *, log: Path | None = None) -> Front:
    """One front out of the fronts and baselines of `runs`; its points are called ``label/key``.

    Latencies are measured anew, all in one campaign; those of a device known by a table alone stay as they are.

    Args:
        runs: Label -> finished search; all of one target, and scored on the same examples.
        log: File the output of the runtime is appended to.

    Raises:
        ConfigError: the runs cannot be compared, or one has no front.
        EvaluationError: a model cannot be opened or measured any more.
    """
    first = next(iter(runs.values()))
    for label, run in runs.items():
        _check_comparable(label, run, first)
    points = {
        f"{label}/{point.key}": (run, point)
        for label, run in runs.items()
        for point in run.points()
        if point.on_front or point.baseline
    }
    latencies = {} if first.target.backend == TABLE else _measured(points, first, log)
    return judged(
        [
            dataclasses.replace(point, key=name, latency=latencies.get(name, point.latency))
            for name, (_, point) in points.items()
        ],
        target=first.target.name,
        device=first.device,
        objectives=first.config.objectives,
        final=all(run.front is not None and run.front.final for run in runs.values()),
    )


def _check_comparable(label: str, run: Run, first: Run) -> None:
    if run.front is None:
        raise ConfigError(f"{run.path} has no front yet", hint=f"search on: hwsearch search {run.path / 'study.yaml'}")
    for what, mine, theirs in (
        ("target", run.target.name, first.target.name),
        ("device", run.device, first.device),
        ("set of examples", run.data["report"], first.data["report"]),
        ("metric", run.config.metric, first.config.metric),
    ):
        if mine != theirs:
            raise ConfigError(f"`{label}` cannot be compared with the others: another {what}", where=f"{run.path}")


def _measured(points: Mapping[str, tuple[Run, FrontPoint]], first: Run, log: Path | None) -> dict[str, Latency]:
    models = {
        name: (
            run.artifact(point.key),
            latency_options(run.target, run.trial(point.key).candidate.float_precision),
        )
        for name, (run, point) in points.items()
    }
    settings = first.config.measure
    policy = TimingPolicy(rounds=settings.rounds, min_rounds=settings.min_rounds, seconds=settings.seconds)
    with Worker(first.target.backend, latency_options(first.target, "fp32"), log=log, policy=policy) as worker:
        return worker.measure(models, timeout_s=START_TIMEOUT_S + CAMPAIGN_SLACK * policy.seconds * len(models))
