"""A network kept current from a stream: windows are scored, drift is detected, updates pass a gate or are undone."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.adapt.drift import DriftDetector, Trigger
from hwsearch.adapt.fine_tune import fine_tune
from hwsearch.adapt.insert import AdapterSpec, insert
from hwsearch.adapt.memory import Anchored, Images, Labels, Memory
from hwsearch.adapt.migrate import answers
from hwsearch.adapt.recalibrate import recalibrate
from hwsearch.adapt.statistics import Statistics, measure, score

USUAL_WINDOWS = 40
"""Windows drawn from known images to learn which scores are usual."""

HELD_OUT = 4
"""One new example in so many judges an update and is not trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When and how a network is updated.

    Attributes:
        trigger: What starts an update; see `DriftDetector`.
        period: Of the trigger ``fixed``, in windows.
        examples: Labelled examples an update waits for, from the window of the detection on.
        memory: How the past is kept: examples replayed, elastic weight consolidation, or not at all.
        spec: Adapters that are trained.
        steps: Of the optimiser, per update.
        lr: Peak learning rate.
        tolerance: How far accuracy on the anchor set may fall in one update.
        versions: States kept to go back to.
        seed: Of order, sample and first weights.
    """

    trigger: Trigger = "page_hinkley"
    period: int = 20
    examples: int = 128
    memory: Literal["replay", "ewc", "none"] = "replay"
    spec: AdapterSpec = field(default_factory=AdapterSpec)
    steps: int = 150
    lr: float = 3e-3
    tolerance: float = 0.02
    versions: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened with one window.

    Attributes:
        window: Its number, from 0.
        score: Divergence of its features from those the network knows, in nats.
        drift: Whether this window made the change certain.
        accuracy: Of the network as it was when the window came.
        update: Whether an update was accepted or rolled back after it; None if none was tried.
        reason: Why.
        seconds: Of the update.
    """

    window: int
    score: float
    drift: bool
    accuracy: float
    update: Literal["accepted", "rolled back"] | None = None
    reason: str = ""
    seconds: float = 0.0


