"""The same network trained plain and in several forms with branches, merged and quantised; see README.md.

Each network is trained, and then measured, in a process of its own. What `results.json` holds is not done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from cost import Cost
from rounding import accuracy, all_rounded, one_rounded

from hwsearch.config import load_study
from hwsearch.model.data import load_splits
from hwsearch.model.load import load_model
from hwsearch.reparam.recipe import retrained
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.space.space import uniform
from hwsearch.store import read_json, write_json
from hwsearch.types import Success

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
KINDS = ("plain", "repvgg", "qarepvgg", "dbb", "orepa")
RANGES = ("minmax", "entropy")
NO_TIMING = ("latency=measure", "measure.rounds=6", "measure.seconds=0.01")
TRAINED = Path("runs/trained")
"""Where ``hwsearch search`` keeps trained weights, too: it does not train again what was trained here."""


def main():
    arguments = parse()
    fresh = multiprocessing.get_context("spawn")
    for seed in arguments.seeds:
        for kind in arguments.kinds:
            name = f"{kind} {seed}"
            for part in (trained, measured):
                if part.__name__ not in results().get(name, {}):
                    with ProcessPoolExecutor(1, mp_context=fresh) as process:
                        found = {part.__name__: process.submit(part, kind, seed).result()}
                    write_json(RESULTS, results() | {name: results().get(name, {}) | found})
                    print(name, json.dumps(found)[:400], file=sys.stderr, flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return parser.parse_args()


def results():
    return read_json(RESULTS) if RESULTS.exists() else {}


def study(kind, seed, ranges="minmax"):
    settings = [f"reparam.kind={kind}", f"reparam.seed={seed}", f"quantize.ranges={ranges}", *NO_TIMING]
    return load_study(HERE / "study.yaml", settings)


def trained(kind, seed):
    """What training cost; the weights are kept."""
    return merged_network(kind, seed)[2]


def measured(kind, seed):
    """Accuracy of the merged network, float and rounded."""
    merged, splits, _ = merged_network(kind, seed)
    return {
        "float": {"report": accuracy(merged, splits.report), "search": accuracy(merged, splits.search)},
        "int8": {ranges: deployed(merged, study(kind, seed, ranges), splits) for ranges in RANGES},
        "rounded": all_rounded(merged, splits.search),
        "layers": one_rounded(merged, splits.search),
    }


def merged_network(kind, seed):
    """The trained and merged network, the data, and what training cost, if there was any to do."""
    torch.set_num_threads(1)
    config = study(kind, seed)
    splits = load_splits(config.data, base_dir=HERE)
    examples, network, cost = splits.train, load_model(config.model), Cost()
    merged = retrained(network, config.reparam, examples, TRAINED, on_epoch=cost.epoch)
    return merged, splits, cost.numbers()


def deployed(merged, config, splits):
    """Top-1 of the int8 artifact on the report split, in its runtime."""
    subject = load_subject(config, module=merged, splits=splits)
    candidate, target = uniform(subject.network.source, "int8"), ready_target("ort-cpu", config)
    with tempfile.TemporaryDirectory() as folder, Evaluator(subject, target, config, Path(folder)) as evaluator:
        outcome, _ = evaluator.evaluate(candidate, baseline=True)
        assert isinstance(outcome, Success), outcome
        return evaluator.accuracy(outcome.artifact, candidate, "report").value


if __name__ == "__main__":
    main()
