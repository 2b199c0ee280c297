"""Accuracy of CIFAR-10 ResNet-20 with sparse weights and no training, and what the zeros save; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch

from hwsearch.backends.base import get_backend
from hwsearch.compress.fold import fold
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.select import damped
from hwsearch.compress.sparsify import magnitude_mask, reconstruction_error, restricted_solve, surgery
from hwsearch.compress.statistics import find_layer, second_moments
from hwsearch.compress.stitch import stitch
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.patterns import TWO_FOUR, share_of_zeros
from hwsearch.space.space import uniform
from hwsearch.testing.contract import request_for
from hwsearch.types import Candidate

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATTERNS = (TWO_FOUR, "0.5", "0.75", "0.9")


def main():
    arguments = parse()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    data = Path(os.environ["HWSEARCH_DATA"]) / "cifar10"
    calibration, _ = load(data / "train_20k.npz", 256)
    module = load_model("hwsearch.zoo.resnet:resnet20", weights=data / "resnet20-12fca82f.th")
    network = trace(module, calibration[:1], name="resnet20")
    if arguments.what == "layers":
        print(json.dumps(layer_errors(network, calibration), indent=1))
    elif arguments.what == "models":
        write_models(network, calibration, arguments.out)
    else:
        accuracies(network, calibration, load(data / "test.npz", arguments.test))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["accuracy", "layers", "models"])
    parser.add_argument("--test", type=int, default=2000, help="test images, the first ones")
    parser.add_argument("--out", type=Path, help="folder for int8 models of ONNX Runtime")
    return parser.parse_args()


def accuracies(network, calibration, test):
    print("original", accuracy(network.module, *test), flush=True)
    for selection in ("magnitude", "obs"):
        reconstructor = Reconstructor(network, calibration, settings=Settings(selection=selection))
        for pattern in PATTERNS:
            print(pattern, selection, judge(reconstructor, sparse(network.source, pattern), test), flush=True)


def write_models(network, calibration, folder):
    reconstructor = Reconstructor(network, calibration)
    listed = {"dense": uniform(network.source, "int8"), **{p: sparse(network.source, p) for p in PATTERNS}}
    for name, candidate in listed.items():
        path = write(network, candidate, reconstructor, calibration, folder, name)
        print(name, sizes(path), flush=True)


def load(path, count):
    with np.load(path) as stored:
        images, labels = stored["images"][:count], stored["labels"][:count]
    images = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def sparse(source, pattern):
    """Every layer but the first and the last with zeros by one pattern."""
    layers = [layer.name for layer in source.layers[1:-1]]
    return Candidate(
        keep={}, dropped=(), precision=uniform(source, "int8").precision, pattern=dict.fromkeys(layers, pattern)
    )


def judge(reconstructor, candidate, test):
    stitched = accuracy(reconstructor.stitched(candidate), *test)
    wall, cpu = time.perf_counter(), time.process_time()
    repaired = reconstructor.repaired(candidate)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    least_squares = accuracy(repaired, *test)
    return {"stitched": stitched, "least_squares": least_squares, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}


def accuracy(module, images, labels):
    chunks = zip(torch.from_numpy(images).split(250), np.split(labels, range(250, len(labels), 250)), strict=True)
    return sum(int((module(x).argmax(1).numpy() == y).sum()) for x, y in chunks) / len(labels)


def write(network, candidate, reconstructor, calibration, folder, name):
    """The candidate in int8 as ONNX Runtime runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(':', '-')}.onnx"
    stitch(network, candidate, path, calibration=calibration, reconstructor=reconstructor)
    backend, model = get_backend("onnxruntime"), onnx.load(path)
    onnx.save(backend.lower(model, request_for(backend, model, candidate.precision)), path)
    return path


def sizes(file):
    return {"file": file.stat().st_size, "deflated": len(zlib.compress(file.read_bytes()))}


def layer_errors(network, calibration):
    """Pattern -> way -> mean relative error of the layers' outputs on their original inputs."""
    module = fold(network.module, network.template.folded)
    names = [layer.name for layer in network.source.layers[1:-1]]
    moments = second_moments(module, names, torch.from_numpy(calibration), rows=16384)
    found = {}
    for pattern in PATTERNS:
        errors = {"magnitude": [], "compensated": [], "sweep": [], "surgery": []}
        for name in names:
            layer, h = find_layer(module, name), damped(moments[name], 1e-2)
            for way, error in errors_of(layer, h, pattern).items():
                errors[way].append(error)
        found[pattern] = {way: round(float(np.mean(values)), 4) for way, values in errors.items()}
    return found


def errors_of(layer, moments, pattern):
    weight, bias = layer.weight, layer.bias
    whole = torch.cat([weight.flatten(1), bias[:, None]], dim=1).double()[None]
    always = torch.ones(len(weight), 1, dtype=torch.bool)
    mask = torch.cat([magnitude_mask(weight, pattern).flatten(1), always], dim=1)[None]
    new_weight, new_bias = surgery(weight, bias, moments, pattern)
    found = {
        "magnitude": whole * mask,
        "compensated": best(whole, moments, mask),
        "sweep": best(whole, moments, sweep(whole[0], moments[0], weight.shape, pattern)[None]),
        "surgery": torch.cat([new_weight.flatten(1), new_bias[:, None]], dim=1).double()[None],
    }
    scale = reconstruction_error(whole, moments)
    return {way: reconstruction_error(new - whole, moments) / scale for way, new in found.items()}


def best(whole, moments, kept):
    left = whole * kept
    return left + restricted_solve(moments @ (whole - left).mT, moments, kept.mT).mT


def sweep(weight, moments, shape, pattern, block=128):
    """Mask of one sweep over the columns, each loss spread over those to come (SparseGPT, algorithm 1)."""
    columns = torch.arange(shape[1:].numel()).view(shape[1], -1)
    order = torch.cat([*(part.T.flatten() for part in columns.split(4)), torch.tensor([columns.numel()])])
    weight, moments = weight[:, order].clone(), moments[order][:, order]
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    cost, kept = factor.diagonal().square(), torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1] - 1, block):
        end = min(start + block, weight.shape[1] - 1)
        if pattern != TWO_FOUR:
            scores = (weight[:, start:end].square() / cost[start:end]).flatten()
            gone = scores.topk(round(share_of_zeros(pattern) * len(scores)), largest=False).indices
            kept[:, start:end] = (
                torch.ones_like(scores, dtype=torch.bool).index_fill(0, gone, value=False).view(len(weight), -1)
            )
        for column in range(start, end):
            if pattern == TWO_FOUR and column % 4 == 0:
                four = slice(column, column + 4)
                largest = (weight[:, four].square() / cost[four]).topk(2, dim=1).indices
                kept[:, four] = torch.zeros(len(weight), 4, dtype=torch.bool).scatter(1, largest, value=True)
            error = weight[:, column] * ~kept[:, column] / factor[column, column]
            weight[:, column:] -= error[:, None] * factor[column, column:]
    return kept[:, order.argsort()]


if __name__ == "__main__":
    main()
