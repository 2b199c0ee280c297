"""How the units of a network follow from the choices, one segment after the other.

A segment's units depend on its own choices and on what reaches it: whether a tensor comes in quantised decides where
conversions are needed, and a dropped branch hands on what it got. What reaches a segment is found by trial, whatever
the backend's rules: two beginnings of the network leave the same state if they change the rest in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from hwsearch.latency.kernels import Unit
from hwsearch.search.pricing.prices import groups_of
from hwsearch.search.pricing.segments import FLOAT, Option, Segment, assembled, format_parts
from hwsearch.types import Candidate, SearchSpace, SourceModel

Units = Counter[Unit]
"""How often each unit occurs; negative where a change takes it away."""

Pattern = tuple[bool, ...] | None


@dataclass(frozen=True, slots=True)
class Transition:
    """What one segment does.

    Attributes:
        states: How many there are before it.
        after: (State before, pattern) -> state after.
        change: (State before, pattern) -> units that differ from those of the unchanged segment, its effect on what
            follows included.
        finer: (Layer, format) -> units that differ from those of the layer in its widest integer precision, or in
            floating point, without zeros.
    """

    states: int
    after: dict[tuple[int, Pattern], int]
    change: dict[tuple[int, Pattern], Units]
    finer: dict[tuple[str, str], Units]


@dataclass(frozen=True, slots=True)
class Transitions:
    """Units of the unchanged network, and what each segment changes: a candidate's units are the sum."""

    base: Units
    steps: tuple[Transition, ...]

    def apart(self, segments: Sequence[Segment]) -> list[Segment]:
        """The segments, each only with those inner groups that nothing outside of it costs more or less for.

        Two branches that end in one concatenation, say, share what that costs.
        """
        owner = {group: i for i, segment in enumerate(segments) for group in segment.groups}
        met = [({owner[g] for g in groups_of(unit) if g in owner}, groups_of(unit)) for unit in self.base]
        for i, step in enumerate(self.steps):
            units = {unit for units in (*step.change.values(), *step.finer.values()) for unit in units}
            met += [({owner[g] for g in groups_of(unit) if g in owner} | {i}, groups_of(unit)) for unit in units]
        shared = {group for owners, groups in met if len(owners) > 1 for group in groups}
        return [replace(s, groups=tuple(group for group in s.groups if group not in shared)) for s in segments]


class Explorer:
    """Finds the transitions of a network by reading candidates.

    Args:
        read: Units of a candidate.
        source: The network.
        space: What may be chosen.
        segments: From `segments_of`.
    """

    def __init__(
        self,
        read: Callable[[Candidate], Iterable[Unit]],
        source: SourceModel,
        space: SearchSpace,
        segments: Sequence[Segment],
    ) -> None:
        self._read, self._source, self._space, self._segments = read, source, space, segments
        self._patterns = [_patterns(segment, space) for segment in segments]
        self._unchanged = [next(iter(patterns.values())) for patterns in self._patterns]
        self._integer = [max(patterns.values(), key=_integers) for patterns in self._patterns]
        self._known: dict[tuple[Option, ...], Units] = {}

    def explore(self) -> Transitions:
        """The states and units of all segments."""
        steps: list[Transition] = []
        beginnings: list[tuple[Option, ...]] = [()]
        for i in range(len(self._segments)):
            step, beginnings = self._step(i, beginnings)
            steps.append(step)
        return Transitions(self._units(tuple(self._unchanged)), tuple(steps))

    def _step(self, i: int, beginnings: Sequence[tuple[Option, ...]]) -> tuple[Transition, list[tuple[Option, ...]]]:
        """The segment `i` after each state, the states being told by one beginning each."""
        after: dict[tuple[int, Pattern], int] = {}
        change: dict[tuple[int, Pattern], Units] = {}
        found: dict[frozenset[tuple[Unit, int]], tuple[int, tuple[Option, ...]]] = {}
        rest, integer = tuple(self._unchanged[i + 1 :]), tuple(self._integer[i + 1 :])
        for (state, begun), (pattern, option) in product(enumerate(beginnings), self._patterns[i].items()):
            units = self._units((*begun, option, *rest))
            trace = frozenset(_difference(self._units((*begun, option, *integer)), units).items())
            number, _ = found.setdefault(trace, (len(found), (*begun, option)))
            after[state, pattern] = number
            change[state, pattern] = _difference(units, self._units((*begun, *self._unchanged[i:])))
        step = Transition(len(beginnings), after, change, self._finer(i))
        return step, [beginning for _, beginning in found.values()]

    def _finer(self, i: int) -> dict[tuple[str, str], Units]:
        """Conversions depend on neither how many bits an integer has nor zeros, so one layer at a time tells."""
        segment, found = self._segments[i], {}
        for position, layer in enumerate(segment.layers):
            widest: dict[bool, str] = {}
            for name in dict.fromkeys(formats[position] for formats in reversed(segment.formats)):
                base = widest.setdefault(format_parts(name)[0] == FLOAT, name)
                if name != base:
                    found[layer, name] = _difference(self._alone(i, position, name), self._alone(i, position, base))
        return found

    def _alone(self, i: int, position: int, name: str) -> Units:
        """Units of the unchanged network but for one layer's format."""
        formats = self._unchanged[i].formats
        assert formats is not None
        option = Option((*formats[:position], name, *formats[position + 1 :]), self._unchanged[i].widths)
        return self._units((*self._unchanged[:i], option, *self._unchanged[i + 1 :]))

    def _units(self, options: tuple[Option, ...]) -> Units:
        if options not in self._known:
            chosen = zip(self._segments, options, strict=True)
            candidate = assembled(self._source, self._space, chosen, {}, self._space.float_precisions[-1])
            self._known[options] = Counter(self._read(candidate))
        return self._known[options]


def _patterns(segment: Segment, space: SearchSpace) -> dict[Pattern, Option]:
    """Each pattern of a segment, the unchanged one first, with its widest option."""
    found: dict[Pattern, Option] = {}
    for option in segment.options(space):
        found.setdefault(option.pattern, option)
    return found


def _integers(option: Option) -> int:
    return sum(option.pattern or ())


def _difference(units: Units, base: Units) -> Units:
    found = Counter(units)
    found.subtract(base)
    return Counter({unit: count for unit, count in found.items() if count})
