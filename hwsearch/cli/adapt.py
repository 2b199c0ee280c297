"""``hwsearch adapt``: a bundle follows the scene it stands in."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwsearch.cli.adapt_watch import watch
from hwsearch.cli.interruption import version_told
from hwsearch.cli.output import flags, next_step, note, print_facts, print_json, print_table
from hwsearch.cli.verb import verb, with_options
from hwsearch.errors import ConfigError
from hwsearch.types import to_json

if TYPE_CHECKING:
    from hwsearch.adapt.ladder import Climb, Step
    from hwsearch.adapt.scenes import SceneData
    from hwsearch.export.deployed import Deployed
    from hwsearch.export.manifest import Update
    from hwsearch.export.update import Adaptation

app = typer.Typer(
    name="adapt", help="Follow the scene: new weights for a bundle, same graph and formats.", no_args_is_help=True
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a folder that `hwsearch export` wrote")]
Data = Annotated[
    str, typer.Option("--data", metavar="DATA", help="folder with a sub-folder per class, .npz, or file.py:factory")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder for the adapter")]
Shots = Annotated[int, typer.Option("--shots", metavar="N", min=0, help="labelled examples per class to use; 0: none")]
Rungs = Annotated[
    list[str] | None, typer.Option("--rung", metavar="NAME", help="recalibrate, sharpen or migrate; default: all")
]
Kind = Annotated[str, typer.Option("--kind", metavar="NAME", help="of adapters: repadapter or lora")]
Rank = Annotated[int, typer.Option("--rank", metavar="N", min=1, help="of adapters")]
Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, help="of training adapters")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0)]
Goal = Annotated[
    float | None, typer.Option("--goal", metavar="X", help="accuracy on the labelled examples that is enough")
]
AdapterFolder = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="what `adapt migrate` wrote; default: adapt now")
]
Force = Annotated[bool, typer.Option("--force", help="update even if accuracy in the scene does not rise")]
Timing = Annotated[bool, typer.Option("--timing/--no-timing", help="measure old and new in turns")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """How a network is adapted, and to how many labels of the scene."""

    shots: Shots = 10
    rung: Rungs = None
    goal: Goal = None
    kind: Kind = "repadapter"
    rank: Rank = 8
    steps: Steps = 200
    seed: Seed = 0


@app.command()
@verb
@with_options(Ladder)
def migrate(bundle: Bundle, *, data: Data, out: Out, how: Ladder) -> None:
    """Adapt a bundle's network to a scene and write what changed; the bundle stays as it is."""
    from hwsearch.adapt.files import save_adapter
    from hwsearch.export.manifest import FILE

    if out.is_file() or (out / FILE).exists():
        raise ConfigError(f"{out} is a {'file' if out.is_file() else 'bundle'}", where="--out", allowed="a folder")
    deployed, scene = _opened(bundle, data, how)
    found, adaptation = _climbed(deployed, scene, how)
    written = save_adapter(
        out,
        adaptation.network,
        deployed.base,
        adaptation.spec,
        {
            "scene": scene.name,
            "labels": adaptation.labels,
            "rungs": list(adaptation.rungs),
            "shots": how.shots,
            "seed": how.seed,
        },
        identity=deployed.identity,
    )
    if flags().json:
        print_json({"adapter": str(out), "bytes": written.bytes, **_steps_document(found)})
    else:
        _print_steps(found)
        print_facts({"adapter": str(out), "bytes": f"{written.bytes:,}", "labels": str(adaptation.labels)})
    next_step("hwsearch", "adapt", "update", bundle, "--data", data, "--adapter", out)


@app.command()
@verb
@with_options(Ladder)
def update(
    bundle: Bundle,
    *,
    data: Data,
    how: Ladder,
    adapter: AdapterFolder = None,
    force: Force = False,
    timing: Timing = True,
) -> None:
    """Put adapted weights into a bundle: same graph and formats, in one atomic step; the old version is kept."""
    from hwsearch.adapt.files import read_facts
    from hwsearch.export.update import update_bundle

    if adapter is not None:  # the same division of the examples, so that none that was learnt from judges
        known = read_facts(adapter).facts
        how = replace(how, shots=known.get("shots", how.shots), seed=known.get("seed", how.seed))
    with version_told(bundle):
        deployed, scene = _opened(bundle, data, how)
        found = None
        if adapter is None:
            found, adaptation = _climbed(deployed, scene, how)
        else:
            adaptation = _read(adapter, deployed)
        made = update_bundle(deployed, adaptation, scene, force=force, timing=timing, on_stage=_tell)
    if flags().json:
        print_json({"bundle": str(bundle), "update": to_json(made), **(_steps_document(found) if found else {})})
    else:
        if found is not None:
            _print_steps(found)
        print_facts(_update_facts(made))
    next_step("hwsearch", "verify", bundle)


app.command()(watch)


