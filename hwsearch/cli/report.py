"""``hwsearch report``: one HTML file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsearch.cli.output import flags, next_step, print_json, print_text
from hwsearch.cli.verb import RunPath, TargetName, verb

Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: report.html in the run folder")]


@verb
def report(run: RunPath, target: TargetName = None, out: Out = None) -> None:
    """Write the self-contained HTML report of a run."""
    from hwsearch.report.html import write_report
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    path = write_report(found, out or found.path / "report.html")
    if flags().json:
        print_json({"report": str(path)})
    else:
        print_text(str(path))
    next_step("hwsearch", "export", found.path, "--max-latency-ms", "MS", "--out", "OUT")
