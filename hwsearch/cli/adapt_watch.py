"""``hwsearch adapt watch``: a bundle follows a stream of labelled examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.interruption import version_told
from hwsearch.cli.output import flags, note, print_facts, print_json
from hwsearch.cli.verb import DryRun, verb
from hwsearch.errors import ConfigError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.adapt.follow import Event
    from hwsearch.export.watch import Watch

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a folder that `hwsearch export` wrote")]
Stream = Annotated[
    str,
    typer.Option("--data", metavar="DATA", help="labelled examples in order: .npz, or file.py:factory"),
]
Window = Annotated[int, typer.Option("--window", metavar="N", min=8, help="examples per window")]
Trigger = Annotated[str, typer.Option("--trigger", metavar="NAME", help="page_hinkley, adwin or fixed")]
Period = Annotated[int, typer.Option("--period", metavar="N", min=1, help="windows between updates, with fixed")]
Examples = Annotated[int, typer.Option("--examples", metavar="N", min=16, help="labelled examples an update waits for")]
MemoryKind = Annotated[str, typer.Option("--memory", metavar="NAME", help="replay, ewc or none")]
Tolerance = Annotated[float, typer.Option("--tolerance", metavar="X", help="accuracy an update may cost on the source")]
Timeline = Annotated[Path | None, typer.Option("--timeline", metavar="HTML", help="write what happened here")]
Rank = Annotated[int, typer.Option("--rank", metavar="N", min=1, help="of adapters")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, help="of training, per update")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0)]


@verb
def watch(
    bundle: Bundle,
    *,
    data: Stream,
    window: Window = 32,
    trigger: Trigger = "page_hinkley",
    period: Period = 20,
    examples: Examples = 128,
    memory: MemoryKind = "replay",
    tolerance: Tolerance = 0.02,
    rank: Rank = 8,
    steps: Steps = 150,
    seed: Seed = 0,
    timeline: Timeline = None,
    dry_run: DryRun = False,
) -> None:
    """Follow a stream: detect drift, update where it helps and the source is not forgotten, undo what harms."""
    from hwsearch.adapt.follow import Policy
    from hwsearch.adapt.insert import AdapterSpec
    from hwsearch.adapt.scenes import load_stream
    from hwsearch.export.deployed import fit_of, open_deployed
    from hwsearch.export.manifest import parse_manifest, read_facts
    from hwsearch.export.watch import watch_bundle
    from hwsearch.report.timeline import write_timeline

    if memory not in ("replay", "ewc", "none"):
        raise ConfigError(f"unknown memory `{memory}`", where="--memory", allowed="replay, ewc, none")
    names: Any = {"trigger": trigger, "memory": memory}
    policy = Policy(
        **names, period=period, examples=examples, tolerance=tolerance, steps=steps, seed=seed,
        spec=AdapterSpec(rank=rank, seed=seed),
    )  # fmt: skip
    inputs, labels = load_stream(data, fit_of(parse_manifest(read_facts(bundle))))
    note(f"rebuilding the network of {bundle}")
    events: list[Event] = []

    def heard(event: Event) -> None:
        events.append(event)
        _tell_event(event)

    try:
        with version_told(bundle):
            found = watch_bundle(
                open_deployed(bundle), inputs, labels,
                name=Path(data).name, window=window, policy=policy, publish=not dry_run, on_event=heard,
            )  # fmt: skip
    finally:  # Ctrl-C ends a stream, and what was seen of it is worth a look
        if timeline is not None and events:
            write_timeline(events, timeline)
    if flags().json:
        print_json({"bundle": str(bundle), **to_json(found)})
        return
    print_facts(_watch_facts(found))
    if timeline is not None:
        print_facts({"timeline": str(timeline)})


def _tell_event(event: Event) -> None:
    if event.drift:
        note(f"window {event.window}: drift, divergence {event.score:.3f} nats, accuracy {event.accuracy:.3f}")
    if event.update:
        note(f"window {event.window}: update {event.update}, {event.reason} ({event.seconds:.1f} s)")


def _watch_facts(found: Watch) -> dict[str, str]:
    tried = [event for event in found.events if event.update]
    accepted = sum(event.update == "accepted" for event in tried)
    return {
        "windows": str(len(found.events)),
        "drift noticed": str(sum(event.drift for event in found.events)),
        "updates": f"{accepted} accepted, {len(tried) - accepted} undone",
        "source": f"{found.source_before:.4f} -> {found.source_after:.4f}",
        "forgetting": f"{found.forgetting:.4f}",
        "backward transfer": f"{found.backward_transfer:+.4f}",
        "per update": "" if found.seconds_per_update is None else f"{found.seconds_per_update:.1f} s",
        "room for": "" if found.updates_per_hour is None else f"{found.updates_per_hour:.0f} updates an hour",
    }
