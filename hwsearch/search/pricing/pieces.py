"""One segment of a network with all it can be, what that costs, and its part of the solver's problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwsearch.search.pricing.counts import LayerCounts
from hwsearch.search.pricing.prices import Prices, groups_in, groups_of, in_format
from hwsearch.search.pricing.segments import FLOAT, Names, Option, Segment, resolved
from hwsearch.search.pricing.transitions import Transition, Units
from hwsearch.search.solver.problem import Floats, Integers, Term, aligned

LATENCY, SIZE = "latency_ms", "size_bytes"

Formats = Names | None
"""Of the layers of a segment; None if it is dropped."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One segment, with all it can be and what that costs.

    Attributes:
        spans: Spanning groups its costs depend on.
        options: S: states before, O: options, F: float formats, W: widths of the spanning groups.
        after: State after [S, O].
        loss: [O, F].
        latency: In ms [S, O, F, *W].
        size: In bytes [O, F, *W].
    """

    segment: Segment
    spans: tuple[str, ...]
    options: tuple[Option, ...]
    after: Integers
    loss: Floats
    latency: Floats
    size: Floats

    def term(self, number: int, states_after: int, weight: float) -> Term:
        """Over the state before, the option, the state after, the float format and the spanning groups."""
        reached = self.after[:, :, None] == np.arange(states_after)
        loss = np.where(reached[:, :, :, None], weight * self.loss[:, None, :], np.inf)
        shape = (*loss.shape, *self.size.shape[2:])
        spread = loss.reshape(*loss.shape, *[1] * len(self.spans))
        variables = (
            state_variable(number),
            option_variable(self.segment),
            state_variable(number + 1),
            FLOAT,
            *map(width_variable, self.spans),
        )
        use = {LATENCY: self.latency[:, :, None], SIZE: self.size[None, :, None]}
        return Term(
            variables, np.broadcast_to(spread, shape), {name: np.broadcast_to(u, shape) for name, u in use.items()}
        )

    def without_dominated(self) -> Piece:
        """Without options that another one, which hands on the same, beats in everything whatever the rest is."""
        count = len(self.options)
        facts = np.concatenate(
            [self.loss, np.moveaxis(self.latency, 1, 0).reshape(count, -1), self.size.reshape(count, -1)], axis=1
        )
        kept: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index in np.lexsort((facts.sum(axis=1), facts[:, 0])).tolist():
            rivals = kept[tuple(self.after[:, index].tolist())]
            if np.isfinite(facts[index]).all() and not (facts[rivals] <= facts[index]).all(axis=1).any():
                rivals.append(index)
        left = sorted(index for rivals in kept.values() for index in rivals) or [0]
        return replace(
            self,
            options=tuple(self.options[k] for k in left),
            after=self.after[:, left],
            loss=self.loss[left],
            latency=self.latency[:, left],
            size=self.size[left],
        )


@dataclass(frozen=True, slots=True)
class PieceBuilder:
    """Makes pieces.

    Attributes:
        prices: Of units.
        sizes: Of layers.
        widths: Prune group with a choice -> its channel counts, in the order of all tables.
        full: Prune group -> all its channels.
        formats: Float formats, the one the transitions are in first.
        loss: Of an option under a float format.
    """

    prices: Prices
    sizes: Mapping[str, LayerCounts]
    widths: Mapping[str, Sequence[int]]
    full: Mapping[str, int]
    formats: Sequence[str]
    loss: Callable[[Segment, Option, str], float]

    def piece(self, segment: Segment, options: Sequence[Option], step: Transition, base: Units) -> Piece:
        """The piece of one segment.

        Args:
            segment: It.
            options: All of its options; those with equal formats follow each other in the order of their widths.
            step: What it changes.
            base: Those units of the unchanged network that depend on its inner groups.
        """
        spans = self._spans(segment, step)
        axes, inner = (*segment.groups, *spans), len(segment.groups)

        def rows(table: Callable[[Formats], Floats]) -> Floats:
            """A table for each combination of formats as one row per option."""
            return np.concatenate([_options(table(f), inner, f) for f in dict.fromkeys(o.formats for o in options)])

        latency = [
            [rows(self._latencies(segment, step, base, axes, s, f)) for f in self.formats] for s in range(step.states)
        ]
        return Piece(
            segment=segment,
            spans=spans,
            options=tuple(options),
            after=np.array([[step.after[s, option.pattern] for option in options] for s in range(step.states)]),
            loss=np.array([[self.loss(segment, option, f) for f in self.formats] for option in options]),
            latency=np.stack([np.stack(found, axis=1) for found in latency]),
            size=np.stack([rows(self._sizes(segment, axes, f)) for f in self.formats], axis=1),
        )

    def _spans(self, segment: Segment, step: Transition) -> tuple[str, ...]:
        """Groups of other segments that this one's costs depend on."""
        units = {unit for change in (*step.change.values(), *step.finer.values()) for unit in change}
        met = {group for unit in units for group in groups_of(unit)}
        met.update(g for name in segment.layers for g in groups_in(self.sizes[name].inputs, self.sizes[name].outputs))
        return tuple(group for group in self.widths if group in met and group not in segment.groups)

    def _latencies(
        self, segment: Segment, step: Transition, base: Units, axes: Names, state: int, float_format: str
    ) -> Callable[[Formats], Floats]:
        """Gives for the formats of the layers the latency in ms at all widths of `axes`, after one state."""

        def table(units: Units) -> Floats:
            return self.prices.table(in_format(units, float_format, self.formats[0]), axes)

        unchanged = table(base)
        coarse = {pattern: unchanged + table(units) for (s, pattern), units in step.change.items() if s == state}
        finer = {key: table(units) for key, units in step.finer.items()}

        def latency(formats: Formats) -> Floats:
            found = coarse[Option(formats).pattern]
            for key in zip(segment.layers, formats or (), strict=False):
                found = found + finer.get(key, 0.0)
            return found

        return latency

    def _sizes(self, segment: Segment, axes: Names, float_format: str) -> Callable[[Formats], Floats]:
        """Gives for the formats of the layers their size in bytes at all widths of `axes`."""
        shape = [len(self.widths[group]) for group in axes]
        keep = {group: np.array(channels) for group, channels in self.full.items()}
        keep |= {group: aligned(np.array(self.widths[group]), (group,), axes) for group in axes}

        def size(formats: Formats) -> Floats:
            chosen = (resolved(name, float_format) for name in formats or ())
            layers = zip(segment.layers, chosen, strict=False)
            return sum((self.sizes[layer].size_bytes(keep, *format_) for layer, format_ in layers), np.zeros(shape))

        return size


def _options(table: Floats, inner: int, formats: Formats) -> Floats:
    """A table over inner widths and others as one row per inner choice; without the branch they make no difference."""
    return table[(0,) * inner][None] if formats is None else table.reshape(-1, *table.shape[inner:])


def state_variable(number: int) -> str:
    """The variable for what is handed on to a segment."""
    return f"state:{number}"


def width_variable(group: str) -> str:
    """The variable of a spanning group's width."""
    return f"keep:{group}"


def option_variable(segment: Segment) -> str:
    """The variable of a segment's option."""
    return f"segment:{segment.name}"
