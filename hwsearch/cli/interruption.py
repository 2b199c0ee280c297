"""What Ctrl-C leaves of a bundle that is being updated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwsearch.cli.output import note


@contextmanager
def version_told(bundle: Path) -> Iterator[None]:
    """If the block is interrupted, say which version of the bundle serves: it is whole at every moment."""
    from hwsearch.export.manifest import parse_manifest, read_facts

    try:
        yield
    except KeyboardInterrupt:
        number = len(parse_manifest(read_facts(bundle)).updates)
        note(f"interrupted: {bundle} serves {f'its update {number}' if number else 'what was exported'}")
        raise
