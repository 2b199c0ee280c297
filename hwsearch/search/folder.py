"""A run folder belongs to one search and to one process at a time."""

from __future__ import annotations

import datetime as dt
import fcntl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwsearch.config import StudyConfig, resolved_yaml
from hwsearch.errors import ConfigError
from hwsearch.search.prepare import versions
from hwsearch.search.run import Identity, identity_of, read_facts, write_facts
from hwsearch.store import atomic_write
from hwsearch.types import to_json


def claim(folder: Path, wanted: Identity, config: StudyConfig) -> tuple[str, str]:
    """Make `folder` the run folder of this search, or check that it already is; its owner mark and study name."""
    with atomic_write(folder / "study.yaml", "w") as stream:
        stream.write(resolved_yaml(config))
    if not (folder / "run.json").exists():
        owner, study_name = uuid.uuid4().hex[:12], f"{config.name}/{wanted.target.name}"
        created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        write_facts(folder, wanted, owner=owner, study_name=study_name, versions=versions(), created=created)
        return owner, study_name
    facts = read_facts(folder)
    _check_same(folder, identity_of(facts), wanted)
    return facts["owner"], facts["study_name"]


def _check_same(folder: Path, found: Identity, wanted: Identity) -> None:
    """Refuse to mix two searches in one folder."""
    parts: list[tuple[str, Callable[[Identity], Any]]] = [
        ("model", lambda i: (i.source.name, i.source.sha256[:12])),
        ("data", lambda i: {name: digest[:12] for name, digest in i.data.items()}),
        ("metric", lambda i: i.metric),
        ("set of objectives", lambda i: i.objectives),
        ("device", lambda i: to_json(i.device)),
        ("target", lambda i: to_json(i.target)),
        ("space", lambda i: to_json(i.space)),
    ]
    for name, part in parts:
        if part(found) != part(wanted):
            detail = f"there: {part(found)}, now: {part(wanted)}" if name in ("model", "data", "metric") else None
            raise ConfigError(
                f"{folder} holds a search with another {name}",
                where=detail,
                hint="choose another folder with --out, or delete that one",
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        ConfigError: the folder cannot be written, or another process searches in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is searching in {folder}", hint="wait for it, or use --out") from None
        yield
