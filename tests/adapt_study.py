"""A small study whose network knows the digits: what is searched, exported and then follows a scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from test_adapt_scene import LEARN, Small, digits, normalised

from hwsearch.adapt.corruptions import corrupt
from hwsearch.cli.main import main
from hwsearch.model.train import train
from hwsearch.search.run import find_run

MODEL = """
import sys
sys.path.insert(0, {tests!r})
from test_adapt_scene import LEARN, Small, digits

def build():
    return Small()

def data():
    images, labels = digits()
    return {{"train": (images[:LEARN], labels[:LEARN]), "test": (images[LEARN:1100], labels[LEARN:1100])}}
"""

STUDY = """
name: small
model: study.py:build
weights: weights.pt
data: {{source: "study.py:data", calibrate: 128, search: 200, normalize: {{mean: [0.3], std: [0.35]}}}}
target: {target}
search: {{sampler: random, evaluations: 7, seed: 0}}
measure: {{rounds: 8, seconds: 0.1}}
latency: measure
space: {{min_keep: 0.75, precisions: [int8], drop_branches: false}}
"""


def make_study(folder: Path, target: str) -> Path:
    """The study with trained weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = Small()
    images, labels = digits()
    train(module, normalised(images[:LEARN]), labels[:LEARN], epochs=8, lr=0.1)
    torch.save(module.state_dict(), folder / "weights.pt")
    (folder / "study.py").write_text(MODEL.format(tests=str(Path(__file__).parent)))
    (folder / "study.yaml").write_text(STUDY.format(target=target))
    return folder / "study.yaml"


def make_bundle(folder: Path, target: str) -> Path:
    """The bundle of a pruned int8 candidate of that study."""
    study = make_study(folder, target)
    assert main(["search", str(study), "--out", str(folder / "runs"), "--quiet"]) == 0
    run = find_run(folder / "runs" / "small")
    pruned = [trial for trial in run.trials if trial.candidate.keep and "int8" in trial.candidate.precision.values()]
    best = max(pruned, key=lambda trial: trial.outcome.accuracy.value)
    out = folder / "bundle"
    assert main(["export", str(run.path), "--key", best.candidate.key, "--out", str(out), "--quiet"]) == 0
    return out


def make_scene(path: Path, kind: str = "contrast", severity: int = 5, *, labels: bool = True) -> Path:
    """An archive of corrupted digits that the study has not seen."""
    images, targets = digits()
    arrays = {"images": corrupt(images[1100:], kind, severity).transpose(0, 2, 3, 1)}
    np.savez(path, **arrays, **({"labels": targets[1100:]} if labels else {}))
    return path
