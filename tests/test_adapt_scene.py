"""Calibration: divergences, recalibration, unlabelled and few-label adaptation, and the ladder of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwsearch.adapt.corruptions import CORRUPTIONS, corrupt
from hwsearch.adapt.fine_tune import Steady
from hwsearch.adapt.insert import AdapterSpec, merge
from hwsearch.adapt.ladder import Scene, Source, climb
from hwsearch.adapt.migrate import Migration, answers, migrate
from hwsearch.adapt.recalibrate import recalibrate
from hwsearch.adapt.statistics import Matching, Moments, divergence, layer_report, measure, score, sites, stored
from hwsearch.adapt.unlabelled import certainty, sharpen
from hwsearch.errors import ConfigError, DataError
from hwsearch.model.train import train
from hwsearch.zoo.vit import ViT

LEARN = 700
"""Digits the small network below is trained on."""


def digits():
    """uint8 [1797, 1, 16, 16] and labels, in a fixed random order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    small = np.rint(images[order].reshape(-1, 1, 8, 8) / 16 * 255).astype(np.uint8)
    return small.repeat(2, axis=2).repeat(2, axis=3), labels[order].astype(np.int64)


def normalised(images):
    return (images.astype(np.float32) / 255 - 0.3) / 0.35


class Small(nn.Module):
    """Three convolutions with batch norm, pooled: learns the digits in seconds."""

    def __init__(self):
        super().__init__()
        sizes = (1, 16, 24, 32)
        layers = []
        for i in range(3):
            layers += [nn.Conv2d(sizes[i], sizes[i + 1], 3, 2 if i else 1, 1, bias=False), nn.BatchNorm2d(sizes[i + 1])]
            layers += [nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x).amax((2, 3)))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module = Small()
    images, labels = digits()
    train(module, normalised(images[:LEARN]), labels[:LEARN], epochs=8, lr=0.1)
    return module


def accuracy(module, images, labels):
    return float((answers(merge(module), normalised(images)).argmax(1).numpy() == labels).mean())


def scene_of(kind, severity, few=0):
    """A scene of corrupted digits, and others of it to score on."""
    images, labels = digits()
    bad, known = corrupt(images[LEARN:], kind, severity), slice(300, 300 + few)
    scene = Scene(images=normalised(bad[:300]), few=normalised(bad[known]), labels=labels[LEARN:][known])
    return scene, bad[500:], labels[LEARN + 500 :]


def source_of(module):
    images, _ = digits()
    return Source(statistics=stored(module), replay=normalised(images[:150]))


# --------------------------------------------------------------------------- divergence


gaussians = st.tuples(st.floats(-3, 3), st.floats(0.05, 5))


@settings(max_examples=40)
@given(scene=gaussians, source=gaussians)
def test_the_divergence_is_that_of_two_gaussians(scene, source):
    from torch.distributions import Normal, kl_divergence

    one, other = (Moments(*torch.tensor([values], dtype=torch.float64).T) for values in (scene, source))
    floor = 1e-3 * source[1]
    expected = kl_divergence(
        Normal(one.mean, (one.variance + floor).sqrt()), Normal(other.mean, (other.variance + floor).sqrt())
    )
    found = divergence(one, other)
    assert found.item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
    assert float(divergence(one, other, "mean")) <= float(found) + 1e-12


