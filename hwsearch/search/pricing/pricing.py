"""From a network with its sensitivities and prices to the solver's problem, and from its solutions to candidates.

The problem has one variable per segment (its option), one between neighbouring segments (what is handed on, see
`transitions`), one per prune group that spans segments (its width) and one for the float format. Loss is additive over
segments and spanning groups; latency is what the units cost, so that their sum is the prediction for the whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from hwsearch.latency.grid import thinned
from hwsearch.search.pricing.counts import layer_counts
from hwsearch.search.pricing.pieces import LATENCY, Piece, PieceBuilder, option_variable, state_variable, width_variable
from hwsearch.search.pricing.prices import PriceList, Prices, groups_of, in_format
from hwsearch.search.pricing.segments import FLOAT, Loss, Option, Segment, assembled, segments_of
from hwsearch.search.pricing.transitions import Explorer, Units
from hwsearch.search.solver.problem import Floats, Integers, Problem, Term
from hwsearch.search.solver.solve import MOST_EFFORT, solve, trade_off
from hwsearch.space.space import baselines, decode, dimensions
from hwsearch.types import Candidate, SearchSpace, SourceModel

PROBES = 48

MOST_WIDTHS = (8, 5, 3)
"""Channel counts per prune group that the solver chooses from, evenly spread: fewer if the problem is too hard."""


class Pricing:
    """A network's choices with their losses and prices.

    Args:
        source: The network.
        space: What may be chosen.
        listed: What units cost and what whole candidates are predicted to take.
        loss: How much a single choice hurts: kind ``keep`` (group, channels), ``drop`` (branch, 1) or ``precision``
            (layer, name). It is not asked for choices that change nothing.

    Attributes:
        space: What the solver chooses from: the space with no more than `MOST_WIDTHS` widths per group.

    Raises:
        ConfigError: the prices or sensitivities lack something the space offers.
    """

    def __init__(self, source: SourceModel, space: SearchSpace, listed: PriceList, loss: Loss) -> None:
        self._source, self._listed, self._loss = source, listed, lru_cache(maxsize=None)(loss)
        self._formats = space.float_precisions[::-1]
        for most in MOST_WIDTHS:
            self._prepare(replace(space, widths={group: thinned(w, most) for group, w in space.widths.items()}))
            if self.problem(np.ones(len(self.segments))).effort <= MOST_EFFORT:
                break

    @property
    def segments(self) -> tuple[str, ...]:
        """What has a weight of its own: segments with a choice, and ``keep:<group>`` for groups that span several."""
        several = len(self._formats) > 1
        chosen = [piece.segment.name for piece in self._pieces if several or len(piece.options) > 1]
        return (*chosen, *map(width_variable, self._spanning))

    def features(self, candidate: Candidate) -> Floats:
        """Loss of a candidate per entry of `segments`; their weighted sum is its loss."""
        floating, named = candidate.float_precision, {segment.name: segment for segment in self._segments}
        found = {name: self._option_loss(s, s.chosen(candidate, self.space), floating) for name, s in named.items()}
        for group in self._spanning:
            found[width_variable(group)] = self._width_loss(group, candidate.keep.get(group, self._widths[group][0]))
        return np.array([found[name] for name in self.segments])

    def predicted_ms(self, candidate: Candidate) -> float:
        """Latency of a whole candidate."""
        return self._listed.predict(candidate)[0]

    def surrogate(self, candidate: Candidate, weights: Floats) -> float:
        """Loss of a candidate: the weighted sum of its features."""
        return float(self.features(candidate) @ weights)

    def price_ms(self, candidate: Candidate) -> float:
        """Latency of a candidate of the space as the solver sees it; the prediction for the whole is what counts."""
        floating = self._formats.index(candidate.float_precision) if len(self._formats) > 1 else 0
        at = {g: self._widths[g].index(candidate.keep.get(g, self._widths[g][0])) for g in self._spanning}
        total = sum(float(cost[(floating, *(at[g] for g in groups))]) for groups, cost in self._shared.items())
        state = 0
        for piece in self._pieces:
            chosen = piece.options.index(piece.segment.chosen(candidate, self.space))
            total += float(piece.latency[(state, chosen, floating, *(at[g] for g in piece.spans))])
            state = int(piece.after[state, chosen])
        return total

    def chart(self, weights: Floats, limits: Mapping[str, float] | None = None) -> Chart:
        """The best candidate at every latency, when the losses of `segments` count `weights` times.

        Prices first follow what the predictor has learnt since the last call; nothing is probed again.

        Args:
            weights: One per entry of `segments`, positive.
            limits: On ``size_bytes``: of the weights and biases.

        Raises:
            ConfigError: nothing meets the limits.
        """
        if self._prices.refresh():
            self._update()
        found = trade_off(self.problem(weights), LATENCY, limits or {})
        decode = partial(self._candidate, self._kept)
        return Chart(weights, found.use, found.loss, found.choices, decode, self.predicted_ms)

    def solve_for(self, limit_ms: float, weights: Floats) -> Candidate:
        """The candidate with the least loss whose predicted latency is within `limit_ms`.

        If that of the fastest is above although its price is not, the fastest.

        Raises:
            ConfigError: there is none; it says what is the least possible.
        """
        chart = self.chart(weights)
        row = chart.within(limit_ms)
        return self.best(weights, {LATENCY: limit_ms}) if row is None else chart.candidate(row)

    def best(self, weights: Floats, limits: Mapping[str, float]) -> Candidate:
        """The candidate with the least loss within limits on priced ``latency_ms`` and ``size_bytes``.

        Raises:
            ConfigError: nothing meets them; it says by how much each is missed and which ones conflict.
        """
        return self._candidate(self._kept, solve(self.problem(weights), limits).choices)

    def problem(self, weights: Floats) -> Problem:
        """The solver's problem when the losses of `segments` count `weights` times."""
        weight = dict(zip(self.segments, weights.tolist(), strict=True))
        states = [*(piece.after.shape[0] for piece in self._kept), int(self._kept[-1].after.max()) + 1]
        sizes = {state_variable(i): count for i, count in enumerate(states)}
        sizes |= {option_variable(piece.segment): len(piece.options) for piece in self._kept}
        sizes |= {width_variable(group): len(self._widths[group]) for group in self._spanning}
        sizes[FLOAT] = len(self._formats)
        terms = [
            piece.term(i, states[i + 1], weight.get(piece.segment.name, 1.0)) for i, piece in enumerate(self._kept)
        ]
        for groups, cost in self._shared.items():
            variables = (FLOAT, *map(width_variable, groups))
            terms.append(Term(variables, np.zeros(cost.shape), {LATENCY: cost}))
        for group in self._spanning:
            name = width_variable(group)
            losses = [self._width_loss(group, kept) for kept in self._widths[group]]
            terms.append(Term((name,), weight[name] * np.array(losses), {}))
        return Problem(sizes, tuple(terms))

    def _candidate(self, pieces: Sequence[Piece], choices: Mapping[str, int]) -> Candidate:
        """What values of the problem's variables stand for when its pieces are these."""
        chosen = ((piece.segment, piece.options[choices[option_variable(piece.segment)]]) for piece in pieces)
        widths = {group: self._widths[group][choices[width_variable(group)]] for group in self._spanning}
        return assembled(self._source, self.space, chosen, widths, self._formats[choices[FLOAT]])

    def _prepare(self, space: SearchSpace) -> None:
        """Cut the network into segments, find out how they affect each other, and price them."""
        found = segments_of(self._source, space)
        self.space = space
        self._transitions = Explorer(self._listed.units, self._source, space, found).explore()
        self._segments = self._transitions.apart(found)
        inner = {group for segment in self._segments for group in segment.groups}
        self._spanning = [group for group in space.widths if group not in inner]
        self._widths = {group: offered[::-1] for group, offered in space.widths.items()}
        full = {group.name: group.channels for group in self._source.groups}
        self._prices = Prices(self._listed, self._widths, full, _probes(self._source, space))
        counts = layer_counts(self._source)
        self._builder = PieceBuilder(self._prices, counts, self._widths, full, self._formats, self._option_loss)
        self._prices.refresh()
        self._update()

    def _update(self) -> None:
        """Price everything."""
        inner = {group: segment.name for segment in self._segments for group in segment.groups}
        bases: dict[str, Units] = defaultdict(Counter)
        shared: dict[tuple[str, ...], Units] = defaultdict(Counter)
        for unit, count in self._transitions.base.items():
            owner = next((inner[group] for group in groups_of(unit) if group in inner), None)
            if owner is not None:
                bases[owner][unit] = count
            else:
                shared[tuple(group for group in groups_of(unit) if group in self._widths)][unit] = count
        wide = self._formats[0]
        self._shared = {
            groups: np.stack([self._prices.table(in_format(units, f, wide), groups) for f in self._formats])
            for groups, units in shared.items()
        }
        self._pieces = [
            self._builder.piece(segment, segment.options(self.space), step, bases[segment.name])
            for segment, step in zip(self._segments, self._transitions.steps, strict=True)
        ]
        self._kept = [piece.without_dominated() for piece in self._pieces]

    def _option_loss(self, segment: Segment, option: Option, float_format: str) -> float:
        return segment.loss(option, float_format, self.space, self._loss)

    def _width_loss(self, group: str, kept: int) -> float:
        return self._loss("keep", group, kept) if kept < self._widths[group][0] else 0.0


