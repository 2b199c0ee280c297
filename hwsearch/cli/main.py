"""The ``hwsearch`` command: its verbs, and how its errors become messages and exit codes.

0  done
1  finished, but nothing satisfies the limits, or a check failed
2  wrong usage, study, model, data or bundle
3  the runtime or the device is not here
4  every evaluation failed
70 a defect in hwsearch itself
130 interrupted; state is saved
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

import hwsearch
from hwsearch.cli.adapt import app as adapt
from hwsearch.cli.benchmark import benchmark
from hwsearch.cli.bundle import export, verify
from hwsearch.cli.check import check
from hwsearch.cli.comparison import compare_targets, rerank
from hwsearch.cli.compress import compress
from hwsearch.cli.dashboard import dashboard
from hwsearch.cli.demo import demo
from hwsearch.cli.doctor import doctor
from hwsearch.cli.front import front
from hwsearch.cli.init import init
from hwsearch.cli.inspect import compare, show
from hwsearch.cli.merge import merge
from hwsearch.cli.output import FLAGS, Flags, flags, print_error, print_text
from hwsearch.cli.reparam import reparam
from hwsearch.cli.report import report
from hwsearch.cli.search import search
from hwsearch.cli.table import app as table
from hwsearch.cli.targets import targets
from hwsearch.cli.zoo import zoo
from hwsearch.errors import ConfigError, HwSearchError

INTERNAL_ERROR = 70
INTERRUPTED = 130

PANELS = {
    "Start": {
        demo: "The whole way on handwritten digits: train to bundle.",
        init: "Write a commented study that runs as it is.",
        zoo: "List networks to start from.",
        doctor: "Say what works here and how noisy timings are.",
        targets: "List targets and what each accelerates here.",
    },
    "Search": {
        check: "Check a study or an ONNX file, without searching.",
        compress: "Make one small model per target, without a search.",
        search: "Search for the fastest models at every accuracy.",
        rerank: "Measure the finalists of a run on another target.",
    },
    "Look": {
        front: "Print the models that no other model beats.",
        show: "Show one candidate: choices, numbers, layers.",
        compare: "Compare candidates side by side.",
        compare_targets: "Compare the targets of a study.",
        report: "Write the report, and figures and tables as files.",
        dashboard: "Show runs live in the browser.",
    },
    "Deploy": {
        export: "Write one model and all it needs into a folder.",
        verify: "Check that a bundle is what was exported.",
        benchmark: "Time model files against each other.",
        merge: "Merge layers with the same input, where faster.",
        reparam: "Merge the training branches of a model.",
    },
}

app = typer.Typer(
    name="hwsearch",
    help="The fastest deployable models at every accuracy, measured on your device.\n\n"
    "Start with `hwsearch demo`, or with `hwsearch init DIR` and a model of your own.",
    epilog="Exit codes: 0 done, 1 nothing within the limits, 2 bad usage or input, 3 no such backend here, "
    "4 every evaluation failed, 130 interrupted with state saved.",
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for panel, commands in PANELS.items():
    for command, line in commands.items():
        app.command(short_help=line, rich_help_panel=panel)(command)
app.add_typer(table, rich_help_panel="Search", short_help="Build and check what answers instead of the device.")
app.add_typer(adapt, rich_help_panel="Deploy", short_help="New weights for a bundle: same graph, same formats.")


def _print_version(value: bool) -> None:
    if value:
        print_text(f"hwsearch {hwsearch.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="print the version"),
) -> None:
    if context.invoked_subcommand is None:
        print_text(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    FLAGS.set(Flags(**{name: f"--{name}" in arguments for name in ("json", "quiet", "debug")}))
    try:
        return app(arguments, standalone_mode=False) or 0
    except HwSearchError as error:
        return _fail(error, error.exit_code)
    except typer.TyperException as error:
        return _fail(_usage_error(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the last place where a defect can become a message)
        return _fail(_defect(error), INTERNAL_ERROR)


def _fail(error: HwSearchError, code: int) -> int:
    if flags().debug:
        traceback.print_exc()
    print_error(error)
    return code


def _usage_error(error: typer.TyperException) -> ConfigError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hwsearch"
    return ConfigError(error.format_message(), hint=f"see {command} --help")


def _defect(error: Exception) -> HwSearchError:
    return HwSearchError(
        f"{type(error).__name__}: {error}", hint="this is a defect in hwsearch; --debug shows where it happened"
    )
