"""Do sums of sensitivities rank candidates as their true losses do, and are models as fast as was asked for?

    python studies/benchmarks/search/surrogate.py ranks STUDY FOLDER      # FOLDER of compare.py, with other methods
    python studies/benchmarks/search/surrogate.py drawn STUDY FOLDER
    python studies/benchmarks/search/surrogate.py requested STUDY FOLDER

`ranks` needs no evaluation: candidates that `compare.py` evaluated for other methods are ranked by the sum of their
sensitivities, before and after the calibration by one guided search, and by the divergence of the built model. `drawn`
evaluates candidates drawn at random, of which each has a random share of all choices changed, so that they are spread
over all degrees of damage; where all choices are random, as in random search, nearly every model is destroyed.
`requested` asks for models at twenty latencies, builds and measures them, half of them to learn from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import typer
from scipy.stats import spearmanr

from hwsearch.config import StudyConfig, load_study
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.guided.guidance import Guidance
from hwsearch.search.guided.proposer import calibrated
from hwsearch.search.prepare import identity, load_subject, ready_target, space_for
from hwsearch.search.pricing.pricing import Pricing
from hwsearch.search.run import Identity
from hwsearch.space.space import baselines, decode, dimensions
from hwsearch.types import Candidate, Latency, Success, Trial, from_json

app = typer.Typer()

UNGUIDED = ("random", "tpe", "nsga2")  # methods whose candidates owe nothing to the surrogate


@app.command()
def ranks(study: Path, folder: Path, target: str = "ort-cpu") -> None:
    """Spearman correlation of surrogate and divergence, over the candidates of other methods."""
    config = load_study(study, ["latency=table"])
    with _evaluator(config, target, folder / "work-guided") as (evaluator, facts):
        pricing = _pricing(evaluator, facts, config, folder)
        trials = {method: _searched(folder, method) for method in UNGUIDED}
        _correlate(", ".join(UNGUIDED), [t for found in trials.values() for t in found], pricing, folder)
        _correlate("random", trials["random"], pricing, folder)


@app.command()
def drawn(study: Path, folder: Path, target: str = "ort-cpu", count: int = 100, seed: int = 0) -> None:
    """The same over candidates drawn at random, from one choice changed to all."""
    config = load_study(study, ["latency=table"])
    with _evaluator(config, target, folder / "work-guided") as (evaluator, facts):
        pricing = _pricing(evaluator, facts, config, folder)
        trials = []
        for number, candidate in enumerate(_draw(facts, count, seed)):
            outcome, seconds = evaluator.evaluate(candidate)
            trials.append(Trial(number=number, candidate=candidate, baseline=None, outcome=outcome,
                                constraints={}, seconds=seconds))  # fmt: skip
        _correlate(f"{count} drawn", trials, pricing, folder)


def _draw(facts: Identity, count: int, seed: int) -> Iterator[Candidate]:
    """Candidates that have a random share of their choices changed, and those at random."""
    random = np.random.default_rng(seed)
    for share in random.uniform(size=count):
        changed = [d for d in dimensions(facts.space) if random.uniform() < share]
        yield decode(facts.space, facts.source, {d.name: int(random.integers(d.size)) for d in changed})


def _correlate(name: str, trials: list[Trial], pricing: Pricing, folder: Path) -> None:
    """Print the correlation over all of the trials and over the useful ones, by each calibration."""
    found = {t.candidate.key: (t.candidate, t.outcome.accuracy) for t in trials if isinstance(t.outcome, Success)}
    features = np.array([pricing.features(candidate) for candidate, _ in found.values()])
    truth = np.array([accuracy.divergence for _, accuracy in found.values()])
    values = np.array([accuracy.value for _, accuracy in found.values()])
    useful = values >= 0.8 * values.max()
    print(f"{name}: {len(truth)} candidates; {useful.sum()} keep 80 % of the accuracy")
    for path in sorted(folder.glob("guided-*.json")):
        for count in (0, 20, 50, 100):
            total = features @ calibrated(pricing, _trials(path)[:count]).weights
            print(
                f"{path.stem}, calibrated by {count:3d}: all {_spearman(total, truth):.3f}, "
                f"useful {_spearman(total[useful], truth[useful]):.3f}"
            )


@app.command()
def requested(study: Path, folder: Path, target: str = "ort-cpu", limits: int = 20) -> None:
    """Measured against requested latency of the solver's models."""
    config = load_study(study, ["latency=auto"])
    with _evaluator(config, target, folder / "work-guided") as (evaluator, facts):
        pricing = _pricing(evaluator, facts, config, folder)
        for number, (name, candidate) in enumerate(baselines(facts.space).items()):
            outcome, seconds = evaluator.evaluate(candidate, baseline=True)
            evaluator.remember(Trial(number=number, candidate=candidate, baseline=name, outcome=outcome,
                                     constraints={}, seconds=seconds))  # fmt: skip
        chart = pricing.chart(np.ones(len(pricing.segments)))
        asked = np.geomspace(max(chart.latency_ms[0], 0.25 * chart.latency_ms[-1]), chart.latency_ms[-1], limits + 1)
        order = np.random.default_rng(0).permutation(limits)
        learnt, ratios = order[: limits // 2], []
        for i in (*learnt, *order[limits // 2 :]):
            candidate = pricing.solve_for(float(asked[i]), np.ones(len(pricing.segments)))
            latency = _measured(evaluator, candidate)
            if i in learnt:
                evaluator.latency.predictor.learn(candidate, latency.best_ms)
            else:
                ratios.append(latency.best_ms / asked[i])
            print(f"asked {asked[i]:.4f} ms, predicted {pricing.predicted_ms(candidate):.4f}, {latency.best_ms:.4f}")
        over = np.array(ratios) - 1
        print(f"{(over <= 0.03).mean():.0%} of {len(over)} at most 3 % over; worst {over.max():+.1%}")


def _measured(evaluator: Evaluator, candidate: Candidate) -> Latency:
    outcome, _ = evaluator.evaluate(candidate, baseline=True)  # a baseline is always measured
    assert isinstance(outcome, Success), outcome
    return outcome.latency


@contextmanager
def _evaluator(config: StudyConfig, target: str, folder: Path) -> Iterator[tuple[Evaluator, Identity]]:
    """An evaluator of a study, and the identity of its search."""
    subject, ready = load_subject(config), ready_target(target, config)
    with Evaluator(subject, ready, config, folder) as evaluator:
        yield evaluator, identity(subject, ready, space_for(subject, ready, config), config)


def _pricing(evaluator: Evaluator, facts: Identity, config: StudyConfig, folder: Path) -> Pricing:
    """Latencies and sensitivities of all choices."""
    found = Guidance(evaluator, facts, config, folder / "work-guided").pricing([])
    assert found is not None
    return found


def _searched(folder: Path, method: str) -> list[Trial]:
    return [trial for path in sorted(folder.glob(f"{method}-*.json")) for trial in _trials(path)]


def _trials(path: Path) -> list[Trial]:
    return [from_json(Trial, entry) for entry in json.loads(path.read_text())]


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic)


if __name__ == "__main__":
    app()
