"""The report as one self-contained HTML file: opens offline, asks the network for nothing, can be mailed."""

from __future__ import annotations

import datetime as dt
import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from hwsearch.report import frames
from hwsearch.report.payload import payload
from hwsearch.report.view import RunView
from hwsearch.report.views import Facts
from hwsearch.store import atomic_write

SCRIPTS = ("state.js", "charts.js", "filters.js", "compare.js", "table.js", "page.js")


def write_report(run: RunView, path: Path) -> Path:
    """Write the report of a run to `path` and return it.

    Example:
        >>> path = hs.report(hs.Run.open(run_folder), "front.html")
        >>> path.read_text()[:15]
        '<!doctype html>'

    Raises:
        ConfigError: the file cannot be written.
    """
    with atomic_write(path) as stream:
        stream.write(render(run).encode())
    return Path(path)


def render(run: RunView) -> str:
    """The report of a run as HTML."""
    facts = Facts(run)
    data = payload(facts)
    return Template(asset("report.html")).substitute(
        title=escape(f"{run.config.name} on {run.target.name}, hwsearch"),
        style=asset("report.css"),
        eyebrow=escape(_eyebrow(run)),
        headline=escape(facts.verdict.headline),
        reason=escape(facts.verdict.reason),
        **{name: _panel(name, data) for name in ("sensitivity", "importance", "agreement")},
        failures=_failures(frames.failures(run)),
        footer=_footer(run),
        data=_embedded(data),
        plotly=get_plotlyjs(),
        script="\n".join(asset(name) for name in SCRIPTS),
    )


def _panel(name: str, data: dict[str, Any]) -> str:
    """The place of a chart that not every run has."""
    return f'<section class="panel" data-chart="{name}"></section>' if name in data["figures"] else ""


def asset(name: str) -> str:
    """The text of a file of the page."""
    return resources.files("hwsearch.report").joinpath("assets", name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


# --------------------------------------------------------------------------- text around the charts


def _eyebrow(run: RunView) -> str:
    failed = len(frames.failures(run))
    count = f"{len(run.trials)} evaluations" + (f", {failed} failed" if failed else "")
    return f"{run.config.name} · {run.target.name} · {run.device.chip} · {count}"


def _failures(failures: pd.DataFrame) -> str:
    """Failures by stage and kind, most frequent first, each with message, hint and log."""
    if failures.empty:
        return '<p class="empty">No evaluation failed.</p>'
    named = ((f"{stage}: {kind}", rows) for (stage, kind), rows in failures.groupby(["stage", "kind"]))
    groups = sorted(named, key=lambda group: -len(group[1]))
    return "\n".join(
        f'<details{" open" if i == 0 else ""}><summary><span class="kind">{escape(name)}</span>'
        f'<span class="many">{len(rows)} {"evaluation" if len(rows) == 1 else "evaluations"}</span></summary>'
        f"{''.join(_failure(row) for _, row in rows.iterrows())}</details>"
        for i, (name, rows) in enumerate(groups)
    )


def _failure(row: pd.Series) -> str:
    hint = f"<p><em>Hint:</em> {escape(row['hint'])}</p>" if row["hint"] else ""
    log = f"<pre>{escape(row['log'])}</pre>" if row["log"] else ""
    return (
        f'<div class="failure"><p>#{row["number"]} <code>{escape(row["key"])}</code> {escape(row["message"])}</p>'
        f"{hint}{log}</div>"
    )


def _footer(run: RunView) -> str:
    device, measure = run.device, run.config.measure
    facts = {
        "Device": f"{device.chip} ({', '.join(device.isa)})",
        "Runtime": " ".join(filter(None, [device.backend, device.backend_version, device.driver])),
        "Protocol": f"batch {run.target.batch}, {run.target.threads} thread{'s' if run.target.threads > 1 else ''}, "
        f"{measure.min_rounds} to {measure.rounds} interleaved rounds, about {measure.seconds:g} s per model",
        "Options": ", ".join(f"{k}={v}" for k, v in sorted(device.options.items())),
        "Model": f"{run.source.name}, weights {run.source.sha256[:12]}",
        "Data": ", ".join(f"{split} {digest[:12]}" for split, digest in run.data.items()),
        "Search": f"{run.config.search.sampler}, seed {run.config.search.seed}, objectives "
        f"{', '.join(run.config.objectives)}",
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "Started": run.created,
        "Written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    entries = (f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items() if text)
    return f"<dl>{''.join(entries)}</dl>"
