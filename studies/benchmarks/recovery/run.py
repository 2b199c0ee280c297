"""Ways of training at equal time: two compressed forms of CIFAR-10 ResNet-20, several seeds.

    HWSEARCH_DATA=... OMP_NUM_THREADS=1 python studies/benchmarks/recovery/run.py --minutes 2 --seeds 0 1 2

Time is CPU time of one thread, so that whatever else the machine does leaves the comparison fair.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from hwsearch.compress.materialize import materialize
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import Recipe, Recovery, learning_rate
from hwsearch.compress.stitch import parameters_of
from hwsearch.config import load_study
from hwsearch.errors import EvaluationError
from hwsearch.model.graph import Network
from hwsearch.model.outputs import outputs_of
from hwsearch.search.evaluate import Subject
from hwsearch.search.prepare import load_subject
from hwsearch.types import Candidate

STUDY = Path(__file__).parents[2] / "cifar10-resnet20" / "study.yaml"
COLUMNS = ("model", "method", "features", "seed", "minutes", "lr", "before", "search", "report")


def candidates(network: Network) -> dict[str, Candidate]:
    """Name -> model: half of the channels inside every branch gone, or two branches of nine."""
    dropped = ("layer1.0", "layer1.1")
    gone = {layer for b in network.source.branches if b.name in dropped for layer in b.layers}
    layers = [layer.name for layer in network.source.layers]
    keep = {group.name: group.channels // 2 for group in network.source.groups if group.kind == "inner"}
    return {
        "half": Candidate(keep=keep, dropped=(), precision=dict.fromkeys(layers, "fp32")),
        "dropped": Candidate(keep={}, dropped=dropped, precision={name: "fp32" for name in layers if name not in gone}),
    }


def trained(subject: Subject, candidate: Candidate, recipe: Recipe) -> dict:
    """What one training makes of a candidate; a learning rate of 0 is scaled to the damage."""
    network, splits, metric = subject.network, subject.splits, subject.metric
    calibration = splits.calibrate.inputs
    reconstructor = Reconstructor(network, calibration)
    parameters = parameters_of(network, candidate, reconstructor, calibration=calibration)
    module = materialize(network, candidate, parameters, reconstructor.select(candidate.keep), calibration)

    def score(module: nn.Module, split: str) -> float:
        data = splits.named(split)
        return metric(outputs_of(module, data.inputs, batch=128), data.targets)

    before, original = score(module, "search"), score(network.module, "search")
    recipe = dataclasses.replace(recipe, lr=recipe.lr or learning_rate((original - before) / original))
    with tempfile.TemporaryDirectory() as folder:
        recovery = Recovery(
            network, splits.train, judge=lambda m: score(m, "search"), probabilities=True, folder=Path(folder),
            clock=time.process_time,
        )  # fmt: skip
        try:
            after = recovery.recovered(
                dataclasses.replace(candidate, recipe=recipe.choices()), module, lambda _: {}
            ).after
        except EvaluationError:
            after = before  # gained nothing
    report = round(score(module, "report"), 4)
    return dataclasses.asdict(recipe) | {"lr": round(recipe.lr, 4), "before": before, "search": after, "report": report}


def main() -> None:
    """Print and write one row per model, method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of CPU time for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=0.0, help="peak learning rate; scaled to the damage by default")
    parser.add_argument("--models", nargs="+", default=["half", "dropped"])
    parser.add_argument("--methods", nargs="+", default=["distill", "finetune"])
    parser.add_argument("--features", type=float, nargs="+", default=[0.0], help="weights of activations, for distill")
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(load_study(STUDY))
    known = candidates(subject.network)
    ways = [(m, features) for m in options.methods for features in (options.features if m == "distill" else [0.0])]
    for model, seed, (method, features) in itertools.product(options.models, options.seeds, ways):
        recipe = Recipe(
            method=method, features=features, minutes=options.minutes, lr=options.lr, seed=seed, shift=4, flip=True
        )
        row = {"model": model} | trained(subject, known[model], recipe)
        print(*(f"{name}={row[name]}" for name in COLUMNS), flush=True)
        if options.out:
            _append(options.out, row)


def _append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
