"""A search of seconds on a backend that needs no runtime, for tests of what is done with runs."""

import numpy as np
import torch
from torch import nn

from hwsearch.search.api import search

TARGET = """
backend: hwsearch.testing:FakeBackend
threads: 1
batch: 1
ops:
  conv: {accepts: [fp32, int8], accelerates: [int8]}
  linear: {accepts: [fp32, int8], accelerates: [int8]}
mixed_float: false
granularity: 4
min_keep: 0.25
"""
QUICK = {"rounds": 4, "min_rounds": 3, "seconds": 0.05}


class TinyNet(nn.Module):
    """Two convolutions, one of them in a residual branch, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.branch(x)).relu()
        return self.head(x.mean((2, 3)))


def examples(count, seed):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 1, 8, 8)).astype(np.float32), generator.integers(0, 3, count)


DATA = {"calibrate": examples(16, 0), "search": examples(24, 1), "report": examples(24, 2)}


def write_target(folder, backend="FakeBackend"):
    """The file of the target `fake` in a folder, on a backend of `hwsearch.testing`."""
    path = folder / "fake.yaml"
    path.write_text(TARGET.replace("FakeBackend", backend))
    return path


def search_tiny(folder, *, name="tiny", evaluations=4, **settings):
    """The run of a search in `folder`; a second call with more evaluations goes on with it."""
    given = {"search": {"sampler": "tpe"}, "measure": QUICK} | settings
    target = str(write_target(folder))
    return search(
        TinyNet(), data=DATA, target=target, out=folder / "runs", name=name, evaluations=evaluations, **given
    ).run
