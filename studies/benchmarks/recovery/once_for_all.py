"""One training run over all candidates before the search, against training each candidate, at equal time.

    HWSEARCH_DATA=... OMP_NUM_THREADS=1 python studies/benchmarks/recovery/once_for_all.py --minutes 4

CIFAR-10 ResNet-20; five fixed candidates, each after least squares: of the original weights, of weights trained once
for all, and, for the same minutes split over the five, of the original weights and then trained on its own. Time is CPU
time of one thread, so that whatever else the machine does leaves the comparison fair.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from hwsearch.compress.materialize import materialize
from hwsearch.compress.once_for_all import Schooling, once_for_all
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import Recipe, Recovery, learning_rate
from hwsearch.compress.stitch import parameters_of
from hwsearch.config import load_study
from hwsearch.config_recover import OnceForAllConfig, RecoverConfig
from hwsearch.errors import EvaluationError
from hwsearch.model.graph import trace
from hwsearch.model.outputs import outputs_of
from hwsearch.search.prepare import load_subject
from hwsearch.types import Candidate

STUDY = Path(__file__).parents[2] / "cifar10-resnet20" / "study.yaml"


def candidates(source):
    """Name -> candidate: inner widths, two dropped branches, and both."""
    inner = {group.name: group.channels for group in source.groups if group.kind == "inner"}
    dropped = tuple(branch.name for branch in source.branches[1:5:3])
    widths = {share: {name: int(share * channels) for name, channels in inner.items()} for share in (0.75, 0.5)}
    return {
        "original": candidate_of(source, {}, ()),
        "inner .75": candidate_of(source, widths[0.75], ()),
        "inner .5": candidate_of(source, widths[0.5], ()),
        "two branches dropped": candidate_of(source, {}, dropped),
        "inner .75, two dropped": candidate_of(source, widths[0.75], dropped),
        "inner .5, two dropped": candidate_of(source, widths[0.5], dropped),
    }


def candidate_of(source, keep, dropped):
    gone = {layer for b in source.branches if b.name in dropped for layer in b.layers}
    inside = {group for b in source.branches if b.name in dropped for group in b.groups}
    precision = {layer.name: "fp32" for layer in source.layers if layer.name not in gone}
    return Candidate(
        keep={name: kept for name, kept in keep.items() if name not in inside}, dropped=dropped, precision=precision
    )


class Comparison:
    """Scores on the report split, and what it takes to get there."""

    def __init__(self, arguments):
        config = load_study(STUDY)
        self.subject, self.arguments = load_subject(config), arguments
        self.network, self.splits = self.subject.network, self.subject.splits
        self.examples = self.splits.train

    def score(self, module, split="report"):
        data = self.splits.named(split)
        images = self.arguments.images if split == "report" else len(data)
        return self.subject.metric(outputs_of(module, data.inputs[:images], batch=128), data.targets[:images])

    def started(self, network, reconstructor, candidate):
        """The candidate after least squares, ready for training."""
        calibration = self.splits.calibrate.inputs
        parameters = parameters_of(network, candidate, reconstructor, calibration=calibration)
        return materialize(network, candidate, parameters, reconstructor.select(candidate.keep), calibration)

    def once_for_all(self):
        """The original's form whose weights were trained for all candidates."""
        section = OnceForAllConfig(minutes=self.arguments.minutes, lr=self.arguments.lr)
        schooling = Schooling(
            config=RecoverConfig(once_for_all=section, shift=4, flip=True, seed=self.arguments.seed),
            examples=self.examples,
            calibration=self.splits.calibrate.inputs,
            probabilities=True,
            score=lambda module: self.score(module, "search"),
        )
        with tempfile.TemporaryDirectory() as folder:
            module = once_for_all(self.network, schooling, Path(folder), clock=time.process_time)
        return trace(module, self.splits.calibrate.inputs[:2], name="once for all")

    def trained(self, candidate, module, minutes):
        """A candidate trained on its own, in place."""
        before, original = self.score(module, "search"), self.score(self.network.module, "search")
        rate = learning_rate((original - before) / original)
        recipe = Recipe(minutes=minutes, lr=rate, shift=4, flip=True, seed=self.arguments.seed)
        with tempfile.TemporaryDirectory() as folder:
            recovery = Recovery(
                self.network, self.examples, judge=lambda m: self.score(m, "search"), probabilities=True,
                folder=Path(folder), clock=time.process_time,
            )  # fmt: skip
            try:
                recovery.recovered(dataclasses.replace(candidate, recipe=recipe.choices()), module, lambda _: {})
            except EvaluationError as error:
                print(error, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training for each of the two ways")
    parser.add_argument("--lr", type=float, default=0.01, help="of training once for all")
    parser.add_argument("--images", type=int, default=2000, help="of the report split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("once_for_all.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comparison = Comparison(arguments)
    network, calibration = comparison.network, comparison.splits.calibrate.inputs
    shared = comparison.once_for_all()
    alone, together = Reconstructor(network, calibration), Reconstructor(shared, calibration)
    rows, listed = [], candidates(network.source)
    for name, candidate in listed.items():
        module = comparison.started(network, alone, candidate)
        row = {"candidate": name, "least squares": comparison.score(module)}
        row["once for all, least squares"] = comparison.score(comparison.started(shared, together, candidate))
        if candidate.complete:
            row["distilled alone"] = ""
        else:
            comparison.trained(candidate, module, arguments.minutes / (len(listed) - 1))
            row["distilled alone"] = comparison.score(module)
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(rows[-1], flush=True)
    with arguments.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
