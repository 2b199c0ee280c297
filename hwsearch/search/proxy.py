"""Latency where there is no table: a constant, and a time per multiply-accumulate for each precision.

Crude (kernels differ, conversions are free), but it is fitted to nothing but measurements of this network on this
device, every further measurement corrects it, and its standard error says how crude it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.optimize import nnls

from hwsearch.errors import ConfigError
from hwsearch.latency.kernels import CALL, Kind, Node, Unit, Width
from hwsearch.search.counts import layer_counts
from hwsearch.search.prices import PriceList
from hwsearch.search.problem import Floats
from hwsearch.types import PRECISIONS, Candidate, SourceModel

MODEL_ERROR = 0.15
"""Relative standard error of a model that the fit explains no further."""

CALL_SHARE = 0.1
"""Share of the constant in the first measured latency, until other models tell better."""


class ProxyPredictor:
    """Callable: candidate -> (latency in ms, standard error in ms), once a model has been measured.

    Args:
        source: The network.
    """

    def __init__(self, source: SourceModel) -> None:
        self._counts = layer_counts(source)
        self._full = {group.name: group.channels for group in source.groups}
        self._total = sum(layer.macs for layer in source.layers)
        self._seen: list[tuple[Floats, float]] = []
        self._costs, self._covariance = np.zeros(len(PRECISIONS) + 1), np.eye(len(PRECISIONS) + 1)

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
        cost = dict(zip(PRECISIONS, per_work, strict=True))

        def cost_us(kind: Kind, node: Node) -> float:
            if kind == CALL:
                return float(per_call)
            return float(cost[kind.precision] * self._counts[kind.window].macs(*node) / self._total)

        return PriceList(lambda candidate: list(self._units(candidate)), cost_us, self)

    def _units(self, candidate: Candidate) -> Iterator[Unit]:
        """The call, and one unit per layer, whose window is its name."""
        yield Unit(CALL, Width(1), Width(1))
        for layer, precision in candidate.precision.items():
            counts = self._counts[layer]
            yield Unit(Kind(counts.op, layer, "", precision), counts.inputs, counts.outputs)

    def _work(self, candidate: Candidate) -> Floats:
        """1 for the call, and per precision the share in the network's multiply-accumulates."""
        work = dict.fromkeys(PRECISIONS, 0.0)
        keep = {**self._full, **candidate.keep}
        for layer, precision in candidate.precision.items():
            counts = self._counts[layer]
            macs = counts.macs(counts.inputs.channels(keep), counts.outputs.channels(keep))
            work[precision] += macs / self._total
        return np.array([1.0, *work.values()])

    def _check(self) -> None:
        if not self._seen:
            raise ConfigError("no model of this network has been measured yet", hint="measure the baselines first")
