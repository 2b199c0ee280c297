"""Figures as image files, for READMEs and slides; drawn by kaleido in the Chrome or Chromium that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from hwsearch.errors import BackendUnavailableError, ConfigError, did_you_mean
from hwsearch.report import style
from hwsearch.report.view import RunView
from hwsearch.report.views import VIEWS, Facts

FORMATS = ("png", "svg", "pdf")
WIDTH_PX = 900
TITLE_PX = 76
MOUSE = ": double-click to see all"
"""What a subtitle says to who has a mouse."""

INSTALL = "pip install 'hwsearch[figures]', and install Chromium or Chrome"


def figure(run: RunView, name: str = "pareto", *, dark: bool = False) -> go.Figure:
    """A view of a run (a name of `VIEWS`) as a plotly figure, titled, for notebooks and image files.

    Example:
        >>> drawn = hs.figure(hs.Run.open(run_folder), "layer_formats")
        >>> drawn.layout.title.text
        'Number format per layer'

    Raises:
        ConfigError: no such view, or the run has nothing to draw in it.
    """
    if name not in VIEWS:
        raise ConfigError(f"no view `{name}`", allowed=", ".join(VIEWS), hint=did_you_mean(name, VIEWS))
    drawn = VIEWS[name].draw(Facts(run))
    if drawn is None:
        raise ConfigError(f"the run has nothing to draw in the view `{name}`", where=str(run.path))
    return print_ready(drawn, dark=dark)


def write_images(
    run: RunView, folder: Path | str, names: Sequence[str] = ("pareto",), *, kind: str = "png", dark: bool = False
) -> list[Path]:
    """Write views of a run as image files into `folder`; their paths.

    Raises:
        ConfigError: as for `figure`, no such format, or the folder cannot be written.
        BackendUnavailableError: kaleido or a browser is missing.
    """
    if kind not in FORMATS:
        raise ConfigError(f"no image format `{kind}`", allowed=", ".join(FORMATS), hint=did_you_mean(kind, FORMATS))
    if find_spec("kaleido") is None:
        raise BackendUnavailableError("images need kaleido", hint=INSTALL)
    drawn = {name: figure(run, name, dark=dark) for name in names}
    return [_written(image, Path(folder) / f"{name}.{kind}") for name, image in drawn.items()]


def print_ready(drawn: go.Figure, *, dark: bool = False) -> go.Figure:
    """The figure with its title, on paper of its own, in the colours of a theme."""
    subtitle = (drawn.layout.title.subtitle.text or "").replace(MOUSE, "")
    themed = style.themed(drawn, "dark" if dark else "light")
    return themed.update_layout(
        paper_bgcolor=style.THEMES["dark" if dark else "light"]["panel"],
        height=drawn.layout.height + TITLE_PX,
        margin={"t": drawn.layout.margin.t + TITLE_PX, "l": 16, "r": 20, "b": 14},
        title={
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 17},
            "subtitle": {"text": subtitle},
        },
    )


def _written(image: go.Figure, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.write_image(path, width=WIDTH_PX, height=image.layout.height, scale=1)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    except (RuntimeError, ValueError) as error:
        raise BackendUnavailableError(f"kaleido could not draw {path.name}", where=str(error), hint=INSTALL) from error
    return path
