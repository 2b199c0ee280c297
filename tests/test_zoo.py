"""Every network of the zoo goes the whole way: traced, pruned, repaired, quantised, built and run on both backends."""

import numpy as np
import onnx
import pytest
import torch
from zoo_networks import BUILDERS, digits, traced

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.onnxruntime import observe
from hwsearch.compress.prune import slice_module
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.stitch import stitch
from hwsearch.errors import ModelError
from hwsearch.model.load import load_model
from hwsearch.types import Candidate, TensorRange
from hwsearch.zoo.catalogue import Size, catalogue, find, size
from hwsearch.zoo.shufflenet_v2 import shuffle

every_network = pytest.mark.parametrize("name", BUILDERS)


def candidate(source, keep=None, dropped=()):
    gone = {layer for branch in source.branches if branch.name in dropped for layer in branch.layers}
    precision = {layer.name: "fp32" for layer in source.layers if layer.name not in gone}
    return Candidate(keep=keep or {}, dropped=tuple(dropped), precision=precision)


def outputs(module, inputs):
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).numpy()


def error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean(0)))


def half(source):
    return {group.name: (group.channels + 1) // 2 for group in source.groups}


# --------------------------------------------------------------------------- the networks themselves


@pytest.mark.parametrize(
    ("name", "params", "million_macs"),
    [  # parameters and multiply-accumulates as published with the weights in torchvision, or by the authors
        ("resnet18-224", 11_689_512, 1814),
        ("resnet34-224", 21_797_672, 3664),
        ("resnet50-224", 25_557_032, 4089),
        ("mobilenet_v1-224", 4_231_976, 569),
        ("mobilenet_v2-224", 3_504_872, 301),
        ("squeezenet-224", 1_235_496, 349),
        ("shufflenet_v2-224", 2_278_604, 145),
        ("vit_tiny-224", 5_717_416, 1075),
    ],
)
def test_sizes_are_the_published_ones(name, params, million_macs):
    found = size(find(name))
    assert (found.params, round(found.macs / 1e6)) == (params, million_macs)


def test_the_catalogue_says_how_a_study_names_its_networks():
    entry = find("resnet20")
    module = load_model(entry.factory, model_args=entry.arguments)
    assert size(entry) == Size(params=sum(p.numel() for p in module.parameters()), macs=40_551_040 + 2 * 131_072)
    names = [entry.name for entry in catalogue()]
    assert len(names) == len(set(names))


def test_an_unknown_network_is_an_error_with_a_suggestion():
    with pytest.raises(ModelError, match="no network `mobilenetv2` in the zoo") as caught:
        find("mobilenetv2")
    assert caught.value.hint == "did you mean `mobilenet_v2`?"


def test_an_impossible_width_is_an_error():
    with pytest.raises(ModelError, match=r"no width 0\.7"):
        load_model("hwsearch.zoo.shufflenet_v2:shufflenet_v2", model_args={"width": 0.7})


@pytest.mark.parametrize(
    ("name", "parameter", "shape"),
    [
        ("resnet50-224", "layer2.0.downsample.0.weight", (512, 256, 1, 1)),
        ("mobilenet_v2-224", "features.2.conv.1.0.weight", (96, 1, 3, 3)),
        ("mobilenet_v2-224", "features.18.1.running_var", (1280,)),
        ("mobilenet_v2-224", "classifier.1.weight", (1000, 1280)),
        ("squeezenet-224", "features.12.expand3x3.bias", (256,)),
        ("squeezenet-224", "classifier.1.weight", (1000, 512, 1, 1)),
        ("shufflenet_v2-224", "stage3.0.branch1.2.weight", (116, 116, 1, 1)),
        ("shufflenet_v2-224", "stage4.3.branch2.7.weight", None),
        ("shufflenet_v2-224", "conv5.0.weight", (1024, 464, 1, 1)),
        ("vit_tiny-224", "blocks.11.attn.qkv.bias", (576,)),
        ("vit_tiny-224", "pos_embed", (1, 197, 192)),
    ],
)
def test_parameters_are_named_as_in_the_published_weights(name, parameter, shape):
    with torch.device("meta"):
        state = find(name).build().state_dict()
    assert (tuple(state[parameter].shape) if parameter in state else None) == shape


def test_shuffle_interleaves_the_halves():
    assert shuffle(torch.arange(6.0).reshape(1, 6, 1, 1)).flatten().tolist() == [0, 3, 1, 4, 2, 5]


# --------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize(
    ("name", "groups", "heads", "refused", "branches"),
    [
        ("mobilenet_v1", 5, 0, 0, 0),
        ("mobilenet_v2", 10, 0, 0, 3),
        ("squeezenet", 25, 0, 0, 0),
        ("shufflenet_v2", 7, 0, 8, 0),
        ("repvgg", 7, 0, 0, 0),
        ("resnet_basic", 9, 0, 0, 2),
        ("resnet_bottleneck", 15, 0, 0, 1),
        ("vit_token", 4, 2, 5, 4),
        ("vit_mean", 2, 1, 3, 2),
    ],
)
def test_what_can_be_chosen(name, groups, heads, refused, branches):
    source = traced(name).source
    of_heads = [g for g in source.groups if any(axis.side == "out" and axis.repeat > 1 for axis in g.axes)]
    assert (len(source.groups), len(of_heads), len(source.refused), len(source.branches)) == (
        groups, heads, refused, branches,
    )  # fmt: skip


