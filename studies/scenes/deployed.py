"""A pruned int8 bundle of ResNet-20 follows corrupted CIFAR-10, in both CPU runtimes; see README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from data import DATA

from hwsearch.adapt.corruptions import corrupt
from hwsearch.adapt.insert import AdapterSpec
from hwsearch.adapt.ladder import climb
from hwsearch.adapt.migrate import Migration
from hwsearch.adapt.scenes import load_scene
from hwsearch.cli.main import main as hwsearch
from hwsearch.export.deployed import fit_of, open_deployed
from hwsearch.export.update import Adaptation, update_bundle
from hwsearch.export.verify import verify
from hwsearch.search.run import find_run
from hwsearch.types import Success, to_json

STUDY = Path(__file__).parents[1] / "cifar10-resnet20" / "study.yaml"
NEAR = 0.05
"""The ladder ends this close to the accuracy the bundle was exported with."""

SMALL = ("search.sampler=random", "search.evaluations=6", "latency=measure", "measure.seconds=0.3")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", nargs="+", default=["ort-cpu", "openvino-cpu"])
    parser.add_argument("--kind", default="contrast", help="corruption")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"), help="exported bundles stay here")
    arguments = parser.parse_args()
    found = {target: followed(target, arguments.kind, arguments.out) for target in arguments.targets}
    print(json.dumps(found, indent=1))


def followed(target, kind, folder):
    kept = folder / target
    if not kept.exists():
        export(target, folder)
    bundle = folder / f"{target}-updated"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(kept, bundle)
    with np.load(DATA / "cifar10" / "test.npz") as archive:
        images, labels = archive["images"][-2000:].transpose(0, 3, 1, 2), archive["labels"][-2000:]
    scene = folder / f"{kind}.npz"
    np.savez(scene, images=corrupt(images, kind, 5).transpose(0, 2, 3, 1), labels=labels)
    deployed = open_deployed(bundle)
    data = load_scene(str(scene), fit_of(deployed.manifest), shots=10)
    how = Migration(spec=AdapterSpec(rank=8), steps=120)
    goal = deployed.manifest.figures.accuracy.value - NEAR
    ladder = climb(deployed.base, data.scene, deployed.source, how=how, goal=goal)
    made = update_bundle(
        deployed,
        Adaptation(
            network=ladder.network,
            spec=None if ladder.how is None else how.spec,
            rungs=tuple(step.rung for step in ladder.steps if step.kept),
            labels=len(data.scene.labels),
            seconds=sum(step.seconds for step in ladder.steps),
        ),
        data,
    )
    candidate = deployed.manifest.candidate
    int8 = sum(precision == "int8" for precision in candidate.precision.values())
    return {
        "candidate": {"keep": candidate.keep, "dropped": candidate.dropped, "int8_layers": int8},
        "goal": goal,
        "rungs": {step.rung: f"{'kept' if step.kept else 'not kept'}: {step.reason}" for step in ladder.steps},
        "update": to_json(made),
        "verified": verify(bundle, timing=False).ok,
    }


def export(target, folder):
    """The most accurate candidate with int8 layers that lost channels or branches, of a short random search."""
    runs = folder / "runs"
    settings = [part for setting in (*SMALL, f"target={target}") for part in ("--set", setting)]
    print(target, file=sys.stderr, flush=True)
    assert hwsearch(["search", str(STUDY), *settings, "--out", str(runs), "--quiet"]) == 0
    run = find_run(runs / "cifar10-resnet20", target)
    fits = [
        trial
        for trial in run.trials
        if isinstance(trial.outcome, Success)
        and not trial.candidate.complete
        and "int8" in trial.candidate.precision.values()
    ]
    best = max(fits, key=lambda trial: trial.outcome.accuracy.value)
    out = ["--out", str(folder / target), "--quiet"]
    assert hwsearch(["export", str(run.path), "--key", best.candidate.key, *out]) == 0


if __name__ == "__main__":
    main()
