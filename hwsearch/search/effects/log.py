"""Effects on disk, each of them there before the next is looked for."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hwsearch.search.effects.effects import Effect
from hwsearch.types import from_json, to_json

PATIENCE_S, FEW = 600.0, 5
"""What measuring may take before estimating is preferred, and how many effects are seen before that is judged."""


class EffectLog:
    """Effects on disk, one a line; lines of other origins (other weights, data, settings or devices) do not count.

    Args:
        path: The file; lines are only ever added.
        origin: What an effect depends on beside its candidate.
        structural: The same of effects that leave number formats alone; None: no less.
        others: Logs of other runs, whose effects of the same origin hold here, too.
    """

    def __init__(self, path: Path, origin: str, *, structural: str | None = None, others: Sequence[Path] = ()) -> None:
        self._path, self._origin, self._structural = path, origin, structural or origin
        self.effects: dict[str, Effect] = {}
        self._seconds: list[float] = []
        for other in others:
            for data in self._read(other):
                self._take(data | {"seconds": 0.0})
        for data in self._read(path):
            self._take(data)

    def add(self, key: str, effect: Effect, seconds: float) -> None:
        """Remember what the candidate called `key` was found to do, and how long that took."""
        data = {"origin": self._origin_of(effect.kind), "key": key, "seconds": seconds, "effect": to_json(effect)}
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
        own = [seconds for seconds in self._seconds if seconds]
        enough = sum(own) > PATIENCE_S / 10 and len(own) >= FEW
        return enough and statistics.median(own) * missing > PATIENCE_S

    def _origin_of(self, kind: str) -> str:
        return self._origin if kind == "precision" else self._structural

    def _take(self, data: dict[str, Any]) -> None:
        self.effects[data["key"]] = from_json(Effect, data["effect"])
        self._seconds.append(data.get("seconds", 0.0))

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                data = json.loads(line)
            except json.JSONDecodeError:  # empty, or a kill in the middle of it
                continue
            if data["origin"] == self._origin_of(data["effect"]["kind"]):
                yield data
