"""Colours and layout shared by every figure: one meaning per colour, on light and on dark paper.

Blue is untouched and yellow is compressed hard, for number formats and for channels alike; both scales keep their order
in lightness, so they survive colour blindness and grey print. Teal is the front. Text and grid colours are left to the
page, which knows the theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from hwsearch.types import PRECISIONS

FRONT = "#129a8c"
SECOND = "#97739c"
SEARCHED = "#97a1ad"
ALERT = "#d6456b"
QUIET = "rgba(140,150,160,0.22)"
NEUTRAL = "#7b8794"

FORMATS = {
    "fp32": "#3f6fb5",
    "tf32": "#5f8cc6",
    "fp16": "#7fa9d6",
    "bf16": "#8fb8dd",
    "fp8": "#e9a64a",
    "int8": "#efb74e",
    "w4a16": "#f3c96d",
    "int4": "#f6d98b",
    "int2": "#fbeec6",
}
UNREPORTED = "#b4bcc6"

STATUSES = {"front": FRONT, "finalist": FRONT, "searched": SEARCHED, "infeasible": SEARCHED}

KEPT_SCALE = [[0.0, "#fbe39a"], [0.35, "#c9c77f"], [0.6, "#7fae93"], [0.8, "#5590a9"], [1.0, "#3f6fb5"]]

LOSS_SCALE = [[0.0, "#b4bcc6"], [0.4, "#cf9db1"], [0.7, "#c4587f"], [1.0, "#8c1038"]]
"""From a grey that is quiet on light and on dark paper to red for what hurts most."""

STAGES = ("#6f7fb0", "#b3bddb", "#97739c", "#cfb4d2", "#a08a6c", "#d3c4a6", "#7c8b93", "#b9c3c9")

THEMES = {
    "light": {"ink": "#1d2733", "soft": "#5b6672", "panel": "#ffffff", "line": "#e1e5ea"},
    "dark": {"ink": "#e6eaef", "soft": "#a3aebb", "panel": "#1a2027", "line": "#2c3540"},
}
"""As in ``report.css``."""

MAX_SLANTED = 40
"""Up to this many columns there is room for slanted labels."""

GLYPH = 0.54
"""Mean width of a letter, in sizes of the font."""

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


def figure(title: str, subtitle: str, height: int) -> go.Figure:
    """An empty figure in the house style."""
    grid = {
        "gridcolor": "rgba(128,138,150,0.18)",
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"font": {"size": 12.5}, "standoff": 10},
    }
    return go.Figure(
        layout={
            "title": {"text": title, "subtitle": {"text": subtitle}, "x": 0, "xref": "paper"},
            "height": height,
            "modebar": {"bgcolor": "rgba(0,0,0,0)"},
            "font": {"family": FONT, "size": 12.5, "color": "#5b6672"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 10, "r": 12, "t": 34, "b": 10},
            "hovermode": "closest",
            "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12.5}},
            "legend": {"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom"},
            "xaxis": dict(grid),
            "yaxis": dict(grid),
        }
    )


def label_columns(figure: go.Figure, names: Sequence[str]) -> None:
    """Write `names` under their columns, slanted, or small and upright where columns are narrow.

    Room for them is set aside here: finding it by trial, as Plotly does by itself, triples the time to draw.
    """
    slant, size = (-60, 11.0) if len(names) <= MAX_SLANTED else (-90, 8.5)
    longest = GLYPH * size * max(map(len, names), default=0)
    figure.update_xaxes(tickangle=slant, tickfont={"size": size}, automargin=False)
    figure.update_layout(margin_b=math.ceil(longest * math.sin(math.radians(-slant)) + size))


def themed(figure: go.Figure, theme: str) -> go.Figure:
    """A copy of a figure with text and hover labels in the colours of a theme: what `charts.js` does in the page."""
    colours = THEMES[theme]
    return go.Figure(figure).update_layout(
        font_color=colours["soft"],
        title_font_color=colours["ink"],
        modebar={"color": colours["soft"], "activecolor": colours["ink"]},
        hoverlabel={"bgcolor": colours["panel"], "bordercolor": colours["line"], "font": {"color": colours["ink"]}},
    )


def add_key(figure: go.Figure, colours: dict[str, str]) -> None:
    """Add a legend entry per colour that stands whatever rows are shown."""
    for name, colour in colours.items():
        marker = {"symbol": "square", "size": 12, "color": colour}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip"))


def format_colour(name: str | None) -> str:
    """Colour of a number format; grey for what the runtime does not say or we do not know."""
    return FORMATS.get(name or "", UNREPORTED)


def formats_in_order(names: set[str]) -> list[str]:
    """Known formats, widest first, then unknown names by alphabet."""
    known = sorted((n for n in names if n in PRECISIONS), key=lambda n: (-PRECISIONS[n].weight_bits, n))
    return [*known, *sorted(names - set(known))]
