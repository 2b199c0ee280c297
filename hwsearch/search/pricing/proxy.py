"""Latency where there is no table: a constant, and a time per multiply-accumulate for each format.

Crude (kernels differ, conversions are free), but it is fitted to nothing but measurements of this network on this
device, every further measurement corrects it, and its standard error says how crude it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
from scipy.optimize import nnls

from hwsearch.errors import ConfigError
from hwsearch.latency.kernels import CALL, Kind, Node, Unit, Width
from hwsearch.patterns import DENSE
from hwsearch.search.pricing.counts import layer_counts
from hwsearch.search.pricing.prices import PriceList
from hwsearch.search.pricing.segments import format_name
from hwsearch.search.solver.problem import Floats
from hwsearch.types import PRECISIONS, Candidate, SourceModel

MODEL_ERROR = 0.15
"""Relative standard error of a model that the fit explains no further."""

SKIPPED_SHARE = 0.7
"""Of a layer's time when the device skips half of its multiplications, until models with such layers tell better."""

CALL_SHARE = 0.1
"""Share of the constant in the first measured latency, until other models tell better."""


class ProxyPredictor:
    """Callable: candidate -> (latency in ms, standard error in ms), once a model has been measured.

    Args:
        source: The network.
        skipped: Patterns of zero weights that the device skips.
    """

    def __init__(self, source: SourceModel, skipped: Collection[str] = ()) -> None:
        self._formats = [format_name(name, pattern) for pattern in (DENSE, *skipped) for name in PRECISIONS]
        self._counts = layer_counts(source)
        self._full = {group.name: group.channels for group in source.groups}
        self._total = sum(layer.macs for layer in source.layers)
        self._seen: list[tuple[Floats, float]] = []
        self._costs, self._covariance = np.zeros(len(self._formats) + 1), np.eye(len(self._formats) + 1)

    def __call__(self, candidate: Candidate) -> tuple[float, float]:
        """Latency and its standard error, both in ms.

        Raises:
            ConfigError: nothing has been measured yet.
        """
        self._check()
        work = self._work(candidate)
        latency = float(work @ self._costs)
        return latency, math.sqrt(float(work @ self._covariance @ work) + (MODEL_ERROR * latency) ** 2)

    def learn(self, candidate: Candidate, latency_ms: float) -> None:
        """Correct future predictions by what a candidate was measured at.

        Ridge regression on relative errors towards costs that explain the first measurement, none of them negative.
        """
        self._seen.append((self._work(candidate), latency_ms))
        first, first_ms = self._seen[0]
        expected = np.full(len(first), (1 - CALL_SHARE) * first_ms / first[1:].sum())
        expected[0] = CALL_SHARE * first_ms
        expected[1 + len(PRECISIONS) :] *= SKIPPED_SHARE
        rows = np.array([work / (MODEL_ERROR * measured) for work, measured in self._seen])
        design = np.vstack([rows, np.diag(1 / expected)])
        wanted = np.concatenate([np.full(len(rows), 1 / MODEL_ERROR), np.ones(len(expected))])
        self._costs, _ = nnls(design, wanted)
        self._covariance = np.linalg.inv(design.T @ design)

    def listed(self) -> PriceList:
        """Prices for the solver, as they are now; the predictor goes on learning.

        Raises:
            ConfigError: nothing has been measured yet.
        """
        self._check()
        per_call, *per_work = (1e3 * self._costs).tolist()
        cost = dict(zip(self._formats, per_work, strict=True))

        def cost_us(kind: Kind, node: Node) -> float:
            if kind == CALL:
                return float(per_call)
            return float(cost[kind.precision] * self._counts[kind.window].macs(*node) / self._total)

        return PriceList(lambda candidate: list(self._units(candidate)), cost_us, self)

    def _units(self, candidate: Candidate) -> Iterator[Unit]:
        """The call, and one unit per layer, whose window is its name."""
        yield Unit(CALL, Width(1), Width(1))
        for layer in candidate.precision:
            counts = self._counts[layer]
            yield Unit(Kind(counts.op, layer, "", self._format(candidate, layer)), counts.inputs, counts.outputs)

    def _work(self, candidate: Candidate) -> Floats:
        """1 for the call, and per format the share in the network's multiply-accumulates, zeros included."""
        work = dict.fromkeys(self._formats, 0.0)
        keep = {**self._full, **candidate.keep}
        for layer in candidate.precision:
            counts = self._counts[layer]
            macs = counts.macs(counts.inputs.channels(keep), counts.outputs.channels(keep))
            work[self._format(candidate, layer)] += macs / self._total
        return np.array([1.0, *work.values()])

    def _format(self, candidate: Candidate, layer: str) -> str:
        """Precision of a layer, and the pattern of its zeros where that makes a difference."""
        name = format_name(candidate.precision[layer], candidate.pattern.get(layer, DENSE))
        return name if name in self._formats else candidate.precision[layer]

    def _check(self) -> None:
        if not self._seen:
            raise ConfigError("no model of this network has been measured yet", hint="measure the baselines first")
