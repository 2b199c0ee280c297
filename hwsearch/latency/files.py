"""A latency table on disk: ``entries.csv``, one row per unit and channel counts, and ``manifest.json``.

Columns of ``entries.csv``: `unit`, `window`, `size`, `precision` (see `kernels.Kind`), `in_channels`, `out_channels`,
`latency_us`, `sigma_us` (standard error; may be empty), `models` (how many measured models contain it).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsearch.errors import ConfigError
from hwsearch.latency.fit import Entry
from hwsearch.latency.kernels import Kind, Node
from hwsearch.store import atomic_write, read_json, sha256_file, write_json
from hwsearch.types import Device, from_json, to_json

ENTRIES, MANIFEST = "entries.csv", "manifest.json"
FORMAT = 1
COLUMNS = (
    "unit", "window", "size", "precision", "in_channels", "out_channels", "latency_us", "sigma_us", "models"
)  # fmt: skip
OPTIONAL = ("sigma_us", "models")
STATED_ERROR = 0.1  # relative standard error of an imported entry that states none

Entries = Mapping[Kind, Mapping[Node, Entry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCheck:
    """A table's predictions against whole models measured on the device.

    Attributes:
        models: How many.
        mape_pct, bias_pct, max_pct: Mean absolute, mean and largest absolute error, relative to the measurement.
        within_5_pct, within_10_pct: Share of models with an error of at most 5 or 10 %.
        spearman: Rank correlation.
        learned: How many of the measurements the residual had seen.
        drift_pct: How much slower the whole machine ran during the check than during the build, by the models
            both measured; the errors do not contain it.
    """

    models: int
    mape_pct: float
    bias_pct: float
    max_pct: float
    within_5_pct: float
    within_10_pct: float
    spearman: float
    learned: int = 0
    drift_pct: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a table is of, and how good it was found to be.

    Attributes:
        device: Where it holds.
        batch: Examples per call.
        source: ``measured``, or ``modelled`` for a device that was not here.
        origin: One line on where the numbers come from.
        created: ISO time.
        model_error: Relative standard error of a whole model beyond that of its entries.
        references_ms: Latency of `design.references` in the campaign that measured the entries, by the key of the
            candidate: what tells a slower machine from a wrong table.
        entries_sha256: Of ``entries.csv``.
        check: How it did against whole models; None if that was not tried.
        tempting: How it did against those of them that it makes look best.
    """

    device: Device
    batch: int
    source: str
    origin: str
    created: str
    model_error: float
    entries_sha256: str
    references_ms: dict[str, float] = field(default_factory=dict)
    check: TableCheck | None = None
    tempting: TableCheck | None = None
    format: int = FORMAT


def write_table(folder: Path, manifest: Manifest, entries: Entries) -> Manifest:
    """Write both files; the manifest returned names the entries' hash."""
    with atomic_write(folder / ENTRIES, "w") as stream:
        stream.write(_csv(entries))
    manifest = dataclasses.replace(manifest, entries_sha256=sha256_file(folder / ENTRIES))
    write_json(folder / MANIFEST, to_json(manifest))
    return manifest


def read_table(folder: Path) -> tuple[Manifest, dict[Kind, dict[Node, Entry]]]:
    """Manifest and entries.

    Raises:
        ConfigError: a file is missing, damaged, truncated, or not such a table.
    """
    manifest = _manifest(folder / MANIFEST)
    path = folder / ENTRIES
    if not path.is_file():
        raise ConfigError(f"the latency table {folder} has no {ENTRIES}", hint=_REBUILD)
    if sha256_file(path) != manifest.entries_sha256:
        raise ConfigError(
            f"the latency table {folder} is damaged: {ENTRIES} is not the file its manifest was written with",
            hint=_REBUILD,
        )
    return manifest, read_entries(path)


def read_entries(path: Path) -> dict[Kind, dict[Node, Entry]]:
    """Entries of a CSV file.

    Raises:
        ConfigError: says which line and column is wrong.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the latency table {path}: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    _check_columns(path, reader.fieldnames or ())
    entries: dict[Kind, dict[Node, Entry]] = defaultdict(dict)
    for line, row in enumerate(reader, start=2):
        kind, node, entry = _row(path, line, row)
        if node in entries[kind]:
            raise ConfigError(f"the same unit twice in {path}", where=f"line {line}: {kind}, {node[0]} -> {node[1]}")
        entries[kind][node] = entry
    if not entries:
        raise ConfigError(f"the latency table {path} has no entries", hint=_REBUILD)
    return dict(entries)


_REBUILD = "build it again with `hwsearch table build`"


def _manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise ConfigError(f"no latency table in {path.parent}", hint=_REBUILD)
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{path} is not the manifest of a latency table of format {FORMAT}", hint=_REBUILD)
    try:
        return from_json(Manifest, data)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the manifest {path} is damaged", where=str(error), hint=_REBUILD) from error


def _check_columns(path: Path, found: Any) -> None:
    missing = [name for name in COLUMNS if name not in OPTIONAL and name not in found]
    unknown = [name for name in found if name not in COLUMNS]
    if missing or unknown:
        problem = f"lacks the column `{missing[0]}`" if missing else f"has an unknown column `{unknown[0]}`"
        hint = "latencies carry their unit in the column's name" if "latency_us" in missing else None
        raise ConfigError(f"the latency table {path} {problem}", allowed=", ".join(COLUMNS), hint=hint)


def _row(path: Path, line: int, row: Mapping[str, Any]) -> tuple[Kind, Node, Entry]:
    if None in row or any(row[name] is None for name in row):
        raise ConfigError(f"the latency table {path} is cut off or has a stray comma", where=f"line {line}")
    kind = Kind(row["unit"], row["window"], row["size"], row["precision"])
    node = (_channels(path, line, row, "in_channels"), _channels(path, line, row, "out_channels"))
    latency = _number(path, line, row, "latency_us")
    sigma = _number(path, line, row, "sigma_us") if row.get("sigma_us") else STATED_ERROR * latency
    return kind, node, Entry(latency, sigma, int(_number(path, line, row, "models")) if row.get("models") else 0)


def _channels(path: Path, line: int, row: Mapping[str, Any], column: str) -> int:
    value = _number(path, line, row, column)
    if value < 1 or value != int(value):
        raise _bad(path, line, row, column, "a whole number from 1")
    return int(value)


def _number(path: Path, line: int, row: Mapping[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        raise _bad(path, line, row, column, "a number") from None
    if not math.isfinite(value) or value < 0:
        raise _bad(path, line, row, column, "a finite number from 0")
    return value


def _bad(path: Path, line: int, row: Mapping[str, Any], column: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"a wrong value in the latency table {path}", where=f"line {line}, {column} = {row[column]}", allowed=allowed
    )


def _csv(entries: Entries) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for kind in sorted(entries, key=str):
        for node, entry in sorted(entries[kind].items()):
            fields = dataclasses.astuple(kind)
            writer.writerow([*fields, *node, f"{entry.latency_us:.4g}", f"{entry.sigma_us:.3g}", entry.models])
    return stream.getvalue()
