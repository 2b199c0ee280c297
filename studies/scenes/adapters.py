"""RepAdapter beside full tuning, LoRA and a linear probe, on one transformer and the same images; see README.md."""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnx
import torch
from data import DIGITS, mnist, normalised
from results import remembered
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

METHODS = ("repadapter", "lora", "full", "probe")
RATES = (1e-3, 3e-3, 1e-2)
OTHER_SEED = 1000
"""Of the division into examples on which each method's learning rate is chosen."""

STEPS, SHOTS, EPOCHS = 100, 10, 20
KEPT = Path("runs/scenes/vit.pt")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    arguments = parser.parse_args()
    base = pretrained()
    remembered("adapters", "untuned", untuned, base, arguments.seeds)
    for name in arguments.methods:
        remembered("adapters", name, method, name, base, arguments.seeds)
    remembered("adapters", "latency_ms", latencies, base)


def pretrained():
    """A small transformer that knows scikit-learn's digits."""
    torch.manual_seed(0)
    base = ViT(10, heads=4, head_size=16, depth=4, image=32, patch=4)
    if KEPT.exists():
        base.load_state_dict(torch.load(KEPT, weights_only=True))
        return base.eval()
    pool = load_pools(DataConfig(source="digits"), base_dir=Path())["train"]
    images = normalised(pool.inputs, DIGITS)
    train(base, images, pool.targets, epochs=EPOCHS, lr=2e-3, optimizer="adamw", augment=random_shift(3))
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    torch.save(base.state_dict(), KEPT)
    return base


def division(seed):
    images, labels = mnist()
    return divide("mnist", normalised(images, DIGITS), labels, 10, shots=SHOTS, seed=seed)


def untuned(base, seeds):
    parts = [division(seed) for seed in range(seeds)]
    return spread([accuracy_of(base, data.inputs, data.targets) for data in parts])


def method(name, base, seeds):
    rates = {f"{lr:g}": run(name, base, OTHER_SEED, lr)["accuracy"] for lr in RATES}
    best = max(RATES, key=lambda lr: rates[f"{lr:g}"])
    runs = [run(name, base, seed, best) for seed in range(seeds)]
    return {
        **runs[0],
        "lr": best,
        "accuracy": spread([run["accuracy"] for run in runs]),
        "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
        "rates": rates,
        "kept_mib_batch_64": round(memory_of(ready(name, base, 0)) / 2**20, 1),
    }


def run(name, base, seed, lr):
    return remembered("adapters", f"{name}, seed {seed}, rate {lr:g}", tuned, name, base, seed, lr)


def spread(values):
    return {"values": values, "mean": statistics.mean(values), "sd": statistics.stdev(values)}


def tuned(name, base, seed, lr):
    data, network = division(seed), ready(name, base, seed)
    trained, started = size(network).trained, time.process_time()
    fine_tune(network, data.scene.few, data.scene.labels, loss=functional.cross_entropy, steps=STEPS, lr=lr, seed=seed)
    seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        stored = save_adapter(Path(folder), network, base, spec_of(name, seed)).bytes
    return {
        "accuracy": accuracy_of(merge(network), data.inputs, data.targets),
        "cpu_seconds": seconds,
        "trained_parameters": trained,
        "stored_bytes": stored,
    }


def spec_of(name, seed):
    return AdapterSpec(kind=name, seed=seed) if name in ("repadapter", "lora") else None


def ready(name, base, seed):
    spec = spec_of(name, seed)
    if spec is not None:
        return insert(base, spec)
    network = copy.deepcopy(base).requires_grad_(requires_grad=name == "full")
    network.get_submodule(head_name(network)).requires_grad_()
    return network


def memory_of(network):
    """What a step keeps: `kept_bytes` counts gradient and momentum of frozen weights, too."""
    frozen = sum(p.numel() * p.element_size() for p in network.parameters() if not p.requires_grad)
    return kept_bytes(network, (64, 3, 32, 32)) - 2 * frozen


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
        found |= {Path(row.name).stem: round(row.latency.best_ms, 4) for row in rows}
    return found


if __name__ == "__main__":
    main()
