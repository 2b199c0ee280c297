"""What was requested beside what really ran, in the same form for every runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hwsearch.types import LayerTime

ABSENT = "absent"
"""`LayerTime.kind` of a layer that no kernel of the runtime could be traced to."""


def layer_time(
    *,
    runtime_layer: str,
    kind: str,
    source_layers: Sequence[str],
    precision: Mapping[str, str],
    executed: str | None,
    ms: float | None,
) -> LayerTime:
    """One executed unit with the precision requested of its layers, joined by ``+`` if they were asked to differ."""
    requested = dict.fromkeys(precision[layer] for layer in source_layers)
    return LayerTime(
        runtime_layer=runtime_layer,
        kind=kind,
        source_layers=tuple(source_layers),
        requested="+".join(requested) or None,
        executed=executed,
        ms=ms,
    )


def complete(times: Iterable[LayerTime], precision: Mapping[str, str]) -> tuple[LayerTime, ...]:
    """`times`, then one unit of kind `ABSENT` for each layer of `precision` that none of them computes."""
    found = tuple(times)
    covered = {layer for time in found for layer in time.source_layers}
    absent = (
        layer_time(runtime_layer="", kind=ABSENT, source_layers=[layer], precision=precision, executed=None, ms=None)
        for layer in precision
        if layer not in covered
    )
    return (*found, *absent)
