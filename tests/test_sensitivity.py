"""How far outputs are apart, and what single choices do: measured on built models, kept, resumed, interpolated."""

import dataclasses
import itertools
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from tiny_search import DATA, TinyNet, write_target
from torch import nn

from hwsearch.compress.fisher import compensation_error, fisher_losses
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.config import make_study
from hwsearch.errors import ConfigError
from hwsearch.model.data import splits_from
from hwsearch.model.divergence import divergence
from hwsearch.model.graph import trace
from hwsearch.model.train import train
from hwsearch.search.effects.changes import changes
from hwsearch.search.effects.effects import Effect, Sensitivity, read_sensitivity
from hwsearch.search.effects.log import EffectLog
from hwsearch.search.effects.sensitivity import measure_sensitivities
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.prepare import load_subject, ready_target, space_for
from hwsearch.search.progress import silent
from hwsearch.space.space import uniform
from hwsearch.types import Accuracy, Success, from_json, to_json
from hwsearch.zoo.resnet import ResNet

# --------------------------------------------------------------------------- divergence

logits = arrays(np.float32, (5, 3), elements=st.floats(-50, 50, width=32))


@given(logits, logits)
def test_divergence_is_never_negative_and_zero_for_identical_outputs(one, other):
    for probabilities in (True, False):
        assert (divergence(one, other, probabilities=probabilities).per_example >= 0).all()
        assert not divergence(one, one, probabilities=probabilities).per_example.any()


def test_divergence_is_what_it_says():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    one, other = np.log(np.stack([q, p])).astype(np.float32) + 7, np.log(np.stack([p, p])).astype(np.float32)
    found = divergence(one, other, probabilities=True)
    assert found.measure == "kl"
    np.testing.assert_allclose(found.per_example, [np.sum(p * np.log(p / q)), 0], atol=1e-6)
    outputs = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    everywhere_the_mean = np.broadcast_to(outputs.mean(0), outputs.shape)
    assert divergence(everywhere_the_mean, outputs, probabilities=False).mean == pytest.approx(1)


def test_standard_errors_shrink_with_the_root_of_the_number_of_examples():
    generator = np.random.default_rng(0)
    original, noise = generator.standard_normal((2, 6400, 10)).astype(np.float32)
    few, many = (divergence((original + noise)[:n], original[:n], probabilities=True) for n in (100, 6400))
    assert few.standard_error / many.standard_error == pytest.approx(8, rel=0.3)
    parts = zip(np.split(original + noise, 64), np.split(original, 64), strict=True)
    means = [divergence(changed, same, probabilities=True).mean for changed, same in parts]
    assert np.std(means) == pytest.approx(few.standard_error, rel=0.4)
    assert divergence(original[:1], original[:1], probabilities=True).standard_error == math.inf


# --------------------------------------------------------------------------- the record


def sensitivity(*effects, full=64):
    return Sensitivity(
        images=8,
        measure="kl",
        method="measured",
        effects=(
            *(Effect(kind="keep", name="g", value=width, loss=loss, sigma=sigma) for width, loss, sigma in effects),
            Effect(kind="keep", name="g", value=full, loss=0.0, sigma=0.0),
            Effect(kind="drop", name="b", value=1, loss=0.4, sigma=0.1),
            *(Effect(kind="precision", name=name, value="int8", loss=0.01, sigma=0.002) for name in "xy"),
            *(Effect(kind="precision", name=name, value="fp32", loss=0.0, sigma=0.0) for name in "xy"),
            Effect(kind="precision", name="*", value="bf16", loss=0.006, sigma=0.001),
        ),
    )


