"""``hwsearch benchmark``: latency of model files, measured together."""

from __future__ import annotations

from hwsearch.cli.verb import verb


@verb
def benchmark() -> None:
    """Time model files."""
