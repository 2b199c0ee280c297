"""``hwsearch export`` and ``hwsearch verify``: the folder that ships, and whether it is still what was exported."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.front import front_of, point_document, print_front
from hwsearch.cli.output import flags, next_step, note, print_json, print_table, print_text
from hwsearch.cli.verb import DryRun, MaxLatency, MinAccuracy, RunPath, TargetName, verb
from hwsearch.config import load_study
from hwsearch.errors import ConfigError

if TYPE_CHECKING:
    from hwsearch.search.run import Run

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="the bundle's folder")]
KeyOption = Annotated[str | None, typer.Option("--key", metavar="KEY", help="this candidate")]
WholeFront = Annotated[bool, typer.Option("--front", help="one bundle for every point of the front")]
Everywhere = Annotated[
    bool, typer.Option("--all", help="for every target of RUN the fastest model within --max-drop of fp32")
]
MaxDrop = Annotated[float, typer.Option("--max-drop", metavar="POINTS", min=0, help="accuracy --all may lose")]
Force = Annotated[bool, typer.Option("--force", help="replace a bundle that is there")]
Bundle = Annotated[Path, typer.Argument(metavar="DIR", help="a folder that `hwsearch export` wrote")]
DataOf = Annotated[
    Path | None, typer.Option("--data", metavar="STUDY", help="score again on the report split of this study")
]
Examples = Annotated[int, typer.Option("--examples", metavar="N", min=1, help="at most N examples with --data")]
Timing = Annotated[bool, typer.Option("--timing/--no-timing", help="measure latency again")]


@verb
def export(
    run: RunPath,
    *,
    out: Out,
    target: TargetName = None,
    key: KeyOption = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    front: WholeFront = False,
    all_: Everywhere = False,
    max_drop: MaxDrop = 1.0,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Write one model, with everything to run, trust and reproduce it, into a folder."""
    from hwsearch.export.bundle import export_bundle, export_front
    from hwsearch.report.html import write_report
    from hwsearch.search.run import find_run

    if all_:
        _export_all(run, out, max_drop, force=force, dry_run=dry_run)
        return
    found = find_run(run, target)
    limited = max_latency_ms is not None or min_accuracy is not None
    if (key is not None) + limited + front != 1:
        raise ConfigError(
            "which model?",
            allowed="--key KEY, or --max-latency-ms and --min-accuracy, --front for all, --all for every target",
        )
    if front:
        chosen = [point.key for point in front_of(found).points if point.on_front]
    else:
        chosen = [key or found.pick(max_latency_ms=max_latency_ms, min_accuracy=min_accuracy).key]
    if dry_run:
        _print_choice(found, chosen, out)
        return

    def report(path: Path) -> object:
        return write_report(found, path)

    if front:
        paths = export_front(found, out, force=force, write_report=report)
    else:
        paths = [export_bundle(found, chosen[0], out, force=force, write_report=report)]
    if flags().json:
        print_json({"keys": chosen, "bundles": [str(path) for path in paths]})
    else:
        print_text("\n".join(map(str, paths)))
    next_step("hwsearch", "verify", paths[0])


@verb
def verify(bundle: Bundle, *, data: DataOf = None, examples: Examples = 1000, timing: Timing = True) -> None:
    """Hash a bundle's files, run its samples, time it, and with --data score it again."""
    from hwsearch.export.verify import verify_bundle

    found = verify_bundle(bundle, data=_report_split(data) if data else None, examples=examples, timing=timing)
    if flags().json:
        print_json(found.to_json())
    else:
        verdicts = {True: "ok", False: "FAILED", None: "skipped"}
        print_table(
            ["check", "", "detail"],
            [[c.name, "warning" if c.warning and c.ok else verdicts[c.ok], c.detail] for c in found.checks],
        )
    if not found.ok:
        note("this bundle is not what was exported, or does not do the same here")
        raise typer.Exit(1)
    next_step("python", bundle / "infer.py")


def _export_all(path: Path, out: Path, max_drop: float, *, force: bool, dry_run: bool) -> None:
    """One bundle for each target of a study, below `out` under the target's name."""
    from hwsearch.export.bundle import export_bundle
    from hwsearch.report.html import write_report
    from hwsearch.search.comparison import best_within, runs_in

    chosen = [(run, best_within(run, max_drop).key) for run in runs_in(path)]
    if dry_run:
        for run, key in chosen:
            _print_choice(run, [key], out / run.path.name)
        return
    paths = [
        export_bundle(run, key, out / run.path.name, force=force, write_report=partial(write_report, run))
        for run, key in chosen
    ]
    if flags().json:
        print_json({"keys": [key for _, key in chosen], "bundles": [str(written) for written in paths]})
    else:
        print_text("\n".join(map(str, paths)))
    next_step("hwsearch", "verify", paths[0])


def _print_choice(run: Run, keys: list[str], out: Path) -> None:
    trials = [run.trial(key) for key in keys]
    points = [point for trial in trials for point in run.points() if point.key == trial.candidate.key]
    names = [trial.candidate.key for trial in trials]
    if flags().json:
        print_json({"out": str(out), "keys": names, "points": [point_document(point) for point in points]})
        return
    if points:
        print_front(front_of(run), points)
    note(f"would write {', '.join(names)} to {out}")


def _report_split(study: Path) -> tuple[Any, Any]:
    from hwsearch.model.data import load_splits

    config = load_study(study)
    report = load_splits(config.data, base_dir=config.base_dir).report
    return report.inputs, report.targets
