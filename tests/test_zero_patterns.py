import dataclasses
import itertools
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tiny_search import search_tiny, write_target
from torch import nn

from hwsearch.backends.base import get_backend
from hwsearch.compress.materialize import materialize
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.recover import Recipe, Recovery, reestimate_batch_norm
from hwsearch.compress.select import damped
from hwsearch.compress.sparsify import hold_zeros, magnitude_mask, reconstruction_error, restricted_solve, surgery
from hwsearch.compress.stitch import parameters_of, stitch
from hwsearch.config import SpaceConfig, make_study
from hwsearch.errors import ConfigError
from hwsearch.model.data import DataSplit
from hwsearch.model.graph import trace
from hwsearch.model.train import train
from hwsearch.patterns import packed_bits, pattern_name, share_of_zeros
from hwsearch.search.pricing.counts import layer_counts
from hwsearch.search.pricing.proxy import SKIPPED_SHARE, ProxyPredictor
from hwsearch.search.pricing.segments import segments_of
from hwsearch.space.space import build_space, decode, dimensions, encode, uniform
from hwsearch.space.target import load_target, skipped_patterns
from hwsearch.testing.contract import request_for
from hwsearch.types import Candidate, Success
from hwsearch.zoo.resnet import ResNet

PATTERNS = st.sampled_from(["2:4", "0.5", "0.75", "0.9"])
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ALL = {"stem": "0.5", "grouped": "2:4", "mixed": "2:4", "classify": "0.75"}


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


class Grouped(nn.Module):
    """A stem of three channels, a grouped convolution beside a shortcut, a narrower one, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.mixed = nn.Conv2d(16, 12, 1)
        self.classify = nn.Linear(12, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.grouped(x).relu()
        return self.classify(self.mixed(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = Grouped().eval()
    reestimate_batch_norm(module, images(64))
    return trace(module, images(1), name="grouped")


def sparse(network, patterns, precision="fp32"):
    return dataclasses.replace(uniform(network.source, precision), pattern=patterns)


def zeros_in(weight):
    return float(np.mean(np.asarray(weight) == 0))


def fours_of(weight):
    """Weights by four neighbouring inputs, which are axis 2."""
    return weight.reshape(weight.shape[0], -1, 4, *weight.shape[2:])


def problem(outputs, inputs, taps, groups, seed):
    """A random layer, and the damped second moments of correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    columns = inputs * taps + 1
    weight = torch.randn(outputs * groups, inputs, taps, generator=random)
    mixing = torch.randn(groups, columns, columns, generator=random)
    rows = torch.randn(groups, 3 * columns, columns, generator=random) @ mixing
    rows[..., -1] = 1
    moments = damped((rows.mT @ rows / rows.shape[1]).double(), 1e-2)
    return weight, torch.randn(outputs * groups, generator=random), moments


def error(layer, new_weight, new_bias):
    weight, bias, moments = layer
    flat = torch.cat([(new_weight - weight).flatten(1), (new_bias - bias)[:, None]], dim=1).double()
    return reconstruction_error(flat.view(len(moments), -1, flat.shape[1]), moments)


LAYERS = st.builds(
    problem,
    outputs=st.integers(1, 6),
    inputs=st.sampled_from([4, 8, 12]),
    taps=st.sampled_from([1, 3, 9]),
    groups=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 10_000),
)


# --------------------------------------------------------------------------- masks


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (1,), (3, 3)]), st.integers(0, 1000))
def test_two_of_every_four_inputs_stay_and_they_are_the_largest(outputs, fours, kernel, seed):
    weight = torch.randn(outputs, 4 * fours, *kernel, generator=torch.Generator().manual_seed(seed))
    mask = magnitude_mask(weight, "2:4")
    assert (fours_of(mask).sum(2) == 2).all()
    least_kept = fours_of(weight.abs().where(mask, torch.inf)).amin(2)
    assert (least_kept >= fours_of(weight.abs() * ~mask).amax(2)).all()


@given(LAYERS, st.sampled_from(["0.5", "0.75", "0.9"]))
def test_a_share_is_of_the_whole_layer(layer, pattern):
    weight = layer[0]
    mask = magnitude_mask(weight, pattern)
    assert int((~mask).sum()) == round(share_of_zeros(pattern) * weight.numel())
    assert weight.abs().where(mask, torch.inf).min() >= (weight.abs() * ~mask).max()


