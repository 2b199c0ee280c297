"""A pruned int8 bundle of ResNet-20 follows corrupted CIFAR-10, in both CPU runtimes; see README.md."""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path

import numpy as np
from data import IMAGENET
from results import remembered

from hwsearch.adapt.corruptions import corrupt
from hwsearch.adapt.follow import Policy
from hwsearch.adapt.ladder import climb
from hwsearch.adapt.migrate import Migration
from hwsearch.adapt.scenes import divide
from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.backends.benchmark import benchmark
from hwsearch.backends.timing import TimingPolicy
from hwsearch.config import load_study
from hwsearch.export.bundle import export_bundle
from hwsearch.export.deployed import open_deployed
from hwsearch.export.manifest import located, parse_manifest, read_facts
from hwsearch.export.update import Adaptation, update_bundle
from hwsearch.export.verify import verify
from hwsearch.export.watch import watch_bundle
from hwsearch.search.loop import evaluated
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.search.progress import silent
from hwsearch.search.run import Run
from hwsearch.search.session import opened
from hwsearch.types import Candidate, to_json

STUDY = Path(__file__).parents[1] / "cifar10-resnet20" / "study.yaml"
SETTINGS = ("latency=measure", "measure.seconds=0.3", "search.sampler=random")

KEEP, DROPPED, FLOAT = {"layer2.2.conv1": 16, "layer3.0.conv1": 48}, ("layer1.0",), ("conv1", "linear")
"""A candidate that the guided search of that study finds: a block and channels gone, int8 but for two layers."""

NEAR = 0.05
"""The ladder ends this close to the accuracy the bundle was exported with."""

STEPS, BATCH, WINDOW = 80, 250, 32
TIMING = TimingPolicy(rounds=40, seconds=1.0)
SCENE, STREAM, CLEAN = slice(0, 2000), slice(2000, 4000), slice(4000, 6000)
"""Of the study's report split, which nothing was chosen by: what is adapted to, what is followed, what judges."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["ort-cpu", "openvino-cpu"])
    parser.add_argument("--kind", default="noise", help="corruption")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--tolerances", type=float, nargs="*", default=[0.02], help="of the gate")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"), help="bundles stay here")
    arguments = parser.parse_args()
    for target in arguments.targets:
        kept = arguments.out / target
        if not kept.exists():
            export(target, arguments.out)
        shift = arguments.kind, arguments.severity
        name = f"{target}, {arguments.kind} {arguments.severity}"
        remembered("deployed", f"{name}, ladder", adapted, kept, *shift)
        for tolerance in arguments.tolerances:
            remembered("deployed", f"{name}, stream with a gate of {tolerance}", followed, kept, *shift, tolerance)


def export(target, folder):
    """The bundle of that candidate, evaluated in a run of its own."""
    config = load_study(STUDY, SETTINGS)
    subject = load_subject(config)
    source = subject.network.source
    gone = {layer for branch in source.branches if branch.name in DROPPED for layer in branch.layers}
    precision = {
        layer.name: "fp32" if layer.name in FLOAT else "int8" for layer in source.layers if layer.name not in gone
    }
    candidate = Candidate(keep=KEEP, dropped=DROPPED, precision=precision)
    place, ready = folder / "runs" / target, ready_target(target, config)
    with opened(config, subject, ready, place, watch=silent, stop=threading.Event()) as session:
        evaluated(session.search, candidate)
    export_bundle(Run.open(place), candidate.key, folder / target)


def adapted(kept, kind, severity):
    """The ladder with ten labels a class, and the update; nothing keeps the source in mind but the distillation."""
    bundle = fresh(kept, "adapted")
    deployed = open_deployed(bundle)
    data = divide(f"{kind} {severity}", *images(deployed, SCENE, kind, severity), 10, shots=10)
    manifest = deployed.manifest
    goal, how = manifest.figures.accuracy.value - NEAR, Migration(steps=STEPS)
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
        timing=False,
    )
    return {
        "candidate": {**to_json(manifest.candidate), "accuracy": manifest.figures.accuracy.value},
        "latency_ms": manifest.figures.latency.best_ms,
        "fp32_latency_ms": manifest.baselines["fp32"].latency.best_ms,
        "fp32_accuracy": manifest.baselines["fp32"].accuracy.value,
        "goal": goal,
        "rungs": {step.rung: f"{'kept' if step.kept else 'not kept'}: {step.reason}" for step in ladder.steps},
        "judged_on": len(data.targets),
        "scene": [made.before.value, made.after.value],
        "clean": [served(folder, *images(deployed, CLEAN)) for folder in (kept, bundle)],
        "seconds": round(made.seconds, 1),
        "latency_ratios": [ratio(kept, bundle) for _ in range(3)],
        "verified": verify(bundle, timing=False).ok,
    }


def followed(kept, kind, severity, tolerance):
    """A stream that is clean for ten windows and then is not; updates replay the source and pass the anchor's gate."""
    bundle = fresh(kept, "followed")
    deployed = open_deployed(bundle)
    clean, known = images(deployed, slice(STREAM.start, STREAM.start + 10 * WINDOW))
    shifted, others = images(deployed, slice(STREAM.start + 10 * WINDOW, STREAM.stop), kind, severity)
    found = watch_bundle(
        deployed,
        np.concatenate([clean, shifted]),
        np.concatenate([known, others]),
        window=WINDOW,
        policy=Policy(steps=STEPS, tolerance=tolerance),
    )
    scene, usual = images(deployed, SCENE, kind, severity), images(deployed, CLEAN)
    return {
        "events": [to_json(event) for event in found.events if event.drift or event.update],
        "windows": len(found.events),
        "scene": [served(folder, *scene) for folder in (kept, bundle)],
        "clean": [served(folder, *usual) for folder in (kept, bundle)],
        "judged_on": len(scene[1]),
        "latency_ratios": [ratio(kept, bundle) for _ in range(3)],
        "updates_per_hour": found.updates_per_hour,
        "verified": verify(bundle, timing=False).ok,
    }


