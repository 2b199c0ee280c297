"""What guides a search: sensitivities, a priced space, and what it expects in the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hwsearch.config import StudyConfig
from hwsearch.latency.table import LatencyTable
from hwsearch.patterns import DENSE
from hwsearch.search.effects.sensitivity import measure_sensitivities
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.guided.predictions import Prediction, Predictions
from hwsearch.search.guided.proposer import GuidedProposer
from hwsearch.search.latency import table_path
from hwsearch.search.limits import corner
from hwsearch.search.pricing.counts import layer_counts
from hwsearch.search.pricing.pieces import SIZE
from hwsearch.search.pricing.prices import PriceList, table_prices
from hwsearch.search.pricing.pricing import Pricing
from hwsearch.search.pricing.proxy import ProxyPredictor
from hwsearch.search.progress import Watcher, silent
from hwsearch.search.run import Identity
from hwsearch.space.space import decode, dimensions
from hwsearch.space.target import skipped_patterns
from hwsearch.types import Candidate, Success, Trial

RANDOM = 200

LEAN, EVERY = (0.6, 0.3, 0.1, 0.0), 3
"""Where size is an objective, every third proposal has sparse weights: between the sparsest and dense ones."""


class Guidance:
    """Prices of a search's choices, ready when they are first asked for.

    Args:
        evaluator: Measures sensitivities; its latency source holds the table, if there is one.
        identity: Network and space.
        config: The study.
        folder: The run folder, which keeps the sensitivities.
        watch: Told about the sensitivities.
        stop: Ends measuring them early.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        identity: Identity,
        config: StudyConfig,
        folder: Path,
        *,
        watch: Watcher = silent,
        stop: threading.Event | None = None,
    ) -> None:
        self._evaluator, self._identity, self._config, self._folder = evaluator, identity, config, folder
        self._watch, self._stop = watch, stop or threading.Event()
        self._proxy: ProxyPredictor | None = None
        self._taught: set[int] = set()
        self._pricing: Pricing | None = None
        self._listed: PriceList | None = None

    def pricing(self, trials: Sequence[Trial]) -> Pricing | None:
        """The priced space, following what was measured; None if the search is stopped before it is ready."""
        if self._pricing is None:
            source, space = self._identity.source, self._identity.space
            found = measure_sensitivities(self._evaluator, space, source, self._folder, self._watch, self._stop)
            if self._stop.is_set():
                return None
            self._listed = self._prices(trials)
            self._pricing = Pricing(source, space, self._listed, lambda *choice: found.loss(*choice)[0])
        self._teach(trials)
        return self._pricing

    def predict(self, candidate: Candidate) -> tuple[float, float]:
        """Latency of a whole candidate and its standard error, in ms; once there is a `pricing`."""
        assert self._listed is not None
        return self._listed.predict(candidate)

    def corner(self, trials: Sequence[Trial]) -> tuple[float, float] | None:
        """Costs of accuracy and latency beyond which a model does not count; None before the first success."""
        return corner(trials, self._config)

    def limits(self, trials: Sequence[Trial]) -> dict[str, float]:
        """The size limit as one on weights and biases: less what files have been larger than those."""
        if self._config.limits.size_mb is None:
            return {}
        built = [(t.candidate, t.outcome.size_bytes) for t in trials if isinstance(t.outcome, Success)]
        beside = max((size - self._weights_bytes(candidate) for candidate, size in built), default=0.0)
        return {SIZE: 1e6 * self._config.limits.size_mb - beside}

    def lean(self, trials: Sequence[Trial]) -> dict[str, float]:
        """A limit on weights below what dense ones take, each time another; empty unless it is the turn of sparse ones.

        Zeros that the device does not skip are worth nothing at a given latency, so that no other proposal has any.
        """
        source, space = self._identity.source, self._identity.space
        turn, rest = divmod(sum(trial.baseline is None for trial in trials), EVERY)
        if "size" not in self._config.objectives or not space.patterns or rest != EVERY - 1:
            return {}
        narrow = {d.name: 0 for d in dimensions(space) if d.name.startswith("precision:")}
        zeros = {d.name: 0 for d in dimensions(space) if d.name.startswith("pattern:")}
        dense, sparse = (self._weights_bytes(decode(space, source, narrow | chosen)) for chosen in ({}, zeros))
        return self.limits(trials) | {SIZE: 1.001 * sparse + LEAN[turn % len(LEAN)] * (dense - sparse)}

    def _weights_bytes(self, candidate: Candidate) -> float:
        source = self._identity.source
        left = {group.name: group.channels for group in source.groups} | candidate.keep
        keep = {group: np.array(channels) for group, channels in left.items()}
        counts = layer_counts(source)
        formats = [(layer, name, candidate.pattern.get(layer, DENSE)) for layer, name in candidate.precision.items()]
        return sum(float(counts[layer].size_bytes(keep, *format_)) for layer, *format_ in formats)

    def _prices(self, trials: Sequence[Trial]) -> PriceList:
        """From the latency table, or from what was measured so far where there is none."""
        predictor, target = self._evaluator.latency.predictor, self._identity.target
        if predictor is not None:
            table = LatencyTable.open(table_path(target, self._config), self._identity.device)
            return table_prices(table, self._evaluator.subject.network, target, predictor)
        self._proxy = ProxyPredictor(self._identity.source, skipped_patterns(target, self._identity.device.isa))
        self._teach(trials)
        return self._proxy.listed()

    def _teach(self, trials: Sequence[Trial]) -> None:
        """Show the stand-in for a table what was measured since; a table learns from its latency source."""
        if self._proxy is None:
            return
        for trial in trials:
            if isinstance(trial.outcome, Success) and trial.number not in self._taught:
                self._taught.add(trial.number)
                self._proxy.learn(trial.candidate, trial.outcome.latency.best_ms)


def foresee(proposer: GuidedProposer, identity: Identity, trials: Sequence[Trial], *, seed: int) -> Predictions:
    """What the search expects of the solver's models, and of random ones, after all its evaluations."""
    expected = proposer.expectation(trials, anew=True)
    sign = -1.0 if _lower_is_better(trials) else 1.0
    models = []
    for row, value in enumerate((sign * expected.accuracy).tolist()):
        candidate = expected.chart.candidate(row)
        latency, spread = proposer.guidance.predict(candidate)
        models.append(
            Prediction(
                candidate=candidate,
                latency_ms=latency,
                latency_sigma_ms=spread,
                accuracy=value,
                accuracy_sigma=expected.sigma,
            )
        )
    drawn = _random_candidates(identity, seed)
    values = sign * proposer.expected_accuracy(drawn, trials)
    random = zip(values.tolist(), (proposer.guidance.predict(candidate)[0] for candidate in drawn), strict=True)
    return Predictions(evaluations=len(trials), models=tuple(models), random=tuple(random))


def _random_candidates(identity: Identity, seed: int) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    listed = dimensions(identity.space)
    numbers = ({d.name: int(rng.integers(d.size)) for d in listed} for _ in range(RANDOM))
    return [decode(identity.space, identity.source, drawn) for drawn in numbers]


def _lower_is_better(trials: Sequence[Trial]) -> bool:
    found = (t.outcome for t in trials)
    return any(not o.accuracy.higher_is_better for o in found if isinstance(o, Success))
