"""What model files spend beside time: energy per example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hwsearch.backends.base import RunOptions
from hwsearch.backends.benchmark import artifact_of, names_of
from hwsearch.backends.worker import Worker
from hwsearch.types import Energy

TIMEOUT_S = 120.0


def energies(models: Sequence[Path], backend: str, options: RunOptions) -> dict[str, Energy | None]:
    """Energy per example of each model, one after the other, net of idle; None where the machine counts none.

    Raises:
        BackendUnavailableError: the runtime is not here.
        EvaluationError: a model cannot be built or run.
    """
    found = {}
    with TemporaryDirectory(prefix="hwsearch-") as folder, Worker(backend, options) as worker:
        for number, (name, path) in enumerate(zip(names_of(models), models, strict=True)):
            artifact = artifact_of(worker, path, Path(folder) / str(number))
            found[name] = worker.energy(artifact, options, timeout_s=TIMEOUT_S)
    return found
