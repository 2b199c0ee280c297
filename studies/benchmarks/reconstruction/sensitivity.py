"""Sensitivities of CIFAR-10 ResNet-20, measured and estimated: how long they take and how well they agree."""

from __future__ import annotations

import argparse
import json
import os
import resource
import threading
import time
from pathlib import Path

from scipy.stats import spearmanr

from hwsearch.config import load_study
from hwsearch.search.effects.sensitivity import measure_sensitivities
from hwsearch.search.evaluate import Evaluator
from hwsearch.search.prepare import load_subject, ready_target, space_for
from hwsearch.search.progress import silent

STUDY = Path(__file__).parents[2] / "cifar10-resnet20" / "study.yaml"


def main():
    arguments = parse()
    losses, report = {}, {}
    for method in ("measured", "fisher"):
        found, report[method] = judge(arguments, method)
        losses[method] = {(e.kind, e.name, e.value): e.loss for e in found.effects if e.sigma > 0}
    for kind in ("keep", "drop", "precision", "all"):
        shared = [key for key in losses["measured"].keys() & losses["fisher"].keys() if kind in (key[0], "all")]
        ranks = spearmanr([losses["measured"][key] for key in shared], [losses["fisher"][key] for key in shared])
        report[f"spearman_{kind}"] = round(ranks.statistic, 3)
    print(json.dumps(report, indent=1))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--target", default="ort-cpu")
    return parser.parse_args()


def judge(arguments, method):
    config = load_study(STUDY, [f"sensitivity.method={method}"])
    subject, target = load_subject(config), ready_target(arguments.target, config)
    space, folder = space_for(subject, target, config), arguments.out / method
    wall, cpu = time.perf_counter(), cpu_seconds()
    with Evaluator(subject, target, config, folder) as evaluator:
        found = measure_sensitivities(evaluator, space, subject.network.source, folder, silent, threading.Event())
    spent = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(cpu_seconds() - cpu, 1)}
    peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    effects = sum(effect.sigma > 0 for effect in found.effects)
    return found, spent | {"effects": effects, "peak_mb": peaks[0], "peak_mb_of_the_worker": peaks[1]}


def cpu_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
