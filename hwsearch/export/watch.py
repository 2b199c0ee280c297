"""A bundle that follows its stream: every update that passes its gate goes into the bundle."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.adapt.follow import Event, Follower, Policy, accuracy_of, backward_transfer, forgetting
from hwsearch.adapt.insert import merge
from hwsearch.adapt.ladder import Scene
from hwsearch.adapt.scenes import SceneData
from hwsearch.errors import DataError
from hwsearch.export.deployed import REPLAY, Deployed
from hwsearch.export.manifest import Update, parse_manifest, read_facts
from hwsearch.export.update import Adaptation, update_bundle

ANCHOR = 500
"""Examples of the search split that judge whether an update forgets the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What following a stream came to.

    Attributes:
        events: One for each window.
        updates: Those that went into the bundle.
        forgetting: Accuracy lost in scenes before the last, on average; each update is a scene.
        backward_transfer: What later updates did to the accuracy in earlier scenes.
        source_before: Accuracy on the anchor set at the beginning.
        source_after: Likewise at the end.
        seconds_per_update: Mean, of training and judging; None without updates.
        updates_per_hour: How many such updates an hour has room for.
    """

    events: tuple[Event, ...]
    updates: tuple[Update, ...]
    forgetting: float
    backward_transfer: float
    source_before: float
    source_after: float
    seconds_per_update: float | None
    updates_per_hour: float | None


def watch_bundle(
    deployed: Deployed,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    name: str = "stream",
    window: int = 32,
    policy: Policy | None = None,
    publish: bool = True,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Watch:
    """Follow a stream with a bundle, window by window.

    Args:
        deployed: The bundle.
        inputs: Examples in the order in which they came [N, ...]; what does not fill a window at the end is left.
        labels: Their classes [N].
        name: Of the stream, for the bundle's record.
        window: Examples per window.
        policy: When and how the network is updated.
        publish: Whether accepted updates go into the bundle.
        on_event: Told each window.

    Raises:
        DataError: the stream does not fill a window.
    """
    if len(labels) < window:
        raise DataError(f"{name} has {len(labels)} examples", allowed=f"{window} or more, one window")
    policy, splits = policy or Policy(), deployed.subject.splits
    source = splits.calibrate.inputs[:REPLAY], splits.calibrate.targets[:REPLAY].astype(np.int64)
    anchor = splits.search.inputs[:ANCHOR], splits.search.targets[:ANCHOR].astype(np.int64)
    follower = Follower(deployed.current, source, anchor, window=window, policy=policy)
    before = accuracy_of(follower.network, *anchor)
    events, updates, rows = list[Event](), list[Update](), list[list[float]]()
    for start in range(0, len(labels) - window + 1, window):
        part = slice(start, start + window)
        event = follower(inputs[part], labels[part])
        events.append(event)
        on_event(event)
        if event.update == "accepted":
            rows.append([accuracy_of(follower.network, *scene) for scene in follower.judged])
            if publish:
                deployed, update = _published(deployed, follower, policy, event, f"{name}, window {event.window}")
                updates.append(update)
    seconds = [event.seconds for event in events if event.update]
    mean = float(np.mean(seconds)) if seconds else None
    matrix = _matrix(rows)
    return Watch(
        events=tuple(events),
        updates=tuple(updates),
        forgetting=forgetting(matrix),
        backward_transfer=backward_transfer(matrix),
        source_before=before,
        source_after=accuracy_of(follower.network, *anchor),
        seconds_per_update=mean,
        updates_per_hour=None if mean is None else 3600 / mean,
    )


def _published(
    deployed: Deployed, follower: Follower, policy: Policy, event: Event, name: str
) -> tuple[Deployed, Update]:
    """The bundle with the follower's weights; the gate has been passed already."""
    (images, labels), (judged, classes) = follower.recent, follower.judged[-1]
    # Adapters stand on the exported network only until a first update has been merged into what serves.
    fresh = deployed.current is deployed.base
    adaptation = Adaptation(
        network=follower.network if fresh else merge(follower.network),
        spec=policy.spec if fresh else None,
        rungs=("follow",),
        labels=len(labels),
        seconds=event.seconds,
    )
    data = SceneData(
        name=name,
        scene=Scene(images=images, few=images[:0], labels=labels[:0]),
        inputs=judged,
        targets=classes,
        sha256=hashlib.sha256(judged.tobytes() + classes.tobytes()).hexdigest(),
    )
    update = update_bundle(deployed, adaptation, data, remember=True, force=True, timing=False)
    return dataclasses.replace(deployed, manifest=parse_manifest(read_facts(deployed.folder))), update


def _matrix(rows: list[list[float]]) -> NDArray[np.float64]:
    """Accuracies [stages, scenes]; NaN where a scene was still to come."""
    matrix = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix
