"""The recovery ladder over a suite of shifts: accuracy on images it never saw, labels, seconds; see README.md."""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import sys
import time

from data import DATA, DOMAINS, cifar10, digits, pacs

from hwsearch.adapt.follow import accuracy_of
from hwsearch.adapt.insert import merge
from hwsearch.adapt.ladder import climb
from hwsearch.adapt.migrate import Migration

STEPS = 120
"""Of training adapters; the product's default is 200."""

NEAR = 0.02
"""The ladder ends where the labelled examples say that accuracy is this close to that on clean test images."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--suites", nargs="+", default=["digits", "cifar10", "pacs"])
    parser.add_argument("--scenes", nargs="+", default=["*"], help="globs over names such as cifar10/noise")
    arguments = parser.parse_args()
    makers = {"digits": [digits], "cifar10": [cifar10], "pacs": [lambda name=name: pacs(name) for name in DOMAINS]}
    rows = []
    for suite in arguments.suites if DATA.is_dir() else ["digits"]:
        for make in makers[suite]:
            network, source, scenes, clean = make()
            goal = None if clean is None else accuracy_of(network, *clean) - NEAR
            rows += [one(network, source, scene, goal) for scene in scenes if wanted(scene.name, arguments.scenes)]
    before, after = (statistics.mean(row[name] for row in rows) for name in ("before", "after"))
    print(json.dumps({"scenes": rows, "mean_before": before, "mean_after": after, "ratio": after / before}, indent=1))


def wanted(name, globs):
    return any(fnmatch.fnmatch(name, glob) for glob in globs)


def one(network, source, data, goal):
    started = time.perf_counter()
    found = climb(network, data.scene, source, how=Migration(steps=STEPS), goal=goal)
    seconds = round(time.perf_counter() - started, 1)
    row = {
        "scene": data.name,
        "goal": goal,
        "before": accuracy_of(network, data.inputs, data.targets),
        "after": accuracy_of(merge(found.network), data.inputs, data.targets),
        "judged_on": len(data.targets),
        "labels": len(data.scene.labels),
        "seconds": seconds,
        "rungs": {step.rung: f"{'kept' if step.kept else 'not kept'}: {step.reason}" for step in found.steps},
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
