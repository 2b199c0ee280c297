import copy
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from hwsearch.cli.main import main
from hwsearch.config import DataConfig, make_study
from hwsearch.config_reparam import ReparamConfig
from hwsearch.errors import ConfigError, DataError
from hwsearch.model.data import load_splits
from hwsearch.model.distill import distillation
from hwsearch.model.graph import weights_sha256
from hwsearch.model.load import load_model
from hwsearch.model.metric import TOP1
from hwsearch.model.train import train
from hwsearch.reparam import expand, merge
from hwsearch.reparam.guard import health, rounded
from hwsearch.reparam.kinds import KINDS
from hwsearch.reparam.recipe import retrained
from hwsearch.search.prepare import load_subject

FACTORY = """
from torch import nn

from hwsearch.reparam import expand


def build():
    parts, inputs = [], 3
    for outputs, stride in ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1)):
        parts += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def build_big():
    return expand(build(), "repvgg")
"""


@pytest.fixture
def factory(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "network.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture(scope="module")
def digits():
    return load_splits(DataConfig(source="digits"), base_dir=Path())


def study(factory, **settings):
    return make_study({"model": f"{factory}:build", "data": "digits", "target": "ort-cpu", **settings})


def test_a_study_trains_once_and_searches_the_merged_network(factory, digits, tmp_path):
    network, folder, seen = load_model(f"{factory}:build"), tmp_path / "trained", []
    config = study(factory, reparam={"kind": "orepa", "epochs": 2, "lr": 0.1, "shift": 1})

    def count(epoch, _loss):
        seen.append(epoch)

    subject = load_subject(config, module=network, splits=digits, trained=folder, on_epoch=count)
    again = retrained(network, config.reparam, digits.train, folder, on_epoch=count)
    assert seen == [1, 2]
    assert weights_sha256(again) == subject.network.source.sha256 != weights_sha256(network)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in subject.network.module.modules())
    facts = json.loads(next(folder.glob("*.json")).read_text())
    assert facts["reparam"]["kind"] == "orepa"
    assert len(facts["losses"]) == 2


