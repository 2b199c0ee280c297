"""What all verbs share: ``--json``, ``--quiet`` and ``--debug``, and the words for common arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="study.yaml or study.toml, or the folder of one")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, e.g. runs/digits")]
TargetName = Annotated[str | None, typer.Option("--target", metavar="NAME", help="one target of several")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the study, e.g. search.seed=1")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done; touch nothing")]
MaxLatency = Annotated[float | None, typer.Option("--max-latency-ms", metavar="MS", help="only models this fast")]
MinAccuracy = Annotated[float | None, typer.Option("--min-accuracy", metavar="X", help="only models this accurate")]

_SHARED = {
    "json": Annotated[bool, typer.Option("--json", help="print one JSON document, errors included")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no hints")],
    "debug": Annotated[bool, typer.Option("--debug", help="show the traceback of an error")],
}


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """A command with the shared flags.

    They are declared here so that help shows them and the parser takes them; `main` has read them before, so that even
    a mistyped option is reported as JSON where JSON was asked for.
    """

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> None:
        function(*args, **{name: value for name, value in options.items() if name not in _SHARED})

    signature = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _SHARED.items()
    ]
    parameters = [*signature.parameters.values(), *shared]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def with_options(record: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose keyword `how` is a dataclass, every field of which is an option of its own; goes below `verb`."""
    options = inspect.signature(record, eval_str=True).parameters

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> None:
            how = record(**{name: given.pop(name) for name in options})
            function(*args, how=how, **given)

        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "how"]
        command.__signature__ = signature.replace(parameters=[*own, *options.values()])  # type: ignore[attr-defined]
        return command

    return decorate