def test_statistics_are_those_of_all_examples_and_positions():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).eval()
    images = torch.randn(5, 2, 6, 6)
    found = measure(module, images)
    features = module[1](module[0](images)).detach()
    assert tuple(found) == sites(module) == ("1",)
    torch.testing.assert_close(found["1"].mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(found["1"].variance, features.var((0, 2, 3), correction=0))


def test_without_batch_norms_the_layers_count(trained):
    vit = ViT(4, heads=2, head_size=8, depth=1, image=16, patch=4).eval()
    inside = tuple(f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    assert sites(vit) == ("patch_embed.proj", *inside)
    found = measure(vit, torch.randn(3, 3, 16, 16))
    assert found["blocks.0.attn.qkv"].mean.shape == (48,)
    assert found["patch_embed.proj"].mean.shape == (16,)


def test_the_score_tells_scenes_apart_and_the_norms_need_no_source_images(trained):
    images, _ = digits()
    source = stored(trained)
    clean = score(measure(trained, normalised(images[LEARN:])), source)
    noisy = score(measure(trained, normalised(corrupt(images[LEARN:], "noise", 5))), source)
    dark = score(measure(trained, normalised(corrupt(images[LEARN:], "contrast", 5))), source)
    assert 0 < clean < 0.005
    assert min(noisy, dark) > 20 * clean
    report = layer_report(measure(trained, normalised(corrupt(images[LEARN:], "contrast", 5))), source)
    assert [layer.name for layer in report] == list(source)
    assert np.mean([layer.divergence for layer in report]) == pytest.approx(dark, rel=1e-5)
    assert all(0 <= layer.by_mean <= layer.divergence + 1e-6 for layer in report)


def test_the_loss_is_the_score_of_the_rows_asked_for_and_has_gradients(trained):
    images = torch.from_numpy(normalised(digits()[0][:8]))
    source = stored(trained)
    rows = torch.tensor([True, False] * 4)
    with Matching(trained, source) as matching:
        trained(images)
        found = matching(rows)
        assert found.item() == pytest.approx(score(measure(trained, images[rows]), source), rel=1e-4)
        found.backward()
    assert trained.features[0].weight.grad.abs().sum() > 0
    trained.zero_grad()
    assert not trained.features[1]._forward_hooks


# --------------------------------------------------------------------------- the rungs


def test_recalibration_is_one_pass_in_which_every_norm_sees_calibrated_inputs(trained):
    scene, _, _ = scene_of("contrast", 5)
    images = torch.from_numpy(scene.images)
    found = recalibrate(trained, images, stored(trained), prior=0)
    reference = trained.features.train()  # batch statistics are exactly those of all images
    expected = reference(images).detach()
    trained.eval()
    torch.testing.assert_close(found.features(images), expected, rtol=1e-3, atol=1e-3)


def test_recalibration_weighs_source_and_scene():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)).eval()
    images = torch.full((8, 1, 2, 2), 3.0)
    found = recalibrate(module, images, {}, prior=24)[0]
    assert float(found.running_mean) == pytest.approx(8 / 32 * 3.0)
    assert float(found.running_var) == pytest.approx(24 / 32 * 1.0)
    assert float(module[0].running_mean) == 0
    assert float(recalibrate(module, images, {})[0].running_mean) == pytest.approx(8 / 24 * 3.0)  # 16 by default
    with pytest.raises(DataError, match="no statistics"):
        recalibrate(module, images[:1], {})


def test_without_norms_biases_bring_the_means_back():
    torch.manual_seed(0)
    vit = ViT(4, heads=2, head_size=8, depth=2, image=16, patch=4).eval()
    images = torch.randn(64, 3, 16, 16)
    source = measure(vit, images)
    shifted = 0.5 * images + 1
    found = recalibrate(vit, shifted, source, prior=0)
    before, after = (
        float(np.mean([layer.by_mean for layer in layer_report(measure(m, shifted, tuple(source)), source)]))
        for m in (vit, found)
    )
    assert after < 1e-6 < 0.01 < before


def test_recalibration_recovers_contrast(trained):
    scene, images, labels = scene_of("contrast", 5)
    before = accuracy(trained, images, labels)
    assert accuracy(recalibrate(trained, scene.images, stored(trained)), images, labels) > before + 0.3


def test_steady_norms_keep_their_statistics_while_dropout_is_on():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    steady = Steady(module).train()
    assert module[2].training
    assert not module[1].training
    steady(torch.randn(4, 1, 5, 5))
    assert module[1].num_batches_tracked == 0


def test_certainty_rewards_reliable_and_diverse_predictions(trained):
    with Matching(trained, stored(trained)) as matching:
        trained(torch.from_numpy(normalised(digits()[0][:8])))
        loss = certainty(matching, calibration=0.0, diversity=1.0)
        sure, same, flat = torch.eye(10) * 9, torch.eye(10)[:1].repeat(10, 1) * 9, torch.zeros(10, 10)
        nothing = torch.zeros(10)
        assert loss(sure, nothing) < loss(same, nothing) - 2
        alone = certainty(matching, calibration=0.0, diversity=0.0)
        assert alone(flat, nothing) == 0  # an unreliable prediction teaches nothing
        assert alone(sure / 2, nothing) > 0


def test_sharpening_trains_the_norms_alone_and_helps(trained):
    scene, images, labels = scene_of("noise", 5)
    start = recalibrate(trained, scene.images, stored(trained))
    found = sharpen(start, scene.images, stored(trained), steps=40)
    changed = {n for n, v in found.state_dict().items() if not torch.equal(v, start.state_dict()[n])}
    assert changed
    owners = {name.rpartition(".")[0] for name in changed}
    assert all(isinstance(found.get_submodule(owner), nn.BatchNorm2d) for owner in owners)
    assert not any("running" in name for name in changed)
    assert all(value.requires_grad for value in found.parameters())  # as it was before
    assert accuracy(found, images, labels) >= accuracy(start, images, labels) - 0.01


def test_few_labels_migrate_where_statistics_cannot_help(trained):
    scene, images, labels = scene_of("invert", 5, few=100)
    start = accuracy(recalibrate(trained, scene.images, stored(trained)), images, labels)
    how = Migration(spec=AdapterSpec(rank=4), steps=150)
    source = source_of(trained)
    found = migrate(trained, scene.few, scene.labels, source.replay, trained, source.statistics, how)
    assert accuracy(found, images, labels) > start + 0.2
    assert torch.equal(found.features[0].base_layer.weight, trained.features[0].weight)


