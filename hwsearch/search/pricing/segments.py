"""The pieces a network is chosen in: residual branches with all choices inside them, and the layers outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from hwsearch.patterns import DENSE, not_dense
from hwsearch.types import PRECISIONS, Candidate, SearchSpace, SourceModel

FLOAT = "float"
"""Stands for the one float format a candidate uses."""

UNCHANGED = "fp32"

DROPPED = 1
"""The value of a dropped branch, as sensitivities name it."""

MOST_FORMATS = 128
"""Combinations of precisions in one segment; beyond, all its layers share one."""

MOST_TIED = 1024
"""Options of layers that form a segment because they share a width."""

Names = tuple[str, ...]

Loss = Callable[[str, str, int | str], float]
"""How much one choice hurts: kind (``keep``, ``drop``, ``precision``, ``pattern``), name, and value."""


def format_name(precision: str, pattern: str) -> str:
    """A layer's precision (an integer one, or `FLOAT`) and the pattern of its zeros as one word, e.g. ``int8/2:4``."""
    return precision if pattern == DENSE else f"{precision}/{pattern}"


def format_parts(name: str) -> tuple[str, str]:
    """Precision and pattern of a `format_name`."""
    precision, _, pattern = name.partition("/")
    return precision, pattern or DENSE


def resolved(name: str, float_format: str) -> tuple[str, str]:
    """The same, with the candidate's float format in the place of `FLOAT`."""
    precision, pattern = format_parts(name)
    return float_format if precision == FLOAT else precision, pattern


@dataclass(frozen=True, slots=True)
class Option:
    """One way to build a segment.

    Attributes:
        formats: Of its layers, each a `format_name`; None if the branch is dropped.
        widths: Channels kept of its inner groups.
    """

    formats: tuple[str, ...] | None
    widths: tuple[int, ...] = ()

    @property
    def pattern(self) -> tuple[bool, ...] | None:
        """Which layers compute in integers: what decides where conversions are needed."""
        return None if self.formats is None else tuple(format_parts(name)[0] != FLOAT for name in self.formats)


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers whose precisions and inner widths are chosen together.

    Attributes:
        name: Of the branch, or of the first layer.
        groups: Prune groups inside it that have a choice of widths.
        formats: Combinations of precisions and patterns offered, the widest and densest last.
        droppable: Whether it may be left out.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    formats: tuple[tuple[str, ...], ...]
    droppable: bool

    def options(self, space: SearchSpace) -> list[Option]:
        """Every way to build it; the widest and most precise comes first, dropping it last."""
        widths = list(product(*(space.widths[group][::-1] for group in self.groups)))
        kept = [Option(formats, chosen) for formats in self.formats[::-1] for chosen in widths]
        return [*kept, Option(None)] if self.droppable else kept

    def chosen(self, candidate: Candidate, space: SearchSpace) -> Option:
        """The way `candidate` builds it."""
        if self.name in candidate.dropped and self.droppable:
            return Option(None)
        chosen = {layer: candidate.precision.get(layer, UNCHANGED) for layer in self.layers}
        formats = tuple(
            format_name(name if PRECISIONS[name].integer else FLOAT, candidate.pattern.get(layer, DENSE))
            for layer, name in chosen.items()
        )
        return Option(formats, tuple(candidate.keep.get(group, space.widths[group][-1]) for group in self.groups))

    def loss(self, option: Option, float_format: str, space: SearchSpace, loss: Loss) -> float:
        """Sum of what the choices of `option` hurt."""
        if option.formats is None:
            return loss("drop", self.name, DROPPED)
        formats = (resolved(name, float_format) for name in option.formats)
        chosen = [(layer, *format_) for layer, format_ in zip(self.layers, formats, strict=True)]
        hurt = [loss("precision", layer, name) for layer, name, _ in chosen if name != UNCHANGED]
        hurt += [loss("pattern", layer, pattern) for layer, _, pattern in chosen if pattern != DENSE]
        return sum(hurt) + sum(
            loss("keep", group, width)
            for group, width in zip(self.groups, option.widths, strict=True)
            if width < space.widths[group][-1]
        )


