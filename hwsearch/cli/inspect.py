"""``hwsearch show`` and ``hwsearch compare``: what a candidate is, what it measured, what its layers really ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.front import speed_up
from hwsearch.cli.output import flags, next_step, note, print_facts, print_json, print_table, print_text
from hwsearch.cli.verb import RunPath, TargetName, verb
from hwsearch.errors import ConfigError
from hwsearch.patterns import TWO_FOUR, share_of_zeros
from hwsearch.space.space import uniform
from hwsearch.types import Candidate, FrontPoint, Latency, LayerTime, PruneGroup, SourceModel, Success, Trial, to_json

if TYPE_CHECKING:
    from hwsearch.search.run import Run

Key = Annotated[str | None, typer.Argument(metavar="KEY", help="key of a candidate, or its first digits")]
Keys = Annotated[list[str], typer.Argument(metavar="KEY KEY...", help="two or more candidates")]


OfChoices = Annotated[bool, typer.Option("--sensitivity", help="instead of a candidate, what each choice alone does")]


@verb
def show(run: RunPath, key: Key = None, target: TargetName = None, sensitivity: OfChoices = False) -> None:
    """Show one candidate: its choices, its numbers, and the precision each layer really ran in."""
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    if sensitivity:
        _show_sensitivity(found)
        return
    if key is None:
        raise ConfigError(
            "show what?", allowed="the KEY of a candidate, or --sensitivity", hint=f"hwsearch front {run}"
        )
    trial = found.trial(key)
    if flags().json:
        print_json({"trial": to_json(trial), "point": to_json(_point(found, trial))})
        return
    print_facts(_facts(found, trial))
    print_text("\nchanged from the network as it is")
    print_facts(_changes(found.source, trial.candidate) or {"nothing": "every layer in fp32, every channel kept"})
    if isinstance(trial.outcome, Success):
        print_text("")
        _print_layers(trial.outcome.layers)
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
    choices = _differing([_choices(found.source, trial.candidate) for trial in trials])
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


def _show_sensitivity(run: Run) -> None:
    found = run.sensitivity
    if found is None:
        raise ConfigError(
            f"no sensitivities are known in {run.path}",
            where=f"search.sampler = {run.config.search.sampler}",
            hint="the guided sampler measures them before it proposes anything",
        )
    if flags().json:
        print_json({"sensitivity": to_json(found)})
        return
    rows = [
        [effect.kind, effect.name, str(effect.value), f"{effect.loss:.5f}", effect.problem or f"± {effect.sigma:.5f}"]
        for effect in found.effects
        if effect.loss or effect.sigma
    ]
    print_table(["choice", "of", "value", found.measure, ""], rows)
    note(f"\n{found.method} on {found.images} images, each choice alone, after repair")


def _point(run: Run, trial: Trial) -> FrontPoint | None:
    """The candidate among the finalists, whose numbers count more than the search's own."""
    return next((point for point in run.points() if point.key == trial.candidate.key), None)


def _facts(run: Run, trial: Trial) -> dict[str, str]:
    facts = {"key": trial.candidate.key, "baseline": trial.baseline or "", "target": run.target.name}
    outcome = trial.outcome
    if not isinstance(outcome, Success):
        return facts | {
            "failed in": outcome.stage,
            "because": f"{outcome.error}: {outcome.message}",
            "hint": outcome.hint or "",
        }
    point = _point(run, trial)
    accuracy, latency = (point.accuracy, point.latency) if point else (outcome.accuracy, outcome.latency)
    energy = point.energy if point else outcome.energy
    return facts | {
        f"{accuracy.metric} ({accuracy.split} split)": f"{accuracy.value:.4f}{_interval(accuracy.ci95)}",
        "latency ms": f"{latency.best_ms:.4f}{_interval(latency.ci95_ms)}",
        "latency from": _origin(latency),
        "in this run": run.latency_explanation,
        "vs fp32": speed_up(point, run.points()) if point else "",
        "size MB": f"{outcome.artifact.size_bytes / 1e6:.3f}",
        **({"packed MB": f"{outcome.packed_bytes / 1e6:.3f}"} if outcome.packed_bytes is not None else {}),
        **({f"energy mJ ({energy.source})": f"{energy.net_mj:.4g}{_interval(energy.ci95_mj)}"} if energy else {}),
        "params": f"{outcome.params:,}",
        **({"zeros": f"{1 - outcome.nonzero / outcome.params:.1%} of params"} if trial.candidate.pattern else {}),
        "macs": f"{outcome.macs:,}",
        "on the front": "yes" if point and point.on_front else "no",
        "minutes of training": f"{trial.seconds['recover'] / 60:.1f}" if "recover" in trial.seconds else "",
        "tied with": ", ".join(point.tied_with) if point else "",
    }