def test_distillation_on_replayed_images_remembers_the_source(trained):
    scene, _, _ = scene_of("invert", 5, few=60)
    images, labels = digits()
    source = source_of(trained)
    kept = {}
    for weight in (0.0, 1.0):
        how = Migration(spec=AdapterSpec(rank=4), steps=120, distillation=weight)
        found = migrate(trained, scene.few, scene.labels, source.replay, trained, source.statistics, how)
        kept[weight] = accuracy(found, images[LEARN:], labels[LEARN:])
    assert kept[1.0] > kept[0.0] + 0.01


# --------------------------------------------------------------------------- the ladder


def test_the_ladder_goes_on_where_statistics_cannot_help_and_says_why(trained):
    scene, images, labels = scene_of("invert", 5, few=100)
    told = []
    how = Migration(spec=AdapterSpec(rank=4), steps=150)
    found = climb(trained, scene, source_of(trained), how=how, on_step=told.append)
    assert [step.rung for step in found.steps] == ["recalibrate", "sharpen", "migrate"] == [step.rung for step in told]
    last = found.steps[-1]
    assert last.kept
    assert last.labels == 100
    assert "accuracy on labelled examples rose" in last.reason
    assert found.how is not None
    assert all(step.reason for step in found.steps)
    assert accuracy(found.network, images, labels) >= 1.2 * accuracy(trained, images, labels)


def test_without_labels_the_ladder_ends_before_the_third_rung(trained):
    scene, images, labels = scene_of("contrast", 5)
    found = climb(trained, scene, source_of(trained))
    assert [step.rung for step in found.steps] == ["recalibrate", "sharpen"]
    first = found.steps[0]
    assert first.kept
    assert first.after.divergence < 0.1 * first.before.divergence
    assert first.after.accuracy is None
    assert accuracy(found.network, images, labels) > accuracy(trained, images, labels) + 0.3


def test_the_ladder_stops_where_the_goal_is_reached(trained):
    scene, images, labels = scene_of("contrast", 5, few=60)
    found = climb(trained, scene, source_of(trained), goal=0.5)
    assert [step.rung for step in found.steps] == ["recalibrate"]
    assert found.steps[0].after.accuracy >= 0.5
    assert climb(trained, scene, source_of(trained), goal=0.0).steps == ()
    assert accuracy(found.network, images, labels) > accuracy(trained, images, labels)


def test_a_rung_that_harms_does_not_stay(trained):
    images, labels = digits()
    clean = images[LEARN:]
    # Statistics of images of one class alone do not fit the others.
    ones = normalised(clean[labels[LEARN:] == 1])
    scene = Scene(images=ones, few=normalised(clean[:150]), labels=labels[LEARN : LEARN + 150])
    found = climb(trained, scene, source_of(trained), rungs=("recalibrate",))
    assert not found.steps[0].kept
    assert "did not rise" in found.steps[0].reason
    assert found.network is trained


def test_training_that_makes_nothing_more_accurate_does_not_stay_however_decided_it_is(trained):
    images, labels = (part[LEARN:] for part in digits())
    known = answers(trained, normalised(images)).argmax(1).numpy() == labels
    right = normalised(images[known])[:60], labels[known][:60]
    scene = Scene(images=normalised(images), few=right[0], labels=right[1])
    how = Migration(spec=AdapterSpec(rank=4), steps=60)
    (step,) = climb(trained, scene, source_of(trained), rungs=("migrate",), how=how).steps
    assert step.after.information > step.before.information
    assert step.after.accuracy == step.before.accuracy == 1
    assert not step.kept


# --------------------------------------------------------------------------- corruptions


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_repeatable_and_grow(kind):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), np.uint8)
    change = [float(np.abs(corrupt(images, kind, s).astype(int) - images).mean()) for s in (1, 3, 5)]
    assert 0 < change[0] < change[1] < change[2]
    assert np.array_equal(corrupt(images, kind, 2, seed=1), corrupt(images, kind, 2, seed=1))
    assert corrupt(images, kind, 2).dtype == np.uint8
    assert (kind == "noise") == (not np.array_equal(corrupt(images, kind, 2, seed=1), corrupt(images, kind, 2, seed=2)))


def test_unknown_corruptions_are_refused():
    images = np.zeros((1, 3, 4, 4), np.uint8)
    with pytest.raises(ConfigError, match="did you mean `noise`"):
        corrupt(images, "nois")
    with pytest.raises(ConfigError, match="severity"):
        corrupt(images, "noise", 6)
    with pytest.raises(DataError, match="uint8"):
        corrupt(images.astype(float), "noise")
