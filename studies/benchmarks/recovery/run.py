"""Distillation against plain fine-tuning at equal time: two compressed forms of CIFAR-10 ResNet-20, several seeds.

    HWSEARCH_DATA=... OMP_NUM_THREADS=1 python studies/benchmarks/recovery/run.py --minutes 2 --seeds 0 1 2

Time is CPU time of one thread, so that whatever else the machine does leaves the comparison fair.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
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
COLUMNS = ("model", "method", "seed", "minutes", "lr", "before", "search", "report")


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


def trained(subject: Subject, candidate: Candidate, method: str, seed: int, minutes: float, lr: float | None) -> dict:
    """One row of the table."""
    network, splits, metric = subject.network, subject.splits, subject.metric
    calibration = splits.calibrate.inputs
    reconstructor = Reconstructor(network, calibration)
    parameters = parameters_of(network, candidate, reconstructor, calibration=calibration)
    module = materialize(network, candidate, parameters, reconstructor.select(candidate.keep), calibration)

    def score(module: nn.Module, split: str) -> float:
        data = splits.named(split)
        return metric(outputs_of(module, data.inputs, batch=128), data.targets)

    before, original = score(module, "search"), score(network.module, "search")
    rate = lr or learning_rate((original - before) / original)
    recipe = Recipe(method=method, minutes=minutes, lr=rate, shift=4, flip=True, seed=seed)
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
    numbers = {"lr": round(rate, 4), "before": before, "search": after, "report": round(score(module, "report"), 4)}
    return {"method": method, "seed": seed, "minutes": minutes, **numbers}


def main() -> None:
    """Print and write one row per model, method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of CPU time for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, help="peak learning rate; scaled to the damage by default")
    parser.add_argument("--models", nargs="+", default=["half", "dropped"])
    parser.add_argument("--methods", nargs="+", default=["distill", "finetune"])
    parser.add_argument("--out", type=Path, help="CSV file to append to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(load_study(STUDY))
    known = candidates(subject.network)
    for model in options.models:
        for seed in options.seeds:
            for method in options.methods:
                row = trained(subject, known[model], method, seed, options.minutes, options.lr)
                row = {"model": model, **row}
                print(*(f"{name}={row[name]}" for name in COLUMNS), flush=True)
                if options.out:
                    _append(options.out, row)


def _append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
