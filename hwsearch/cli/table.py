"""``hwsearch table``: build, check, show and import latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.output import flags, next_step, note, print_facts, print_json, print_table
from hwsearch.cli.verb import Settings, StudyPath, TargetName, verb
from hwsearch.config import load_study
from hwsearch.errors import ConfigError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.latency.files import TableCheck
    from hwsearch.latency.table import LatencyTable
    from hwsearch.search.evaluate import Subject
    from hwsearch.types import SearchSpace, Target

Root = Annotated[Path, typer.Option("--tables", metavar="FOLDER", help="where latency tables lie")]
Folder = Annotated[Path, typer.Argument(metavar="TABLE", help="the folder of a table")]
CsvPath = Annotated[Path, typer.Argument(metavar="CSV", help="one row per unit and channel counts")]
Models = Annotated[int, typer.Option("--models", metavar="N", min=20, help="whole models to measure")]
Origin = Annotated[str, typer.Option("--origin", metavar="TEXT", help="where the numbers come from")]
Modelled = Annotated[
    bool, typer.Option("--modelled/--measured", help="computed from a model, or measured on the device")
]
ForTarget = Annotated[str, typer.Option("--target", metavar="NAME", help="the target the table describes")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="HTML", help="write predicted against measured here")]

ROOT = Path("latency_tables")

app = typer.Typer(name="table", help="Latency tables: what answers instead of the device.", no_args_is_help=True)


@app.command()
@verb
def build(study: StudyPath, *, target: TargetName = None, tables: Root = ROOT, settings: Settings = None) -> None:
    """Measure the units a study's space can reach, and check the table against whole models.

    For a device described by a roofline, compute them.
    """
    from hwsearch.latency.build import build_table
    from hwsearch.latency.roofline import roofline_table
    from hwsearch.space.profile import TABLE

    subject, chosen, space, folder = _prepared(study, target, tables, settings)
    if chosen.roofline is not None:
        roofline_table(subject.network, space, chosen, folder)
        next_step("hwsearch", "table", "show", folder)
        return
    if chosen.backend == TABLE:
        raise ConfigError(f"`{chosen.name}` is not here to be measured", hint="hwsearch table import CSV FOLDER")
    table = build_table(subject.network, space, chosen, folder, _progress)
    _check(table, subject, space, chosen, models=40, plot=None)
    next_step("hwsearch", "table", "show", folder)


@app.command()
@verb
def check(
    study: StudyPath,
    *,
    target: TargetName = None,
    tables: Root = ROOT,
    models: Models = 40,
    plot: Plot = None,
    settings: Settings = None,
) -> None:
    """Measure whole candidates, compare them with what the table says, and record how good it is."""
    from hwsearch.latency.table import LatencyTable

    subject, chosen, space, folder = _prepared(study, target, tables, settings)
    _check(LatencyTable.load(folder), subject, space, chosen, models=models, plot=plot)


@app.command()
@verb
def show(table: Folder) -> None:
    """What a table is of, how good it is, and what it holds."""
    from hwsearch.latency.table import LatencyTable, gate

    loaded = LatencyTable.load(table)
    problem = gate(loaded.manifest)
    if flags().json:
        print_json({"manifest": to_json(loaded.manifest), "refused": problem})
        return
    manifest = loaded.manifest
    print_facts(
        {
            "device": f"{manifest.device.chip}, {manifest.device.backend} {manifest.device.backend_version}",
            "batch": str(manifest.batch),
            "source": f"{manifest.source}: {manifest.origin}",
            "created": manifest.created,
            "use in a search": f"refused: {problem}" if problem else "yes",
        }
    )
    if manifest.check:
        _print_check("check", manifest.check)
    if manifest.tempting:
        _print_check("of these, looked best", manifest.tempting)
    rows = [
        [str(kind), str(len(nodes)), f"{min(e.latency_us for e in nodes.values()):.2f}",
         f"{max(e.latency_us for e in nodes.values()):.2f}"]
        for kind, nodes in sorted(loaded.entries.items(), key=lambda item: str(item[0]))
    ]  # fmt: skip
    print_table(["unit", "entries", "least µs", "most µs"], rows)


@app.command("import")
@verb
def import_(csv: CsvPath, out: Folder, *, target: ForTarget, origin: Origin, modelled: Modelled = True) -> None:
    """Make a table of a CSV file, for a device that is not here."""
    from hwsearch.latency.build import target_device
    from hwsearch.latency.table import import_table
    from hwsearch.space.target import load_target

    described = load_target(target)
    table = import_table(
        csv,
        out,
        target_device(described),
        batch=described.batch,
        source="modelled" if modelled else "measured",
        origin=origin,
    )
    print_facts({"entries": str(sum(map(len, table.entries.values()))), "table": str(table.folder)})


def _prepared(
    study: Path, name: str | None, tables: Path, settings: list[str] | None
) -> tuple[Subject, Target, SearchSpace, Path]:
    from hwsearch.latency.build import target_device
    from hwsearch.latency.table import table_folder
    from hwsearch.search.prepare import load_subject, ready_target, space_for

    config = load_study(study, settings or ())
    names = [name] if name else list(config.targets)
    if len(names) > 1 or names[0] not in config.targets:
        raise ConfigError(
            "name one target of the study", where=f"--target {name or ''}", allowed=", ".join(config.targets)
        )
    target = ready_target(names[0], config)
    subject = load_subject(config)
    return (
        subject,
        target,
        space_for(subject, target, config),
        table_folder(target_device(target), config.name, root=tables),
    )


def _check(
    table: LatencyTable, subject: Subject, space: SearchSpace, target: Target, *, models: int, plot: Path | None
) -> None:
    from hwsearch.latency.table import gate
    from hwsearch.latency.validate import check_table

    found = check_table(table, subject.network, space, target, _progress, models=models)
    table = table.checked(found.check, found.tempting)
    problem = gate(table.manifest)
    if plot:
        from hwsearch.report.latency_figures import write_scatter

        write_scatter(found.points, plot)
    if flags().json:
        checks = {"check": found.check, "tempting": found.tempting, "learned": found.learned}
        print_json({**{name: to_json(check) for name, check in checks.items()}, "refused": problem})
    else:
        _print_check("table", found.check)
        if found.tempting:
            _print_check("of these, looked best", found.tempting)
        if found.learned:
            _print_check(f"after learning {found.learned.learned} of them", found.learned)
        note(f"a search may not use it: {problem}" if problem else "a search may use it")
    if problem:
        raise typer.Exit(1)


def _print_check(title: str, check: TableCheck) -> None:
    print_facts(
        {
            title: f"{check.models} whole models",
            "mean absolute error": f"{check.mape_pct:.2f} %",
            "bias": f"{check.bias_pct:+.2f} %",
            "largest error": f"{check.max_pct:.1f} %",
            "within 5 %, 10 %": f"{check.within_5_pct:.0f} %, {check.within_10_pct:.0f} %",
            "Spearman": f"{check.spearman:.4f}",
            "machine since the build": f"{check.drift_pct:+.1f} % (removed from the errors)",
        }
    )


def _progress(stage: str, done: int, total: int) -> None:
    """A line for the beginning and the end of every stage."""
    if done in (0, total):
        note(f"{stage}: {done} of {total}")
