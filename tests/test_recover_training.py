"""Distillation, quantisation-aware training, and what becomes of a candidate that is trained."""

import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from hwsearch.backends.flow import read_flow
from hwsearch.backends.onnxruntime_qdq import lower, observed_tensors
from hwsearch.backends.rewrite import Graph
from hwsearch.compress.distill import Teacher, objective
from hwsearch.compress.fake_quantize import LearnedRange, Quantized, insert, remove
from hwsearch.compress.features import Watched, stream_ends, with_features
from hwsearch.compress.materialize import materialize
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import Recipe, Recovery, learning_rate
from hwsearch.compress.stitch import bind, parameters_of
from hwsearch.errors import EvaluationError, TrainingStoppedError
from hwsearch.model.data import DataSplit
from hwsearch.model.distill import Taught, distillation
from hwsearch.model.graph import trace
from hwsearch.model.metric import TOP1
from hwsearch.model.outputs import outputs_of
from hwsearch.model.template import folded_parameters
from hwsearch.model.train import train
from hwsearch.types import Candidate, TensorRange
from hwsearch.zoo.resnet import ResNet

# --------------------------------------------------------------------------- distillation


def logits(seed, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, classes, generator=generator, dtype=torch.float64)


@given(st.integers(0, 100), st.floats(0.5, 20))
def test_without_weight_the_teacher_does_not_matter(seed, temperature):
    student, teacher, targets = logits(seed), logits(seed + 1), torch.arange(8) % 5
    loss = objective(0.0, temperature, probabilities=True)
    expected = functional.cross_entropy(student, targets)
    assert float(loss(torch.stack((student, teacher), 1), targets)) == pytest.approx(float(expected))


def test_the_gradient_hardly_depends_on_the_temperature():
    targets, sizes = torch.arange(8) % 5, []
    for temperature in (4.0, 8.0, 16.0):
        student = logits(0).requires_grad_()
        distillation(1.0, temperature)(torch.stack((student, logits(1)), 1), targets).backward()
        sizes.append(float(student.grad.norm()))
    assert max(sizes) / min(sizes) < 1.2


def test_outputs_that_are_no_logits_are_compared_by_squared_error():
    student, teacher = logits(0), logits(1)
    loss = objective(0.9, 4.0, probabilities=False)(torch.stack((student, teacher), 1), torch.zeros(8))
    assert float(loss) == pytest.approx(float((student - teacher).square().mean()))


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("asked", torch.tensor(0))

    def forward(self, x):
        self.asked += 1
        return self.scale * x.flatten(1)


def test_the_teacher_is_asked_once_per_batch():
    original = Counted()
    teacher = Teacher(original)
    one, other = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    answers = [teacher(x) for x in (one, other, one.clone(), one.to(memory_format=torch.channels_last))]
    assert int(teacher._original.asked) == 2
    assert int(original.asked) == 0
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[0], answers[3])
    assert torch.equal(answers[0], 3 * one.flatten(1))


# --------------------------------------------------------------------------- rounding


def test_rounding_is_straight_through_and_ranges_get_gradients():
    quantizer = LearnedRange(TensorRange(low=-1.0, high=2.0), bits=8)
    x = torch.tensor([-3.0, -0.5, 0.0, 0.7, 5.0], requires_grad=True)
    rounded = quantizer(x)
    step, values = 3 / 255, rounded.tolist()
    assert values[2] == 0
    assert values[1:4] == pytest.approx(x.tolist()[1:4], abs=step / 2 + 1e-6)
    assert values[::4] == pytest.approx([-1, 2], abs=step)
    rounded.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert quantizer.stretch.grad[0] < 0 < quantizer.stretch.grad[1]  # both ends would move outwards


def test_the_end_of_a_range_moves_to_where_its_values_are():
    torch.manual_seed(0)
    quantizer = LearnedRange(TensorRange(low=0.0, high=30.0), bits=2)
    x = torch.rand(4096)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=20.0)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert quantizer.interval().low == 0
    assert 0.8 < quantizer.interval().high < 1.5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_rounded_as_a_backend_will_find_them(bits):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    wrapped = Quantized(layer, before=None, after=None, bits=bits)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = wrapped(x)
        plain = wrapped.restored()
        levels = 2 ** (bits - 1) - 1
        scale = plain.weight.abs().amax((1, 2, 3), keepdim=True) / levels
        plain.weight.copy_((plain.weight / scale).round() * scale)
        assert torch.allclose(found, plain(x), atol=1e-5)


# --------------------------------------------------------------------------- candidates


