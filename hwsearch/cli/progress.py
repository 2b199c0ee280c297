"""Progress of a search on stderr: one live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from hwsearch.cli.output import flags, stderr
from hwsearch.search.progress import Progress, silent

LINE_EVERY_S = 15.0


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """A watcher for a search; silent under ``--quiet``."""
    if flags().quiet:
        yield silent
    elif stderr().is_terminal:
        with _bar() as bar:
            yield _Live(bar)
    else:
        yield _Lines()


def describe(progress: Progress) -> str:
    """The moment in one line: what is going on, how long it will take, and the best so far."""
    parts = [progress.message, _time_left(progress), f"best: {progress.best}" if progress.best else ""]
    return "  ".join(part for part in parts if part)


class _Live:
    """One bar per target, redrawn in place."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        task = self._tasks.get(progress.target)
        if task is None:
            task = self._tasks[progress.target] = self._bar.add_task(progress.target, stage="", words="")
        self._bar.update(
            task,
            completed=progress.done,
            total=progress.total,
            stage="" if progress.stage == "search" else progress.stage,
            words=describe(progress),
        )


class _Lines:
    """A line for every new stage, and at most one every 15 seconds in between."""

    def __init__(self) -> None:
        self._stage = ("", "")
        self._printed = 0.0

    def __call__(self, progress: Progress) -> None:
        stage = (progress.target, progress.stage)
        if stage == self._stage and time.monotonic() - self._printed < LINE_EVERY_S:
            return
        self._stage, self._printed = stage, time.monotonic()
        counted = f" {progress.done}/{progress.total}" if progress.total else ""
        stderr().print(f"{progress.target}  {progress.stage}{counted}  {describe(progress)}".rstrip())


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}"),
        TextColumn("{task.fields[words]}"),
        console=stderr(),
    )


def duration(seconds: float) -> str:
    """So many seconds as people say it."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _time_left(progress: Progress) -> str:
    if progress.seconds_left is None:
        return ""
    left = f"{duration(progress.seconds_left)} left"
    return left if progress.stage == "search" else f"{left} of this step"
