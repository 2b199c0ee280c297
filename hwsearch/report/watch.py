"""Runs that may still be growing: read only when something has changed, and only as often as is cheap."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hwsearch.report.views import Facts
from hwsearch.search.run import Run, run_folders

SHARE = 0.02
"""Of one core that reading a run may take while a search measures beside it."""

LONGEST_REST_S = 10.0
"""Between two readings, whatever they cost: a new evaluation is on the page within this and one refresh."""

FILES = ("study.db", "front.json", "sensitivity.json", "predicted.json")


class Watched:
    """A run folder and the facts in it.

    Args:
        path: The run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0  # grows with every reading
        self._facts: Facts | None = None
        self._stamp: tuple[int, ...] | None = None
        self._next_look = 0.0
        self._reading = threading.Lock()

    def facts(self) -> Facts:
        """What the folder says; `SHARE` of a core is spent on reading it, or a reading every `LONGEST_REST_S`.

        Raises:
            ConfigError: the folder is no run any more, or is damaged.
        """
        with self._reading:
            stamp = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in map(self.path.joinpath, FILES))
            changed = stamp != self._stamp or not stamp[0]  # evaluations in a database elsewhere leave no trace here
            if self._facts is None or (changed and time.monotonic() >= self._next_look):
                self._facts = self._read()
                self._stamp = stamp
                self.version += 1
            return self._facts

    def _read(self) -> Facts:
        started, busy = time.monotonic(), time.thread_time()
        facts = Facts(Run.open(self.path))
        self._next_look = started + min((time.thread_time() - busy) / SHARE, LONGEST_REST_S)
        return facts


class Board:
    """The runs a dashboard shows.

    Args:
        paths: Run folders, or folders of runs of several targets; targets that appear later are taken up.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._known: dict[Path, Watched] = {}

    def runs(self) -> list[Watched]:
        """Every run, in the order of the paths given."""
        found = [folder for path in self._paths for folder in run_folders(path).values()]
        for folder in found:
            self._known.setdefault(folder, Watched(folder))
        return [self._known[folder] for folder in dict.fromkeys(found)]
