"""One deployable model without a search: calibrated, quantised and pruned by sensitivities, in minutes.

Bits come from what the target accelerates, the range method from what keeps most accuracy, channels and branches from
the sensitivities: what is tolerated is bisected until the target's sparsity goal is met, or the accuracy that may be
lost is used up. What is evaluated stays in the run folder, where a search of the same study goes on from it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hwsearch.config import StudyConfig
from hwsearch.errors import SearchFailedError
from hwsearch.model.data import Splits
from hwsearch.model.metric import Metric
from hwsearch.search.comparison import Figures, Row, row
from hwsearch.search.cost import cpu_ms
from hwsearch.search.effects.narrowing import (
    Lost,
    best_ranges,
    last_that_fits,
    narrowest_precisions,
    quantised,
    with_ranges,
)
from hwsearch.search.effects.sensitivity import measure_sensitivities
from hwsearch.search.finalists import finalise
from hwsearch.search.loop import evaluated, tell
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.search.pricing.sparsity import sparsity_curve, sparsity_of
from hwsearch.search.progress import Watcher, silent
from hwsearch.search.run import Run
from hwsearch.search.session import Session, opened
from hwsearch.space.space import decode
from hwsearch.store import write_json
from hwsearch.types import SCHEMA_VERSION, Candidate, Failure, Sparsity, Success, Target, Trial, to_json

COMPRESSED_FILE = "compressed.json"

METHODS = ("minmax", "percentile", "entropy", "mse")

SHARE = 0.5
"""Of the accuracy that may be lost, what is used up on the search split: other examples scatter around it."""

CLOSE = 0.02
"""How far from the goal a sparsity may be."""

Keep = Literal["accuracy", "sparsity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What is asked of the compressed model.

    Example:
        >>> hs.Goals(max_drop=2.0).keep  # where both cannot be had
        'accuracy'

    Attributes:
        sparsity: Replaces the target's own goal; without either, as much as accuracy allows.
        max_drop: Points of accuracy that may be lost against fp32.
        keep: Which of the two counts where both cannot be had.

    Example:
        >>> hs.Goals(max_drop=0.5).keep
        'accuracy'
    """

    sparsity: Sparsity | None = None
    max_drop: float = 1.0
    keep: Keep = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed model and its run; what `hwsearch.export` takes.

    Attributes:
        row: Its figures beside fp32's, accuracies on examples that nothing was chosen by.
        sparsity: What was reached.
        goal: What was asked for, if anything.
        ranges: How activations were calibrated.
        cpu_ms: Processor time per example, of fp32 and of this model; None for a device that is not here.
        unmet: What was asked for and could not be had, one line each.
    """

    run: Run
    row: Row
    sparsity: Sparsity
    goal: Sparsity | None
    ranges: str
    cpu_ms: tuple[float, float] | None
    unmet: tuple[str, ...]

    @property
    def key(self) -> str:
        """Of the candidate."""
        return self.row.key

    def to_json(self) -> dict[str, Any]:
        """Plain data; the run by its path."""
        fields = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {**fields, "run": str(self.run.path)}


def compress_study(
    config: StudyConfig,
    *,
    out: Path,
    targets: Sequence[str],
    goals: Goals | None = None,
    progress: Watcher = silent,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    metric: Metric | None = None,
) -> list[Compressed]:
    """The network of a study made small for some targets, one after the other.

    Args:
        config: The study.
        out: Folder of the study; each target gets a folder below it, where a search of the study would go on.
        targets: Built-in targets or target files.
        goals: See `Goals`.
        progress: Told what happens.
        module: Replaces the network the study names.
        splits: Replace the data the study names.
        metric: Replaces the metric the study names.

    Raises:
        ConfigError: bad input, or the folder holds a search of something else.
        BackendUnavailableError: a target's runtime is missing.
        SearchFailedError: no compressed model could be built.
    """
    ready = {name: ready_target(name, config) for name in targets}
    subject = load_subject(config, module=module, splits=splits, metric=metric, trained=out.parent / "trained")
    found = []
    for name, target in ready.items():
        with opened(config, subject, target, out / Path(name).stem, watch=progress, stop=threading.Event()) as session:
            found.append(_compressed(session, goals or Goals()))
            tell(session.search, "done", "")
    return found


def _compressed(session: Session, goals: Goals) -> Compressed:
    """What is best on one target; also written to its run folder."""
    trials = [evaluated(session.search, candidate) for candidate in _narrowed(session, goals)]
    tell(session.search, "finalists", "measuring the models together")
    finalise(session.folder, session.search.trials, session.evaluator, session.identity)
    found = _described(session, Run.open(session.folder), trials, goals)
    write_json(session.folder / COMPRESSED_FILE, {"schema_version": SCHEMA_VERSION, **found.to_json()})
    return found


def _narrowed(session: Session, goals: Goals) -> list[Candidate]:
    """The network quantised, and the same pruned; one of them if there is nothing to prune."""
    search, evaluator, identity = session.search, session.evaluator, session.identity
    space, source = identity.space, identity.source
    allowed = SHARE * goals.max_drop
    effects = measure_sensitivities(evaluator, space, source, session.folder, search.watch, search.stop)
    lost = Lost(evaluator.score, _original(search.trials).accuracy)

    tell(search, "search", "choosing how activations are calibrated")
    default, *others = _methods(search.config, identity.target)
    ranges = best_ranges(lost, quantised(space, source), (default, *others))

    tell(search, "search", "choosing the bits of each layer")
    bits, _ = narrowest_precisions(  # first, since they gain most; pruning takes what accuracy is left
        effects, space, lambda n: lost(with_ranges(decode(space, source, n), ranges, default)) <= allowed
    )

    tell(search, "search", "choosing what is pruned")
    goal = goals.sparsity or identity.target.sparsity
    curve = sparsity_curve(source, space, lambda *choice: effects.loss(*choice)[0], goal.metric if goal else "macs")

    models = [
        with_ranges(decode(curve.space, source, {**numbers, **bits}), ranges, default)
        for numbers in curve.steps(goal.goal if goal else None, CLOSE)
    ]
    row = len(models) - 1
    if not (goal and goals.keep == "sparsity"):
        row = last_that_fits(len(models), lambda i: lost(models[i]) <= allowed)
    return list({c.key: c for c in (models[0], models[row])}.values())


def _described(session: Session, run: Run, trials: Sequence[Trial], goals: Goals) -> Compressed:
    """The better one of the trials, beside the original."""
    goal = goals.sparsity or session.identity.target.sparsity
    good = [trial for trial in trials if isinstance(trial.outcome, Success)]
    if not good:
        raise _failed(trials)
    original = next(t for t in run.trials if t.baseline is not None and isinstance(t.outcome, Success))
    figures = {trial.candidate.key: _figures(session, run, trial) for trial in (original, *good)}
    chosen = good[-1] if goal else min(good, key=lambda trial: figures[trial.candidate.key][1].best_ms)
    found = row(run, chosen.candidate.key, figures[chosen.candidate.key], figures[original.candidate.key])
    metric = goal.metric if goal else "macs"
    reached = sparsity_of(chosen.candidate, session.identity.source, metric)
    return Compressed(
        run=run,
        row=found,
        sparsity=Sparsity(metric=metric, goal=reached),
        goal=goal,
        ranges=chosen.candidate.recipe.get("ranges", session.search.config.quantize.ranges),
        cpu_ms=cpu_ms(session.evaluator, original, chosen),
        unmet=(*_unmet(goals, goal, reached, found.drop_points), *_over(chosen)),
    )


def _unmet(goals: Goals, goal: Sparsity | None, reached: float, lost: float) -> tuple[str, ...]:
    problems = []
    if goal and abs(reached - goal.goal) > CLOSE:
        asked = f"{goal.goal:.0%} of the {goal.metric} should go, {reached:.1%} are gone"
        first = f"more may cost over {goals.max_drop:g} points of accuracy; --keep sparsity puts the goal first"
        problems.append(f"{asked}: {first if goals.keep == 'accuracy' else 'the space has nothing nearer'}")
    if lost > goals.max_drop:
        problems.append(f"{lost:.2f} points of accuracy are lost on new examples, {goals.max_drop:g} were allowed")
    return tuple(problems)


def _over(trial: Trial) -> Iterator[str]:
    """Limits of the study that a model exceeds."""
    for name, amount in trial.constraints.items():
        if amount > 0:
            yield f"limits.{name} is exceeded by {amount:.3g}"


def _methods(config: StudyConfig, target: Target) -> tuple[str, ...]:
    """Range methods to try, the default first; one that the study or the target names is not questioned."""
    default = config.quantize.ranges
    if target.ranges is not None or "ranges" in config.quantize.model_fields_set:
        return (default,)
    return (default, *(method for method in METHODS if method != default))


def _original(trials: Sequence[Trial]) -> Success:
    """The widest baseline."""
    found = next((t.outcome for t in trials if t.baseline is not None and isinstance(t.outcome, Success)), None)
    if found is None:
        raise _failed(trials)
    return found


def _figures(session: Session, run: Run, trial: Trial) -> Figures:
    """Accuracy on the report split, and latency; as measured together with the others where it is a finalist."""
    assert isinstance(trial.outcome, Success)
    for point in run.points():
        if point.key == trial.candidate.key and point.accuracy.split == "report":
            return point.accuracy, point.latency
    accuracy = session.evaluator.accuracy(trial.outcome.artifact, trial.candidate, "report")
    return accuracy, trial.outcome.latency


def _failed(trials: Sequence[Trial]) -> SearchFailedError:
    first = next((t.outcome for t in trials if isinstance(t.outcome, Failure)), None)
    where = f"{first.stage}: {first.message}" if first else None
    return SearchFailedError("no model could be built", where=where, hint=first.hint if first else None)
