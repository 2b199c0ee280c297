"""Whether a model is legal for its target: by what really ran, layer by layer, and by its widths."""

from __future__ import annotations

from dataclasses import dataclass

from hwsearch.search.run import Run
from hwsearch.types import OpCapability, Success, Target, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Legality:
    """What was read back of a model.

    Attributes:
        layers: How many the model has.
        executed: Precision -> how many of them ran in it, as far as the runtime says.
        problems: What the target does not take, one line each.
    """

    layers: int
    executed: dict[str, int]
    problems: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the runtime said of every layer what it ran in."""
        return sum(self.executed.values()) == self.layers


def legality(run: Run, trial: Trial) -> Legality:
    """Which precisions really ran, and what of the model the run's target does not take."""
    candidate = trial.candidate
    ran = _executed(trial)
    problems = [
        f"{layer} ran in {name}; {run.target.name} takes {', '.join(accepted)}"
        for layer, name in ran.items()
        if name not in (accepted := _accepted(run.target, run.source.layer(layer).op))
    ]
    problems += [
        f"{group} keeps {width} channels; allowed are {', '.join(map(str, run.space.widths.get(group, ())))}"
        for group, width in candidate.keep.items()
        if width not in run.space.widths.get(group, ())
    ]
    counts = {name: list(ran.values()).count(name) for name in dict.fromkeys(ran.values())}
    return Legality(layers=len(candidate.precision), executed=counts, problems=tuple(problems))


def _executed(trial: Trial) -> dict[str, str]:
    """Layer -> precision it ran in, for those of which the runtime says so."""
    units = trial.outcome.layers if isinstance(trial.outcome, Success) else ()
    return {
        layer: unit.format
        for unit in units
        if unit.format is not None
        for layer in unit.source_layers
        if layer in trial.candidate.precision
    }


def _accepted(target: Target, op: str) -> tuple[str, ...]:
    capability: OpCapability | None = target.ops.get(op)
    return capability.accepts if capability else ("fp32",)
