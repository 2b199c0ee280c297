"""RepAdapter beside full tuning and a linear probe, on one vision transformer and the same images; see README.md."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from data import DIGITS, mnist, normalised
from torch import nn
from torch.nn import functional

from hwsearch.adapt.files import save_adapter
from hwsearch.adapt.fine_tune import fine_tune
from hwsearch.adapt.follow import accuracy_of
from hwsearch.adapt.insert import AdapterSpec, head_name, insert, merge, size
from hwsearch.adapt.scenes import divide
from hwsearch.backends.base import RunOptions
from hwsearch.backends.benchmark import benchmark
from hwsearch.config import DataConfig
from hwsearch.model.sources import load_pools
from hwsearch.model.template import export_template
from hwsearch.model.train import random_shift, train
from hwsearch.zoo.resnet import resnet20
from hwsearch.zoo.vit import ViT

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "orepa"))
from memory import kept_bytes

METHODS = ("adapter", "full", "probe")
RATES = (1e-3, 3e-3, 1e-2)
OTHER_SEED = 1000
"""Of the division into examples on which each method's learning rate is chosen."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--shots", type=int, default=10)
    arguments = parser.parse_args()
    base = pretrained()
    print(json.dumps({"latency_ms": (latency := latencies(base))}), file=sys.stderr, flush=True)
    report = {"methods": {m: method(m, base, arguments) for m in arguments.methods}, "latency_ms": latency}
    print(json.dumps(report, indent=1))


def pretrained():
    """A small transformer that knows scikit-learn's digits."""
    torch.manual_seed(0)
    base = ViT(10, heads=4, head_size=16, depth=4, image=32, patch=4)
    pool = load_pools(DataConfig(source="digits"), base_dir=Path())["train"]
    images = normalised(pool.inputs, DIGITS)
    train(base, images, pool.targets, epochs=40, lr=2e-3, optimizer="adamw", augment=random_shift(3))
    return base


def method(name, base, arguments):
    rate = max(RATES, key=lambda lr: tuned(name, base, OTHER_SEED, lr, arguments)["accuracy"])
    runs = [tuned(name, base, seed, rate, arguments) for seed in range(arguments.seeds)]
    accuracies = [run.pop("accuracy") for run in runs]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    seconds = statistics.median(run.pop("seconds") for run in runs)
    found = {"accuracy": statistics.mean(accuracies), "sd": spread, "lr": rate, "seconds": seconds, **runs[0]}
    print(json.dumps({name: found}), file=sys.stderr, flush=True)
    return found


def tuned(name, base, seed, lr, arguments):
    images, labels = mnist()
    data = divide("mnist", normalised(images, DIGITS), labels, 10, shots=arguments.shots, seed=seed)
    network = ready(name, base, seed)
    few, known = data.scene.few, data.scene.labels
    loss = functional.cross_entropy
    history = fine_tune(network, few, known, loss=loss, steps=arguments.steps, lr=lr, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        spec = AdapterSpec(seed=seed) if name == "adapter" else None
        stored = save_adapter(Path(folder), network, base, spec).bytes
    return {
        "accuracy": accuracy_of(merge(network), data.inputs, data.targets),
        "untuned": accuracy_of(base, data.inputs, data.targets),
        "seconds": history.seconds,
        "trained_parameters": size(network).trained,
        "stored_bytes": stored,
        "kept_mib_batch_64": round(memory_of(ready(name, base, seed)) / 2**20, 1),
    }


def memory_of(network):
    """What a step keeps: `kept_bytes` counts gradient and momentum of frozen weights, too."""
    frozen = sum(p.numel() * p.element_size() for p in network.parameters() if not p.requires_grad)
    return kept_bytes(network, (64, 3, 32, 32)) - 2 * frozen


def ready(name, base, seed):
    if name == "adapter":
        return insert(base, AdapterSpec(seed=seed))
    network = copy.deepcopy(base).requires_grad_(requires_grad=name == "full")
    network.get_submodule(head_name(network)).requires_grad_()
    return network


def latencies(vit):
    """Base, merged and with adapters still in it, in ONNX Runtime on one thread, measured in turns."""
    found = {}
    for name, base in (("vit", vit), ("resnet20", resnet20().eval())):
        adapted = insert(base).eval()
        for part in adapted.modules():
            if isinstance(getattr(part, "up", None), nn.Parameter):
                nn.init.normal_(part.up, std=0.1)
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for form, network in (("base", base), ("merged", merge(adapted)), ("adapters", adapted)):
                files.append(Path(folder) / f"{name}-{form}.onnx")
                onnx.save(export_template(network, torch.zeros(2, 3, 32, 32)).bind(), files[-1])
            rows = benchmark(files, "onnxruntime", RunOptions(threads=1)).rows
        found |= {row.name: float(np.round(row.latency.best_ms, 4)) for row in rows}
    return found


if __name__ == "__main__":
    main()