def test_a_training_that_was_killed_goes_on(factory, digits, tmp_path, monkeypatch):
    network, config, seen = load_model(f"{factory}:build"), ReparamConfig(kind="acb", epochs=3, shift=1), []
    expected = retrained(network, config, digits.train, tmp_path / "at once")

    def killed(epoch, _loss):
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("hwsearch.model.train.SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        retrained(network, config, digits.train, tmp_path / "twice", on_epoch=killed)
    found = retrained(network, config, digits.train, tmp_path / "twice", on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == [2, 3]  # the last step of the second epoch was saved, its end was not
    assert weights_sha256(found) == weights_sha256(expected)
    assert sorted(path.suffix for path in (tmp_path / "twice").iterdir()) == [".json", ".pt"]


def test_whatever_shapes_the_weights_shapes_their_name(factory, digits, tmp_path):
    network, data = load_model(f"{factory}:build"), digits.train
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    scaled = copy.copy(data)
    object.__setattr__(scaled, "inputs", data.inputs * 2)
    base = ReparamConfig(kind="plain", epochs=1)
    runs = [
        (network, base, data),
        (network, base.model_copy(update={"guard": False}), data),
        (network, base.model_copy(update={"lr": 0.01}), data),
        (network, base.model_copy(update={"kind": "acb"}), data),
        (other, base, data),
        (network, base, scaled),
    ]
    counts = []
    for model, config, examples in runs:
        retrained(model, config, examples, tmp_path)
        counts.append(len(list(tmp_path.glob("*.pt"))))
    assert counts == [1, 1, 2, 3, 4, 5]


def test_an_untrained_network_is_the_same_one_each_time(factory):
    torch.manual_seed(1)
    first = weights_sha256(load_model(f"{factory}:build"))
    torch.manual_seed(2)
    assert weights_sha256(load_model(f"{factory}:build")) == first
    assert torch.initial_seed() == 2


def test_a_network_can_be_its_own_teacher(factory, digits, tmp_path):
    """With labels that say nothing, what is learnt can only come from the teacher."""
    teacher, data = load_model(f"{factory}:build"), copy.copy(digits.train)
    train(teacher, data.inputs, data.targets, epochs=3)
    object.__setattr__(data, "targets", np.zeros_like(data.targets))
    before, found = copy.deepcopy(teacher.state_dict()), {}
    for weight in (0.0, 1.0):
        config = ReparamConfig(kind="repvgg", epochs=3, lr=0.1, fresh=True, distill=weight)
        student = retrained(teacher, config, data, tmp_path)
        found[weight] = accuracy(student, digits.report.inputs, digits.report.targets)
    best = accuracy(teacher, digits.report.inputs, digits.report.targets)
    assert best > 0.9
    assert found[0.0] < 0.2
    assert found[1.0] > best - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_distillation_loss_is_the_published_one():
    outputs, labels = torch.randn(6, 2, 5, requires_grad=True), torch.arange(6) % 5
    student, teacher = outputs.unbind(1)
    hard = nn.functional.cross_entropy(student, labels)
    assert torch.allclose(distillation(0.0, 4.0)(outputs, labels), hard)
    p, q = (part / 4 for part in (teacher, student))
    soft = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    assert torch.allclose(distillation(0.9, 4.0)(outputs, labels), 0.1 * hard + 0.9 * 16 * soft, rtol=1e-4)
    sizes = []
    for temperature in (5.0, 20.0):
        (gradient,) = torch.autograd.grad(distillation(1.0, temperature)(outputs, labels), outputs)
        sizes.append(gradient[:, 0].norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3)


def test_training_needs_examples(factory, tmp_path):
    with pytest.raises(DataError, match="no training examples"):
        retrained(load_model(f"{factory}:build"), ReparamConfig(kind="plain"), None, tmp_path)


def test_the_section_of_a_study_file(factory):
    kinds = get_args(ReparamConfig.model_fields["kind"].annotation)
    assert set(kinds) == set(KINDS) - {"orepa_stack", "orepa_pointwise"}
    assert study(factory).reparam is None
    section = study(factory, reparam={"kind": "orepa", "squeeze": "auto", "branches": ["origin", "pointwise"]}).reparam
    assert section.options == {"squeeze": "auto", "branches": ("origin", "pointwise")}
    with pytest.raises(ConfigError, match="did you mean `orepa`"):
        study(factory, reparam={"kind": "orepaa"})
    with pytest.raises(ConfigError, match=r"unknown key `reparam\.epoch`"):
        study(factory, reparam={"kind": "orepa", "epoch": 3})


def test_an_option_the_kind_does_not_take_is_an_error(factory, digits, tmp_path):
    config = study(factory, reparam={"kind": "dbb", "prior": "dct"})
    with pytest.raises(ConfigError, match="`dbb` does not take these options"):
        retrained(load_model(f"{factory}:build"), config.reparam, digits.train, tmp_path)


def accuracy(network, images, labels):
    with torch.no_grad():
        return TOP1(network(torch.from_numpy(images)).numpy(), labels)


def quantised(network, bits, only=None):
    """A copy with weights of so many bits, one scale per tensor; of every convolution or of one."""
    network = copy.deepcopy(network)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d) and only in (None, name):
            rows = part.weight.detach().double().flatten(1).numpy()
            part.weight.data.copy_(torch.from_numpy(rounded(rows, bits, per_channel=False)).view_as(part.weight))
    return network


@pytest.mark.slow
def test_the_guard_tells_which_layers_of_a_trained_network_lose_accuracy(factory, digits):
    x, y = digits.train.inputs[:, :, ::2, ::2].copy(), digits.train.targets
    images, labels = digits.report.inputs[:, :, ::2, ::2].copy(), digits.report.targets
    low, drops, found = {}, {}, {}
    for kind in ("repvgg", "qarepvgg"):
        torch.manual_seed(0)
        big = expand(load_model(f"{factory}:build"), kind, fresh=True)
        train(big, x, y, epochs=20, weight_decay=1e-4)
        merged = merge(big)
        best = accuracy(merged, images, labels)
        assert best > 0.95
        low[kind] = best - accuracy(quantised(merged, 4), images, labels)
        for name, part in merged.named_modules():
            if isinstance(part, nn.Conv2d):
                drops[kind, name] = best - accuracy(quantised(merged, 3, only=name), images, labels)
                found[kind, name] = health(name, part.weight.detach().numpy())
    assert low["repvgg"] > low["qarepvgg"] + 0.03
    kurtosis = {k: np.median([h.kurtosis for (kind, _), h in found.items() if kind == k]) for k in low}
    assert kurtosis["repvgg"] > 2 * kurtosis["qarepvgg"]
    fragile = [drop for key, drop in drops.items() if found[key].fragile]
    healthy = [drop for key, drop in drops.items() if not found[key].fragile]
    assert len(fragile) >= 2
    assert np.mean(fragile) > 2 * np.mean(healthy)


def test_the_command_merges_checks_and_saves(factory, tmp_path, capsys):
    model, out = f"{factory}:build_big", tmp_path / "merged.pt2"
    assert main(["reparam", model, "--shape", "3,32,32", "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["convolutions"] == "10 -> 5"
    assert facts["difference"] < 1e-5
    assert sum(isinstance(part, nn.Conv2d) for part in load_model(str(out)).modules()) == 5
    weights = tmp_path / "merged.pt"
    assert main(["reparam", str(out), "--shape", "3,32,32", "--out", str(weights)]) == 0
    assert "5 -> 5" in capsys.readouterr().out
    assert set(torch.load(weights, weights_only=True)) >= {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--shape", "3,x", "--out", "a.pt"], "not a shape"), (["--shape", "3,32,32", "--out", "a.onnx"], "unknown kind")],
)
def test_wrong_options_of_the_command(factory, options, message, capsys):
    assert main(["reparam", f"{factory}:build_big", *options]) == 2
    assert message in capsys.readouterr().err
