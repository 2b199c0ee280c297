"""The same network trained plain and in several forms with branches, merged and quantised; see README.md."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from network import build
from scipy.stats import spearmanr
from torch import nn

from hwsearch.backends.base import RunOptions
from hwsearch.backends.benchmark import benchmark
from hwsearch.config import make_study
from hwsearch.config_reparam import ReparamConfig
from hwsearch.model.data import DataSplit, load_splits
from hwsearch.model.metric import TOP1
from hwsearch.model.template import export_template
from hwsearch.model.train import train
from hwsearch.reparam.expand import expand
from hwsearch.reparam.guard import BITS, inspect, rounded
from hwsearch.reparam.merge import merge
from hwsearch.reparam.recipe import retrained
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.prepare import load_subject, ready_target
from hwsearch.space.space import uniform
from hwsearch.types import Success

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks" / "orepa"))
from memory import kept_bytes  # noqa: E402

RANGES = ("minmax", "percentile", "entropy")
LAYER_BITS = 4
PROBE = 1024
"""Images in the epoch that tells how long the others will take."""


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    splits = load_splits(study(arguments).data, base_dir=HERE)
    examples = first(splits.train, arguments.examples)
    if arguments.minutes is not None:
        arguments.epochs = affordable_epochs(arguments, examples)
    found = {kind: [] for kind in arguments.kinds}
    for seed in range(arguments.seeds):
        for kind in arguments.kinds:
            numbers, layers = one(kind, seed, arguments, splits, examples)
            found[kind].append((numbers, layers))
            print(json.dumps({"kind": kind, "seed": seed, **numbers}), file=sys.stderr, flush=True)
    report = {
        "arguments": vars(arguments),
        "mean_and_sd": {kind: summary([numbers for numbers, _ in found[kind]]) for kind in found},
        "cost": {kind: cost(kind, arguments) for kind in found},
        "guard": verdict([layer for rows in found.values() for _, layers in rows for layer in layers]),
    }
    print(json.dumps(report, indent=1))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", default=["plain", "repvgg", "qarepvgg", "dbb", "orepa"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=15, help="of every training")
    parser.add_argument("--minutes", type=float, help="of all trainings together: as many epochs as fit, equal for all")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=8000, help="test images for the figures")
    parser.add_argument("--cache", default="runs/trained", help="folder of trained weights; a second run reads them")
    return parser.parse_args()


def study(arguments, ranges="minmax"):
    """The study the product would run, with this range method and quick measurements."""
    return make_study(
        {
            "model": f"{HERE / 'network.py'}:build",
            "data": {
                "source": "cifar10",
                "path": f"{os.environ['HWSEARCH_DATA']}/cifar10",
                "report": arguments.report,
            },
            "target": "ort-cpu",
            "latency": "measure",
            "quantize": {"ranges": ranges},
            "measure": {"seconds": 0.2},
        }
    )


def first(split, count):
    return DataSplit(
        name=split.name, inputs=split.inputs[:count], targets=split.targets[:count], sha256=f"{split.sha256}:{count}"
    )


def affordable_epochs(arguments, examples):
    """Epochs such that all trainings together take about as long as they may."""
    seconds = 0.0
    for kind in arguments.kinds:
        started = time.perf_counter()
        train(expand(build(), kind, fresh=True), examples.inputs[:PROBE], examples.targets[:PROBE], epochs=1)
        seconds += (time.perf_counter() - started) * len(examples) / PROBE
    return max(1, int(60 * arguments.minutes / seconds / arguments.seeds))


def one(kind, seed, arguments, splits, examples):
    """Numbers of one trained network, and what the guard says of its layers beside what they lose."""
    options = {"fresh": True, "epochs": arguments.epochs, "lr": arguments.lr, "shift": 4, "flip": True, "seed": seed}
    torch.manual_seed(seed)
    merged = retrained(build(), ReparamConfig(kind=kind, **options), examples, Path(arguments.cache))
    subject = load_subject(study(arguments), module=merged, splits=splits)
    images, labels = torch.from_numpy(splits.report.inputs), splits.report.targets
    best = accuracy(merged, images, labels)
    numbers = {"float": best}
    for ranges in RANGES:
        numbers[f"int8 {ranges}"] = deployed(subject, study(arguments, ranges))
    for bits in BITS:
        for scheme in ("tensor", "channel"):
            weak = quantised(merged, bits, per_channel=scheme == "channel")
            numbers[f"{bits}-bit weights, scale per {scheme}"] = accuracy(weak, images, labels)
    layers = []
    for layer in inspect(subject.network):
        weak = quantised(merged, LAYER_BITS, per_channel=False, only=layer.name)
        loss = best - accuracy(weak, images, labels)
        layers.append({**dataclasses.asdict(layer), "fragile": layer.fragile, "loss": loss})
    return {**numbers, "fragile layers": sum(layer["fragile"] for layer in layers)}, layers


def accuracy(network, images, labels):
    with torch.no_grad():
        return TOP1(torch.cat([network(part) for part in images.split(250)]).numpy(), labels)


def deployed(subject, config):
    """Top-1 of the int8 artifact on the report split, in its runtime."""
    candidate, target = uniform(subject.network.source, "int8"), ready_target("ort-cpu", config)
    with tempfile.TemporaryDirectory() as folder, Evaluator(subject, target, config, Path(folder)) as evaluator:
        outcome, _ = evaluator.evaluate(candidate)
        assert isinstance(outcome, Success), outcome
        return evaluator.accuracy(outcome.artifact, candidate, "report").value


def quantised(network, bits, *, per_channel, only=None):
    """A copy with weights of so many bits, of every layer or of one; activations stay float."""
    network = copy.deepcopy(network)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and only in (None, name):
            rows = part.weight.detach().double().flatten(1).numpy()
            part.weight.data.copy_(torch.from_numpy(rounded(rows, bits, per_channel=per_channel)).view_as(part.weight))
    return network


def cost(kind, arguments):
    """Memory and time of training, and latency of the training form beside the merged network's."""
    big = expand(build(), kind, fresh=True)
    x, y = np.zeros((640, 3, 32, 32), np.float32), np.zeros(640, np.int64)
    history = train(copy.deepcopy(big), x, y, epochs=3, lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, module in (("merged", merge(big)), ("training", big.eval())):
            files.append(Path(folder) / f"{name}.onnx")
            onnx.save(export_template(module, torch.zeros(2, 3, 32, 32)).bind(), files[-1])
        rows = benchmark(files, "onnxruntime", RunOptions(threads=arguments.threads)).rows
    return {
        "parameters_m": sum(p.numel() for p in big.parameters()) / 1e6,
        "kept_mib_batch_64": kept_bytes(big, (64, 3, 32, 32)) / 2**20,
        "step_ms": 1e3 * history.seconds / 30,
        "latency_ms": {row.name: row.latency.best_ms for row in rows},
    }


def summary(rows):
    """Mean and standard deviation over seeds."""
    texts = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "?"
        texts[name] = f"{statistics.mean(values):.4f} ± {spread}"
    return texts


def verdict(layers):
    """How well numbers known before quantisation rank what `LAYER_BITS` bits, one scale per tensor, then cost."""
    losses = [layer["loss"] for layer in layers]
    predictors = {
        "kurtosis": [layer["kurtosis"] for layer in layers],
        "peak": [layer["peak"] for layer in layers],
        "noise": [-layer["per_tensor_db"][LAYER_BITS] for layer in layers],
    }
    return {
        "layers": len(layers),
        "rank_correlation_with_loss": {
            n: round(float(spearmanr(v, losses).statistic), 3) for n, v in predictors.items()
        },
        "mean_loss": {
            name: round(statistics.mean([layer["loss"] for layer in layers if layer["fragile"] is flag] or [0.0]), 4)
            for name, flag in (("fragile", True), ("others", False))
        },
    }


if __name__ == "__main__":
    main()
