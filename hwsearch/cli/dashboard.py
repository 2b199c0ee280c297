"""``hwsearch dashboard``: runs in the browser, side by side, while they are searched."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwsearch.cli.output import flags, note, print_json, print_text
from hwsearch.cli.verb import verb
from hwsearch.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from hwsearch.search.run import Run

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLITENESS = 10
"""Added to the process's nice value, so that a search measuring beside it goes first."""

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or folders of several targets")]
Host = Annotated[str, typer.Option("--host", help="address to listen on; other than 127.0.0.1, others can reach it")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one")]
Refresh = Annotated[float, typer.Option("--refresh", metavar="S", min=1, help="seconds between two looks at the runs")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="where the page's export button writes")]


@verb
def dashboard(
    runs: Runs, *, host: Host = "127.0.0.1", port: Port = 8050, refresh: Refresh = 10, out: Out = Path("out")
) -> None:
    """Show runs live in the browser, side by side, and export points from there; Ctrl-C ends it."""
    if find_spec("dash") is None:
        raise BackendUnavailableError("the dashboard needs Dash", hint="pip install 'hwsearch[dashboard]'")
    from werkzeug.serving import make_server

    from hwsearch.report.app import make_app
    from hwsearch.report.watch import Board
    from hwsearch.search.run import where_instead

    board = Board(runs)
    if not board.runs():
        raise ConfigError(f"no run in {', '.join(map(str, runs))}", hint=where_instead(runs[0]))
    for run in board.runs():
        run.facts()
    app = make_app(board, exporter(out), refresh_s=refresh, loopback=host in LOOPBACK)
    with _listening(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        if host not in LOOPBACK:
            note(f"warning: whoever reaches {url} can read these runs and export models into {out} on this machine")
        if flags().json:
            print_json({"url": url})
        else:
            print_text(url)
        note("Ctrl-C ends it")
        os.nice(POLITENESS)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server(host, port, app.server, threaded=True, fd=listener.fileno())
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def exporter(out: Path) -> Callable[[Run, str], Path]:
    """Exports a candidate into a folder of its own below `out`."""

    def export(run: Run, key: str) -> Path:
        from hwsearch.export.bundle import export_bundle
        from hwsearch.report.html import write_report

        folder = out / f"{run.config.name}-{run.target.name}-{key}"
        return export_bundle(run, key, folder, write_report=lambda path: write_report(run, path))

    return export


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ConfigError: somebody else does, or it is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port, or --port 0 for any"
        ) from error
    listener.listen()
    return listener
