"""One segment of a network with all it can be, what that costs, and its part of the solver's problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwsearch.latency.kernels import Unit
from hwsearch.search.counts import LayerCounts
from hwsearch.search.prices import Prices, groups_in, groups_of, in_format
from hwsearch.search.problem import Floats, Integers, Term
from hwsearch.search.segments import FLOAT, Option, Segment
from hwsearch.search.transitions import Transition, Units

LATENCY, SIZE = "latency_ms", "size_bytes"


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
        kept: list[int] = []
        for index in np.lexsort((facts.sum(axis=1), facts[:, 0])):
            rivals = [k for k in kept if (self.after[:, k] == self.after[:, index]).all()]
            if np.isfinite(facts[index]).all() and not (facts[rivals] <= facts[index]).all(axis=1).any():
                kept.append(int(index))
        kept = sorted(kept) or [0]
        return replace(
            self,
            options=tuple(self.options[k] for k in kept),
            after=self.after[:, kept],
            loss=self.loss[kept],
            latency=self.latency[:, kept],
            size=self.size[kept],
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
        states, patterns = range(step.states), [option.pattern for option in options]
        return Piece(
            segment=segment,
            spans=spans,
            options=tuple(options),
            after=np.array([[step.after[s, pattern] for pattern in patterns] for s in states]),
            loss=np.array([[self.loss(segment, option, f) for f in self.formats] for option in options]),
            latency=np.stack([self._latency(segment, options, step, base, spans, f) for f in self.formats], axis=2),
            size=np.stack(
                [[self._size(segment, option, spans, f) for option in options] for f in self.formats], axis=1
            ),
        )

    def _spans(self, segment: Segment, step: Transition) -> tuple[str, ...]:
        units = {unit for change in (*step.change.values(), *step.finer.values()) for unit in change}
        met = {group for unit in units for group in groups_of(unit)}
        met.update(
            g for layer in segment.layers for g in groups_in(self.sizes[layer].inputs, self.sizes[layer].outputs)
        )
        return tuple(group for group in self.widths if group in met and group not in segment.groups)

    def _latency(
        self,
        segment: Segment,
        options: Sequence[Option],
        step: Transition,
        base: Units,
        spans: tuple[str, ...],
        float_format: str,
    ) -> Floats:
        """In ms, [states, options, *widths of the spanning groups]."""
        axes = (*segment.groups, *spans)

        def table(*units: Units) -> Floats:
            added: Counter[Unit] = Counter()
            for some in units:
                for unit, count in some.items():
                    added[unit] += count
            return self.prices.table(in_format(added, float_format, self.formats[0]), axes)

        coarse = {key: table(change, base) for key, change in step.change.items()}
        finer = {key: table(change) for key, change in step.finer.items()}
        inner = len(segment.groups)
        rows = []
        for state in range(step.states):
            row = []
            for formats in dict.fromkeys(option.formats for option in options):
                pattern = None if formats is None else Option(formats).pattern
                found = coarse[state, pattern]
                for key in zip(segment.layers, formats or (), strict=False):
                    found = found + finer.get(key, 0.0)
                # Without the branch its inner widths make no difference.
                flat = found[(0,) * inner][None] if formats is None else found.reshape(-1, *found.shape[inner:])
                row.append(flat)
            rows.append(np.concatenate(row))
        return np.stack(rows)

    def _size(self, segment: Segment, option: Option, spans: tuple[str, ...], float_format: str) -> Floats:
        """In bytes, [*widths of the spanning groups]."""
        found = np.zeros([len(self.widths[group]) for group in spans])
        if option.formats is None:
            return found
        names = [float_format if name == FLOAT else name for name in option.formats]
        inner = dict(zip(segment.groups, option.widths, strict=True))
        for index in np.ndindex(*found.shape):
            keep = {**self.full, **inner} | {g: self.widths[g][i] for g, i in zip(spans, index, strict=True)}
            found[index] = sum(
                self.sizes[layer].size_bytes(keep, name) for layer, name in zip(segment.layers, names, strict=True)
            )
        return found


def state_variable(number: int) -> str:
    """The variable for what is handed on to a segment."""
    return f"state:{number}"


def width_variable(group: str) -> str:
    """The variable of a spanning group's width."""
    return f"keep:{group}"


def option_variable(segment: Segment) -> str:
    """The variable of a segment's option."""
    return f"segment:{segment.name}"
