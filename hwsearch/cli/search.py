"""``hwsearch search``: run a study, resume it, extend it, or say what it would do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.check import print_plan
from hwsearch.cli.each import fronts_as_one, variants
from hwsearch.cli.front import front_document, front_of, print_front
from hwsearch.cli.output import flags, next_step, note, print_json, print_text, shell, stderr
from hwsearch.cli.progress import duration, shown_progress
from hwsearch.cli.verb import DryRun, Settings, StudyPath, TargetName, verb
from hwsearch.config import StudyConfig, resolved_yaml
from hwsearch.errors import ConfigError, SearchFailedError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.search.estimate import Estimate
    from hwsearch.search.run import Run
    from hwsearch.types import Front, FrontPoint

INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of runs; this one gets DIR/NAME/TARGET")]
Extend = Annotated[
    int | None, typer.Option("--extend", metavar="N", min=1, help="N evaluations more than are finished")
]
Each = Annotated[
    str | None,
    typer.Option("--each", metavar="KEY=A,B", help="search with each of these values, e.g. reparam.kind=plain,orepa"),
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
    each: Each = None,
    dry_run: DryRun = False,
) -> None:
    """Search for the fastest models at every accuracy; a run that exists is resumed.

    With --each, one search per value, and at the end the models of all of them measured together.
    """
    chosen = variants(study, settings or (), each)
    folders = [out / variant.config.name for variant in chosen]
    if dry_run:
        _print_plans([variant.config for variant in chosen], folders)
        return
    if not resume:
        _refuse_existing(folders)
    given = [*(("--out", out) if out != Path("runs") else ()), *_as_options("--set", settings or ())]
    again = shell("hwsearch", "search", study, *given, *_as_options("--each", [each] if each else ()))
    runs = [
        search_runs(variant.config, folder, extend=extend, only=target, again=again)
        for variant, folder in zip(chosen, folders, strict=True)
    ]
    every = [run for found in runs for run in found]
    _print_runs(every, fronts_as_one(chosen, runs) if each else [])
    keys = write_reports(every)
    if not any(trial.feasible for run in every for trial in run.trials):
        note("no evaluation is within the study's limits")
        raise typer.Exit(1)
    next_step("hwsearch", "export", every[0].path, "--key", keys[0] or "KEY", "--out", "OUT")


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


def write_reports(runs: list[Run]) -> list[str | None]:
    """Write the report of each run into its folder, tell what it recommends, and return the key of each such model."""
    from hwsearch.report.html import write_report
    from hwsearch.report.views import Facts

    found = [Facts(run).verdict for run in runs]
    for run, verdict in zip(runs, found, strict=True):
        note(f"{run.target.name}: {verdict.headline}")
        note(f"report: {write_report(run, run.path / 'report.html')}")
    return [verdict.key for verdict in found]


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


def _print_plans(configs: Sequence[StudyConfig], folders: Sequence[Path]) -> None:
    from hwsearch.search.estimate import estimate_study
    from hwsearch.search.prepare import plan_study
    from hwsearch.search.run import run_folders

    documents = []
    for config, folder in zip(configs, folders, strict=True):
        plans, exists = plan_study(config), sorted(run_folders(folder))
        note("evaluating the uniform settings, to tell how long a search would take")
        times = estimate_study(config)
        document = {"study": config.model_dump(mode="json"), "run": str(folder), "exists": exists}
        seconds = [to_json(found) | {"seconds": found.seconds} for found in times]
        documents.append({**document, "plans": [to_json(plan) for plan in plans], "time": seconds})
        if not flags().json:
            print_text(resolved_yaml(config))
            for plan, found in zip(plans, times, strict=True):
                print_plan(plan)
                print_text(f"{_in_words(found)}\n")
            note(f"would {'resume' if exists else 'write'} {folder}" + (f" ({', '.join(exists)})" if exists else ""))
    if flags().json:
        print_json(documents[0] if len(documents) == 1 else {"variants": documents})


def _in_words(found: Estimate) -> str:
    """How long a search will take, and why."""
    parts = f"{found.evaluations} evaluations of {found.evaluation_s:.1f} s"
    if found.sensitivities_s:
        parts += f", {found.sensitivities_s:.0f} s for what each choice alone does"
    return f"{found.target}: about {duration(found.seconds)}: {parts}, {found.finalists_s:.0f} s for the finalists"


def _refuse_existing(folders: Sequence[Path]) -> None:
    from hwsearch.search.run import run_folders

    for folder in folders:
        if run_folders(folder):
            raise ConfigError(
                f"{folder} holds a run already", where="--no-resume", hint="choose another --out, or --set name=NAME"
            )


def _print_runs(runs: Sequence[Run], joint: Sequence[Front]) -> None:
    """The front of every run, then those of several searches as one."""
    fronts = [(str(run.path), front_of(run)) for run in runs]
    if flags().json:
        documents = [{"run": path, **_document(front)} for path, front in fronts]
        print_json({"runs": documents, **({"together": [_document(front) for front in joint]} if joint else {})})
        return
    for title, front in [*fronts, *(("together", front) for front in joint)]:
        print_text(title)
        print_front(front, _on(front))
        print_text("")


def _document(front: Front) -> dict[str, Any]:
    return front_document(front, _on(front))


def _on(front: Front) -> list[FrontPoint]:
    return [point for point in front.points if point.on_front]


def _as_options(name: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (name, value)]
