import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hwsearch.compress.materialize import Nothing, materialize
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.compress.stitch import bind, parameters_of
from hwsearch.model.graph import trace
from hwsearch.model.template import folded_parameters
from hwsearch.space.space import uniform
from hwsearch.types import Candidate
from hwsearch.zoo.resnet import ResNet
from hwsearch.zoo.vit import ViT


def images(count, seed=0, size=16):
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def traced(module, size=16):
    reestimate_batch_norm(module.eval(), images(64, size=size))
    return trace(module, images(1, size=size), name="small")


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return traced(ResNet(2, 10, width=0.5))


def halved(network, *, dropped=(), kinds=("inner",)):
    """Half of every group's channels that is not inside a dropped branch."""
    gone = {g for b in network.source.branches if b.name in dropped for g in b.groups}
    layers = {layer for b in network.source.branches if b.name in dropped for layer in b.layers}
    keep = {g.name: g.channels // 2 for g in network.source.groups if g.kind in kinds and g.name not in gone}
    precision = {n: p for n, p in uniform(network.source, "fp32").precision.items() if n not in layers}
    return Candidate(keep=keep, dropped=tuple(sorted(dropped)), precision=precision)


def built(network, candidate, calibration, path):
    """The candidate as a module, and as an ONNX file."""
    reconstructor = Reconstructor(network, calibration)
    parameters = parameters_of(network, candidate, reconstructor, calibration=calibration)
    bind(network, candidate, parameters, path)
    return materialize(network, candidate, parameters, reconstructor.select(candidate.keep), calibration)


def run(path, inputs):
    return onnxruntime.InferenceSession(path).run(None, {"input": inputs})[0]


def outputs(module, inputs):
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).numpy()


@pytest.mark.parametrize("kinds", [("inner",), ("inner", "stage")])
@pytest.mark.parametrize("branches", [0, 2])
def test_the_module_computes_what_the_file_does(resnet, kinds, branches, tmp_path):
    dropped = [b.name for b in resnet.source.branches][:branches]
    candidate = halved(resnet, dropped=dropped, kinds=kinds)
    module = built(resnet, candidate, images(64), tmp_path / "m.onnx")
    inputs = images(8, seed=1)
    np.testing.assert_allclose(outputs(module, inputs), run(tmp_path / "m.onnx", inputs), atol=1e-4)
    assert sum(isinstance(layer, Nothing) for layer in module.modules()) == 2 * branches


def test_its_parameters_give_the_same_file_again(resnet, tmp_path):
    candidate = halved(resnet, dropped=[resnet.source.branches[0].name])
    module = built(resnet, candidate, images(64), tmp_path / "m.onnx")
    bind(resnet, candidate, folded_parameters(module, resnet.template.folded), tmp_path / "again.onnx")
    inputs = images(8, seed=1)
    np.testing.assert_allclose(run(tmp_path / "again.onnx", inputs), run(tmp_path / "m.onnx", inputs), atol=1e-4)


def test_training_mode_computes_the_same_on_the_images_of_the_statistics(resnet, tmp_path):
    """Repair would be lost in the first step if norms had other statistics than the batches bring."""
    module = built(resnet, halved(resnet), images(64), tmp_path / "m.onnx")
    expected = outputs(module, images(64))
    found = outputs(copy.deepcopy(module).train(), images(64))
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_weights_have_the_scale_of_the_original(resnet, tmp_path):
    module = built(resnet, halved(resnet), images(64), tmp_path / "m.onnx")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
            original = resnet.module.get_submodule(name).weight
            ratio = layer.weight.square().mean().sqrt() / original.square().mean().sqrt()
            assert 0.5 < ratio < 2


def test_gradients_reach_what_is_left_and_nothing_else(resnet, tmp_path):
    dropped = resnet.source.branches[1].name
    module = built(resnet, halved(resnet, dropped=[dropped]), images(64), tmp_path / "m.onnx")
    module.train()(torch.from_numpy(images(8))).square().mean().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    assert not any(name.startswith(dropped) for name, _ in module.named_parameters())
    fixed = {name for name, p in resnet.module.named_parameters() if not p.requires_grad}
    assert fixed == {n for n, p in module.named_parameters() if not p.requires_grad and n.endswith("weight")}


def test_a_channel_whose_norm_was_dead_does_not_explode(tmp_path):
    torch.manual_seed(1)
    module = ResNet(1, 10, width=0.5).eval()
    module.layer2[0].bn1.weight.data[:2] = 1e-9
    network = traced(module)
    module = built(network, halved(network), images(64), tmp_path / "m.onnx")
    assert max(float(p.detach().abs().max()) for p in module.parameters()) < 100
    inputs = images(8, seed=1)
    np.testing.assert_allclose(outputs(module, inputs), run(tmp_path / "m.onnx", inputs), atol=1e-4)


def test_a_network_frozen_for_inference_can_be_trained(tmp_path):
    torch.manual_seed(0)
    network = traced(ResNet(1, 10, width=0.5).requires_grad_(requires_grad=False))
    assert all(p.requires_grad for p in built(network, halved(network), images(16), tmp_path / "m.onnx").parameters())


def test_a_transformer_without_batch_norms(tmp_path):
    torch.manual_seed(0)
    network = traced(ViT(4, heads=2, head_size=8, depth=2, image=16, patch=8))
    candidate = halved(network, dropped=[network.source.branches[0].name])
    module = built(network, candidate, images(64), tmp_path / "m.onnx")
    inputs = images(8, seed=1)
    np.testing.assert_allclose(outputs(module, inputs), run(tmp_path / "m.onnx", inputs), atol=1e-4)
