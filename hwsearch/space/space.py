"""The search space: what may be chosen, as ordered integers, and the way from numbers to a candidate and back."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwsearch.config import SpaceConfig
from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.patterns import DENSE, TWO_FOUR, not_dense, sparsest_first
from hwsearch.space.target import native_patterns, native_precisions
from hwsearch.types import PRECISIONS, Candidate, LayerInfo, PruneGroup, SearchSpace, SourceModel, Target

SHOWN = 4
"""Names listed where one reason holds for many layers."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One ordered integer choice, from 0 to `size` - 1; larger is wider, more precise, or (for ``drop``) kept."""

    name: str
    size: int


def build_space(source: SourceModel, target: Target, config: SpaceConfig, isa: Iterable[str]) -> SearchSpace:
    """Groups and layers of `source` times what `target` accelerates on a chip with instruction sets `isa`.

    Patterns of zero weights that it does not accelerate are offered where the study asks for them: for size.

    Raises:
        ConfigError: a layer pattern matches nothing, or a requested precision gains nothing on this device.
    """
    isa = tuple(isa)
    names = [layer.name for layer in source.layers]
    keep_float = _match(config.keep_float, names, "space.keep_float")
    keep_width = _match(config.keep_width, [group.name for group in source.groups], "space.keep_width")
    offered = {layer.name: _offered(layer, target, config, isa) for layer in source.layers}
    floats = sorted(
        {name for precisions in offered.values() for name in precisions if not PRECISIONS[name].integer}, key=_bits
    )
    widths = {
        group.name: listed
        for group in source.groups
        if config.prune and group.name not in keep_width and len(listed := _widths(group, target, config)) > 1
    }
    patterns = {layer.name: _patterns(layer, target, config, isa) for layer in source.layers}
    ragged = [name for name, listed in patterns.items() if TWO_FOUR in listed and not _by_fours(name, source, widths)]
    patterns |= {name: tuple(p for p in patterns[name] if p != TWO_FOUR) for name in ragged}
    return SearchSpace(
        target=target.name,
        widths=widths,
        droppable=tuple(branch.name for branch in source.branches) if config.drop_branches else (),
        precisions={
            name: tuple(p for p in precisions if name not in keep_float or not PRECISIONS[p].integer)
            for name, precisions in offered.items()
        },
        float_precisions=tuple(floats) or ("fp32",),
        patterns={name: listed for name, listed in patterns.items() if listed},
        refused=(*source.refused, *_refused(target, isa), *_refused_fours(ragged)),
    )


def dimensions(space: SearchSpace) -> list[Dimension]:
    """Every choice of the space with more than one option, in a fixed order."""
    listed = [Dimension(f"keep:{name}", len(widths)) for name, widths in space.widths.items()]
    listed += [Dimension(f"drop:{name}", 2) for name in space.droppable]
    listed += [
        Dimension(f"precision:{name}", size) for name in space.precisions if (size := len(_ladder(space, name))) > 1
    ]
    listed += [Dimension(f"pattern:{name}", len(patterns) + 1) for name, patterns in space.patterns.items()]
    if len(space.float_precisions) > 1:
        listed.append(Dimension("float", len(space.float_precisions)))
    return listed


def decode(space: SearchSpace, source: SourceModel, numbers: Mapping[str, int]) -> Candidate:
    """The candidate that a number per dimension stands for; a missing dimension takes its largest value.

    Choices inside a dropped branch have no effect and are left out, so equal networks decode to equal candidates.
    """
    dropped = {name for name in space.droppable if numbers.get(f"drop:{name}", 1) == 0}
    gone_layers, gone_groups = _inside(source, dropped)
    float_name = space.float_precisions[numbers.get("float", len(space.float_precisions) - 1)]
    keep: dict[str, int] = {}
    for name, widths in space.widths.items():
        chosen = widths[numbers.get(f"keep:{name}", len(widths) - 1)]
        if name not in gone_groups and chosen < widths[-1]:
            keep[name] = chosen
    precision, pattern = {}, {}
    for layer in source.layers:
        if layer.name not in gone_layers:
            patterns = (*space.patterns.get(layer.name, ()), DENSE)
            pattern[layer.name] = patterns[numbers.get(f"pattern:{layer.name}", len(patterns) - 1)]
            ladder = _ladder(space, layer.name)
            rung = ladder[numbers.get(f"precision:{layer.name}", len(ladder) - 1)]
            precision[layer.name] = float_name if rung == "float" else rung
    return Candidate(keep=keep, dropped=tuple(sorted(dropped)), precision=precision, pattern=not_dense(pattern))


def encode(space: SearchSpace, candidate: Candidate) -> dict[str, int] | None:
    """A number per dimension that decodes to `candidate`, or None if it lies outside the space."""
    numbers: dict[str, int] = {}
    try:
        for name, widths in space.widths.items():
            numbers[f"keep:{name}"] = widths.index(candidate.keep.get(name, widths[-1]))
        for name in space.droppable:
            numbers[f"drop:{name}"] = 0 if name in candidate.dropped else 1
        for name in space.precisions:
            ladder = _ladder(space, name)
            chosen = candidate.precision.get(name, ladder[-1])
            integer = chosen != "float" and PRECISIONS[chosen].integer
            numbers[f"precision:{name}"] = ladder.index(chosen if integer else "float")
        for name, patterns in space.patterns.items():
            numbers[f"pattern:{name}"] = (*patterns, DENSE).index(candidate.pattern.get(name, DENSE))
        numbers["float"] = space.float_precisions.index(candidate.float_precision)
    except ValueError:
        return None
    listed = (candidate.keep, space.widths), (candidate.dropped, space.droppable), (candidate.pattern, space.patterns)
    if any(set(names) - set(offered) for names, offered in listed):
        return None
    return {dimension.name: numbers[dimension.name] for dimension in dimensions(space)}


