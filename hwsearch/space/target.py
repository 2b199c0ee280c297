"""Targets: what a device accepts and what it accelerates, as data files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.space.profile import parse_target
from hwsearch.types import PRECISIONS, Target


def target_names() -> list[str]:
    """Names of the built-in targets, sorted."""
    folder = resources.files("hwsearch.space") / "targets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_target(name: str, *, threads: int | None = None, batch: int | None = None) -> Target:
    """The built-in target called `name`, or the one in the YAML file at that path.

    Args:
        name: e.g. ``ort-cpu``, or a path ending in ``.yaml``.
        threads: Replaces the profile's number of threads.
        batch: Replaces the profile's batch size.

    Raises:
        ConfigError: no such target, or its file is malformed.
    """
    text, path = _read(name)
    target = _with_own_table(parse_target(text, path), Path(name).parent)
    return dataclasses.replace(target, threads=threads or target.threads, batch=batch or target.batch)


def native_precisions(target: Target, op: str, isa: Iterable[str]) -> tuple[str, ...]:
    """Precisions worth offering for a layer kind on a chip with instruction sets `isa`, narrowest first.

    The widest accepted float format always stays: it is the yardstick every gain is measured against.
    """
    capability = target.ops.get(op)
    if capability is None:
        return ("fp32",)
    present = set(isa)
    floats = [name for name in capability.accepts if not PRECISIONS[name].integer]
    widest = max(floats, key=lambda name: PRECISIONS[name].weight_bits)
    offered = [name for name in capability.accelerates if _native(target, name, present)]
    return tuple(sorted({*offered, widest}, key=lambda name: PRECISIONS[name].weight_bits))


def native_patterns(target: Target, op: str, isa: Iterable[str]) -> tuple[str, ...]:
    """Patterns of zero weights that a chip with instruction sets `isa` skips in layers of one kind."""
    capability, present = target.ops.get(op), set(isa)
    return tuple(name for name in capability.patterns if _native(target, name, present)) if capability else ()


def skipped_patterns(target: Target, isa: Iterable[str]) -> tuple[str, ...]:
    """Patterns that such a chip skips in layers of some kind."""
    isa = tuple(isa)
    return tuple(dict.fromkeys(name for op in target.ops for name in native_patterns(target, op, isa)))


def _with_own_table(target: Target, folder: Path) -> Target:
    """The target with the path of its table, which its file gives relative to itself, made absolute."""
    return target if target.table is None else dataclasses.replace(target, table=str((folder / target.table).resolve()))


def _native(target: Target, name: str, isa: set[str]) -> bool:
    needed = target.needs_isa.get(name)
    return not needed or bool(isa.intersection(needed))


def _read(name: str) -> tuple[str, Path]:
    """Text and path of a target file."""
    if name.endswith((".yaml", ".yml")):
        try:
            return Path(name).read_text(), Path(name)
        except OSError as error:
            raise ConfigError(f"cannot read target file {name}: {error.strerror}") from error
    if name not in target_names():
        raise ConfigError(
            f"unknown target `{name}`", allowed=", ".join(target_names()), hint=did_you_mean(name, target_names())
        )
    return (resources.files("hwsearch.space") / "targets" / f"{name}.yaml").read_text(), Path(f"{name}.yaml")
