"""``hwsearch compress``: one small model for each target in minutes, without a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hwsearch.cli.comparison import print_rows
from hwsearch.cli.output import flags, next_step, note, print_json, print_text
from hwsearch.cli.progress import shown_progress
from hwsearch.cli.verb import Settings, verb
from hwsearch.config import StudyConfig, load_study, make_study
from hwsearch.errors import ConfigError
from hwsearch.types import Sparsity

if TYPE_CHECKING:
    from hwsearch.search.compression import Compressed

Subject = Annotated[
    str,
    typer.Argument(metavar="MODEL|STUDY", help="a study file, or pkg.mod:factory, file.py:factory or model.pt2"),
]
On = Annotated[str | None, typer.Option("--target", metavar="NAME", help="default: all of the study's")]
Data = Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="of a MODEL; more with --set data.path=DIR")]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="of a MODEL")]
Share = Annotated[
    float | None,
    typer.Option("--sparsity", metavar="X", min=0, max=1, help="share that should go; else the target's own"),
]
OfWhat = Annotated[Literal["channels", "params", "macs"], typer.Option("--metric", help="what --sparsity is of")]
MaxDrop = Annotated[float, typer.Option("--max-drop", metavar="POINTS", min=0, help="accuracy that may be lost")]
First = Annotated[
    Literal["accuracy", "sparsity"], typer.Option("--keep", help="which comes first where both cannot be had")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of bundles; each is DIR/NAME-TARGET")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="folder of runs, where a search goes on from this")]
Force = Annotated[bool, typer.Option("--force", help="replace a bundle that is there")]


@verb
def compress(
    subject: Subject,
    *,
    target: On = None,
    data: Data = None,
    weights: Weights = None,
    sparsity: Share = None,
    metric: OfWhat = "macs",
    max_drop: MaxDrop = 1.0,
    keep: First = "accuracy",
    out: Out = Path("out"),
    runs: Runs = Path("runs"),
    force: Force = False,
    settings: Settings = None,
) -> None:
    """Make one small model for each target, without a search, and export it; exit code 1 if a goal is not met.

    It is calibrated, quantised to what the target accelerates, and pruned by sensitivities.

    Where the sparsity goal costs more than --max-drop, --keep accuracy (the default) prunes less, and --keep sparsity
    prunes all the same.
    """
    from hwsearch.export.bundle import export
    from hwsearch.report.html import write_report
    from hwsearch.report.targets import write_targets
    from hwsearch.search.compression import Goals, compress_study

    config = _study(subject, data, weights, target, settings)
    goal = None if sparsity is None else Sparsity(metric=metric, goal=sparsity)
    goals = Goals(sparsity=goal, max_drop=max_drop, keep=keep)
    folder = runs / config.name
    with shown_progress() as progress:
        found = compress_study(
            config, out=folder, targets=[target] if target else config.targets, goals=goals, progress=progress
        )
    bundles = []
    for model in found:
        write_report(model.run, model.run.path / "report.html")
        bundles.append(export(model, out / f"{config.name}-{model.run.path.name}", force=force))
    if len(found) > 1:
        write_targets([(model.run, model.row) for model in found], folder / "targets.html")
    _print(found, bundles)
    if any(model.unmet for model in found):
        raise typer.Exit(1)
    next_step("hwsearch", "verify", bundles[0])


def _study(
    subject: str, data: str | None, weights: Path | None, target: str | None, settings: list[str] | None
) -> StudyConfig:
    path = Path(subject)
    if path.is_dir() or path.suffix in (".yaml", ".yml", ".toml"):
        if data or weights:
            raise ConfigError("a study names its own data and weights", hint="change them with --set")
        return load_study(path, settings or ())
    if data is None:
        raise ConfigError(
            "a model needs data", hint="add --data SOURCE, e.g. digits or file.py:factory; or name a study"
        )
    given = {"name": _name(subject), "model": subject, "data": {"source": data}, "target": target or "ort-cpu"}
    return make_study(given | ({"weights": str(weights)} if weights else {}), settings or ())


def _name(model: str) -> str:
    """What a model is called: its factory, or its file without the suffix."""
    return model.rpartition(":")[2] if ":" in model else Path(model).stem


def _print(found: Sequence[Compressed], bundles: Sequence[Path]) -> None:
    if flags().json:
        documents = [{**model.to_json(), "bundle": str(path)} for model, path in zip(found, bundles, strict=True)]
        print_json({"models": documents})
        return
    print_rows([model.row for model in found])
    for model, bundle in zip(found, bundles, strict=True):
        print_text(f"\n{bundle}")
        costs = "" if model.cpu_ms is None else "; processor time {:.4f} -> {:.4f} ms per example".format(*model.cpu_ms)
        gone = f"{model.sparsity.goal:.1%} of the {model.sparsity.metric} gone"
        print_text(f"  activations by {model.ranges}; {gone}{costs}")
        note("\n".join(f"  not met: {problem}" for problem in model.unmet))
