"""The recovery ladder: from what costs nothing to what needs labels; each rung stays only if it helped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwsearch.adapt.insert import merge
from hwsearch.adapt.migrate import Migration, answers, migrate
from hwsearch.adapt.recalibrate import recalibrate
from hwsearch.adapt.statistics import Statistics, measure, score
from hwsearch.adapt.unlabelled import information, sharpen

Rung = Literal["recalibrate", "sharpen", "migrate"]
RUNGS: tuple[Rung, ...] = ("recalibrate", "sharpen", "migrate")

HELD_OUT = 3
"""One labelled example in so many is not trained on until the third rung has shown that it helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is known of the place a network goes to.

    Attributes:
        images: Without labels [N, ...], as the network takes them.
        few: Labelled images [n, ...]; none if `labels` is empty.
        labels: Their classes [n].
    """

    images: NDArray[np.float32]
    few: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is kept of the data a network was trained on.

    Attributes:
        statistics: Of its features.
        replay: A few images [m, ...], to remember by.
    """

    statistics: Statistics
    replay: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a network stands in a scene.

    Attributes:
        divergence: Of its features from the source's, in nats; what recalibration can take away.
        information: What a prediction tells about an image, in nats: the entropy of the mean prediction less the mean
            entropy of predictions. It is small where the network is uncertain, and where it says one thing of all.
        accuracy: On the labelled examples that judge; None without any.
    """

    divergence: float
    information: float
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rung: what it did, whether it stayed, and why.

    Attributes:
        rung: Its name.
        kept: Whether the network goes on with it.
        reason: In words.
        before: How the network stood, judged by the same examples as `after`.
        after: How it stood with the rung.
        labels: Labels it was trained on.
        seconds: Wall time.
    """

    rung: Rung
    kept: bool
    reason: str
    before: State
    after: State
    labels: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Climb:
    """What the ladder made of a network.

    Attributes:
        network: In eval mode, adapters not merged.
        steps: One for each rung that was tried.
        how: The migration whose adapters `network` has; None if it has none.
    """

    network: nn.Module
    steps: tuple[Step, ...]
    how: Migration | None


def climb(
    network: nn.Module,
    scene: Scene,
    source: Source,
    *,
    rungs: tuple[Rung, ...] = RUNGS,
    how: Migration | None = None,
    goal: float | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Climb:
    """Adapt `network` to a scene, cheapest means first.

    A rung stays if the accuracy on labelled examples it was not trained on rises, or, without labels or between equals,
    if predictions tell more about the images. The third rung needs labels, and is judged by a third of them before it
    is trained on all; that accuracy must rise, since whatever is trained on labels predicts more decidedly.

    Args:
        network: In eval mode; left as it is.
        scene: What is known of the scene.
        source: What is kept of the source.
        rungs: Which to try.
        how: How adapters are trained.
        goal: Accuracy on the labelled examples from which on no further rung is tried; None to try all.
        on_step: Told each rung as it is done.
    """
    how, steps, current = how or Migration(), list[Step](), network
    migrated = False
    for rung in rungs:
        if (rung == "migrate" and not len(scene.labels)) or _reached(current, scene, goal):
            continue
        started = time.perf_counter()
        judged = _held_out(scene) if rung == "migrate" else scene
        before = judge(current, judged, source)
        changed = _taken(rung, current, _trained_on(scene) if rung == "migrate" else scene, source, how, network)
        after = judge(changed, judged, source)
        kept, reason = _verdict(before, after, trained=rung == "migrate")
        if kept:
            current = _taken(rung, current, scene, source, how, network) if rung == "migrate" else changed
            migrated = migrated or rung == "migrate"
        step = Step(
            rung=rung, kept=kept, reason=reason, before=before, after=after,
            labels=len(scene.labels) if rung == "migrate" else 0, seconds=time.perf_counter() - started,
        )  # fmt: skip
        steps.append(step)
        if on_step is not None:
            on_step(step)
    return Climb(current, tuple(steps), how if migrated else None)


def judge(network: nn.Module, scene: Scene, source: Source) -> State:
    """How a network stands in a scene."""
    network = merge(network)
    outputs = answers(network, scene.images)
    return State(
        divergence=score(measure(network, scene.images, tuple(source.statistics)), source.statistics),
        information=float(information(outputs)),
        accuracy=_accuracy(network, scene) if len(scene.labels) else None,
    )


def _taken(
    rung: Rung, network: nn.Module, scene: Scene, source: Source, how: Migration, teacher: nn.Module
) -> nn.Module:
    if rung == "recalibrate":
        return recalibrate(network, scene.images, source.statistics)
    if rung == "sharpen":
        return sharpen(network, scene.images, source.statistics, seed=how.seed)
    return migrate(network, scene.few, scene.labels, source.replay, teacher, source.statistics, how)


def _reached(network: nn.Module, scene: Scene, goal: float | None) -> bool:
    return goal is not None and len(scene.labels) > 0 and _accuracy(merge(network), scene) >= goal


def _accuracy(network: nn.Module, scene: Scene) -> float:
    right = answers(network, scene.few).argmax(1) == torch.from_numpy(scene.labels)
    return float(right.float().mean())


def _verdict(before: State, after: State, *, trained: bool) -> tuple[bool, str]:
    if before.accuracy is not None and after.accuracy is not None and (trained or before.accuracy != after.accuracy):
        return _risen("accuracy on labelled examples", before.accuracy, after.accuracy)
    return _risen("information in the predictions", before.information, after.information)


def _risen(what: str, before: float, after: float) -> tuple[bool, str]:
    better = after > before
    return better, f"{what} {'rose' if better else 'did not rise'}: {before:.3f} before, {after:.3f} after"


def _held_out(scene: Scene) -> Scene:
    return replace(scene, few=scene.few[::HELD_OUT], labels=scene.labels[::HELD_OUT])


def _trained_on(scene: Scene) -> Scene:
    rest = np.arange(len(scene.labels)) % HELD_OUT != 0
    return replace(scene, few=scene.few[rest], labels=scene.labels[rest])