def test_channels_that_do_not_come_in_fours_are_refused():
    with pytest.raises(ConfigError, match="in fours, and a filter reads 6"):
        magnitude_mask(torch.ones(2, 6, 3, 3), "2:4")


@settings(deadline=None, max_examples=60)
@given(LAYERS, PATTERNS)
def test_surgery_is_never_worse_than_magnitude_and_keeps_the_pattern(layer, pattern):
    weight, bias, moments = layer
    mask = magnitude_mask(weight, pattern)
    new_weight, new_bias = surgery(weight, bias, moments, pattern)
    assert error(layer, new_weight, new_bias) <= error(layer, weight * mask, bias) * (1 + 1e-5) + 1e-9
    assert int((new_weight == 0).sum()) == int((~mask).sum())
    if pattern == "2:4":
        assert (fours_of(new_weight != 0).sum(2) == 2).all()


@settings(deadline=None, max_examples=20)
@given(LAYERS, PATTERNS)
def test_the_weights_that_stay_are_the_best_ones(layer, pattern):
    weight, bias, moments = layer
    whole = torch.cat([weight.flatten(1), bias[:, None]], 1).double().view(len(moments), -1, moments.shape[1])
    always = torch.ones(len(weight), 1, dtype=torch.bool)
    kept = torch.cat([magnitude_mask(weight, pattern).flatten(1), always], 1).view_as(whole)
    found = restricted_solve(moments @ whole.mT, moments, kept.mT, rounds=500).mT
    assert (found[~kept] == 0).all()
    at = kept[0, 0]
    exact = torch.linalg.solve(moments[0][at][:, at], moments[0][at] @ whole[0, 0])
    torch.testing.assert_close(found[0, 0, at], exact, rtol=0.05, atol=0.05)


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize("selection", ["obs", "magnitude"])
def test_repair_keeps_zeros_and_brings_outputs_back(network, selection):
    inputs = torch.from_numpy(images(64, 2))
    reconstructor = Reconstructor(network, images(128, 1), settings=Settings(selection=selection))
    stitched, repaired = reconstructor.stitched(sparse(network, ALL)), reconstructor.repaired(sparse(network, ALL))
    for name, pattern in ALL.items():
        weight = repaired.get_submodule(name).weight
        assert zeros_in(weight) == pytest.approx(share_of_zeros(pattern), abs=0.02)
        assert torch.equal(weight == 0, stitched.get_submodule(name).weight == 0)
    with torch.no_grad():
        errors = [float((module(inputs) - network.module(inputs)).norm()) for module in (stitched, repaired)]
    assert errors[1] < errors[0]


def test_surgery_does_less_damage_than_magnitude(network):
    inputs, errors = torch.from_numpy(images(64, 2)), {}
    for selection in ("obs", "magnitude"):
        reconstructor = Reconstructor(network, images(128, 1), settings=Settings(selection=selection))
        with torch.no_grad():
            difference = reconstructor.stitched(sparse(network, ALL))(inputs) - network.module(inputs)
        errors[selection] = float(difference.norm())
    assert errors["obs"] < 0.5 * errors["magnitude"]


def test_layers_are_made_sparse_after_their_channels_are_gone():
    torch.manual_seed(0)
    module = ResNet(1, 10, width=0.5).eval()
    reestimate_batch_norm(module, images(64))
    network = trace(module, images(1), name="small")
    group = next(group for group in network.source.groups if group.kind == "inner")
    reader = next(axis.module for axis in group.axes if axis.side == "in")
    candidate = dataclasses.replace(sparse(network, {reader: "2:4"}), keep={group.name: 4})
    reconstructor = Reconstructor(network, images(64))
    weight = reconstructor.repaired(candidate).get_submodule(reader).weight
    assert weight.shape[1] == 4
    assert (fours_of(weight != 0).sum(2) == 2).all()
    with pytest.raises(ConfigError, match="in fours, and a filter reads 3"):
        reconstructor.stitched(dataclasses.replace(candidate, keep={group.name: 3}))


