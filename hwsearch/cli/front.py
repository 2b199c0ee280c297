"""``hwsearch front``: the result of a search, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hwsearch.cli.output import flags, next_step, note, print_json, print_table, shell
from hwsearch.cli.verb import MaxLatency, MinAccuracy, RunPath, TargetName, verb
from hwsearch.errors import ConfigError
from hwsearch.types import Front, FrontPoint, to_json

if TYPE_CHECKING:
    from hwsearch.search.guided.predictions import Prediction
    from hwsearch.search.run import Run


@verb
def front(
    run: RunPath,
    *,
    target: TargetName = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
) -> None:
    """Print the models no other model beats in both accuracy and latency.

    With a latency limit, also what the search expects of the best model within it that was not evaluated.
    """
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    result = front_of(found)
    points = [p for p in result.points if p.on_front and _fits(p, max_latency_ms, min_accuracy)]
    expected = _expected(found, max_latency_ms)
    if flags().json:
        predicted = {} if expected is None else {"predicted": _expected_document(expected)}
        print_json(front_document(result, points) | {"latency_explanation": found.latency_explanation} | predicted)
    else:
        print_front(result, points)
        note(found.latency_explanation)
        if expected is not None:
            note(_expected_in_words(expected, found, max_latency_ms))
    if not points:
        note("no model of the front is within the limits")
        raise typer.Exit(1)
    next_step("hwsearch", "show", found.path, points[0].key)


def front_of(run: Run) -> Front:
    """The front of a run.

    Raises:
        ConfigError: nothing has succeeded yet.
    """
    if run.front is None:
        raise ConfigError(
            f"{run.path} has no front yet",
            where=f"{len(run.trials)} evaluations, none of them a success",
            hint=f"search on: hwsearch search {run.path / 'study.yaml'}",
        )
    return run.front


def front_document(front: Front, points: Sequence[FrontPoint]) -> dict[str, Any]:
    """The front as ``front --json`` prints it."""
    return {
        "device": to_json(front.device),
        "target": front.target,
        "objectives": list(front.objectives),
        "baselines": [point_document(point) for point in front.points if point.baseline is not None],
        "points": [point_document(point) for point in points],
    }


def point_document(point: FrontPoint) -> dict[str, Any]:
    """One point: key, accuracy and latency with their 95 % intervals, size, energy if it was asked for."""
    return {
        "key": point.key,
        "accuracy": point.accuracy.value,
        "accuracy_ci95": None if point.accuracy.ci95 is None else list(point.accuracy.ci95),
        "latency_ms": point.latency.best_ms,
        "latency_ci95_ms": list(point.latency.ci95_ms),
        "size_bytes": point.size_bytes,
        "baseline": point.baseline,
        "split": point.accuracy.split,
        "latency_source": point.latency.source,
        "build_spread": point.build_spread,
        "training_minutes": point.training_minutes,
        "energy": to_json(point.energy),
    }


def _expected(run: Run, max_latency_ms: float | None) -> Prediction | None:
    """The best model the search expects within a limit, unless it has been evaluated; None if it expects none."""
    from hwsearch.search.guided.predictions import read_predictions

    predictions = read_predictions(run.path)
    if max_latency_ms is None or predictions is None:
        return None
    found = predictions.within(max_latency_ms)
    return None if found is None or any(t.candidate.key == found.candidate.key for t in run.trials) else found


def _expected_document(expected: Prediction) -> dict[str, Any]:
    return {"key": expected.candidate.key, **to_json(expected)}


def _expected_in_words(expected: Prediction, run: Run, limit: float | None) -> str:
    out = run.path.parent.parent
    again = shell(
        "hwsearch", "search", run.path / "study.yaml", *(("--out", out) if out != Path("runs") else ()),
        "--set", f"limits.latency_ms={limit:g}", "--extend", "1",
    )  # fmt: skip
    return (
        f"expected within the limit, not evaluated: {expected.accuracy:.4f} ± {expected.accuracy_sigma:.4f} at "
        f"{expected.latency_ms:.4f} ± {expected.latency_sigma_ms:.4f} ms; evaluate it with "
        f"{again}"
    )


def print_front(front: Front, points: Sequence[FrontPoint]) -> None:
    """Print a table of the points, with the baselines they have to beat."""
    rows = sorted({*points, *(p for p in front.points if p.baseline)}, key=lambda p: p.latency.best_ms)
    metric = front.points[0].accuracy.metric if front.points else "accuracy"
    energy = ["mJ", ""] if any(point.energy for point in rows) else []
    print_table(
        ["key", metric, "±", "ms", "±", "vs fp32", "MB", *energy, "", "", ""],
        [_cells(point, front.points, energy=bool(energy)) for point in rows],
    )
    note(f"{front.target}, {front.device.chip}; {_state(front)}; * on the front")


def speed_up(point: FrontPoint, points: Sequence[FrontPoint]) -> str:
    """How many times as fast as the fp32 baseline among `points`; empty if there is none."""
    yardstick = next((p for p in points if p.baseline == "fp32"), None)
    return f"{yardstick.latency.best_ms / point.latency.best_ms:.2f}x" if yardstick else ""


def _state(front: Front) -> str:
    """How far the figures can be trusted, in words."""
    if not front.final:
        return "not final: the search has not finished"
    sources = {point.latency.source for point in front.points}
    spreads = [point.build_spread for point in front.points if point.build_spread is not None]
    if spreads:
        return f"finalists measured together; built twice, they ran up to {100 * max(spreads):.1f} % apart"
    if sources == {"measured"}:
        return "finalists measured together"
    return f"latencies come from: {', '.join(sorted(sources))}"


def _cells(point: FrontPoint, points: Sequence[FrontPoint], *, energy: bool) -> list[str]:
    latency = point.latency
    return [
        point.key,
        f"{point.accuracy.value:.4f}",
        _half_width(point.accuracy.ci95, ".4f"),
        f"{latency.best_ms:.4f}",
        _half_width(latency.ci95_ms, ".4f"),
        speed_up(point, points),
        f"{point.size_bytes / 1e6:.3f}",
        *(_energy_cells(point) if energy else ()),
        "*" if point.on_front else "",
        point.baseline or _trained(point),
        "" if latency.source == "measured" else latency.source,
    ]


def _energy_cells(point: FrontPoint) -> tuple[str, str]:
    """Energy, and its half width or that nobody measured it."""
    if point.energy is None:
        return "", ""
    modelled = point.energy.source == "modelled"
    return f"{point.energy.net_mj:.4g}", "modelled" if modelled else f"± {_half_width(point.energy.ci95_mj, '.2g')}"


def _trained(point: FrontPoint) -> str:
    return "" if point.training_minutes is None else f"trained {point.training_minutes:.1f} min"


def _half_width(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else format((interval[1] - interval[0]) / 2, form)


def _fits(point: FrontPoint, max_latency_ms: float | None, min_accuracy: float | None) -> bool:
    sign = 1 if point.accuracy.higher_is_better else -1
    fast = max_latency_ms is None or point.latency.best_ms <= max_latency_ms
    return fast and (min_accuracy is None or sign * (point.accuracy.value - min_accuracy) >= 0)