def segments_of(source: SourceModel, space: SearchSpace) -> list[Segment]:
    """The segments of a network, in execution order; of branches inside one another the outer one counts."""
    owner: dict[str, Segment] = {}
    for branch in sorted(source.branches, key=lambda branch: -len(branch.layers)):
        if not any(layer in owner for layer in branch.layers):
            groups = tuple(group for group in branch.groups if group in space.widths)
            segment = Segment(
                branch.name, branch.layers, groups, _formats(branch.layers, space), branch.name in space.droppable
            )
            owner.update(dict.fromkeys(branch.layers, segment))
    outside = [layer.name for layer in source.layers if layer.name not in owner]
    for layers, groups in _tied(outside, source, space):
        segment = Segment(layers[0], layers, groups, _formats(layers, space), droppable=False)
        owner.update(dict.fromkeys(layers, segment))
    return list(dict.fromkeys(owner[layer.name] for layer in source.layers))


def _tied(outside: Sequence[str], source: SourceModel, space: SearchSpace) -> list[tuple[Names, Names]]:
    """Layers outside branches, those together that share a width no other layer has; with these groups.

    Only as long as they have few options together: in a network without branches all layers are tied in a row.
    """
    parts: dict[str, tuple[Names, Names]] = {name: ((name,), ()) for name in outside}
    layers_of = {
        group.name: {axis.module for axis in group.axes} & set(space.precisions)
        for group in source.groups
        if group.name in space.widths
    }
    for group, tied in layers_of.items():
        joined = list(dict.fromkeys(parts[name] for name in outside if name in tied))
        layers = tuple(name for name in outside if any(name in members for members, _ in joined))
        groups = (*(inner for _, inners in joined for inner in inners), group)
        options = prod(len(_ladder(name, space)) for name in layers) * prod(len(space.widths[g]) for g in groups)
        if tied <= set(layers) and options <= MOST_TIED:
            parts |= dict.fromkeys(layers, (layers, groups))
    return list(dict.fromkeys(parts.values()))


def assembled(
    source: SourceModel,
    space: SearchSpace,
    chosen: Iterable[tuple[Segment, Option]],
    widths: Mapping[str, int],
    float_format: str,
) -> Candidate:
    """The candidate made of an option per segment and the `widths` of the groups between them."""
    dropped: list[str] = []
    chosen_format: dict[str, tuple[str, str]] = {}
    keep = dict(widths)
    for segment, option in chosen:
        if option.formats is None:
            dropped.append(segment.name)
        else:
            formats = (resolved(name, float_format) for name in option.formats)
            chosen_format |= zip(segment.layers, formats, strict=True)
            keep |= zip(segment.groups, option.widths, strict=True)
    layers = [layer.name for layer in source.layers if layer.name in chosen_format]
    return Candidate(
        keep={
            group: keep[group] for group, offered in space.widths.items() if keep.get(group, offered[-1]) < offered[-1]
        },
        dropped=tuple(sorted(dropped)),
        precision={layer: chosen_format[layer][0] for layer in layers},
        pattern=not_dense({layer: chosen_format[layer][1] for layer in layers}),
    )


def _formats(layers: tuple[str, ...], space: SearchSpace) -> tuple[tuple[str, ...], ...]:
    ladders = [_ladder(layer, space) for layer in layers]
    if prod(map(len, ladders)) <= MOST_FORMATS:
        return tuple(product(*ladders))
    shared = max(ladders, key=len)
    return tuple(tuple(_nearest(name, ladder) for ladder in ladders) for name in shared)


def _ladder(layer: str, space: SearchSpace) -> tuple[str, ...]:
    """Formats of a layer, the narrowest and sparsest first, with one precision for all float formats."""
    names = dict.fromkeys(name if PRECISIONS[name].integer else FLOAT for name in space.precisions[layer])
    patterns = (*space.patterns.get(layer, ()), DENSE)
    return tuple(format_name(name, pattern) for name in names for pattern in patterns)


def _nearest(name: str, ladder: tuple[str, ...]) -> str:
    """A format, or what of it a layer has: the precision without the pattern, or else the widest."""
    precision = format_parts(name)[0]
    return next((known for known in (name, precision) if known in ladder), ladder[-1])
