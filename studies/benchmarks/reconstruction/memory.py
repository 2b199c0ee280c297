"""Peak memory and seconds of the repair of a large network: ResNet-50 at 224², random weights; see README.md."""

from __future__ import annotations

import argparse
import json
import resource
import time
from contextlib import contextmanager

import numpy as np
import torch

from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.model.graph import trace
from hwsearch.types import Candidate
from hwsearch.zoo.resnet_imagenet import resnet50


def main():
    arguments = parse()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    images = np.random.default_rng(0).standard_normal((arguments.images, 3, arguments.size, arguments.size), np.float32)
    module = resnet50(1000, small=False).eval()
    reestimate_batch_norm(module, images[:8])  # without it, the activations of random weights explode
    network = trace(module, images[:1], name="resnet50")
    report = vars(arguments) | {"before": {"peak_mb": peak_mb()}}
    reconstructor = Reconstructor(network, images, settings=Settings(images=arguments.images))
    groups = network.source.groups
    inner = {group.name: group.channels // 2 for group in groups if group.kind == "inner"}
    branch = network.source.branches[-1]
    with step(report, "database"):
        reconstructor.select({group.name: group.channels for group in groups})
    with step(report, "dropped"):
        reconstructor.repaired(Candidate(keep={}, dropped=(branch.name,), precision={}))
    with step(report, "halved"):
        reconstructor.repaired(Candidate(keep=inner, dropped=(), precision={}))
    halves = {name: Candidate(keep={name: count}, dropped=(), precision={}) for name, count in inner.items()}
    rounded = {
        layer.name: Candidate(keep={}, dropped=(), precision={layer.name: "int8"}) for layer in network.source.layers
    }
    with step(report, "estimated"), torch.enable_grad():
        changes = halves | {f"int8 {name}": candidate for name, candidate in rounded.items()}
        reconstructor.estimated(changes, images[: arguments.gradients], probabilities=True)
    print(json.dumps(report, indent=1))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--gradients", type=int, default=16, help="images for estimates from gradients")
    return parser.parse_args()


@contextmanager
def step(report, name):
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    report[name] = {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mb": peak_mb(),
    }
    print(name, report[name], flush=True)


def peak_mb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
