"""The front of one run on another device: its finalists are built, judged and measured there; nothing is searched."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwsearch.compress.recover import RESULT, Recipe, is_trained
from hwsearch.errors import ConfigError
from hwsearch.search.finalists import finalise
from hwsearch.search.loop import evaluated, tell
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.search.progress import Watcher, silent
from hwsearch.search.run import Run
from hwsearch.search.session import opened
from hwsearch.space.space import encode
from hwsearch.store import atomic_write
from hwsearch.types import Candidate
from hwsearch.types.built import trained_folder


@dataclass(frozen=True, slots=True)
class Reranked:
    """The run on the other device, and the keys of finalists that it has no kernels for."""

    run: Run
    refused: tuple[str, ...]


def rerank(run: Run, target: str, *, out: Path | None = None, progress: Watcher = silent) -> Reranked:
    """The finalists of `run` on `target`, with the baselines there; a search of the same study may go on from it.

    Args:
        run: A finished search.
        target: A built-in target or a target file.
        out: Folder of the study; default: the one `run` lies in.
        progress: Told what happens.

    Raises:
        ConfigError: the run has no front, its data came from a program, or the folder holds something else.
        BackendUnavailableError: the target's runtime is missing.
    """
    finalists = [run.trial(p.key).candidate for p in run.points() if p.on_front and p.baseline is None]
    if not run.points():
        raise ConfigError(f"{run.path} has no front yet", hint=f"search on: hwsearch search {run.path / 'study.yaml'}")
    if run.config.data.source == "python":
        raise ConfigError("the data of this run came from a program", hint="search the other target there")
    ready = ready_target(target, run.config)
    study = out or run.path.parent
    subject = load_subject(run.config, trained=study.parent / "trained")
    folder = study / Path(target).stem
    with opened(run.config, subject, ready, folder, watch=progress, stop=threading.Event()) as session:
        space, search = session.identity.space, session.search
        _take_along(run, finalists, folder)
        allowed = [candidate for candidate in finalists if encode(space, candidate) is not None]
        for candidate in allowed:
            tell(search, "search", f"finalist {candidate.key}")
            evaluated(search, candidate)
        tell(search, "finalists", "measuring the finalists together")
        finalise(folder, search.trials, session.evaluator, session.identity)
        tell(search, "done", "")
    kept = {candidate.key for candidate in allowed}
    return Reranked(Run.open(folder), tuple(c.key for c in finalists if c.key not in kept))


def _take_along(run: Run, finalists: Sequence[Candidate], folder: Path) -> None:
    """Copy what training made of the finalists, so that they are not trained again.

    Float weights are right for any device; where rounding was trained, it was that of the device the run searched on.
    """
    if any(is_trained(candidate) and Recipe.of(candidate).qat for candidate in finalists):
        return
    for path in trained_folder(run.path).glob(f"*{RESULT}"):
        copy = trained_folder(folder) / path.name
        if not copy.exists():
            with atomic_write(copy) as stream:
                stream.write(path.read_bytes())