def fresh(kept, name):
    """A copy of a bundle to update."""
    bundle = kept.with_name(f"{kept.name}-{name}")
    for old in (bundle, bundle.with_name(f"{bundle.name}.versions")):
        shutil.rmtree(old, ignore_errors=True)
    return Path(shutil.copytree(kept, bundle))


def images(deployed, rows, kind=None, severity=None):
    """Examples of the report split as the network takes them, corrupted or not, and their classes."""
    split, normalize = deployed.subject.splits.report, IMAGENET
    inputs, labels = split.inputs[rows], split.targets[rows].astype(np.int64)
    if kind is None:
        return inputs, labels
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (normalize.mean, normalize.std))
    pixels = np.rint((inputs * deviation + mean) * 255).astype(np.uint8)
    return normalize(corrupt(pixels, kind, severity).astype(np.float32) / 255), labels


def served(bundle, inputs, labels):
    """Top-1 of the shipped file, in its runtime."""
    manifest = parse_manifest(read_facts(bundle))
    target = manifest.target
    options = RunOptions(threads=1, batch=BATCH, float_precision=manifest.float_precision, options=target.options)
    model = get_backend(target.backend).open(located(manifest.artifact, bundle), options)
    outputs = np.concatenate([model.run(part) for part in np.split(inputs, len(inputs) // BATCH)])
    return float((outputs.argmax(1) == labels).mean())


def ratio(one, other):
    """Latency of the model in `other` as a multiple of that in `one`, measured in turns."""
    manifest = parse_manifest(read_facts(one))
    options = RunOptions(threads=1, float_precision=manifest.float_precision, options=manifest.target.options)
    files = [folder / manifest.artifact.path for folder in (one, other)]
    return benchmark(files, manifest.target.backend, options, TIMING).rows[1].latency.ratio


if __name__ == "__main__":
    main()