def stripes(n, seed=0):
    """Three classes of images that differ in which third of the rows is bright."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    images = 1.5 * rng.normal(size=(n, 3, 12, 12)).astype(np.float32)
    for k in range(3):
        images[targets == k, :, 4 * k : 4 * k + 4] += 0.6
    return images, targets


def split(name, n, seed):
    inputs, targets = stripes(n, seed)
    return DataSplit(name=name, inputs=inputs, targets=targets, sha256=f"{name}{n}{seed}")


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    module = ResNet(1, 3, width=0.5)
    train(module, *stripes(600), epochs=4, lr=0.05)
    return trace(module, stripes(1)[0], name="learned")


def halved(network, precision="fp32", **recipe):
    keep = {group.name: group.channels // 2 for group in network.source.groups}
    layers = {layer.name: precision for layer in network.source.layers}
    chosen = Recipe(**{"minutes": 0.05, "lr": 0.02, **recipe}).choices()
    return Candidate(keep=keep, dropped=(), precision=layers, recipe=chosen)


def start(network, candidate):
    calibration = stripes(64, seed=5)[0]
    reconstructor = Reconstructor(network, calibration)
    parameters = parameters_of(network, candidate, reconstructor, calibration=calibration)
    return materialize(network, candidate, parameters, reconstructor.select(candidate.keep), calibration)


def recovery(network, folder, **settings):
    judged = split("search", 200, 2)

    def judge(module):
        return TOP1(outputs_of(module, judged.inputs, batch=100), judged.targets)

    settings = {"judge": judge, "clock": ticking(0.02), **settings}
    return Recovery(network, split("train", 600, 0), probabilities=True, folder=folder, **settings)


def ticking(seconds):
    """A clock that moves on each time it is read: training takes as many steps however busy the machine is."""
    counter = itertools.count()
    return lambda: next(counter) * seconds


def refuse(_):
    raise AssertionError("a float candidate needs no ranges")


def test_recipes_survive_the_round_trip(learned):
    recipe = Recipe(method="finetune", minutes=1.5, lr=0.0123, qat=True, shift=4, flip=True, seed=7)
    candidate = dataclasses.replace(halved(learned), recipe={"ranges": "mse"} | recipe.choices())
    assert Recipe.of(candidate) == recipe
    assert all(isinstance(value, str) for value in candidate.recipe.values())


@pytest.mark.parametrize("method", ["distill", "finetune"])
def test_training_heals_and_is_read_from_its_file_the_second_time(learned, method, tmp_path):
    candidate = halved(learned, method=method)
    found = recovery(learned, tmp_path).recovered(candidate, start(learned, candidate), refuse)
    assert found.after > found.before
    assert found.ranges == {}
    assert 2 < found.seconds < 8
    bind(learned, candidate, found.parameters, tmp_path / "m.onnx")
    inputs, targets = stripes(200, seed=2)
    outputs = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"input": inputs})[0]
    assert TOP1(outputs, targets) == pytest.approx(found.after, abs=0.011)
    again = recovery(learned, tmp_path, stop=lambda: True).recovered(candidate, start(learned, candidate), refuse)
    assert again.seconds == found.seconds
    assert all(np.array_equal(again.parameters[name], array) for name, array in found.parameters.items())
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".float", ".rounded")]


def test_features_bring_activations_closer(learned, tmp_path):
    inner = {group.name: group.channels // 2 for group in learned.source.groups if group.kind == "inner"}
    points, images = stream_ends(learned.source, inner), torch.from_numpy(stripes(200, seed=2)[0])
    distance = with_features(lambda *_: torch.zeros(()), 1.0, points)
    apart = {}
    for features in (0.0, 100.0):
        candidate = dataclasses.replace(halved(learned, features=features), keep=inner)
        module, scores = start(learned, candidate), itertools.count()
        recovery(learned, tmp_path, judge=lambda _, scores=scores: next(scores)).recovered(candidate, module, refuse)
        with torch.inference_mode():
            outputs = Taught(Watched(module, points), Watched(learned.module, points))(images)
            apart[features] = float(distance(outputs, torch.zeros(200)))
    assert apart[100.0] < 0.85 * apart[0.0]


def test_another_recipe_or_start_is_trained_anew(learned, tmp_path):
    candidate = halved(learned)
    recovery(learned, tmp_path).recovered(candidate, start(learned, candidate), refuse)
    for other in (halved(learned, seed=1), dataclasses.replace(candidate, keep={})):
        with pytest.raises(TrainingStoppedError):
            recovery(learned, tmp_path, stop=lambda: True).recovered(other, start(learned, other), refuse)


def test_training_that_is_stopped_goes_on(learned, tmp_path):
    candidate, steps = halved(learned), itertools.count(1)
    with pytest.raises(TrainingStoppedError):
        recovery(learned, tmp_path, stop=lambda: next(steps) == 12).recovered(
            candidate, start(learned, candidate), refuse
        )
    epochs = []
    found = recovery(learned, tmp_path, on_epoch=lambda epoch, _: epochs.append(epoch)).recovered(
        candidate, start(learned, candidate), refuse
    )
    assert epochs[0] == 2  # of ten steps each: the first was finished before
    assert found.after > found.before


def test_divergence_is_a_failure_of_the_candidate(learned, tmp_path):
    candidate = halved(learned, lr=1e30, weight_decay=1.0)
    with pytest.raises(EvaluationError, match="diverged") as error:
        recovery(learned, tmp_path).recovered(candidate, start(learned, candidate), refuse)
    assert (error.value.stage, error.value.kind) == ("recover", "diverged")
    assert not list(tmp_path.iterdir())


def test_training_that_gains_nothing_is_a_failure_too(learned, tmp_path):
    candidate = halved(learned, minutes=0.01)
    with pytest.raises(EvaluationError, match="gained nothing"):
        recovery(learned, tmp_path, judge=lambda _: 0.5).recovered(candidate, start(learned, candidate), refuse)


def test_the_learning_rate_follows_the_damage():
    assert learning_rate(-0.1) == learning_rate(0.0) == pytest.approx(0.004)
    assert 0.004 < learning_rate(0.05) < learning_rate(0.1) == learning_rate(0.5) == pytest.approx(0.02)


# --------------------------------------------------------------------------- learned ranges reach the file


def observed(network, candidate, parameters, folder):
    """Ranges of what ONNX Runtime quantises, on a few images."""
    path = folder / "observed.onnx"
    bind(network, candidate, parameters, path)
    model = onnx.load(path)
    tensors = sorted(observed_tensors(read_flow(Graph(model)), candidate.precision))
    for name in tensors:
        if name not in {value.name for value in (*model.graph.input, *model.graph.output)}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    inputs = stripes(64, seed=5)[0]
    names = [value.name for value in model.graph.output]
    found = dict(
        zip(names, onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": inputs}), strict=True)
    )
    found["input"] = inputs
    return {name: TensorRange(low=float(found[name].min()), high=float(found[name].max())) for name in tensors}


def test_learned_ranges_are_those_of_the_artifact(learned, tmp_path):
    candidate, later = halved(learned, "int8", qat=True, minutes=0.08), itertools.count()
    found = recovery(learned, tmp_path, judge=lambda _: next(later)).recovered(
        candidate, start(learned, candidate), lambda parameters: observed(learned, candidate, parameters, tmp_path)
    )
    before = observed(learned, candidate, found.parameters, tmp_path)
    assert found.ranges.keys() <= before.keys()
    reads = {learned.template.node(name).input[0] for name in learned.template.layers}
    assert found.ranges.keys() >= reads - {"view"}  # what is flattened has the scale of what it was
    assert any(abs(found.ranges[name].high / before[name].high - 1) > 1e-3 for name in found.ranges)
    bind(learned, candidate, found.parameters, tmp_path / "float.onnx")
    model = lower(onnx.load(tmp_path / "float.onnx"), candidate.precision, before | found.ranges, levels=127)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, interval in found.ranges.items():
        width = max(interval.high, 0) - min(interval.low, 0)
        assert float(stored[f"{name}_scale"]) == pytest.approx(width / 255, rel=1e-5)


def test_a_network_with_rounding_computes_what_the_artifact_does(learned, tmp_path):
    candidate = halved(learned, "int8")
    module = start(learned, candidate)
    parameters = folded_parameters(module, learned.template.folded)
    seen = observed(learned, candidate, parameters, tmp_path)
    insert(module, learned.template, candidate.precision, seen)
    inputs = stripes(100, seed=2)[0]
    rounded = outputs_of(module, inputs, batch=100)
    remove(module)
    exact = outputs_of(module, inputs, batch=100)
    bind(learned, candidate, folded_parameters(module, learned.template.folded), tmp_path / "float.onnx")
    model = lower(onnx.load(tmp_path / "float.onnx"), candidate.precision, seen, levels=127)
    built = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": inputs})[0]
    error = np.square(built - exact).mean()
    assert np.square(built - rounded).mean() < 0.5 * error


def test_taking_the_rounding_out_leaves_a_plain_network(learned, tmp_path):
    candidate = halved(learned, "int4")
    module = start(learned, candidate)
    names = [name for name, _ in module.named_modules()]
    parameters = folded_parameters(module, learned.template.folded)
    ranges = insert(
        module, learned.template, candidate.precision, observed(learned, halved(learned, "int8"), parameters, tmp_path)
    )
    assert ranges
    assert any(isinstance(inner, Quantized) for inner in module.modules())
    remove(module)
    assert [name for name, _ in module.named_modules()] == names


def test_rounding_in_training_saves_two_bits(learned, tmp_path):
    """Where rounding alone ruins the network, training with it does not."""
    candidate = dataclasses.replace(halved(learned, "int2", qat=True, minutes=0.15), keep={})
    wider = dataclasses.replace(candidate, precision=dict.fromkeys(candidate.precision, "int8"))
    found = recovery(learned, tmp_path).recovered(
        candidate, start(learned, candidate), lambda parameters: observed(learned, wider, parameters, tmp_path)
    )
    assert found.after > found.before + 0.1