@given(
    st.lists(st.integers(1, 63), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0, 10), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_fewer_channels_never_cost_less(widths, losses, sigmas):
    found = sensitivity(*zip(widths, losses, sigmas, strict=False))
    curve = [found.loss("keep", "g", width)[0] for width in range(1, 65)]
    assert all(wide <= narrow + 1e-9 for narrow, wide in itertools.pairwise(curve))
    assert curve[-1] == 0.0
    assert [math.isinf(loss) for loss in curve] == [width < min(widths) for width in range(1, 65)]
    assert max(loss for loss in curve if math.isfinite(loss)) <= max(losses) + 1e-9


def test_measured_widths_keep_their_loss_and_those_between_lie_between():
    found = sensitivity((16, 1.0, 0.1), (32, 0.4, 0.05), (48, 0.1, 0.02))
    for width, expected in ((16, (1.0, 0.1)), (32, (0.4, 0.05)), (48, (0.1, 0.02)), (64, (0.0, 0.0))):
        assert found.loss("keep", "g", width) == pytest.approx(expected)
    assert 0.1 < found.loss("keep", "g", 40)[0] < 0.4


def test_a_failed_width_is_infinite_and_the_others_stand():
    found = sensitivity((16, math.inf, 0.0), (32, 0.4, 0.05))
    assert found.loss("keep", "g", 16)[0] == found.loss("keep", "g", 24)[0] == math.inf
    assert found.loss("keep", "g", 32)[0] == pytest.approx(0.4)
    middle = sensitivity((16, 1.0, 0.1), (32, math.inf, 0.0))
    assert middle.loss("keep", "g", 32)[0] == math.inf
    assert 0 < middle.loss("keep", "g", 40)[0] < 1


def test_unchanged_choices_cost_nothing_and_float_formats_are_shared_out():
    found = sensitivity((16, 1.0, 0.1))
    assert found.loss("drop", "b", 0) == found.loss("precision", "x", "fp32") == (0.0, 0.0)
    assert found.loss("drop", "b", 1) == (0.4, 0.1)
    assert found.loss("precision", "y", "bf16") == pytest.approx((0.003, 0.0005))
    assert from_json(Sensitivity, json.loads(json.dumps(to_json(found)))) == found


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("keep", "f", 8), "allowed: g"),
        (("drop", "bb", 1), "did you mean `b`"),
        (("precision", "x", "int4"), "allowed: int8, fp32"),
    ],
)
def test_asking_for_what_is_not_known_says_what_is(choice, said):
    with pytest.raises(ConfigError, match=f"no sensitivity is known for {choice[0]}") as error:
        sensitivity((16, 1.0, 0.1)).loss(*choice)
    assert said in str(error.value)


def test_accuracies_of_earlier_versions_still_load():
    now = Accuracy(
        metric="top1", value=0.5, higher_is_better=True, examples=4, ci95=None, split="search", data_hash="00",
        divergence=0.1, divergence_sigma=0.01,
    )  # fmt: skip
    assert from_json(Accuracy, to_json(now)) == now
    before = {name: value for name, value in to_json(now).items() if not name.startswith("divergence")}
    assert from_json(Accuracy, before).divergence is None


# --------------------------------------------------------------------------- measuring


class Counting(Evaluator):
    """Counts what is built."""

    built = 0

    def divergence(self, candidate, images):
        self.built += 1
        return super().divergence(candidate, images)


class Setup:
    def __init__(self, folder, backend="FakeBackend", module=None, data=DATA, **settings):
        path = write_target(folder, backend)
        self.config = make_study(
            {"name": "tiny", "model": "tests:TinyNet", "data": "python", "target": str(path), **settings}
        )
        self.subject = load_subject(self.config, module=module or TinyNet(), splits=splits_from(data, self.config.data))
        self.target = ready_target(str(path), self.config)
        self.space = space_for(self.subject, self.target, self.config)
        self.source = self.subject.network.source
        self.folder = folder / "run"

    def measure(self, watch=silent, stop=None):
        with Counting(self.subject, self.target, self.config, self.folder) as evaluator:
            stop = stop or threading.Event()
            found = measure_sensitivities(evaluator, self.space, self.source, self.folder, watch, stop)
            return found, evaluator.built


