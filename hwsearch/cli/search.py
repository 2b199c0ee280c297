"""``hwsearch search``: run a study, resume it, extend it, or say what it would do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.check import print_plan
from hwsearch.cli.front import front_document, front_of, print_front
from hwsearch.cli.output import flags, next_step, note, print_json, print_text, shell, stderr
from hwsearch.cli.progress import shown_progress
from hwsearch.cli.verb import DryRun, Settings, StudyPath, TargetName, verb
from hwsearch.config import StudyConfig, load_study, resolved_yaml
from hwsearch.errors import ConfigError, SearchFailedError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.search.run import Run

INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of runs; this one gets DIR/NAME/TARGET")]
Extend = Annotated[
    int | None, typer.Option("--extend", metavar="N", min=1, help="N evaluations more than are finished")
]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="go on with a run that exists, or refuse to")]


@verb
def search(
    study: StudyPath,
    *,
    out: Out = Path("runs"),
    target: TargetName = None,
    extend: Extend = None,
    resume: Resume = True,
    settings: Settings = None,
    dry_run: DryRun = False,
) -> None:
    """Search for the fastest models at every accuracy; a run that exists is resumed."""
    from hwsearch.search.run import run_folders

    config = load_study(study, settings or ())
    folder = out / config.name
    if dry_run:
        _print_plan(config, folder)
        return
    if not resume and run_folders(folder):
        raise ConfigError(
            f"{folder} holds a run already", where="--no-resume", hint="choose another --out, or --set name=NAME"
        )
    again = shell("hwsearch", "search", study, *(("--out", out) if out != Path("runs") else ()), *_as_options(settings))
    runs = search_runs(config, folder, extend=extend, only=target, again=again)
    _print_runs(runs)
    if not any(trial.feasible for run in runs for trial in run.trials):
        note("no evaluation is within the study's limits")
        raise typer.Exit(1)
    next_step("hwsearch", "report", runs[0].path)


def search_runs(
    config: StudyConfig, folder: Path, *, extend: int | None = None, only: str | None = None, again: str
) -> list[Run]:
    """Run the study with progress on stderr.

    Ctrl-C finishes the running evaluation, says with which command to go on, and exits; a second one stops at once.
    """
    from hwsearch.search.study import run_study

    with interruptible() as stop:
        try:
            with shown_progress() as progress:
                runs = run_study(config, out=folder, extend=extend, only=only, progress=progress, stop=stop)
        except SearchFailedError:
            if not stop.is_set():
                raise
        except KeyboardInterrupt:
            stop.set()
        if not stop.is_set():
            return runs
    stderr().print(f"interrupted; every finished evaluation is saved in {folder}\n\nresume: {again}")
    raise typer.Exit(INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second raises KeyboardInterrupt as usual."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()
        stderr().print("\nfinishing the running evaluation; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _print_plan(config: StudyConfig, folder: Path) -> None:
    from hwsearch.search.prepare import plan_study
    from hwsearch.search.run import run_folders

    plans = plan_study(config)
    if flags().json:
        print_json(
            {
                "study": config.model_dump(mode="json"),
                "run": str(folder),
                "exists": sorted(run_folders(folder)),
                "plans": [to_json(plan) for plan in plans],
            }
        )
        return
    print_text(resolved_yaml(config))
    for plan in plans:
        print_plan(plan)
    exists = ", ".join(sorted(run_folders(folder)))
    note(f"would {'resume' if exists else 'write'} {folder}" + (f" ({exists})" if exists else ""))


def _print_runs(runs: list[Run]) -> None:
    fronts = [(run, front_of(run)) for run in runs]
    if flags().json:
        documents = [
            {"run": str(run.path), **front_document(front, [p for p in front.points if p.on_front])}
            for run, front in fronts
        ]
        print_json({"runs": documents})
        return
    for run, front in fronts:
        print_text(f"{run.path}")
        print_front(front, [p for p in front.points if p.on_front])
        print_text("")


def _as_options(settings: list[str] | None) -> list[str]:
    return [part for setting in settings or () for part in ("--set", setting)]
