"""Sensitivities measured after repair: every single choice is built as a candidate of its own and judged.

Raw damage misleads as soon as any repair follows: a branch whose loss ruins the network may be made up for entirely. So
each change goes the whole way of an evaluation, least squares and the backend's own int8 included, up to the outputs on
a fixed part of the search split. Every effect is on disk before the next begins.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.errors import EvaluationError, HwSearchError
from hwsearch.latency.build import target_device
from hwsearch.model.divergence import Divergence, Measure
from hwsearch.model.foreign import one_line
from hwsearch.search.effects import EVERYWHERE, Effect, Kind, Sensitivity, Value, write_sensitivity
from hwsearch.search.evaluate import QUICK_REFIT_IMAGES, Evaluator
from hwsearch.search.progress import Progress, Watcher
from hwsearch.space.space import decode
from hwsearch.types import PRECISIONS, Candidate, SearchSpace, SourceModel, from_json, to_json

WIDTHS = 3
"""Widths measured per group, besides the full one; those between are interpolated."""

FISHER_IMAGES = 256
"""Examples gradients are computed for, at most."""

PATIENCE_S, FEW = 600.0, 5
"""Above this, ``auto`` estimates instead of measuring; not before it has seen a few effects."""

SWEEPS = 7
"""Over the network, so that the first changes already tell how long all of them will take."""


@dataclass(frozen=True, slots=True)
class Change:
    """One choice that differs from the original, and the candidate that differs in nothing else."""

    kind: Kind
    name: str
    value: Value
    candidate: Candidate

    def effect(self, loss: float, sigma: float, problem: str | None = None) -> Effect:
        """What this change was found to do."""
        return Effect(kind=self.kind, name=self.name, value=self.value, loss=loss, sigma=sigma, problem=problem)

    def between(self, added: Divergence) -> Effect:
        """The same, from what it adds to the divergence of each example."""
        return self.effect(max(0.0, added.mean), added.standard_error)


def measure_sensitivities(
    evaluator: Evaluator, space: SearchSpace, source: SourceModel, folder: Path, watch: Watcher, stop: threading.Event
) -> Sensitivity:
    """The effect of every single choice of the space; what `folder` already knows is not measured again.

    Args:
        evaluator: Builds and judges; its study says on how many images.
        space: What may be chosen.
        source: The network.
        folder: The run folder. Each effect is written to ``work/`` at once, the whole to ``sensitivity.json``.
        watch: Told before each effect.
        stop: When set, the running effect is finished and what is known is returned.

    Raises:
        EvaluationError: even the unchanged network cannot be built.
    """
    if evaluator.config.sensitivity.method == "fisher":
        return _kept(estimate_sensitivities(evaluator, space, source), folder)
    images = min(evaluator.config.sensitivity.images, len(evaluator.subject.splits.search))
    plan = changes(space, source)
    log = EffectLog(folder / "work" / "sensitivity.jsonl", _origin(evaluator, space, images))
    missing = [change for change in _in_sweeps(plan) if change.candidate.key not in log.effects]
    unchanged = evaluator.divergence(decode(space, source, {}), images)
    started = time.monotonic()
    for done, change in enumerate(missing):
        if stop.is_set():
            break
        if evaluator.config.sensitivity.method == "auto" and log.takes_too_long(len(missing) - done):
            return _kept(estimate_sensitivities(evaluator, space, source), folder)
        left = (time.monotonic() - started) / done * (len(missing) - done) if done else None
        watch(_progress(evaluator, change, len(plan) - len(missing) + done, len(plan), left))
        log.add(change.candidate.key, *_measured(evaluator, change, images, unchanged))
    known = [log.effects[change.candidate.key] for change in plan if change.candidate.key in log.effects]
    found = Sensitivity(
        images=images, measure=unchanged.measure, method="measured", effects=(*known, *_without_loss(space))
    )
    return _kept(found, folder) if len(known) == len(plan) else found


def estimate_sensitivities(evaluator: Evaluator, space: SearchSpace, source: SourceModel) -> Sensitivity:
    """The effect of every single choice by its Fisher score, from one pass of gradients."""
    plan, unchanged = changes(space, source), decode(space, source, {})
    inputs = evaluator.subject.splits.search.inputs[: min(FISHER_IMAGES, evaluator.config.sensitivity.images)]
    found = evaluator.reconstructor.estimated(
        {candidate.key: candidate for candidate in (unchanged, *(change.candidate for change in plan))},
        inputs,
        probabilities=evaluator.judge.probabilities,
    )
    measure: Measure = "kl" if evaluator.judge.probabilities else "relative_error"

    def effect(change: Change) -> Effect:
        if change.candidate.key not in found:
            return change.effect(math.inf, 0.0, "it does not end in a layer of its own")
        return change.between(Divergence(found[change.candidate.key] - found.get(unchanged.key, 0.0), measure))

    return Sensitivity(
        images=len(inputs),
        measure=measure,
        method="fisher",
        effects=(*map(effect, plan), *_without_loss(space)),
    )


def changes(space: SearchSpace, source: SourceModel) -> list[Change]:
    """Every single change that is measured, in the order of the network; float formats, which hold for all, last."""
    branch_at = {branch.layers[0]: branch.name for branch in source.branches if branch.name in space.droppable}
    found: list[tuple[Kind, str, Value, str, int]] = []
    for layer in (layer.name for layer in source.layers):
        if layer in branch_at:
            found.append(("drop", branch_at[layer], 1, f"drop:{branch_at[layer]}", 0))
        widths = space.widths.get(layer, ())
        found += [("keep", layer, widths[i], f"keep:{layer}", i) for i in _positions(widths)]
        narrower = space.precisions[layer][:-1]
        integers = [name for name in narrower if PRECISIONS[name].integer]
        found += [("precision", layer, name, f"precision:{layer}", i) for i, name in enumerate(integers)]
    floats = enumerate(space.float_precisions[:-1])
    found += [("precision", EVERYWHERE, name, "float", i) for i, name in floats]
    return [Change(kind, name, value, decode(space, source, {key: i})) for kind, name, value, key, i in found]


def _kept(found: Sensitivity, folder: Path) -> Sensitivity:
    write_sensitivity(folder, found)
    return found


class EffectLog:
    """Effects on disk, one a line; lines of other origins (other weights, data, settings or devices) do not count.

    Args:
        path: The file; lines are only ever added.
        origin: What an effect depends on beside its candidate.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self._path, self._origin = path, origin
        self.effects: dict[str, Effect] = {}
        self._seconds: list[float] = []
        for data in self._read():
            self._take(data)

    def add(self, key: str, effect: Effect, seconds: float) -> None:
        """Remember what the candidate called `key` was found to do, and how long that took."""
        data = {"origin": self._origin, "key": key, "seconds": seconds, "effect": to_json(effect)}
        line = json.dumps(data)
        with self._path.open("a") as stream:
            stream.write(f"\n{line}")  # in front, so that what a kill cut short does not spoil the next line
            stream.flush()
            os.fsync(stream.fileno())
        self._take(data)

    def takes_too_long(self, missing: int) -> bool:
        """Whether so many more effects would take longer than anyone waits; unknown, so no, in the first minute.

        Judged by the median: the first effect also pays for what all of them share.
        """
        enough = sum(self._seconds) > PATIENCE_S / 10 and len(self._seconds) >= FEW
        return enough and statistics.median(self._seconds) * missing > PATIENCE_S

    def _take(self, data: dict[str, Any]) -> None:
        self.effects[data["key"]] = from_json(Effect, data["effect"])
        self._seconds.append(data.get("seconds", 0.0))

    def _read(self) -> Iterator[dict[str, Any]]:
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                data = json.loads(line)
            except json.JSONDecodeError:  # empty, or a kill in the middle of it
                continue
            if data["origin"] == self._origin:
                yield data