def test_every_single_choice_is_measured_in_the_order_of_the_network(tmp_path):
    setup = Setup(tmp_path)
    moments = []
    found, built = setup.measure(moments.append)
    plan = changes(setup.space, setup.source)
    assert [(e.kind, e.name, e.value) for e in found.effects[: len(plan)]] == [(c.kind, c.name, c.value) for c in plan]
    assert built == len(plan) + 1, "each once, and the network as it is"
    assert {e.kind for e in found.effects} == {"keep", "drop", "precision"}
    assert (found.images, found.measure, found.method) == (24, "kl", "measured")
    assert all(0 <= e.loss < math.inf and e.sigma > 0 for e in found.effects[: len(plan)])
    assert {(m.stage, m.total) for m in moments} == {("sensitivity", len(plan))}
    assert [m.done for m in moments] == list(range(len(plan)))
    assert read_sensitivity(setup.folder) == found


def test_a_stopped_measurement_goes_on_where_it_was_and_repeats_nothing(tmp_path):
    setup, stop = Setup(tmp_path), threading.Event()
    partly, built = setup.measure(lambda moment: stop.set() if moment.done == 2 else None, stop)
    assert built == 1 + 3
    assert sum(e.sigma > 0 for e in partly.effects) == 3
    assert read_sensitivity(setup.folder) is None
    log = setup.folder / "work" / "sensitivity.jsonl"
    log.write_text(log.read_text() + '\n{"origin": "cut in the mid')  # as a kill would leave it
    whole, built = setup.measure()
    assert built == 1 + len(changes(setup.space, setup.source)) - 3
    assert set(partly.effects) <= set(whole.effects)
    again, built = setup.measure()
    assert (again, built) == (whole, 0)


def test_other_settings_are_measured_anew(tmp_path):
    setup = Setup(tmp_path)
    setup.measure()
    other = Setup(tmp_path, recover={"selection": "magnitude"})
    assert other.measure()[1] == len(changes(setup.space, setup.source)) + 1


def test_a_choice_that_cannot_be_built_is_infinite_and_says_why(tmp_path):
    found, _ = Setup(tmp_path, "CrashingBackend").measure()
    failed = [e for e in found.effects if e.problem]
    assert failed
    assert all(e.loss == math.inf and "build" in e.problem for e in failed)
    assert any(e.sigma > 0 for e in found.effects)


def test_an_evaluation_records_how_far_it_is_from_the_original(tmp_path):
    setup = Setup(tmp_path)
    candidates = {change.kind: change.candidate for change in changes(setup.space, setup.source)}
    with Evaluator(setup.subject, setup.target, setup.config, setup.folder) as evaluator:
        outcome, _ = evaluator.evaluate(candidates["drop"])
        assert isinstance(outcome, Success)
        apart = evaluator.divergence(candidates["drop"], 24)
        assert outcome.accuracy.divergence == pytest.approx(apart.mean)
        assert outcome.accuracy.divergence_sigma == pytest.approx(apart.standard_error)
        assert evaluator.accuracy(outcome.artifact, candidates["drop"], "report").divergence is None


# --------------------------------------------------------------------------- estimating


@pytest.mark.parametrize("probabilities", [True, False])
def test_the_estimate_is_the_divergence_of_a_small_error(probabilities):
    """For an error in the outputs themselves nothing is neglected but higher orders."""
    torch.manual_seed(0)
    module, images = nn.Sequential(nn.Linear(6, 5)), torch.randn(4000, 6)
    change = 0.02 * torch.randn(5, 7)
    errors = {"0": {"small": compensation_error(change), "none": compensation_error(0 * change)}}
    found = fisher_losses(module, errors, {}, images, probabilities=probabilities)
    outputs = module(images).detach()
    changed = outputs + images @ change[:, :-1].T + change[:, -1]
    true = divergence(changed.numpy(), outputs.numpy(), probabilities=probabilities)
    assert float(found["small"].mean()) == pytest.approx(true.mean, rel=0.1)
    assert not found["none"].any()


