"""What merging sibling layers is worth on Inception blocks, and whether SqueezeNet has any; see README.md."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from hwsearch.backends.base import RunOptions
from hwsearch.backends.horizontal import siblings
from hwsearch.backends.merging import merge_where_faster
from hwsearch.backends.timing import TimingPolicy
from hwsearch.model.graph import trace
from hwsearch.model.template import folded_parameters
from hwsearch.zoo.squeezenet import squeezenet

POLICY = TimingPolicy(rounds=60, min_rounds=30, seconds=1.0, half_width=0.005)


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015, figure 2b), each convolution with a ReLU.

    Args:
        inputs, one, three_reduce, three, five_reduce, five, pool: Channels, as in the columns of the paper's table 1.
    """

    def __init__(self, inputs, one, three_reduce, three, five_reduce, five, pool):
        super().__init__()
        self.stem = nn.Conv2d(16, inputs, 1)
        self.one = nn.Conv2d(inputs, one, 1)
        self.three_reduce, self.three = nn.Conv2d(inputs, three_reduce, 1), nn.Conv2d(three_reduce, three, 3, padding=1)
        self.five_reduce, self.five = nn.Conv2d(inputs, five_reduce, 1), nn.Conv2d(five_reduce, five, 5, padding=2)
        self.pool = nn.Conv2d(inputs, pool, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        three = self.three(self.three_reduce(x).relu()).relu()
        five = self.five(self.five_reduce(x).relu()).relu()
        pooled = self.pool(nn.functional.max_pool2d(x, 3, stride=1, padding=1)).relu()
        return torch.cat([self.one(x).relu(), three, five, pooled], dim=1).mean((2, 3))


class Heads(nn.Module):
    """Four 1×1 convolutions from 64 to 24 channels of the same tensor, concatenated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(16, 64, 1)
        self.heads = nn.ModuleList(nn.Conv2d(64, 24, 1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x).relu()
        return torch.cat([head(x).relu() for head in self.heads], dim=1).mean((2, 3))


NETWORKS = {
    "Inception 3a, 28x28": (lambda: Inception(192, 64, 96, 128, 16, 32, 32), (16, 28, 28)),
    "Inception 4b, 14x14": (lambda: Inception(512, 160, 112, 224, 24, 64, 64), (16, 14, 14)),
    "Inception 5a, 7x7": (lambda: Inception(832, 256, 160, 320, 32, 128, 128), (16, 7, 7)),
    "four 1x1 joined, 28x28": (Heads, (16, 28, 28)),
    "four 1x1 joined, 14x14": (Heads, (16, 14, 14)),
    "SqueezeNet, 32x32": (squeezenet, (3, 32, 32)),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="onnxruntime", choices=["onnxruntime", "openvino"])
    backend = parser.parse_args().backend
    print("| network | merged | latency, of unmerged | 95 % interval | |\n|---|---|---|---|---|")
    for name, (make, shape) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = exported(make, shape, Path(folder) / "model.onnx")
            if not siblings(onnx.load(path)):
                print(f"| {name} | nothing reads the same tensor in the same way | | | |", flush=True)
                continue
            for found in merge_where_faster(path, backend, RunOptions(threads=1), POLICY)[1]:
                low, high = found.comparison.ci95
                verdict = "kept" if found.kept else f"refused: {found.comparison.verdict}"
                figures = f"{found.comparison.ratio:.3f} | {low:.3f} to {high:.3f}"
                print(f"| {name} | {', '.join(found.layers)} | {figures} | {verdict} |", flush=True)


def exported(make, shape, path):
    """The network with random weights as an ONNX file."""
    torch.manual_seed(0)
    network = trace(make().eval(), np.zeros((2, *shape), np.float32), name="network")
    onnx.save(network.template.bind(folded_parameters(network.module, network.template.folded)), path)
    return path


if __name__ == "__main__":
    main()