@pytest.mark.parametrize("repair", ["least_squares", "batch_norm", "none"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_zeros_reach_the_backends_own_weights(network, name, repair, tmp_path):
    pytest.importorskip(name)
    backend = get_backend(name)
    for precision in ("fp32", "int8"):
        candidate = sparse(network, ALL, precision)
        compressed = stitch(network, candidate, tmp_path / "float.onnx", calibration=images(32), repair=repair)
        assert compressed.nonzero < 0.6 * compressed.params
        model = onnx.load(compressed.path)
        stored = weights_of(backend.lower(model, request_for(backend, model, compressed.precision)))
        assert stored.keys() == ALL.keys()
        for layer, pattern in ALL.items():
            assert zeros_in(stored[layer]) >= share_of_zeros(pattern) - 0.03
        if name == "onnxruntime":
            assert {weight.dtype for weight in stored.values()} == {np.dtype(precision.replace("fp", "float"))}


def weights_of(model):
    """Layer -> the constant its node reads, through whatever dequantises it."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.name in ALL:
            name = node.input[1]
            while name not in constants:
                name = producers[name].input[0]
            found[node.name] = constants[name]
    return found


def test_training_leaves_zeros_alone(network):
    module = Reconstructor(network, images(64)).repaired(sparse(network, ALL)).requires_grad_()
    before = {name: module.get_submodule(name).weight.detach().clone() for name in ALL}
    hold_zeros(module, ["stem", "mixed"])
    train(module, images(64), np.arange(64) % 5, epochs=2, lr=0.05)
    for name, weight in before.items():
        after = module.get_submodule(name).weight.detach()
        assert not torch.equal(after, weight)
        assert torch.equal(after == 0, weight == 0) == (name in ("stem", "mixed"))


def test_recovery_by_training_keeps_zeros(network, tmp_path):
    recipe, labels = Recipe(minutes=0.2, lr=0.02, batch=16).choices(), np.arange(64) % 5
    candidate = dataclasses.replace(sparse(network, ALL), recipe=recipe)
    parameters = parameters_of(network, candidate, Reconstructor(network, images(64)), calibration=images(64))
    module = materialize(network, candidate, parameters, {}, images(64))
    scores, seconds = itertools.count(), itertools.count()
    recovery = Recovery(
        network,
        DataSplit(name="train", inputs=images(64), targets=labels, sha256="0"),
        judge=lambda _: float(next(scores)),
        probabilities=True,
        folder=tmp_path,
        clock=lambda: float(next(seconds)),
    )
    found = recovery.recovered(candidate, module, lambda _: {}).parameters
    for name in ALL:
        before, after = parameters[f"{name}.weight"], found[f"{name}.weight"]
        assert not np.allclose(before, after)
        assert np.array_equal(before == 0, after == 0)


def test_estimated_losses_grow_with_the_zeros(network):
    patterns = ("0.5", "0.75", "0.9")
    tried = {p: Candidate(keep={}, dropped=(), precision={}, pattern={"grouped": p}) for p in patterns}
    found = Reconstructor(network, images(64)).estimated(tried, images(64, 1), probabilities=True)
    losses = [found[p].mean() for p in patterns]
    assert 0 < losses[0] < losses[1] < losses[2]


# --------------------------------------------------------------------------- space and search


def space_of(network, target="ort-cpu", isa=(), **options):
    return build_space(network.source, load_target(target), SpaceConfig(**options), isa)


def test_patterns_are_offered_where_they_help_or_are_asked_for(network):
    assert space_of(network).patterns == {}
    assert space_of(network, "tensorrt-gpu", ("int8",)).patterns == {}
    skipping = space_of(network, "tensorrt-gpu", ("int8", "bf16"))
    assert skipping.patterns == {"grouped": ("2:4",), "mixed": ("2:4",), "classify": ("2:4",)}
    assert "2:4: input channels do not come in fours at every width: stem" in skipping.refused
    assert space_of(network, "tensorrt-gpu", ("bf16",), sparsity=[]).patterns == {}
    asked = space_of(network, sparsity=[0.5, "2:4", 0.9])
    assert asked.patterns["mixed"] == ("0.9", "2:4", "0.5")
    assert asked.patterns["stem"] == ("0.9", "0.5")


def test_two_of_four_needs_every_width_in_fours(network):
    assert "classify" in space_of(network, granularity=4, sparsity=["2:4"]).patterns
    assert "classify" not in space_of(network, granularity=6, sparsity=["2:4"]).patterns
    assert "classify" in space_of(network, granularity=6, prune=False, sparsity=["2:4"]).patterns


@SHARED
@given(st.data())
def test_decoding_is_the_inverse_of_encoding(network, data):
    space = space_of(network, sparsity=[0.5, "2:4"])
    numbers = {d.name: data.draw(st.integers(0, d.size - 1)) for d in dimensions(space)}
    candidate = decode(space, network.source, numbers)
    encoded = encode(space, candidate)
    assert encoded is not None
    assert decode(space, network.source, encoded) == candidate
    assert encode(space, dataclasses.replace(candidate, pattern={"mixed": "0.6"})) is None


def test_a_dense_candidate_keeps_the_key_it_had_before_there_were_patterns(network):
    assert Candidate(keep={"a": 4}, dropped=("b",), precision={"c": "int8"}).key == "d5648914fe28"
    assert sparse(network, {"mixed": "0.5"}).key != uniform(network.source, "fp32").key


@pytest.mark.parametrize("value", [0, 1, -0.5, "1:4", "half"])
def test_what_is_no_pattern_is_refused(value):
    with pytest.raises(ValueError, match="is no pattern"):
        pattern_name(value)
    with pytest.raises(ConfigError, match="is no pattern"):
        make_study({"model": "a:b", "data": "digits", "target": "ort-cpu", "space": {"sparsity": [value]}})


def test_a_segment_has_every_precision_with_every_pattern(network):
    space = space_of(network, sparsity=[0.5], prune=False)
    segment = next(s for s in segments_of(network.source, space) if s.name == "mixed")
    assert segment.formats == (("int8/0.5",), ("int8",), ("float/0.5",), ("float",))
    option = segment.chosen(decode(space, network.source, {"pattern:mixed": 0, "precision:mixed": 0}), space)
    assert option.formats == ("int8/0.5",)
    assert option.pattern == (True,)
    loss = {"precision": 1.0, "pattern": 0.1}
    assert segment.loss(option, "fp32", space, lambda kind, *_: loss[kind]) == pytest.approx(1.1)


def test_the_stand_in_for_a_table_learns_what_zeros_save(network):
    dense, skipping = uniform(network.source, "int8"), sparse(network, {"mixed": "2:4", "grouped": "2:4"}, "int8")
    predictor = ProxyPredictor(network.source, ["2:4"])
    predictor.learn(dense, 1.0)
    hoped = predictor(skipping)[0]
    assert SKIPPED_SHARE < hoped < 0.99
    for _ in range(4):
        predictor.learn(skipping, 1.0)
    assert predictor(skipping)[0] > hoped
    blind = ProxyPredictor(network.source)
    blind.learn(dense, 1.0)
    assert blind(skipping)[0] == pytest.approx(blind(dense)[0])


@pytest.mark.parametrize("pattern", ["0.5", "0.75", "0.9"])
def test_size_is_about_that_of_deflated_weights(network, pattern):
    counts = layer_counts(network.source)["mixed"]
    keep = {group.name: np.array(group.channels) for group in network.source.groups}
    assert float(counts.size_bytes(keep, "int8", pattern)) == 16 * 12 * packed_bits(8, pattern) / 8 + 4 * 12
    random = np.random.default_rng(0)
    weight = random.normal(0, 30, 60_000).round().clip(-127, 127).astype(np.int8)
    weight[random.random(weight.shape) < share_of_zeros(pattern)] = 0
    packed = 8 * len(zlib.compress(weight.tobytes())) / weight.size
    assert 0.8 < packed / packed_bits(8, pattern) < (1.35 if pattern == "0.9" else 1.2)


def test_zeros_that_gain_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"zeros make nothing faster .* size does not count"):
        search_tiny(tmp_path, space={"sparsity": [0.5]})


def test_a_search_for_size_finds_sparse_models(tmp_path):
    run = search_tiny(
        tmp_path,
        evaluations=8,
        search={"sampler": "guided", "patience": None},
        space={"sparsity": [0.5, 0.9], "prune": False, "drop_branches": False},
        objectives=["accuracy", "latency", "size"],
    )
    assert "pattern" in {effect.kind for effect in run.sensitivity.effects}
    found = [trial for trial in run.trials if isinstance(trial.outcome, Success)]
    for trial in found:
        archive = tmp_path / "packed.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
            for file in trial.outcome.artifact.files:
                stream.write(run.path / file, Path(file).name)
        assert trial.outcome.size_bytes == pytest.approx(archive.stat().st_size, abs=250)
    least = min(found, key=lambda trial: trial.outcome.size_bytes)
    assert least.candidate.pattern


def test_the_target_file_says_what_a_device_skips(tmp_path):
    path = write_target(tmp_path)
    path.write_text(path.read_text().replace("accelerates: [int8]}", 'accelerates: [int8], patterns: ["2:4"]}', 1))
    assert skipped_patterns(load_target(str(path)), ()) == ("2:4",)
    path.write_text(path.read_text().replace("2:4", "2:5"))
    with pytest.raises(ConfigError, match="2:5"):
        load_target(str(path))
