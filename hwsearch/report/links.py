"""Which evaluation every row of a trace belongs to, so that a page can filter any figure without knowing it.

A linked trace says in ``meta``: `rows`, the number of the evaluation each row belongs to (None: always shown), and
`along`, the attributes that have one entry per row. A page keeps the rows it wants along those attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go


def linked(trace: Any, rows: Iterable[int | None], along: Iterable[str]) -> Any:
    """`trace`, told that entry i of each attribute in `along` (e.g. ``marker.size``) belongs to evaluation `rows`[i].

    Raises:
        ValueError: an attribute has another length than `rows`.
    """
    rows, along = rows if isinstance(rows, np.ndarray) else list(rows), list(along)
    for path in along:
        if len(trace[path]) != len(rows):
            raise ValueError(f"{path} has {len(trace[path])} entries for {len(rows)} rows")
    trace.meta = {"rows": rows, "along": along}
    return trace


def filtered(figure: go.Figure, keep: Callable[[int], bool]) -> go.Figure:
    """A copy of a figure with the rows of linked traces whose evaluation passes `keep`: what `charts.js` does."""
    copy = go.Figure(figure)
    for trace in copy.data:
        if trace.meta:
            _filter(trace, [i for i, number in enumerate(trace.meta["rows"]) if number is None or keep(number)])
    return copy


def _filter(trace: Any, index: list[int]) -> None:
    for path in trace.meta["along"]:
        trace[path] = [trace[path][i] for i in index]
    trace.meta = {"rows": [plain(trace.meta["rows"][i]) for i in index], "along": trace.meta["along"]}


def plain(value: Any) -> Any:
    """`value` as strict JSON data: numpy scalars as numbers, six significant digits, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