def uniform(source: SourceModel, precision: str) -> Candidate:
    """The whole network, every layer in one precision."""
    return Candidate(keep={}, dropped=(), precision={layer.name: precision for layer in source.layers})


def baselines(space: SearchSpace) -> dict[str, Candidate]:
    """The uniform settings every study starts with, widest first: each precision the space offers anywhere.

    Layers that do not offer the precision (``keep_float``) stay in the widest float format.
    """
    widest = space.float_precisions[-1]
    names = {name for offered in space.precisions.values() for name in offered} | set(space.float_precisions)
    found = {}
    for name in sorted(names, key=_bits, reverse=True):
        precision = {
            layer: name if name in offered or not _integer(name) else widest
            for layer, offered in space.precisions.items()
        }
        found[name] = Candidate(keep={}, dropped=(), precision=precision)
    return found


def log10_size(space: SearchSpace) -> float:
    """Decimal logarithm of the number of combinations."""
    return sum(math.log10(dimension.size) for dimension in dimensions(space))


def _integer(name: str) -> bool:
    return PRECISIONS[name].integer


def _bits(name: str) -> int:
    return PRECISIONS[name].weight_bits


def _ladder(space: SearchSpace, layer: str) -> tuple[str, ...]:
    """Integer precisions of a layer, narrowest first, then ``float`` for whatever float format the candidate uses."""
    offered = space.precisions[layer]
    integers = tuple(name for name in offered if _integer(name))
    return integers if len(integers) == len(offered) else (*integers, "float")


def _widths(group: PruneGroup, target: Target, config: SpaceConfig) -> tuple[int, ...]:
    # An attention head is one channel of the group, but many of the layer.
    entries = max((axis.repeat for axis in group.axes if axis.side == "out"), default=1)
    step = math.ceil((config.granularity or target.granularity) / entries)
    smallest = max(1, (config.min_keep or target.min_keep) * group.channels)
    multiples = range(step, group.channels, step)
    return (*(n for n in multiples if n >= smallest), group.channels)


def _offered(layer: LayerInfo, target: Target, config: SpaceConfig, isa: tuple[str, ...]) -> tuple[str, ...]:
    native = native_precisions(target, layer.op, isa)
    if config.precisions is None:
        return native
    useless = [name for name in config.precisions if name not in native]
    if useless:
        raise ConfigError(
            f"`{useless[0]}` gains nothing for `{layer.name}` on `{target.name}`",
            where=f"space.precisions = {list(config.precisions)}",
            allowed=", ".join(native),
            hint="leave it out, or search for a target that computes in it",
        )
    return tuple(sorted(config.precisions, key=_bits))


def _patterns(layer: LayerInfo, target: Target, config: SpaceConfig, isa: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of zeros for a layer, most zeros first; none for depthwise layers, whose weights are few and matter."""
    if layer.op == "depthwise":
        return ()
    asked = native_patterns(target, layer.op, isa) if config.sparsity is None else config.sparsity
    return tuple(sorted(dict.fromkeys(asked), key=sparsest_first))


def _by_fours(layer: str, source: SourceModel, widths: Mapping[str, Sequence[int]]) -> bool:
    """Whether the channels a filter of the layer reads come in fours at every width."""
    info = source.layer(layer)
    read = info.in_shape[-1 if info.op == "linear" else 0] // info.groups
    lost = [
        axis.repeat * (group.channels - width)
        for group in source.groups
        for axis in group.axes
        if (axis.module, axis.side) == (layer, "in")
        for width in widths.get(group.name, ())
    ]
    return all(channels % 4 == 0 for channels in (read, *lost))


def _refused_fours(ragged: Sequence[str]) -> list[str]:
    names = ", ".join(ragged[:SHOWN]) + (", ..." if len(ragged) > SHOWN else "")
    return [f"2:4: input channels do not come in fours at every width: {names}"] if ragged else []


def _refused(target: Target, isa: tuple[str, ...]) -> list[str]:
    notes = []
    for precision, needed in target.needs_isa.items():
        if not set(needed) & set(isa):
            notes.append(f"{precision}: this chip has none of {', '.join(needed)}")
    return notes


def _match(patterns: Sequence[str], names: list[str], where: str) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        found = set(fnmatch.filter(names, pattern))
        if not found:
            raise ConfigError(
                f"`{pattern}` matches no layer",
                where=where,
                allowed=", ".join(names[:8]) + ", ...",
                hint=did_you_mean(pattern, names),
            )
        matched |= found
    return matched


def _inside(source: SourceModel, dropped: set[str]) -> tuple[set[str], set[str]]:
    """Layers and prune groups that vanish with the dropped branches."""
    branches = [branch for branch in source.branches if branch.name in dropped]
    layers = {layer for branch in branches for layer in branch.layers}
    groups = {group for branch in branches for group in branch.groups}
    return layers, groups
