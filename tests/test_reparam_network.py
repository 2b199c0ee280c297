import copy
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from reparam_support import Small, difference, randomised
from torch import nn

import hwsearch as hs
from hwsearch.errors import ConfigError, ModelError
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.model.pt2 import load_pt2, save_pt2
from hwsearch.model.template import export_template
from hwsearch.reparam.blocks import RepBlock
from hwsearch.reparam.cures import reinsert_batch_norm
from hwsearch.reparam.kinds import KINDS
from hwsearch.reparam.merge import check_same, merge

TRAINABLE = sorted(set(KINDS) - {"orepa_stack", "orepa_pointwise"})


@pytest.fixture(scope="module")
def small():
    return randomised(Small())


def images(size=32, dtype=torch.float32):
    return torch.randn(2, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def blocks(module):
    return {name for name, part in module.named_modules() if isinstance(part, RepBlock)}


@pytest.mark.real_data
@pytest.mark.skipif("HWSEARCH_DATA" not in os.environ, reason="HWSEARCH_DATA is not set")
@pytest.mark.parametrize("kind", TRAINABLE)
def test_expanding_and_merging_a_pretrained_network_leaves_its_logits(kind):
    weights = Path(os.environ["HWSEARCH_DATA"]) / "cifar10" / "resnet20-12fca82f.th"
    model = load_model("hwsearch.zoo.resnet:resnet20", weights=weights).double()
    big = hs.reparam.expand(model, kind)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert len(blocks(big)) - (kind == "repvgg_orepa") * 19 == 19
        assert difference(big(x), expected) <= 1e-10
        assert difference(hs.reparam.merge(big)(x), expected) <= 1e-10


@pytest.mark.parametrize("kind", TRAINABLE)
def test_merged_network_has_the_layers_of_the_plain_one(small, kind):
    big = randomised(hs.reparam.expand(small, kind))
    merged = merge(big)
    assert check_same(big, merged, images()) < 1e-5
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in small.named_modules()]
    assert not any(isinstance(part, RepBlock) for part in merged.modules())
    assert merge(merged).state_dict().keys() == merged.state_dict().keys()
    assert check_same(merged, merge(merged), images()) == 0
    assert blocks(big)  # the training form is left as it was


def operators(module):
    return Counter(node.op_type for node in export_template(module, images()).skeleton.graph.node)


@pytest.fixture(scope="module")
def plain_operators(small):
    counts = operators(small)
    assert (counts["Conv"], counts["Add"]) == (6, 1)
    assert "BatchNormalization" not in counts
    return counts


@pytest.mark.parametrize("kind", TRAINABLE)
def test_exported_merged_network_has_the_operators_of_the_plain_one(small, plain_operators, kind):
    big = randomised(hs.reparam.expand(small, kind))
    assert operators(merge(big)) == plain_operators


def test_the_exported_training_form_still_has_its_branches(small):
    found = operators(randomised(hs.reparam.expand(small, "repvgg")))
    assert (found["Conv"], found["BatchNormalization"], found["Add"]) == (6 + 4, 2, 1 + 4 + 2)


def test_exported_merged_network_answers_as_the_training_form(small, tmp_path):
    import onnx
    import onnxruntime

    big = randomised(hs.reparam.expand(small, "orepa"))
    onnx.save(export_template(merge(big), images()).bind(), tmp_path / "merged.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "merged.onnx").run(None, {"input": images().numpy()})[0]
    with torch.no_grad():
        assert difference(torch.from_numpy(found), big(images())) < 1e-4


def test_the_search_sees_the_same_layers_groups_and_branches():
    def build():
        return load_model("hwsearch.zoo.resnet:resnet20", model_args={"width": 0.5})

    one = trace(build(), images(), name="plain").source
    two = trace(merge(randomised(hs.reparam.expand(build(), "repvgg"))), images(), name="merged").source
    assert two.layers == one.layers
    assert [(g.name, g.kind, g.channels) for g in two.groups] == [(g.name, g.kind, g.channels) for g in one.groups]
    assert [(b.name, b.layers) for b in two.branches] == [(b.name, b.layers) for b in one.branches]
    assert two.refused == one.refused
    assert two.sha256 != one.sha256


def test_which_convolutions_become_blocks(small):
    assert blocks(hs.reparam.expand(small, "repvgg")) == {"stem.0", "conv1", "conv2", "depthwise"}
    assert blocks(hs.reparam.expand(small, "mobileone")) == {"stem.0", "conv1", "conv2", "depthwise", "pointwise"}
    assert blocks(hs.reparam.expand(small, "orepa_pointwise")) == {"pointwise"}
    assert blocks(hs.reparam.expand(small, "orepa_stack", fresh=True)) == {"stem.0", "depthwise"}
    assert blocks(hs.reparam.expand(small, "repvgg", layers=["conv*"])) == {"conv1", "conv2"}
    two_steps = hs.reparam.expand(hs.reparam.expand(small, "dbb", layers=["conv1"]), "acb")
    assert {type(two_steps.get_submodule(name)).__name__ for name in blocks(two_steps)} == {"DBB", "ACB"}
    assert not blocks(small)


def test_convolutions_that_must_stay():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.read, self.behind = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.frozen, self.after = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False), nn.BatchNorm2d(3)
            self.good, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.norm(self.twice(self.twice(x)))
            y = self.read(x)
            return self.last(self.good(self.after(self.frozen(self.behind(y) + y))))

    assert blocks(hs.reparam.expand(Shared(), "repvgg")) == {"good"}


