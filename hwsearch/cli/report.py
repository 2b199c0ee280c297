"""``hwsearch report``: one HTML file that opens anywhere; also as images, and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsearch.cli.output import flags, next_step, print_json, print_text
from hwsearch.cli.verb import RunPath, TargetName, verb

Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: report.html in the run folder")]
Images = Annotated[Path | None, typer.Option("--images", metavar="DIR", help="write views as image files, too")]
Views = Annotated[
    list[str] | None, typer.Option("--view", metavar="NAME", help="a view for --images, e.g. layer_formats; repeatable")
]
Format = Annotated[str, typer.Option("--format", metavar="png|svg|pdf", help="of the images")]
Dark = Annotated[bool, typer.Option("--dark", help="images on dark paper")]
Tables = Annotated[Path | None, typer.Option("--tables", metavar="DIR", help="write all facts as CSV files, too")]
Parquet = Annotated[bool, typer.Option("--parquet", help="tables as Parquet instead of CSV")]


@verb
def report(
    run: RunPath,
    *,
    target: TargetName = None,
    out: Out = None,
    images: Images = None,
    view: Views = None,
    format_: Format = "png",
    dark: Dark = False,
    tables: Tables = None,
    parquet: Parquet = False,
) -> None:
    """Write the self-contained HTML report of a run; with --images and --tables, its figures and facts as files."""
    from hwsearch.report.html import write_report
    from hwsearch.report.images import write_images
    from hwsearch.report.tables import write_tables
    from hwsearch.search.run import find_run

    found = find_run(run, target)
    written = [write_report(found, out or found.path / "report.html")]
    if images is not None:
        written += write_images(found, images, view or ("pareto",), kind=format_, dark=dark)
    if tables is not None:
        written += write_tables(found, tables, "parquet" if parquet else "csv")
    if flags().json:
        print_json({"report": str(written[0]), "files": [str(path) for path in written]})
    else:
        print_text("\n".join(map(str, written)))
    next_step("hwsearch", "export", found.path, "--max-latency-ms", "MS", "--out", "OUT")
