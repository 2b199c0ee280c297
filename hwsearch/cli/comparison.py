"""``hwsearch compare-targets`` and ``rerank``: one study on several devices, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.front import front_document, front_of, print_front
from hwsearch.cli.output import flags, next_step, note, print_json, print_table
from hwsearch.cli.progress import shown_progress
from hwsearch.cli.verb import RunPath, TargetName, verb
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.search.comparison import Row

MaxDrop = Annotated[
    float, typer.Option("--max-drop", metavar="POINTS", min=0, help="of the models that lose no more than this")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="of the page; default: RUN/targets.html")]

To = Annotated[str, typer.Option("--to", metavar="TARGET", help="the other target")]


@verb
def compare_targets(run: RunPath, *, max_drop: MaxDrop = 1.0, out: Out = None) -> None:
    """Compare the targets of a study: the fastest model of each, beside fp32, and whether it is legal there.

    Also writes one page with the fronts of all of them.
    """
    from hwsearch.report.targets import write_targets
    from hwsearch.search.comparison import best_within, row_of, runs_in

    runs = runs_in(run)
    rows = [row_of(found, best_within(found, max_drop)) for found in runs]
    page = write_targets(list(zip(runs, rows, strict=True)), out or run / "targets.html")
    if flags().json:
        print_json({"targets": [to_json(row) for row in rows], "report": str(page)})
        return
    print_rows(rows)
    note(f"\n{page}")
    next_step("hwsearch", "export", run, "--all", "--out", "OUT")


@verb
def rerank(run: RunPath, *, to: To, target: TargetName = None) -> None:
    """Measure the finalists of a run on another target, without searching there; exit code 1 if it takes none."""
    from hwsearch.search.rerank import rerank as measure
    from hwsearch.search.run import find_run

    with shown_progress() as progress:
        found = measure(find_run(run, target), to, progress=progress)
    front = front_of(found.run)
    points = [point for point in front.points if point.on_front]
    if flags().json:
        print_json({"run": str(found.run.path), "refused": list(found.refused), **front_document(front, points)})
    else:
        print_front(front, points)
    note("\n".join(f"{key}: the target has no kernels for it" for key in found.refused))
    if all(trial.baseline is not None for trial in found.run.trials):
        raise typer.Exit(1)
    next_step("hwsearch", "compare-targets", found.run.path.parent)


def print_rows(rows: Sequence[Row]) -> None:
    """Print one line per target."""
    from hwsearch.search.comparison import remarks

    print_table(
        ["target", "key", "fp32 ms", "ms", "vs fp32", rows[0].metric, "lost", "MB", "MACs gone", "ran in", "legal"],
        [_cells(row) for row in rows],
    )
    note("\n".join(remarks(rows)))


def _cells(row: Row) -> list[str]:
    legal = row.legality
    return [
        row.target,
        row.key,
        f"{row.original_ms:.4f}",
        f"{row.latency_ms:.4f}",
        f"{row.ratio:.3f}",
        f"{row.accuracy:.4f}",
        f"{row.drop_points:+.2f}",
        f"{row.size_bytes / 1e6:.3f}",
        f"{row.sparsity:.1%}",
        ", ".join(f"{count} {name}" for name, count in legal.executed.items()),
        "no" if legal.problems else "yes" if legal.complete else "as far as read back",
    ]
