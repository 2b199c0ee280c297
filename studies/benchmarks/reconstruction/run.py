"""Accuracy of pruned CIFAR-10 ResNet-20 without any training, and what the repair costs; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch

from hwsearch.compress.prune import pruned
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.types import Candidate

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    arguments = parse()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    data = Path(os.environ["HWSEARCH_DATA"]) / "cifar10"
    calibration, _ = load(data / "train_20k.npz", arguments.offset, arguments.images)
    test = load(data / "test.npz", arguments.skip, arguments.test)
    module = load_model("hwsearch.zoo.resnet:resnet20", weights=data / "resnet20-12fca82f.th")
    network = trace(module, calibration[:1], name="resnet20")
    report = {**vars(arguments), "original": accuracy(module, *test)}
    report["candidates"] = rows = {name: {} for name in candidates(network.source)}
    for selection in arguments.selection:
        settings = Settings(selection=selection, images=arguments.images)
        reconstructor = Reconstructor(network, calibration, settings=settings)
        report[f"database_{selection}_s"] = prepare(reconstructor, network.source)
        for name, candidate in candidates(network.source).items():
            rows[name][selection] = judge(network, reconstructor, candidate, calibration, test)
            print(name, selection, rows[name][selection], flush=True)
    report["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(report, indent=1))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256, help="calibration images, from the training set")
    parser.add_argument("--offset", type=int, default=0, help="training images to skip before them")
    parser.add_argument("--test", type=int, default=10_000, help="test images, at most")
    parser.add_argument("--skip", type=int, default=0, help="test images to skip before them")
    parser.add_argument("--selection", nargs="+", default=["magnitude", "obs"], help="how channels are chosen")
    return parser.parse_args()


def load(path, start, count):
    with np.load(path) as stored:
        images, labels = stored["images"][start : start + count], stored["labels"][start : start + count]
    images = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def candidates(source):
    inner = [group for group in source.groups if group.kind == "inner"]
    found = {
        f"inner {ratio}": Candidate(keep={g.name: round(ratio * g.channels) for g in inner}, dropped=(), precision={})
        for ratio in (0.75, 0.5, 0.25)
    }
    return found | {"without layer1.1": Candidate(keep={}, dropped=("layer1.1",), precision={})}


def prepare(reconstructor, source):
    """Seconds until the first candidate can be repaired."""
    started = time.perf_counter()
    reconstructor.select({group.name: group.channels for group in source.groups})
    return round(time.perf_counter() - started, 2)


def judge(network, reconstructor, candidate, calibration, test):
    again = pruned(
        network.module, network.source, candidate, reconstructor.select(candidate.keep), network.template.folded
    )
    reestimate_batch_norm(again, calibration)
    reconstructor.repaired(candidate)  # what is computed once is not part of the time
    wall, cpu = time.perf_counter(), time.process_time()
    repaired = reconstructor.repaired(candidate)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "stitched": accuracy(reconstructor.stitched(candidate), *test),
        "batch_norm": accuracy(again, *test),
        "least_squares": accuracy(repaired, *test),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
    }


def accuracy(module, images, labels):
    chunks = zip(torch.from_numpy(images).split(250), np.split(labels, range(250, len(labels), 250)), strict=True)
    return sum(int((module(x).argmax(1).numpy() == y).sum()) for x, y in chunks) / len(labels)


if __name__ == "__main__":
    main()
