"""What a command prints: data on stdout, everything else on stderr, and errors that say what to do."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from hwsearch.errors import HwSearchError
from hwsearch.types import SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """How the user wants to be talked to; the same three options on every verb."""

    json: bool = False
    quiet: bool = False
    debug: bool = False


FLAGS: ContextVar[Flags] = ContextVar("flags")


def flags() -> Flags:
    """The flags of the running command."""
    return FLAGS.get(Flags())


def stderr() -> Console:
    """A console on stderr: plain when not a terminal or when ``NO_COLOR`` is set, never wrapping words it quotes."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document, led by its ``schema_version``; values that are not finite become null."""
    json.dump({"schema_version": SCHEMA_VERSION, **_finite(document)}, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_text(text: str) -> None:
    """Print data on stdout."""
    sys.stdout.write(f"{text}\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns on stdout, never cut: numbers to the right, words to the left."""
    print_text("\n".join(_aligned(headers, rows)))


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values on stdout, one pair a line, without those that are empty."""
    shown = {name: value for name, value in facts.items() if value}
    width = max(map(len, shown), default=0)
    print_text("\n".join(f"{name.ljust(width)}  {value}" for name, value in shown.items()))


def note(text: str) -> None:
    """Tell something on stderr, unless ``--quiet``."""
    if not flags().quiet:
        stderr().print(text)


def next_step(*command: str | Path) -> None:
    """Tell which command comes next."""
    note(f"\nnext: {shell(*command)}")


def shell(*command: str | Path) -> str:
    """The command as one types it."""
    return " ".join(part if part.isupper() else shlex.quote(part) for part in map(str, command))


def print_error(error: HwSearchError) -> None:
    """Print an error: for people on stderr, as a JSON document on stdout under ``--json``."""
    if flags().json:
        print_json(error.to_json())
    else:
        stderr().print(Text("error: ", style="bold red").append(str(error), style="not bold default"))


def _aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in (headers, *rows)) for column in range(len(headers))]
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(headers))]
    return [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (headers, *rows)
    ]


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "+-"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
