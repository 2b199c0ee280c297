"""Streams: drift is seen and not imagined, the past is kept, and updates that harm are undone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapt_scene import LEARN, digits, normalised, trained  # noqa: F401  (a fixture)
from torch.nn import functional

from hwsearch.adapt.corruptions import corrupt
from hwsearch.adapt.drift import DriftDetector
from hwsearch.adapt.follow import Follower, Policy, accuracy_of, backward_transfer, forgetting
from hwsearch.adapt.insert import AdapterSpec, insert
from hwsearch.adapt.memory import Anchored, Memory
from hwsearch.adapt.migrate import answers
from hwsearch.errors import ConfigError

WINDOW = 32


def windows_of(kind, severity, count, seed=0):
    """Windows of 32 unseen digits, corrupted or not."""
    images, labels = digits()
    images, labels = images[1100:], labels[1100:]
    bad = images if kind is None else corrupt(images, kind, severity)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        draw = rng.choice(len(images), WINDOW, replace=False)
        yield normalised(bad[draw]), labels[draw]


def follower_of(network, **policy):
    images, labels = digits()
    known, anchor = (normalised(images[:200]), labels[:200]), (normalised(images[LEARN:1000]), labels[LEARN:1000])
    policy = {"spec": AdapterSpec(rank=4), "steps": 80, **policy}
    return Follower(network, known, anchor, window=WINDOW, policy=Policy(**policy))


# --------------------------------------------------------------------------- drift


@pytest.mark.parametrize(("trigger", "delay"), [("page_hinkley", 5), ("adwin", 10)])
@pytest.mark.parametrize("kind", ["noise", "contrast"])
def test_drift_is_seen_soon_and_never_imagined(trained, trigger, delay, kind):  # noqa: F811
    pytest.importorskip("river")
    follower = follower_of(trained, trigger=trigger, examples=10**6)
    clean = [follower(*window) for window in windows_of(None, 0, 60)]
    assert [event.window for event in clean if event.drift] == []
    shifted = [follower(*window) for window in windows_of(kind, 5, delay)]
    assert any(event.drift for event in shifted)
    assert np.mean([event.score for event in shifted]) > 2 * np.mean([event.score for event in clean])


def test_a_fixed_period_fires_whatever_the_scores():
    detector = DriftDetector("fixed", period=3)
    assert [detector(0.0) for _ in range(7)] == [False, False, True, False, False, True, False]
    detector.rebase([0.0, 1.0])
    assert [detector(9.0) for _ in range(3)] == [False, False, True]


def test_after_a_new_start_the_new_scores_are_usual():
    pytest.importorskip("river")
    detector, rng = DriftDetector(), np.random.default_rng(0)
    detector.rebase(rng.normal(0, 1, 40))
    assert any(detector(20.0) for _ in range(3))
    detector.rebase(rng.normal(20, 1, 40))
    assert not any(detector(value) for value in rng.normal(20, 1, 60))


def test_unknown_triggers_and_a_missing_package_are_said(monkeypatch):
    with pytest.raises(ConfigError, match="unknown trigger"):
        DriftDetector("kswin")
    monkeypatch.setitem(__import__("sys").modules, "river", None)
    with pytest.raises(ConfigError, match=r"hwsearch\[adapt\]"):
        DriftDetector("adwin")
    DriftDetector("fixed")


# --------------------------------------------------------------------------- memory


@settings(max_examples=30)
@given(
    labels=st.lists(st.integers(0, 4), max_size=200),
    per_class=st.integers(1, 20),
    source=st.integers(1, 10),
)
def test_memory_keeps_the_source_and_as_much_of_every_class_as_it_may(labels, per_class, source):
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    memory = Memory(-np.ones((source, 1), np.float32), np.zeros(source, np.int64), per_class=per_class)
    half = len(labels) // 2
    for part in (slice(None, half), slice(half, None)):
        memory.add(images[part], np.asarray(labels[part], np.int64))
    kept, known = memory.examples()
    assert (kept[:source] == -1).all()
    later = kept[source:, 0].astype(int)
    assert len(set(later)) == len(later)
    assert [labels[i] for i in later] == known[source:].tolist()
    counts = np.bincount(known[source:], minlength=5)
    assert counts.tolist() == np.minimum(np.bincount(labels, minlength=5) if labels else [0] * 5, per_class).tolist()


def test_a_reservoir_is_a_fair_sample():
    chosen = np.zeros(40)
    for seed in range(400):
        memory = Memory(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), per_class=10, seed=seed)
        memory.add(np.arange(40, dtype=np.float32)[:, None], np.zeros(40, np.int64))
        chosen[memory.examples()[0][:, 0].astype(int)] += 1
    assert np.abs(chosen / 400 - 0.25).max() < 0.1


def test_the_penalty_grows_with_the_distance_of_weights_that_matter():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    network[1].bias.requires_grad_(False)
    images, labels = np.random.default_rng(0).normal(size=(6, 1, 2, 2)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    penalty = Anchored(network, images, labels, strength=10.0)
    assert penalty(network) == 0
    expected = torch.zeros(3, 4)
    for image, label in zip(torch.from_numpy(images), torch.from_numpy(labels), strict=True):
        network.zero_grad()
        functional.cross_entropy(network(image[None]), label[None]).backward()
        expected += network[1].weight.grad.square() / 6
    with torch.no_grad():
        network[1].weight += 0.5
        network[1].bias += 9  # is not trained
    assert penalty(network).item() == pytest.approx(10 / 2 * expected.sum().item() * 0.25, rel=1e-5)


# --------------------------------------------------------------------------- updates


def test_an_update_follows_the_drift_and_old_versions_can_be_restored(trained):  # noqa: F811
    pytest.importorskip("river")
    follower = follower_of(trained, tolerance=0.1)
    start = follower.network
    events = [follower(*window) for window in windows_of("contrast", 5, 12)]
    updates = [event for event in events if event.update]
    assert events[0].drift
    assert [event.update for event in updates][:1] == ["accepted"]
    assert updates[0].window == 3  # 128 examples
    assert updates[0].seconds > 0
    before, after = ([event.accuracy for event in part] for part in (events[:4], events[4:]))
    assert np.mean(after) > np.mean(before) + 0.3
    assert not any(event.drift for event in events[4:])  # the new scene is the usual one now
    follower.roll_back()
    assert follower.network is start


def test_an_update_that_harms_is_undone(trained):  # noqa: F811
    follower = follower_of(trained, trigger="fixed", period=1)
    start = follower.network
    images = torch.from_numpy(normalised(digits()[0][LEARN:1000]))
    known = answers(start, images)
    rng = np.random.default_rng(0)
    events = [follower(window, rng.permutation(labels)) for window, labels in windows_of(None, 0, 4)]
    assert events[-1].update == "rolled back"
    assert "anchor" in events[-1].reason
    assert "would fall" in events[-1].reason
    assert follower.network is start
    assert torch.equal(answers(follower.network, images), known)
    assert follower.versions == []


@pytest.mark.slow
def test_replay_halves_forgetting(trained):  # noqa: F811
    images, labels = digits()
    scenes = ("noise", "contrast", "invert")
    tests = [(normalised(corrupt(images[1100:], kind, 5)), labels[1100:]) for kind in scenes]
    lost, moved = {}, {}
    for memory in ("none", "replay"):
        follower = follower_of(trained, trigger="fixed", period=1, memory=memory, tolerance=1.0, steps=150)
        rows = []
        for kind in scenes:
            for window in windows_of(kind, 5, 4):
                follower(*window)
            rows.append([accuracy_of(follower.network, *test) for test in tests])
        lost[memory], moved[memory] = forgetting(np.array(rows)), backward_transfer(np.array(rows))
    assert lost["replay"] <= 0.5 * lost["none"]
    assert moved["replay"] > moved["none"]


def test_forgetting_and_backward_transfer():
    accuracies = np.array([[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.5, 0.9, 0.6]])
    assert forgetting(accuracies) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)
    assert backward_transfer(accuracies) == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)


def test_the_follower_trains_adapters_and_head_alone(trained):  # noqa: F811
    follower = follower_of(trained, trigger="fixed", period=1, tolerance=1.0, steps=20)
    for window in windows_of("contrast", 5, 4):
        follower(*window)
    plain = insert(trained, AdapterSpec(rank=4)).state_dict()
    changed = {name for name, value in follower.network.state_dict().items() if not torch.equal(value, plain[name])}
    assert any(name.endswith("adapter.up") for name in changed)
    assert all(".adapter." in name or name.startswith("head") or "running" in name for name in changed)
