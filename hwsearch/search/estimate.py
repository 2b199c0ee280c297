"""How long a search will take: from one evaluation, made in a folder that is thrown away."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hwsearch.config import StudyConfig
from hwsearch.errors import SearchFailedError
from hwsearch.search.effects.changes import changes
from hwsearch.search.effects.log import PATIENCE_S
from hwsearch.search.evaluate import Evaluator, Subject
from hwsearch.search.front import MAX_FINALISTS
from hwsearch.search.prepare import load_subject, ready_target, space_for
from hwsearch.space.space import baselines
from hwsearch.types import Failure, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the parts of a search take, in seconds.

    Attributes:
        evaluation_s: One evaluation.
        sensitivities_s: All single choices, where the search asks what each does alone.
        finalists_s: Measuring and scoring the finalists.
    """

    target: str
    evaluations: int
    evaluation_s: float
    sensitivities_s: float
    finalists_s: float

    @property
    def seconds(self) -> float:
        """The whole search, if it spends its budget."""
        return self.evaluations * self.evaluation_s + self.sensitivities_s + self.finalists_s


def estimate_study(config: StudyConfig) -> list[Estimate]:
    """One estimate per target of a study, after evaluating its uniform settings; nothing is kept.

    Raises:
        HwSearchError: what would stop the search; a first evaluation that fails among it.
    """
    ready = [ready_target(name, config) for name in config.targets]
    subject = load_subject(config)
    return [_estimate(subject, target, config) for target in ready]


def _estimate(subject: Subject, target: Target, config: StudyConfig) -> Estimate:
    space, splits = space_for(subject, target, config), subject.splits
    uniform = list(baselines(space).values())
    with (
        tempfile.TemporaryDirectory(prefix="hwsearch-") as place,
        Evaluator(subject, target, config, Path(place) / "run") as evaluator,
    ):
        for candidate in (uniform[0], uniform[-1]):  # the first also pays for what all share
            outcome, seconds = evaluator.evaluate(candidate, baseline=True)
            if isinstance(outcome, Failure):
                raise SearchFailedError(
                    "the first evaluation failed", where=f"{outcome.stage}: {outcome.message}", hint=outcome.hint
                )
        begun = time.monotonic()
        evaluator.divergence(uniform[0], min(config.sensitivity.images, len(splits.search)))
        choice_s = time.monotonic() - begun
    asked = config.search.sampler == "guided" and config.sensitivity.method != "fisher"
    choices = len(changes(space, subject.network.source)) if asked else 0
    longest = float("inf") if config.sensitivity.method == "measured" else PATIENCE_S
    scoring_s = seconds.get("accuracy", 0.0) * len(splits.report) / len(splits.search)
    return Estimate(
        target=target.name,
        evaluations=config.search.evaluations,
        evaluation_s=sum(seconds.values()),
        sensitivities_s=min(choices * choice_s, longest),
        finalists_s=MAX_FINALISTS * (seconds.get("latency", 0.0) + scoring_s),
    )