def _choices(source: SourceModel, candidate: Candidate) -> dict[str, str]:
    """Every choice of a candidate in words."""
    dropped = [branch for branch in source.branches if branch.name in candidate.dropped]
    gone = {group for branch in dropped for group in branch.groups}
    return (
        {f"branch {b.name}": "dropped" if b in dropped else "kept" for b in source.branches}
        | {
            f"keep {g.name}": "dropped"
            if g.name in gone
            else f"{candidate.keep.get(g.name, g.channels)} of {g.channels}"
            for g in source.groups
        }
        | {f"precision {layer.name}": candidate.precision.get(layer.name, "dropped") for layer in source.layers}
        | {f"zeros {layer}": _zeros(pattern) for layer, pattern in candidate.pattern.items()}
        | candidate.recipe
    )


def _zeros(pattern: str) -> str:
    share = f"{share_of_zeros(pattern):.0%}"
    return f"{pattern}, {share} of its weights" if pattern == TWO_FOUR else f"{share} of its weights"


def _kept(group: PruneGroup, candidate: Candidate) -> str:
    return f"{candidate.keep.get(group.name, group.channels)} of {group.channels}"


def _changes(source: SourceModel, candidate: Candidate) -> dict[str, str]:
    """The choices that are not those of the network as it is; of a dropped branch, only that it is dropped."""
    unchanged = _choices(source, uniform(source, "fp32"))
    return {
        name: value
        for name, value in _choices(source, candidate).items()
        if value != unchanged.get(name) and (value != "dropped" or name.startswith("branch"))
    }


def _executed(trial: Trial) -> dict[str, str]:
    if not isinstance(trial.outcome, Success):
        return {}
    return {name: layer.executed or "unknown" for layer in trial.outcome.layers for name in layer.source_layers}


def _print_layers(layers: Sequence[LayerTime]) -> None:
    """What computes the network's layers, one row each; what only moves or converts data, counted."""
    rows = [_layer_cells(layer) for layer in layers if layer.source_layers]
    glue = Counter(layer.kind for layer in layers if not layer.source_layers)
    print_table(["layers", "runs as", "requested", "executed"], rows)
    print_text("and between them " + ", ".join(f"{count} {kind}" for kind, count in glue.most_common()))


def _layer_cells(layer: LayerTime) -> list[str]:
    requested, executed = layer.requested or "", layer.executed or "unknown"
    fell_back = requested and layer.format and requested != layer.format
    return [
        ", ".join(layer.source_layers),
        layer.kind,
        requested,
        f"{executed}{', not as requested' if fell_back else ''}",
    ]


def _side_by_side(columns: list[dict[str, str]]) -> list[list[str]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "-") for column in columns)] for name in names if name != "key"]


def _differing(columns: list[dict[str, str]]) -> list[list[str]]:
    return [row for row in _side_by_side(columns) if len(set(row[1:])) > 1]


def _origin(latency: Latency) -> str:
    """Where a latency comes from, with its tails where it was measured."""
    if latency.p90_ms is None or latency.p99_ms is None:
        return latency.source
    return f"{latency.source}: {latency.rounds} rounds, p90 {latency.p90_ms:.4f}, p99 {latency.p99_ms:.4f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