class Linear(nn.Module):
    """Residual branches of which one is a linear function of its shortcut and one is not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 1)
        self.linear = nn.Conv2d(8, 8, 1)
        self.inner, self.outer = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.linear(x)
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def test_what_is_linear_in_the_shortcut_of_a_branch_costs_little():
    images = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
    network = trace(Linear(), images[:1], name="linear")
    whole = uniform(network.source, "fp32")
    drops = {name: dataclasses.replace(whole, dropped=(name,)) for name in ("linear", "outer")}
    drops["outer"] = dataclasses.replace(
        whole, dropped=tuple(branch.name for branch in network.source.branches if "outer" in branch.layers)
    )
    found = Reconstructor(network, images).estimated(drops, images, probabilities=True)
    assert found["linear"].mean() < 0.01 * found["outer"].mean()


def test_estimates_rank_choices_as_measurements_do(tmp_path):
    """A small network trained on real digits; the study asks for the estimate."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = np.repeat((digits.images[:, None] / 16 - 0.5).astype(np.float32), 3, axis=1)
    torch.manual_seed(0)
    module = ResNet(1, 10, width=0.5)
    train(module, inputs[:1000], digits.target[:1000], epochs=3, lr=0.05)
    parts = {"calibrate": slice(0, 256), "search": slice(1000, 1512), "report": slice(1512, None)}
    data = {name: (inputs[part], digits.target[part]) for name, part in parts.items()}
    measured, estimated = (
        Setup(tmp_path, module=module, data=data, sensitivity={"method": method}).measure()[0]
        for method in ("measured", "fisher")
    )
    assert (measured.method, estimated.method, estimated.measure) == ("measured", "fisher", "kl")
    pairs = [
        (one.loss, other.loss)
        for one, other in zip(measured.effects, estimated.effects, strict=True)
        if one.sigma > 0 and one.kind != "drop"
    ]
    assert len(pairs) > 20
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.7
    assert read_sensitivity(tmp_path / "run") == estimated


def test_measuring_takes_too_long_where_the_first_effects_say_so(tmp_path):
    effect = Effect(kind="drop", name="b", value=1, loss=0.1, sigma=0.01)
    log = EffectLog(tmp_path / "log", "origin")
    assert not log.takes_too_long(1000)
    log.add("first", effect, 500.0)
    assert not log.takes_too_long(1000), "too early to tell"
    for name in "abcd":
        log.add(name, effect, 40.0)
    assert log.takes_too_long(16)
    assert not log.takes_too_long(15)
    assert EffectLog(tmp_path / "log", "origin").takes_too_long(16), "known after a restart"
    assert not EffectLog(tmp_path / "log", "other").effects


# --------------------------------------------------------------------------- on real data


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    if "HWSEARCH_DATA" not in os.environ:
        pytest.skip("HWSEARCH_DATA is not set")
    from hwsearch.config import load_study

    overrides = ["data.calibrate=128", "data.search=256", "data.report=64", "sensitivity.images=256"]
    config = load_study(Path("studies/cifar10-resnet20/study.yaml"), overrides)
    torch.manual_seed(0)
    return config, load_subject(config), tmp_path_factory.mktemp("resnet")


def probed(resnet, change, **recover):
    config, subject, folder = resnet
    config = config.model_copy(update={"recover": config.recover.model_copy(update=recover)})
    target = ready_target("ort-cpu", config)
    plan = changes(space_for(subject, target, config), subject.network.source)
    candidate = next(c.candidate for c in plan if (c.kind, c.name) == change)
    with Evaluator(subject, target, config, folder) as evaluator:
        return evaluator.divergence(candidate, 256)


@pytest.mark.real_data
def test_a_dropped_block_hurts_less_after_least_squares(resnet):
    before = probed(resnet, ("drop", "layer1.1"), repair="none")
    after = probed(resnet, ("drop", "layer1.1"))
    paired = before.per_example - after.per_example
    assert paired.mean() > 3 * paired.std() / np.sqrt(len(paired))
    assert after.mean < 0.5 * before.mean
