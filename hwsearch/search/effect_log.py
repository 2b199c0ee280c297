"""Effects on disk, each of them there before the next is looked for."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwsearch.search.effects import Effect
from hwsearch.types import from_json, to_json

PATIENCE_S, FEW = 600.0, 5
"""What measuring may take before estimating is preferred, and how many effects are seen before that is judged."""


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
