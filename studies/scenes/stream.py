"""A stream of CIFAR-10 windows: when drift is seen, what is forgotten, which updates are undone; see README.md."""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from data import cifar10_pools, normalised, resnet20
from results import remembered

from hwsearch.adapt.corruptions import CORRUPTIONS, corrupt
from hwsearch.adapt.follow import Follower, Policy, accuracy_of, backward_transfer, forgetting
from hwsearch.adapt.migrate import answers
from hwsearch.model.sources import IMAGENET

WINDOW, CLEAN, SHIFTED = 32, 60, 5
SEVERITIES = (1, 3, 5)
SCENES = ("noise", "contrast", "brightness")
TESTED = 500
EXAMPLES, STEPS = 128, 40
FAST = {"trigger": "fixed", "period": 1, "examples": EXAMPLES, "steps": STEPS}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    seeds = range(parser.parse_args().seeds)
    images = Images()
    for seed in seeds:
        remembered("stream", f"drift {seed}", drift, images, seed)
        for memory in ("none", "ewc", "replay"):
            remembered("stream", f"forgetting, {memory} {seed}", forgotten, images, memory, seed)
        remembered("stream", f"harm {seed}", harmed, images, seed)


class Images:
    """The pretrained ResNet-20 and CIFAR-10: examples it was trained on to remember by, test images for the rest."""

    def __init__(self):
        pools = cifar10_pools()
        self.network = resnet20()
        self.known = normalised(pools["train"].inputs[:256], IMAGENET), pools["train"].targets[:256].astype(np.int64)
        self._images, self._labels = pools["test"].inputs, pools["test"].targets.astype(np.int64)
        self.anchor = self.part(0, TESTED)
        self.tests = {kind: self.part(TESTED, TESTED, kind) for kind in SCENES}

    def part(self, start, count, kind=None, severity=5):
        rows = slice(start, start + count)
        images = self._images[rows] if kind is None else corrupt(self._images[rows], kind, severity)
        return normalised(images, IMAGENET), self._labels[rows]

    def windows(self, start, count, kind=None, severity=5):
        """Windows of images that no other part of the study of this seed has."""
        images, labels = self.part(start, count * WINDOW, kind, severity)
        return list(zip(np.split(images, count), np.split(labels, count), strict=True))

    def follower(self, seed, **policy):
        return Follower(self.network, self.known, self.anchor, window=WINDOW, policy=Policy(seed=seed, **policy))


def drift(images, seed):
    """Alarms in clean windows, and for each shift the windows until the first alarm, None if it is not among five."""
    start = 1000 + seed * 2500
    follower = images.follower(seed, examples=10**6)
    clean = [follower(*window) for window in images.windows(start, CLEAN)]
    delays = {}
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            one = copy.deepcopy(follower)
            events = [one(*window) for window in images.windows(start + CLEAN * WINDOW, SHIFTED, kind, severity)]
            delays[f"{kind} {severity}"] = next((i for i, event in enumerate(events, 1) if event.drift), None)
    return {"windows": CLEAN, "false_alarms": sum(event.drift for event in clean), "delays": delays}


def forgotten(images, memory, seed):
    """Accuracies after each of three scenes, on all of them and on clean images; no gate holds an update back."""
    follower, rows, clean = images.follower(seed, memory=memory, tolerance=1.0, **FAST), [], []
    started = time.process_time()
    for number, kind in enumerate(SCENES):
        for window in images.windows(1000 + seed * 2500 + number * EXAMPLES, EXAMPLES // WINDOW, kind):
            event = follower(*window)
        assert event.update
        rows.append([accuracy_of(follower.network, *images.tests[kind]) for kind in SCENES])
        clean.append(accuracy_of(follower.network, *images.anchor))
    return {
        "unadapted": [accuracy_of(images.network, *images.tests[kind]) for kind in SCENES],
        "unadapted_clean": accuracy_of(images.network, *images.anchor),
        "accuracies": rows,
        "clean": clean,
        "forgetting": forgetting(np.array(rows)),
        "backward_transfer": backward_transfer(np.array(rows)),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def harmed(images, seed):
    """Examples with wrong labels, with the gate and without it: what the update does, and what is left of it."""
    found = {}
    for name, tolerance in (("gate", 0.02), ("no gate", 1.0)):
        follower = images.follower(seed, memory="none", tolerance=tolerance, **FAST)
        before = answers(follower.network, images.anchor[0])
        rng = np.random.default_rng(seed)
        for window, labels in images.windows(1000 + seed * 2500, EXAMPLES // WINDOW, "noise"):
            event = follower(window, rng.permutation(labels))
        found[name] = {
            "update": event.update,
            "reason": event.reason,
            "clean": accuracy_of(follower.network, *images.anchor),
            "same_answers": torch.equal(answers(follower.network, images.anchor[0]), before),
        }
    return found


if __name__ == "__main__":
    main()
