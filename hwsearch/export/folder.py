"""A folder that appears whole, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.errors import ConfigError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged_folder(out: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name when the block ends, and is removed when it fails.

    Args:
        out: The folder to make; it may exist if it is empty.
        force: Replace a folder that holds a file called `marker`; nothing else is ever replaced.
        marker: The file by which a folder is known to be one of ours.

    Raises:
        ConfigError: `out` is taken, cannot be written, or the disk is full.
    """
    out = out.resolve()
    part = hidden(out, "part", os.getpid())
    _check_free(out, force=force, marker=marker)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        part.mkdir()
        yield part
        flush(part)
        _publish(part, out)
    except OSError as error:
        reason = "the disk is full" if error.errno in _NO_ROOM else error.strerror or str(error)
        raise ConfigError(f"cannot write {out}: {reason}", hint="choose another folder, or make room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_free(out: Path, *, force: bool, marker: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="choose another folder")
    if not (out / marker).exists():
        raise ConfigError(f"{out} exists and is not a bundle, so it is not replaced", hint="choose another folder")
    if not force:
        raise ConfigError(f"{out} exists", hint="use --force to replace that bundle, or choose another folder")


def _publish(part: Path, out: Path) -> None:
    if not out.exists():
        part.rename(out)
        return
    exchange(part, out)
    shutil.rmtree(part)


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders of one file system; in a single step where the kernel can (Linux).

    Elsewhere it takes two: a kill between them leaves `other` under a hidden name beside it.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
        if rename(*paths, _RENAME_EXCHANGE) == 0:
            return
    aside = hidden(other, "old", os.getpid())
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def flush(folder: Path) -> None:
    """Onto the disk before the name changes: after a power cut the folder is whole, or not there."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(out: Path) -> None:
    """Remove what killed exports to the same name left; a live one keeps its folder."""
    for path in out.parent.iterdir():
        process = path.name.removeprefix(f".{out.name}.").removesuffix(".part")
        if process.isdigit() and path == hidden(out, "part", int(process)) and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def hidden(out: Path, kind: str, process: int) -> Path:
    """The name beside `out` under which a process works on it."""
    return out.with_name(f".{out.name}.{process}.{kind}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
