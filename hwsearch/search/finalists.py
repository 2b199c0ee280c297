"""Finalists measured again, together, and scored on data the search never saw.

Picking the best of many noisy measurements favours the lucky ones (the winner's curse), so nothing is reported from the
measurements that chose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwsearch.search.evaluate import Evaluator
from hwsearch.search.front import assemble, choose
from hwsearch.search.run import FRONT_FILE, Identity, final_front
from hwsearch.store import write_json
from hwsearch.types import SCHEMA_VERSION, Front, Success, Trial, to_json


def finalise(folder: Path, trials: Sequence[Trial], evaluator: Evaluator, identity: Identity) -> Front:
    """Measure the finalists and write front.json; unchanged finalists are not measured again."""
    known = final_front(folder, trials)
    if known is not None:
        return known
    chosen = choose(trials)
    models = {t.candidate.key: (t.outcome.artifact, t.candidate) for t in chosen if isinstance(t.outcome, Success)}
    front = assemble(
        chosen,
        evaluator.latency.together(models),
        {key: evaluator.accuracy(artifact, candidate, "report") for key, (artifact, candidate) in models.items()},
        target=identity.target.name,
        device=identity.device,
        objectives=identity.objectives,
        final=True,
    )
    write_json(
        folder / FRONT_FILE, {"schema_version": SCHEMA_VERSION, "finalists": sorted(models), "front": to_json(front)}
    )
    return front
