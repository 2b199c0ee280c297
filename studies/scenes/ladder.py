"""The recovery ladder over a suite of shifts: accuracy on images it never saw, labels, seconds; see README.md."""

from __future__ import annotations

import argparse
import fnmatch
import time

from data import DATA, SCENES, opened
from results import remembered, results

from hwsearch.adapt.follow import accuracy_of
from hwsearch.adapt.insert import merge
from hwsearch.adapt.ladder import climb
from hwsearch.adapt.migrate import Migration

STEPS = 80
"""Of training adapters; the product's default is 200."""

NEAR = 0.02
"""The ladder ends where the labelled examples say that accuracy is this close to that on clean test images."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", nargs="+", default=list(SCENES), choices=SCENES)
    parser.add_argument("--scenes", nargs="+", default=["*"], help="globs over names such as noise or sketch")
    arguments = parser.parse_args()
    for suite in arguments.suites if DATA.is_dir() else ["digits"]:
        names = [name for name in SCENES[suite] if any(fnmatch.fnmatch(name, glob) for glob in arguments.scenes)]
        left = [name for name in names if f"{suite}/{name}" not in results("ladder")]
        cases = opened(suite) if left else None
        for name in left:
            remembered("ladder", f"{suite}/{name}", climbed, cases, name)


def climbed(cases, name):
    case = cases(name)
    data, goal = case.data, None if case.clean is None else case.clean - NEAR
    started = time.process_time()
    found = climb(case.network, data.scene, case.source, how=Migration(steps=STEPS), goal=goal)
    seconds = time.process_time() - started
    return {
        "clean": case.clean,
        "before": accuracy_of(case.network, data.inputs, data.targets),
        "after": accuracy_of(merge(found.network), data.inputs, data.targets),
        "judged_on": len(data.targets),
        "labels": len(data.scene.labels),
        "labels_needed": sum(step.labels for step in found.steps if step.kept),
        "cpu_seconds": round(seconds, 1),
        "kept": [step.rung for step in found.steps if step.kept],
        "rungs": {step.rung: f"{'kept' if step.kept else 'not kept'}: {step.reason}" for step in found.steps},
    }


if __name__ == "__main__":
    main()