def test_a_depthwise_convolution_goes_with_its_expansion():
    groups = {group.name: group for group in traced("mobilenet_v2").source.groups}
    assert {(a.module, a.side) for a in groups["features.3.conv.0.0"].axes} >= {
        ("features.3.conv.0.0", "out"), ("features.3.conv.1.0", "out"), ("features.3.conv.2", "in"),
    }  # fmt: skip


def test_both_expansions_of_a_fire_module_are_read_at_their_places():
    groups = {group.name: group for group in traced("squeezenet").source.groups}
    left, right = (groups[f"features.3.expand{size}x{size}"] for size in (1, 3))
    offsets = [axis.offset for group in (left, right) for axis in group.axes if axis.side == "in"]
    assert offsets == [0, left.channels]


def test_shuffled_channels_stay():
    source = traced("shufflenet_v2").source
    assert {line.partition(":")[0].rpartition(".")[2] for line in source.refused} == {"2", "5"}


@every_network
def test_channels_that_hold_nothing_can_go(name):
    network = traced(name)
    groups = network.source.groups
    order = np.random.default_rng(1)
    kept = {group.name: np.sort(order.permutation(group.channels)[: (group.channels + 1) // 2]) for group in groups}
    silent = slice_module(network.module, network.source, {}).double()
    state = silent.state_dict()
    for group in groups:
        gone = np.setdiff1d(np.arange(group.channels), kept[group.name])
        for axis in (axis for axis in group.axes if axis.side == "out"):
            entries = (axis.offset + gone[:, None] * axis.repeat + np.arange(axis.repeat)).ravel()
            for parameter in {f"{axis.module}.weight", f"{axis.module}.bias"} & set(state):
                state[parameter][entries] = 0
    inputs = digits("search", 4).astype(np.float64)
    expected = outputs(silent, inputs)
    assert error(outputs(slice_module(silent, network.source, kept), inputs), expected) < 1e-9
    assert error(outputs(network.module, digits("search", 4)), expected) > 1e-3


@every_network
def test_the_file_computes_what_the_repaired_network_does(name, tmp_path):
    import onnxruntime

    network, images = traced(name), digits("calibrate", 64)
    reconstructor = Reconstructor(network, images)
    pruned = candidate(network.source, half(network.source), [branch.name for branch in network.source.branches[-1:]])
    compressed = stitch(network, pruned, tmp_path / "m.onnx", calibration=images, reconstructor=reconstructor)
    inputs = digits("search", 4)
    found = onnxruntime.InferenceSession(compressed.path).run(None, {"input": inputs})[0]
    assert error(found, outputs(reconstructor.repaired(pruned), inputs)) < 1e-4
    assert compressed.params < 0.8 * sum(layer.params for layer in network.source.layers)


@every_network
def test_least_squares_repairs_what_it_was_not_fitted_to(name):
    network = traced(name)
    reconstructor = Reconstructor(network, digits("calibrate", 128))
    expected = outputs(network.module, digits("search", 64))
    narrow = candidate(network.source, {g.name: max(1, g.channels * 3 // 4) for g in network.source.groups})
    shallow = [candidate(network.source, dropped=[branch.name]) for branch in network.source.branches[:1]]
    for chosen in [narrow, *shallow]:
        repaired, plain = reconstructor.repaired(chosen), reconstructor.stitched(chosen)
        after, before = (error(outputs(module, digits("search", 64)), expected) for module in (repaired, plain))
        assert after < 0.95 * before


@every_network
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_runs_as_asked(name, backend, tmp_path):
    runtime = get_backend(backend)
    if not runtime.availability().ok:
        pytest.skip(f"{backend} is not installed")
    network = traced(name)
    model, path, folder = network.template.bind(), tmp_path / "float.onnx", tmp_path / "built"
    onnx.save(model, path)
    folder.mkdir()
    precision = dict.fromkeys(network.template.layers, "int8")
    seen = observe(path, runtime.tensors_to_observe(model, precision), digits("calibrate", 64), bins=1)
    ranges = {tensor: TensorRange(low=found.low, high=found.high) for tensor, found in seen.items()}
    artifact = runtime.build(
        runtime.lower(model, LowerRequest(precision=precision, ranges=ranges)), folder, RunOptions()
    )
    inputs = digits("search", 32)
    found, expected = runtime.open(artifact, RunOptions(batch=32)).run(inputs), outputs(network.module, inputs)
    centre = expected.mean(0)
    assert np.corrcoef((found - centre).ravel(), (expected - centre).ravel())[0, 1] > 0.9
    times = runtime.inspect(artifact, precision, RunOptions())
    assert {layer: time.executed for time in times for layer in time.source_layers} == precision