def test_fresh_blocks_keep_their_own_start(small):
    fresh = hs.reparam.expand(small, "orepa", fresh=True)
    assert fresh.conv1.generator.scales[0, 0] == 0.25
    assert difference(fresh(images()), small(images())) > 1e-3


def test_a_network_without_a_fitting_convolution_is_an_error(small):
    with pytest.raises(ConfigError, match=r"no convolution to expand into `repvgg`\n.*\n  allowed: stem.0, conv1"):
        hs.reparam.expand(small, "repvgg", layers=["conv9"])
    with pytest.raises(ConfigError, match="none of the network's convolutions"):
        hs.reparam.expand(nn.Sequential(nn.Conv2d(3, 4, 3)), "repvgg")


def test_a_network_that_cannot_be_traced_is_an_error():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"cannot be traced by torch\.fx"):
        hs.reparam.expand(Branching(), "repvgg")


# --------------------------------------------------------------------------- blocks of other libraries


class Foreign(nn.Module):
    """Two batch-normed branches, as libraries write them."""

    def __init__(self):
        super().__init__()
        self.three, self.one = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.merged = None

    def forward(self, x):
        return self.norm(self.three(x) + self.one(x)) if self.merged is None else self.merged(x)

    def _convolution(self):
        conv, scale = nn.Conv2d(3, 3, 3, padding=1), self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        with torch.no_grad():
            kernel = self.three.weight + nn.functional.pad(self.one.weight, [1] * 4)
            conv.weight.copy_(kernel * scale[:, None, None, None])
            conv.bias.copy_(self.norm.bias - self.norm.running_mean * scale)
        return conv

    def _in_place(self):
        self.merged = self._convolution()
        del self.three, self.one, self.norm  # so a second call fails, as it does in some libraries


class Fuses(Foreign):
    def fuse(self):
        return self._convolution()


class Reparameterizes(Foreign):
    def reparameterize(self):
        self._in_place()


class Switches(Foreign):
    def switch_to_deploy(self):
        self._in_place()


def test_blocks_of_other_libraries_are_merged_once():
    mixed = nn.Sequential(Fuses(), nn.ReLU(), nn.Sequential(Reparameterizes(), Switches()), nn.Conv2d(3, 3, 1))
    model = randomised(mixed).train()
    merged = merge(model)
    assert sum(isinstance(part, nn.Conv2d) for part in merged.modules()) == 4
    assert not any(isinstance(part, nn.BatchNorm2d) for part in merged.modules())
    assert model.training
    assert model[2][0].merged is None
    assert check_same(copy.deepcopy(model).eval(), merged, images()) < 1e-5
    assert check_same(merged, merge(merged), images()) == 0


def test_a_block_that_merges_wrongly_is_found():
    class Wrong(Foreign):
        def fuse(self):
            return nn.Conv2d(3, 3, 3, padding=1)

    class Fails(Foreign):
        def fuse(self):
            raise RuntimeError("cannot fuse")

    model = randomised(nn.Sequential(Wrong()))
    with pytest.raises(ModelError, match="merging changed the outputs"):
        check_same(model, merge(model), images())
    with pytest.raises(ModelError, match=r"`0` \(Fails\) failed to merge itself\n.*cannot fuse"):
        merge(nn.Sequential(Fails()))


# --------------------------------------------------------------------------- batch norms again; files


def test_reinserted_batch_norms_change_nothing_until_they_are_trained(small):
    merged = merge(hs.reparam.expand(small, "repvgg")).double()
    x = images(dtype=torch.float64)
    again = reinsert_batch_norm(merged, x)
    assert blocks(again) == {"stem.0", "conv1", "conv2", "depthwise", "pointwise", "last"}
    with torch.no_grad():
        assert difference(again(x), merged(x)) <= 1e-10
        assert difference(merge(again)(x), merged(x)) <= 1e-10
        outputs = again.conv1.main.conv(again.stem(x))
    assert torch.allclose(again.conv1.main.norm.running_mean, outputs.mean((0, 2, 3)))
    assert torch.allclose(again.conv1.main.norm.running_var, outputs.var((0, 2, 3), correction=0))
    assert blocks(reinsert_batch_norm(merged, x, layers=["conv1"])) == {"conv1"}


def test_a_merged_network_round_trips_through_pt2(small, tmp_path):
    merged = merge(hs.reparam.expand(small, "acb"))
    save_pt2(merged, images(), tmp_path / "merged.pt2")
    again = load_pt2(tmp_path / "merged.pt2")
    with torch.no_grad():
        assert difference(again(images()[:1]), merged(images()[:1])) < 1e-6