@app.command()
@verb
def rollback(bundle: Bundle) -> None:
    """Put the version before the last update back in its place."""
    from hwsearch.export.versions import roll_back, versions

    number = roll_back(bundle)
    left = versions(bundle)
    if flags().json:
        print_json({"bundle": str(bundle), "restored": number, "versions": left})
    else:
        print_facts({"restored": f"version {number}", "kept": ", ".join(map(str, left))})
    next_step("hwsearch", "verify", bundle)


def _opened(bundle: Path, data: str, how: Ladder) -> tuple[Deployed, SceneData]:
    """The bundle's network and the scene, which is checked against it before anything is computed."""
    from hwsearch.adapt.scenes import load_scene
    from hwsearch.export.deployed import fit_of, open_deployed
    from hwsearch.export.manifest import parse_manifest, read_facts

    _check(how)
    fit = fit_of(parse_manifest(read_facts(bundle)))
    scene = load_scene(data, fit, shots=how.shots, seed=how.seed)
    note(f"rebuilding the network of {bundle}")
    return open_deployed(bundle), scene


def _climbed(deployed: Deployed, scene: SceneData, how: Ladder) -> tuple[Climb, Adaptation]:
    from hwsearch.adapt.insert import AdapterSpec
    from hwsearch.adapt.ladder import RUNGS, climb
    from hwsearch.adapt.migrate import Migration
    from hwsearch.export.update import Adaptation

    started = time.perf_counter()
    spec = AdapterSpec(kind=how.kind, rank=how.rank, seed=how.seed)  # type: ignore[arg-type]
    rungs = tuple(rung for rung in RUNGS if not how.rung or rung in how.rung)
    found = climb(
        deployed.base, scene.scene, deployed.source, rungs=rungs, goal=how.goal, on_step=_tell_step,
        how=Migration(spec=spec, steps=how.steps, seed=how.seed),
    )  # fmt: skip
    return found, Adaptation(
        network=found.network,
        spec=None if found.how is None else found.how.spec,
        rungs=tuple(step.rung for step in found.steps if step.kept),
        labels=len(scene.scene.labels),
        seconds=time.perf_counter() - started,
    )


def _read(adapter: Path, deployed: Deployed) -> Adaptation:
    from hwsearch.adapt.files import load_adapter, read_facts
    from hwsearch.export.update import Adaptation

    facts = read_facts(adapter)
    network = load_adapter(adapter, deployed.base, deployed.identity)
    return Adaptation(
        network=network,
        spec=facts.spec,
        rungs=tuple(facts.facts.get("rungs", ())),
        labels=int(facts.facts.get("labels", 0)),
        seconds=0.0,
    )


def _check(how: Ladder) -> None:
    """Refuse names nothing is known by, before anything is computed."""
    from hwsearch.adapt.ladder import RUNGS

    if wrong := [name for name in how.rung or () if name not in RUNGS]:
        raise ConfigError(f"unknown rung `{wrong[0]}`", where="--rung", allowed=", ".join(RUNGS))
    if how.kind not in ("repadapter", "lora"):
        raise ConfigError(f"unknown kind of adapter `{how.kind}`", where="--kind", allowed="repadapter, lora")


# --------------------------------------------------------------------------- what is said


def _tell(stage: str) -> None:
    words = {
        "build": "calibrating ranges and building",
        "score": "scoring old and new",
        "measure": "measuring in turns",
    }
    note(words.get(stage, "replacing the bundle"))


def _tell_step(step: Step) -> None:
    note(f"{step.rung}: {'kept' if step.kept else 'not kept'}, {step.reason} ({step.seconds:.1f} s)")


def _steps_document(found: Climb) -> dict[str, Any]:
    return {"steps": [to_json(step) for step in found.steps]}


def _print_steps(found: Climb) -> None:
    print_table(
        ["rung", "", "divergence", "information", "accuracy", "labels", "s"],
        [
            [
                step.rung,
                "kept" if step.kept else "no",
                f"{step.before.divergence:.3f} -> {step.after.divergence:.3f}",
                f"{step.before.information:.2f} -> {step.after.information:.2f}",
                ""
                if step.before.accuracy is None or step.after.accuracy is None
                else f"{step.before.accuracy:.3f} -> {step.after.accuracy:.3f}",
                str(step.labels),
                f"{step.seconds:.1f}",
            ]
            for step in found.steps
        ],
    )


def _update_facts(made: Update) -> dict[str, str]:
    scene = "no labels to score by"
    if made.before is not None and made.after is not None:
        scene = f"{made.before.value:.4f} -> {made.after.value:.4f} on {made.after.examples} examples"
    return {
        "version": str(made.version),
        "scene": scene,
        "source": f"{made.source_before.value:.4f} -> {made.source_after.value:.4f}",
        "latency": "" if made.latency_ratio is None else f"{made.latency_ratio:.3f} of the version before",
        "seconds": f"{made.seconds:.1f}",
    }
