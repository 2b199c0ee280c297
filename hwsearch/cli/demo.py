"""``hwsearch demo``: the whole way on handwritten digits, from training to a bundle that can ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsearch.cli.front import front_of, point_document, print_front
from hwsearch.cli.init import write_study
from hwsearch.cli.output import flags, next_step, note, print_json, print_text, shell
from hwsearch.cli.search import search_runs
from hwsearch.cli.verb import Settings, verb
from hwsearch.config import load_study

DEFAULT = Path("hwsearch-demo")

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for everything the demo writes")]


@verb
def demo(out: Out = DEFAULT, settings: Settings = None) -> None:
    """Train ResNet-20 on handwritten digits, search, report and export; resumes if it was interrupted."""
    study = out / "study.yaml"
    if not study.exists():
        write_study(out)
        note(f"wrote {study} and {out / 'model.py'}: the files `hwsearch init` writes")
    again = shell("hwsearch", "demo", *(("--out", out) if out != DEFAULT else ()))
    run = search_runs(load_study(study, settings or ()), out / "run", again=again)[0]

    from hwsearch.export.bundle import export_bundle
    from hwsearch.report.html import write_report

    report = write_report(run, run.path / "report.html")
    best = run.pick()
    bundle = export_bundle(run, best.key, out / "model", force=True)
    if flags().json:
        print_json({"run": str(run.path), "report": str(report), "bundle": str(bundle), "pick": point_document(best)})
    else:
        print_front(front_of(run), [point for point in run.points() if point.on_front])
        print_text(
            f"\nstudy   {study}\nrun     {run.path}\nreport  {report}\nmodel   {bundle}, the front's knee: {best.key}"
        )
    next_step("hwsearch", "verify", bundle)
