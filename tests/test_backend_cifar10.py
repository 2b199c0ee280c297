"""Uniform int8 of the pretrained CIFAR-10 ResNet-20 keeps its accuracy on both backends, and all of it runs in int8."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.onnxruntime import observe
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.types import TensorRange

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.skipif("HWSEARCH_DATA" not in os.environ, reason="HWSEARCH_DATA is not set"),
]

MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BATCH = 100


def images(name, count):
    found = np.load(Path(os.environ["HWSEARCH_DATA"]) / "cifar10" / name)
    scaled = (found["images"][:count].astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), found["labels"][:count]


@pytest.fixture(scope="module")
def network():
    weights = Path(os.environ["HWSEARCH_DATA"]) / "cifar10" / "resnet20-12fca82f.th"
    module = load_model("hwsearch.zoo.resnet:resnet20", weights=weights)
    return trace(module, np.zeros((1, 3, 32, 32), np.float32), name="resnet20")


def top1(backend, model, request, folder):
    folder.mkdir()
    artifact = backend.build(backend.lower(model, request), folder, RunOptions())
    session = backend.open(artifact, RunOptions(batch=BATCH))
    inputs, labels = images("test.npz", 10_000)
    outputs = [session.run(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]
    return artifact, 100 * float(np.mean(np.concatenate(outputs).argmax(1) == labels))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_uniform_int8_loses_less_than_a_third_of_a_point(name, network, tmp_path):
    backend = get_backend(name)
    if not backend.availability().ok:
        pytest.skip(f"{name} is not installed")
    model = network.template.bind()
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    layers = [layer.name for layer in network.source.layers]
    precision = dict.fromkeys(layers, "int8")
    seen = observe(path, backend.tensors_to_observe(model, precision), images("train_20k.npz", 512)[0], bins=1)
    ranges = {tensor: TensorRange(low=found.low, high=found.high) for tensor, found in seen.items()}
    _, exact = top1(backend, model, LowerRequest(precision=dict.fromkeys(layers, "fp32")), tmp_path / "fp32")
    artifact, rounded = top1(backend, model, LowerRequest(precision=precision, ranges=ranges), tmp_path / "int8")
    assert exact == pytest.approx(91.73, abs=0.02)
    assert rounded > exact - 0.3
    times = backend.inspect(artifact, precision, RunOptions())
    assert {layer: time.executed for time in times for layer in time.source_layers} == precision