@dataclass(frozen=True, eq=False)
class Chart:
    """The best candidates under one set of weights, the fastest first.

    Attributes:
        weights: Of the pricing's segments.
        latency_ms: Of each candidate, as priced; ascending.
        loss: Weighted sum of each candidate's features; descending.
    """

    weights: Floats
    latency_ms: Floats
    loss: Floats
    _choices: Mapping[str, Integers]
    _decode: Callable[[Mapping[str, int]], Candidate]
    _predict_ms: Callable[[Candidate], float]

    def __len__(self) -> int:
        return len(self.latency_ms)

    def candidate(self, row: int) -> Candidate:
        """One of the candidates."""
        return self._decode({name: int(values[row]) for name, values in self._choices.items()})

    def within(self, limit_ms: float) -> int | None:
        """The last row whose latency, predicted for the whole, is within a limit; None if there is none.

        The search begins where the prices say, and ends a row or so from there where they agree with the predictions.
        """
        row = int(np.searchsorted(self.latency_ms, limit_ms, side="right")) - 1
        while row + 1 < len(self) and self._predict_ms(self.candidate(row + 1)) <= limit_ms:
            row += 1
        while row >= 0 and self._predict_ms(self.candidate(row)) > limit_ms:
            row -= 1
        return row if row >= 0 else None


def _probes(source: SourceModel, space: SearchSpace) -> list[Candidate]:
    """Candidates all over the space, to see what the predictor makes of each family of units."""
    rng = np.random.default_rng(0)
    listed = dimensions(space)
    drawn = [decode(space, source, {d.name: int(rng.integers(d.size)) for d in listed}) for _ in range(PROBES)]
    return [*baselines(space).values(), *drawn]
