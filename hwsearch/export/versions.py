"""One folder takes another's place in a single step, and what was there is kept.

    bundle/                what serves
    bundle.versions/1/     what served before the first update
    bundle.versions/2/     ... before the second

At every moment `bundle/` is one whole version: the kernel exchanges the two names at once. An update that is
interrupted before that leaves the old version in place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.errors import BundleError, ConfigError
from hwsearch.export.folder import exchange, flush, hidden, remove_leftovers

KEPT = 5
"""Old versions of a bundle that are kept."""


@contextmanager
def next_version(bundle: Path, number: int, *, keep: int = KEPT) -> Iterator[Path]:
    """An empty folder that takes the bundle's place when the block ends; the bundle becomes version `number`.

    Args:
        bundle: What serves.
        number: Of the version that is replaced.
        keep: Old versions to keep; older ones are removed.

    Raises:
        ConfigError: the folder cannot be written.
    """
    bundle = bundle.resolve()
    part = hidden(bundle, "part", os.getpid())
    try:
        remove_leftovers(bundle)
        part.mkdir()
        yield part
        flush(part)
        _keep_copy(bundle, number)
        exchange(part, bundle)
        for old in versions(bundle)[:-keep]:
            shutil.rmtree(_home(bundle) / str(old))
    except OSError as error:
        raise ConfigError(f"cannot write beside {bundle}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def versions(bundle: Path) -> list[int]:
    """Numbers of the versions kept beside a bundle, oldest first."""
    home = _home(bundle.resolve())
    return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit()) if home.is_dir() else []


def roll_back(bundle: Path) -> int:
    """Put the newest kept version back in the bundle's place; its number. What served until now is gone.

    Raises:
        BundleError: no version is kept.
        ConfigError: the folder cannot be written.
    """
    bundle, kept = bundle.resolve(), versions(bundle)
    if not bundle.is_dir():
        raise BundleError(f"no bundle at {bundle}", hint="name a folder that `hwsearch export` wrote")
    if not kept:
        raise BundleError(f"{bundle} has no earlier version", hint="versions are kept when a bundle is updated")
    try:
        exchange(_home(bundle) / str(kept[-1]), bundle)
        shutil.rmtree(_home(bundle) / str(kept[-1]))
        with contextlib.suppress(OSError):  # versions that are older
            _home(bundle).rmdir()
    except OSError as error:
        raise ConfigError(f"cannot write {bundle}: {error.strerror or error}") from error
    return kept[-1]


def _keep_copy(bundle: Path, number: int) -> None:
    """A copy of what serves, whole under its number or not there."""
    home = _home(bundle)
    home.mkdir(exist_ok=True)
    unfinished = home / f".{number}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(bundle, unfinished)
    flush(unfinished)
    shutil.rmtree(home / str(number), ignore_errors=True)
    unfinished.rename(home / str(number))


def _home(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.versions")
