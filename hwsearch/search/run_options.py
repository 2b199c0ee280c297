"""How the models of a search are run."""

from __future__ import annotations

from hwsearch.backends.base import RunOptions
from hwsearch.backends.environment import usable_cores
from hwsearch.types import Target


def latency_options(target: Target, float_precision: str) -> RunOptions:
    """How latency and energy are measured: the target's threads and batch, pinned to the machine's last cores."""
    return RunOptions(
        threads=target.threads,
        batch=target.batch,
        float_precision=float_precision,
        options=target.options,
        cpus=tuple(usable_cores()[-target.threads :]),
    )