def _measured(evaluator: Evaluator, change: Change, images: int, unchanged: Divergence) -> tuple[Effect, float]:
    """The change's effect, example by example against the network without it, and the seconds it took."""
    started = time.monotonic()
    effect = _effect(evaluator, change, images, unchanged)
    return effect, round(time.monotonic() - started, 3)


def _effect(evaluator: Evaluator, change: Change, images: int, unchanged: Divergence) -> Effect:
    try:
        found = evaluator.divergence(change.candidate, images)
    except EvaluationError as error:
        return change.effect(math.inf, 0.0, f"{error.stage}: {error.message}")
    except HwSearchError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one candidate breaks must not end the search
        return change.effect(math.inf, 0.0, one_line(error))
    return change.between(Divergence(found.per_example - unchanged.per_example, found.measure))


def _positions(widths: Sequence[int]) -> list[int]:
    """Positions of the widths that are measured: the smallest, and evenly spaced ones below the full width."""
    if not widths:
        return []
    wanted = np.linspace(widths[0], widths[-1], WIDTHS, endpoint=False)
    return sorted({int(np.abs(np.array(widths[:-1]) - width).argmin()) for width in wanted})


def _without_loss(space: SearchSpace) -> list[Effect]:
    """The choices that change nothing."""
    chosen: list[tuple[Kind, str, Value]] = [("keep", name, widths[-1]) for name, widths in space.widths.items()]
    chosen += [("precision", name, offered[-1]) for name, offered in space.precisions.items()]
    return [Effect(kind=kind, name=name, value=value, loss=0.0, sigma=0.0) for kind, name, value in chosen]


def _in_sweeps(plan: Sequence[Change]) -> list[Change]:
    """Several passes over the network, since changes near its input take longer than those near its output."""
    return [change for start in range(SWEEPS) for change in plan[start::SWEEPS]]


def _origin(evaluator: Evaluator, space: SearchSpace, images: int) -> str:
    """Hash of everything an effect depends on beside its candidate."""
    splits, config = evaluator.subject.splits, evaluator.config
    parts = [
        evaluator.subject.network.source.sha256,
        splits.calibrate.sha256,
        splits.search.sha256,
        images,
        QUICK_REFIT_IMAGES,
        space.float_precisions,
        config.recover.model_dump(),
        config.quantize.model_dump(),
        to_json(target_device(evaluator.target)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _progress(evaluator: Evaluator, change: Change, done: int, total: int, left: float | None) -> Progress:
    return Progress(
        target=evaluator.target.name,
        stage="sensitivity",
        done=done,
        total=total,
        seconds_left=left,
        message=f"{change.kind} {change.name} {change.value}",
    )
