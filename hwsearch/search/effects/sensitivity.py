"""Sensitivities measured after repair: every single choice is built as a candidate of its own and judged.

Raw damage misleads as soon as any repair follows: a branch whose loss ruins the network may be made up for entirely. So
each change goes the whole way of an evaluation, least squares and the backend's own int8 included, up to the outputs on
a fixed part of the search split. Every effect is on disk before the next begins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import EvaluationError, HwSearchError
from hwsearch.latency.build import target_device
from hwsearch.model.divergence import Divergence
from hwsearch.model.foreign import one_line
from hwsearch.search.effects.changes import Change, changes, without_loss
from hwsearch.search.effects.effects import Effect, Method, Sensitivity, write_sensitivity
from hwsearch.search.effects.log import EffectLog
from hwsearch.search.evaluate import QUICK_REFIT_IMAGES, Evaluator
from hwsearch.search.progress import Progress, Watcher
from hwsearch.space.space import decode
from hwsearch.types import PRECISIONS, Candidate, SearchSpace, SourceModel, to_json

FISHER_IMAGES = 256
"""Examples gradients are computed for, at most."""

LOG_FILE = "sensitivity.jsonl"

SWEEPS = 7
"""Over the network, so that the first changes already tell how long all of them will take."""


@dataclass(frozen=True, slots=True)
class _Task:
    """The changes to look into, the network without any, and on how many images of the search split."""

    evaluator: Evaluator
    plan: list[Change]
    whole: Candidate
    images: int


def measure_sensitivities(
    evaluator: Evaluator, space: SearchSpace, source: SourceModel, folder: Path, watch: Watcher, stop: threading.Event
) -> Sensitivity:
    """The effect of every single choice of the space; what `folder` already knows is not looked into again.

    Args:
        evaluator: Builds and judges; its study says by which method and on how many images.
        space: What may be chosen.
        source: The network.
        folder: The run folder. Each effect is written to ``work/`` at once, the whole to ``sensitivity.json``.
        watch: Told before each effect.
        stop: When set, the running effect is finished and what is known is returned.

    Raises:
        EvaluationError: even the unchanged network cannot be built.
    """
    asked = evaluator.config.sensitivity
    images = min(asked.images, len(evaluator.subject.splits.search))
    task = _Task(evaluator, changes(space, source), decode(space, source, {}), images)
    method: Method = "fisher" if asked.method == "fisher" else "measured"
    log = _log(task, space, folder, method)
    if method == "measured" and not _measure(task, log, watch, stop, patient=asked.method == "measured"):
        method = "fisher"
        log = _log(task, space, folder, method)
    if method == "fisher":
        images = _estimate(task, log)
    known = [log.effects[change.candidate.key] for change in task.plan if change.candidate.key in log.effects]
    found = Sensitivity(
        images=images,
        measure="kl" if evaluator.judge.probabilities else "relative_error",
        method=method,
        effects=(*known, *without_loss(space)),
    )
    if len(known) == len(task.plan):
        write_sensitivity(folder, found)
    return found


def _measure(task: _Task, log: EffectLog, watch: Watcher, stop: threading.Event, *, patient: bool) -> bool:
    """Measure what `log` lacks, until told to stop; False if that takes too long for one who is not `patient`."""
    missing = [change for change in _in_sweeps(task.plan) if change.candidate.key not in log.effects]
    if not missing:
        return True
    started, known = time.monotonic(), len(task.plan) - len(missing)
    unchanged = task.evaluator.divergence(task.whole, task.images)
    for done, change in enumerate(missing):
        if stop.is_set():
            break
        if not patient and log.takes_too_long(len(missing) - done):
            return False
        left = (time.monotonic() - started) / done * (len(missing) - done) if done else None
        watch(_progress(task, change, known + done, left))
        begun = time.monotonic()
        effect = _effect(task, change, unchanged)
        log.add(change.candidate.key, effect, round(time.monotonic() - begun, 3))
    return True


def _effect(task: _Task, change: Change, unchanged: Divergence) -> Effect:
    """What a change does, example by example against the network without it."""
    try:
        found = task.evaluator.divergence(change.candidate, task.images)
    except EvaluationError as error:
        return change.effect(math.inf, 0.0, f"{error.stage}: {error.message}")
    except HwSearchError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one candidate breaks must not end the search
        return change.effect(math.inf, 0.0, one_line(error))
    return change.between(Divergence(found.per_example - unchanged.per_example, found.measure))


def _estimate(task: _Task, log: EffectLog) -> int:
    """Estimate all effects in one pass of gradients, unless `log` has them; the number of images."""
    inputs = task.evaluator.subject.splits.search.inputs[: min(FISHER_IMAGES, task.images)]
    if any(change.candidate.key not in log.effects for change in task.plan):
        judge = task.evaluator.judge
        candidates = {candidate.key: candidate for candidate in (task.whole, *(c.candidate for c in task.plan))}
        found = task.evaluator.reconstructor.estimated(candidates, inputs, probabilities=judge.probabilities)
        for change in task.plan:
            if change.candidate.key in found:
                added = found[change.candidate.key] - found.get(task.whole.key, 0.0)
                effect = change.between(Divergence(added, "kl" if judge.probabilities else "relative_error"))
            else:
                effect = change.effect(math.inf, 0.0, "it does not end in a layer of its own")
            log.add(change.candidate.key, effect, 0.0)
    return len(inputs)


def _in_sweeps(plan: Sequence[Change]) -> list[Change]:
    """Several passes over the network, since changes near its input take longer than those near its output."""
    return [change for start in range(SWEEPS) for change in plan[start::SWEEPS]]


def _log(task: _Task, space: SearchSpace, folder: Path, method: Method) -> EffectLog:
    """The effects `folder`, and the study's runs on other targets, know, as far as all they depend on is the same.

    What a change of structure does to a float network, no device changes; what rounding does, the number of threads
    does not.
    """
    evaluator = task.evaluator
    structural = [
        method,
        evaluator.subject.network.source.sha256,
        evaluator.subject.splits.calibrate.sha256,
        evaluator.subject.splits.search.sha256,
        task.images,
        QUICK_REFIT_IMAGES,
        task.whole.float_precision,
        evaluator.config.recover.model_dump(),
    ]
    device = dataclasses.replace(target_device(evaluator.target), threads=1)
    ranges = (evaluator.config.quantize.model_dump(), to_json(evaluator.target.ranges))
    everything = _digest([*structural, space.float_precisions, ranges, to_json(device)])
    float_network = not any(PRECISIONS[name].integer for name in task.whole.precision.values())
    return EffectLog(
        folder / "work" / LOG_FILE,
        everything,
        structural=_digest(structural) if float_network else None,
        others=[path for path in folder.parent.glob(f"*/work/{LOG_FILE}") if path.parent.parent != folder],
    )


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _progress(task: _Task, change: Change, done: int, left: float | None) -> Progress:
    return Progress(
        target=task.evaluator.target.name,
        stage="sensitivity",
        done=done,
        total=len(task.plan),
        seconds_left=left,
        message=f"{change.kind} {change.name} {change.value}",
    )
