"""``hwsearch show`` and ``hwsearch compare``: what a candidate is, what it measured, what its layers really ran in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.output import flags, next_step, print_json, print_table, print_text
from hwsearch.cli.verb import RunPath, TargetName, verb
from hwsearch.errors import ConfigError
from hwsearch.types import FrontPoint, LayerTime, Success, Trial, to_json

if TYPE_CHECKING:
    from hwsearch.search.run import Run

Key = Annotated[str, typer.Argument(metavar="KEY", help="key of a candidate, or its first digits")]
Keys = Annotated[list[str], typer.Argument(metavar="KEY KEY...", help="two or more candidates")]


@verb
def show(run: RunPath, key: Key, target: TargetName = None) -> None:
    """Show one candidate: its choices, its numbers, and the precision each layer really ran in."""
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    trial = found.trial(key)
    if flags().json:
        print_json({"trial": to_json(trial), "point": to_json(_point(found, trial))})
        return
    print_table(["", ""], list(_facts(found, trial).items()))
    print_text("")
    print_table(["choice", ""], list(_choices(found, trial).items()) or [["none", "the network as it is"]])
    if isinstance(trial.outcome, Success):
        print_text("")
        print_table(
            ["runs as", "kind", "layers", "requested", "executed"], list(map(_layer_cells, trial.outcome.layers))
        )
        next_step("hwsearch", "export", found.path, "--key", trial.candidate.key, "--out", "OUT")


@verb
def compare(run: RunPath, keys: Keys, target: TargetName = None) -> None:
    """Compare candidates: their numbers with intervals, and only the choices and layers that differ."""
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    trials = [found.trial(key) for key in keys]
    if len(trials) < 2:
        raise ConfigError("nothing to compare", where=f"one key: {keys[0]}", allowed="two or more keys")
    names = [trial.candidate.key for trial in trials]
    numbers = _side_by_side([_facts(found, trial) for trial in trials])
    choices = _differing([_choices(found, trial) for trial in trials])
    layers = _differing([_executed(trial) for trial in trials])
    if flags().json:
        print_json(
            {
                "keys": names,
                "points": [to_json(_point(found, trial)) for trial in trials],
                "choices_that_differ": {row[0]: row[1:] for row in choices},
                "executed_that_differ": {row[0]: row[1:] for row in layers},
            }
        )
        return
    for title, rows in (("number", numbers), ("choice", choices), ("executed", layers)):
        print_table([title, *names], rows or [["no difference", *[""] * len(names)]])
        print_text("")
    next_step("hwsearch", "export", found.path, "--key", names[0], "--out", "OUT")


def _point(run: Run, trial: Trial) -> FrontPoint | None:
    """The candidate among the finalists, whose numbers count more than the search's own."""
    return next((point for point in run.points() if point.key == trial.candidate.key), None)


def _facts(run: Run, trial: Trial) -> dict[str, str]:
    facts = {"key": trial.candidate.key, "baseline": trial.baseline or "", "target": run.target.name}
    outcome = trial.outcome
    if not isinstance(outcome, Success):
        facts |= {
            "failed in": outcome.stage,
            "because": f"{outcome.error}: {outcome.message}",
            "hint": outcome.hint or "",
        }
        return {name: value for name, value in facts.items() if value}
    point = _point(run, trial)
    accuracy, latency = (point.accuracy, point.latency) if point else (outcome.accuracy, outcome.latency)
    return facts | {
        f"{accuracy.metric} ({accuracy.split} split)": f"{accuracy.value:.4f}{_interval(accuracy.ci95)}",
        "latency ms": f"{latency.best_ms:.4f}{_interval(latency.ci95_ms)}",
        "p90, p99 ms": f"{latency.p90_ms:.4f}, {latency.p99_ms:.4f}",
        "vs fp32": f"{1 / latency.ratio:.2f}x" if latency.ratio else "",
        "size MB": f"{outcome.artifact.size_bytes / 1e6:.3f}",
        "params": f"{outcome.params:,}",
        "macs": f"{outcome.macs:,}",
        "on the front": "yes" if point and point.on_front else "no",
        "tied with": ", ".join(point.tied_with) if point else "",
    }


def _choices(run: Run, trial: Trial) -> dict[str, str]:
    """Everything that differs from the network as it came."""
    candidate = trial.candidate
    full = {group.name: group.channels for group in run.source.groups}
    chosen = {f"drop {name}": "dropped" for name in candidate.dropped}
    chosen |= {f"keep {group}": f"{kept} of {full[group]} channels" for group, kept in candidate.keep.items()}
    chosen |= {f"precision {layer}": name for layer, name in candidate.precision.items() if name != "fp32"}
    return chosen | candidate.recipe


def _executed(trial: Trial) -> dict[str, str]:
    if not isinstance(trial.outcome, Success):
        return {}
    return {name: layer.executed or "unknown" for layer in trial.outcome.layers for name in layer.source_layers}


def _layer_cells(layer: LayerTime) -> list[str]:
    requested, executed = layer.requested or "", layer.executed or "unknown"
    fell_back = requested and layer.executed and requested != executed
    return [
        layer.runtime_layer,
        layer.kind,
        ", ".join(layer.source_layers),
        requested,
        f"{executed} (not as requested)" if fell_back else executed,
    ]


def _side_by_side(columns: list[dict[str, str]]) -> list[list[str]]:
    names: dict[str, Any] = {}
    for column in columns:
        names |= dict.fromkeys(column)
    return [[name, *(column.get(name, "-") for column in columns)] for name in names if name != "key"]


def _differing(columns: list[dict[str, str]]) -> list[list[str]]:
    return [row for row in _side_by_side(columns) if len(set(row[1:])) > 1]


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
