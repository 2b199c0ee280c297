"""A latency table that is fit to be used: open it, ask it, check it, import it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.errors import ConfigError
from hwsearch.latency.files import Entries, Manifest, TableCheck, read_entries, read_table, write_table
from hwsearch.latency.fit import Entry
from hwsearch.latency.kernels import Kind, Node
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.predictor import CostTable, Predictor
from hwsearch.types import Device, SourceModel, Target

if TYPE_CHECKING:
    from hwsearch.model.template import Template

ROOT = Path("latency_tables")
LEAST_MODELS, LEAST_WITHIN_10_PCT, LEAST_SPEARMAN = 20, 95.0, 0.95
LEAST_TEMPTING_WITHIN_10_PCT = 90.0  # of the few models that look best
IMPORTED_ERROR = 0.1  # relative standard error of a whole model for a table that nobody could check here


def table_folder(device: Device, name: str, *, root: Path = ROOT) -> Path:
    """Where the table of study `name` for `device` lies: ``<root>/<backend>/<chip>-<device key>/<name>``."""
    chip = re.sub(r"[^a-z0-9]+", "-", device.chip.lower()).strip("-")
    return root / device.backend / f"{chip}-{device.key}" / name


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Costs of compiled units on one device, with the manifest that says how far to trust them."""

    folder: Path
    manifest: Manifest
    entries: Entries

    @staticmethod
    def load(folder: Path) -> LatencyTable:
        """The table in `folder`, whether or not it may be used.

        Raises:
            ConfigError: it is missing, damaged, truncated, or not a latency table.
        """
        return LatencyTable(folder, *read_table(folder))

    @staticmethod
    def open(folder: Path, device: Device) -> LatencyTable:
        """The table in `folder`, fit to drive a search on `device`.

        Raises:
            ConfigError: as `load`; or it is of another device or version, was never checked, or failed its check.
        """
        table = LatencyTable.load(folder)
        _check_device(folder, table.manifest.device, device)
        problem = gate(table.manifest)
        if problem:
            raise ConfigError(f"the latency table {folder} may not be used: {problem}", hint="measure instead")
        return table

    def predictor(self, source: SourceModel, target: Target, template: Template) -> Predictor:
        """What predicts candidates of a network; it refuses one for which the table lacks an entry.

        Raises:
            ConfigError: the table is for another batch size, or the backend is not one that tables are made for.
        """
        if target.batch != self.manifest.batch:
            raise ConfigError(
                f"the latency table {self.folder} is for batch {self.manifest.batch}, the target runs {target.batch}"
            )
        reader = NetworkUnits(source, template, quantizer_rule(target))
        return Predictor(CostTable(self.entries), reader, self.manifest.model_error)

    def checked(self, check: TableCheck, tempting: TableCheck | None = None) -> LatencyTable:
        """The table with the result of a check, written to its folder; the check's error becomes the model error.

        Args:
            check: Of all models.
            tempting: Of those that looked best.
        """
        error = max(check.mape_pct * 1.25 / 100, 0.005)  # mean absolute to standard deviation of a normal error
        manifest = dataclasses.replace(self.manifest, check=check, tempting=tempting, model_error=error)
        return dataclasses.replace(self, manifest=write_table(self.folder, manifest, self.entries))


def gate(manifest: Manifest) -> str | None:
    """Why a table may not drive a search, or None. One modelled for an absent device can only be taken on trust."""
    check = manifest.check
    if manifest.source == "modelled":
        return None
    if check is None or check.models < LEAST_MODELS:
        return f"it was not checked against {LEAST_MODELS} whole models; run `hwsearch table check`"
    if check.within_10_pct < LEAST_WITHIN_10_PCT:
        return f"only {check.within_10_pct:.0f} % of {check.models} models were within 10 % of their measurement"
    if check.spearman < LEAST_SPEARMAN:
        return f"it ranks {check.models} models with a Spearman correlation of {check.spearman:.3f} only"
    best = manifest.tempting
    if best is not None and best.within_10_pct < LEAST_TEMPTING_WITHIN_10_PCT:
        share = f"{best.within_10_pct:.0f} % of {best.models}"
        return f"of the models that look best by it, only {share} were within 10 % of their measurement"
    return None


def import_table(path: Path, folder: Path, device: Device, *, batch: int, source: str, origin: str) -> LatencyTable:
    """Write the entries of a CSV file (columns: see `files`) to `folder` as a table of `device`.

    Args:
        path: The CSV file.
        folder: Where the table goes.
        device: What it describes.
        batch: Examples per call.
        source: ``modelled`` or ``measured``.
        origin: One line on where the numbers come from.

    Raises:
        ConfigError: the file is not such a table.
    """
    entries: dict[Kind, dict[Node, Entry]] = read_entries(path)
    manifest = Manifest(
        device=device,
        batch=batch,
        source=source,
        origin=origin,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        model_error=IMPORTED_ERROR,
        entries_sha256="",
    )
    return LatencyTable(folder, write_table(folder, manifest, entries), entries)


def _check_device(folder: Path, found: Device, device: Device) -> None:
    """Refuse a table of another device; name what differs first."""
    for field in dataclasses.fields(Device):
        theirs, ours = getattr(found, field.name), getattr(device, field.name)
        if theirs != ours:
            raise ConfigError(
                f"the latency table {folder} does not hold here: its {field.name.replace('_', ' ')} differs",
                where=f"table: {_plain(theirs)}, here: {_plain(ours)}",
                hint="build it again with `hwsearch table build`, or measure",
            )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={entry}" for name, entry in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)
