"""Finalists measured again, together, and scored on data the search never saw.

Picking the best of many noisy measurements favours the lucky ones (the winner's curse), so nothing is reported from the
measurements that chose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hwsearch.backends.timing import combined
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.front import assemble, choose
from hwsearch.search.run import FRONT_FILE, Identity, final_front
from hwsearch.store import write_json
from hwsearch.types import SCHEMA_VERSION, Front, Latency, Success, Trial, to_json

_SECOND = "second build of "


def finalise(folder: Path, trials: Sequence[Trial], evaluator: Evaluator, identity: Identity) -> Front:
    """Measure the finalists and write front.json; unchanged finalists are not measured again."""
    known = final_front(folder, trials)
    if known is not None:
        return known
    chosen = choose(trials)
    models = {t.candidate.key: (t.outcome.artifact, t.candidate) for t in chosen if isinstance(t.outcome, Success)}
    again = {_SECOND + key: built for key, model in models.items() if (built := evaluator.rebuilt(*model)) is not None}
    latencies = evaluator.latency.together(models | again)
    final = partial(
        assemble,
        chosen,
        accuracies={key: evaluator.accuracy(artifact, c, "report") for key, (artifact, c) in models.items()},
        target=identity.target.name,
        device=identity.device,
        objectives=identity.objectives,
        final=True,
        build_spreads=_spreads(latencies),
        energies={key: evaluator.energy(candidate, artifact) for key, (artifact, candidate) in models.items()},
    )
    tied = _tied(final(latencies=latencies))
    if tied:
        second = evaluator.latency.together({key: models[key] for key in tied})
        latencies |= {key: combined(latencies[key], found) for key, found in second.items()}
    front = final(latencies=latencies)
    write_json(
        folder / FRONT_FILE, {"schema_version": SCHEMA_VERSION, "finalists": sorted(models), "front": to_json(front)}
    )
    return front


def _tied(front: Front) -> set[str]:
    """Measured points of the front that the noise keeps from being told apart: they are worth measuring once more."""
    keys = {p.key for p in front.points if p.on_front and p.latency.reference_ratio is not None}
    return {p.key for p in front.points if p.key in keys and keys & set(p.tied_with)}


def _spreads(latencies: Mapping[str, Latency]) -> dict[str, float]:
    """Key -> how far apart two builds of the model ran, for those that were built twice."""
    found = {}
    for name, second in latencies.items():
        if name.startswith(_SECOND):
            key = name.removeprefix(_SECOND)
            slower, faster = sorted((second.best_ms, latencies[key].best_ms), reverse=True)
            found[key] = slower / faster - 1
    return found