class Follower:
    """A network that follows its stream; call it with one window after the other.

    Args:
        network: As it was deployed; left as it is.
        source: Labelled source images, kept for good: replayed, and what usual scores are learnt from.
        anchor: Labelled source images that judge whether an update forgets; not among `source`.
        window: Images per window.
        policy: When and how it is updated.

    Attributes:
        network: As it is now, adapters not merged.
        versions: Earlier states, newest last.
        recent: The examples of the last update.
        judged: For each accepted update, the new examples that judged it; nothing was trained on them.
    """

    def __init__(
        self,
        network: nn.Module,
        source: tuple[Images, Labels],
        anchor: tuple[Images, Labels],
        *,
        window: int = 32,
        policy: Policy | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self._anchor, self._size = anchor, window
        self._memory = Memory(*source, seed=self._policy.seed)
        self._detector = DriftDetector(self._policy.trigger, period=self._policy.period)
        self._rng = np.random.default_rng(self._policy.seed)
        self._pending: list[tuple[Images, Labels]] | None = None
        self._count = 0
        self.network = insert(network, self._policy.spec).eval()
        self.versions: list[nn.Module] = []
        self.recent = source
        self.judged: list[tuple[Images, Labels]] = []
        self._learn_usual(source[0])

    def __call__(self, images: Images, labels: Labels) -> Event:
        """Take the next window, [n, ...] and its classes [n], and update the network if it is time."""
        found = score(measure(self.network, images, tuple(self._usual)), self._usual)
        drift = self._detector(found)
        accuracy = accuracy_of(self.network, images, labels)
        event = Event(window=self._count, score=found, drift=drift, accuracy=accuracy)
        self._count += 1
        if drift and self._pending is None:
            self._pending = []
        if self._pending is None:
            return event
        self._pending.append((images, labels))
        if sum(len(known) for _, known in self._pending) < self._policy.examples:
            return event
        return self._try_update(event)

    def roll_back(self) -> None:
        """Go back to the state before the last accepted update."""
        self.network = self.versions.pop()

    def _try_update(self, event: Event) -> Event:
        assert self._pending is not None
        started = time.perf_counter()
        images, labels = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        self._pending = None
        held = np.arange(len(labels)) % HELD_OUT == 0
        changed = self._updated(images[~held], labels[~held])
        accepted, reason = self._gate(changed, images[held], labels[held])
        if accepted:
            self.versions = [*self.versions, self.network][-self._policy.versions :]
            self.network = changed
            self._memory.add(images[~held], labels[~held])
            self.recent = images, labels
            self.judged.append((images[held], labels[held]))
        # Either way this is the scene now; the next alarm is for another one.
        self._learn_usual(images)
        return Event(
            window=event.window,
            score=event.score,
            drift=event.drift,
            accuracy=event.accuracy,
            update="accepted" if accepted else "rolled back",
            reason=reason,
            seconds=time.perf_counter() - started,
        )

    def _updated(self, images: Images, labels: Labels) -> nn.Module:
        """The network trained on new examples, and on old ones or against forgetting them."""
        policy, (old, known) = self._policy, self._memory.examples()
        penalty = Anchored(copy.deepcopy(self.network), old, known) if policy.memory == "ewc" else None
        if policy.memory == "replay":
            repeats = max(1, round(len(old) / len(images)))
            images = np.concatenate([*[images] * repeats, old])
            labels = np.concatenate([*[labels] * repeats, known])
        order = self._rng.permutation(len(images))
        changed = recalibrate(self.network, images[order], self._usual)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            error = functional.cross_entropy(outputs, targets)
            return error if penalty is None else error + penalty(changed).to(error.device)

        fine_tune(changed, images, labels, loss=loss, steps=policy.steps, lr=policy.lr, seed=policy.seed)
        return changed.eval()

    def _gate(self, changed: nn.Module, images: Images, labels: Labels) -> tuple[bool, str]:
        before, after = (accuracy_of(network, images, labels) for network in (self.network, changed))
        anchor, then = (accuracy_of(network, *self._anchor) for network in (self.network, changed))
        if anchor - then > self._policy.tolerance:
            return False, f"accuracy on the anchor set would fall from {anchor:.3f} to {then:.3f}"
        if after <= before:
            return False, f"accuracy on new examples would not rise: {before:.3f} before, {after:.3f} after"
        return (
            True,
            f"accuracy on new examples rises from {before:.3f} to {after:.3f}, anchor {anchor:.3f} to {then:.3f}",
        )

    def _learn_usual(self, images: Images) -> None:
        """Take these images as the scene the network is in: half for its statistics, half for scores of windows."""
        order = self._rng.permutation(len(images))
        one, other = images[order[::2]], images[order[1::2]]
        self._usual: Statistics = measure(self.network, one)
        draws = [self._rng.choice(len(other), min(self._size, len(other))) for _ in range(USUAL_WINDOWS)]
        self._detector.rebase(
            [score(measure(self.network, other[draw], tuple(self._usual)), self._usual) for draw in draws]
        )


def accuracy_of(network: nn.Module, images: Images, labels: Labels) -> float:
    """Share of images [n, ...] whose class [n] the network gets right."""
    return float((answers(network, images).argmax(1) == torch.from_numpy(labels)).float().mean())


def forgetting(accuracies: NDArray[np.float64]) -> float:
    """How much was lost of what was once known, on average over all scenes but the last.

    Args:
        accuracies: [stages, scenes], square, after learning each scene in turn, on every scene (Chaudhry et al. 2018);
            NaN for scenes still to come. Of a single scene nothing can be forgotten.
    """
    if len(accuracies) < 2:
        return 0.0
    best, last = np.nanmax(accuracies[:-1, :-1], axis=0), accuracies[-1, :-1]
    return float((best - last).mean())


def backward_transfer(accuracies: NDArray[np.float64]) -> float:
    """What learning later scenes did to earlier ones, on average; negative if they were forgotten (Lopez-Paz 2017).

    Args:
        accuracies: As for `forgetting`.
    """
    return float((accuracies[-1] - np.diag(accuracies))[:-1].mean()) if len(accuracies) > 1 else 0.0
