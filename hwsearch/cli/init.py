"""``hwsearch init``: a study to start from, that runs as it is."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from hwsearch.cli.output import flags, next_step, print_json, print_text, shell
from hwsearch.cli.verb import verb
from hwsearch.config import json_schema
from hwsearch.errors import ConfigError
from hwsearch.store import atomic_write

FILES = ("model.py", "study.yaml")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="where to write; default: here")]
Schema = Annotated[bool, typer.Option("--schema", help="print the JSON schema of study files instead, for an editor")]


@verb
def init(folder: Folder = Path(), schema: Schema = False) -> None:
    """Write a commented study.yaml and model.py that run as they are, on handwritten digits; asks nothing."""
    if schema:
        print_text(json.dumps(json_schema(), indent=2))
        return
    paths = write_study(folder)
    if flags().json:
        print_json({"files": [str(path) for path in paths]})
    else:
        print_text("\n".join(map(str, paths)))
    next_step("hwsearch", "check", folder / "study.yaml")


def write_study(folder: Path) -> list[Path]:
    """Write the starting files into `folder`.

    Raises:
        ConfigError: one of them exists, or the folder cannot be written.
    """
    taken = [folder / name for name in FILES if (folder / name).exists()]
    if taken:
        going_on = shell("hwsearch", "check", folder / "study.yaml")
        raise ConfigError(f"{taken[0]} exists", hint=f"go on with `{going_on}`, or choose another folder")
    source = resources.files("hwsearch.cli") / "start"
    for name in FILES:
        with atomic_write(folder / name) as stream:
            stream.write((source / name).read_bytes())
    return [folder / name for name in FILES]
