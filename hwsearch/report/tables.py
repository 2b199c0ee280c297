"""A run as pandas frames, and as CSV or Parquet files, for whoever wants to go on from there."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from hwsearch.errors import BackendUnavailableError, ConfigError
from hwsearch.report import frames
from hwsearch.report.sensitivity import effects
from hwsearch.report.view import RunView
from hwsearch.report.views import Facts
from hwsearch.types import Latency, Success

Kind = Literal["csv", "parquet"]


def to_frames(run: RunView) -> dict[str, pd.DataFrame]:
    """Everything a run knows, as frames by name; `number` joins them.

    ``evaluations`` has one row per success, ``layers`` one per evaluation and layer (requested and executed format,
    channels, time), ``measurements`` one per latency measurement, ``stages`` seconds per stage, ``failures`` one per
    failure, ``sensitivity`` one per layer and single choice where the search asked. Milliseconds, bytes, the metric in
    its own unit.

    Example:
        >>> tables = hs.to_frames(hs.Run.open(run_folder))
        >>> layers = tables["layers"].merge(tables["evaluations"][["number", "key", "latency_ms"]], on="number")
        >>> sorted(tables)[:4]
        ['evaluations', 'failures', 'layers', 'measurements']
    """
    facts = Facts(run)
    found = {
        "evaluations": facts.evaluations,
        "layers": facts.layers,
        "measurements": measurements(run),
        "stages": frames.stages(run),
        "failures": frames.failures(run),
    }
    if run.sensitivity is not None:
        found["sensitivity"] = effects(run.sensitivity, run.source)
    return found


def write_tables(run: RunView, folder: Path | str, kind: Kind = "csv") -> list[Path]:
    """Write `to_frames` as one file per frame into `folder`; their paths. Lists become text.

    Raises:
        BackendUnavailableError: `kind` is ``parquet`` and pyarrow is not installed.
        ConfigError: the folder cannot be written.
    """
    if kind == "parquet" and find_spec("pyarrow") is None:
        raise BackendUnavailableError("Parquet files need pyarrow", hint="pip install 'hwsearch[parquet]'")
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, frame in to_frames(run).items():
            path = Path(folder) / f"{name}.{kind}"
            flat = frame.assign(
                **{str(column): frame[column].map(_flat) for column in frame if frame[column].dtype == object}
            )
            flat.to_csv(path, index=False) if kind == "csv" else flat.to_parquet(path, index=False)
            paths.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from error
    return paths


def measurements(run: RunView) -> pd.DataFrame:
    """One row per latency of a model: what the search went by (`phase` search), and measured again (`phase` final)."""
    rows = [
        _measurement(t.number, t.candidate.key, "search", t.outcome.latency)
        for t in run.trials
        if isinstance(t.outcome, Success)
    ]
    if run.front is not None and run.front.final:
        rows += [_measurement(p.trial, p.key, "final", p.latency) for p in run.front.points]
    return pd.DataFrame(rows)


def _measurement(number: int, key: str, phase: str, found: Latency) -> dict[str, Any]:
    return {
        "number": number,
        "key": key,
        "phase": phase,
        "source": found.source,
        "best_ms": found.best_ms,
        "low_ms": found.ci95_ms[0],
        "high_ms": found.ci95_ms[1],
        "median_ms": found.median_ms,
        "p90_ms": found.p90_ms,
        "p99_ms": found.p99_ms,
        "sigma_ms": found.sigma_ms,
        "ratio": found.ratio,
        "rounds": found.rounds,
        "samples": found.samples,
        "contaminated": found.contaminated,
        "batch": found.batch,
    }


def _flat(value: Any) -> Any:
    """A value that fits into one cell of any file format."""
    if isinstance(value, dict):
        return json.dumps(value)
    return " ".join(value) if isinstance(value, tuple) else value
