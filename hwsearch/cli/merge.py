"""``hwsearch merge``: sibling layers of an ONNX file made one, where that is measured to be faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwsearch.backends.base import RunOptions
from hwsearch.cli.output import flags, next_step, note, print_json, print_table
from hwsearch.cli.verb import verb
from hwsearch.types import to_json

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="a float .onnx file")]
On = Annotated[str, typer.Option("--target", metavar="NAME", help="what to measure on")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="where the merged model goes, if anything is faster")]


@verb
def merge(model: Model, *, out: Out, target: On = "ort-cpu") -> None:
    """Merge convolutions or linear layers with the same input, where that is faster; exit code 1 if it never is."""
    import onnx

    from hwsearch.backends.merging import merge_where_faster
    from hwsearch.space.target import load_target
    from hwsearch.store import atomic_write

    chosen = load_target(target)
    options = RunOptions(threads=chosen.threads, batch=chosen.batch, options=chosen.options)
    merged, tried = merge_where_faster(model, chosen.backend, options, progress=note)
    kept = [found for found in tried if found.kept]
    if kept:
        onnx.checker.check_model(merged)
        with atomic_write(out) as stream:
            stream.write(merged.SerializeToString())
    if flags().json:
        print_json({"out": str(out) if kept else None, "groups": [{**to_json(f), "kept": f.kept} for f in tried]})
    else:
        rows = [[", ".join(f.layers), f"{f.comparison.ratio:.3f}", "kept" if f.kept else "refused"] for f in tried]
        print_table(["merged", "latency", ""], rows)
    if not kept:
        note("no merge is faster" if tried else "no layers read the same tensor in the same way")
        raise typer.Exit(1)
    next_step("hwsearch", "benchmark", model, out, "--target", target)
