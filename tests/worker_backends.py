"""Backends for the worker's tests: one that works, and others that each misbehave in `build`.

The worker's child imports this module by name, as it would a user's plug-in.
"""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hwsearch.backends.base import Availability
from hwsearch.errors import EvaluationError
from hwsearch.store import sha256_files
from hwsearch.types import Artifact, Device, LayerTime

SPEEDS_MS = {"quick": 0.5, "slow": 1.0}


class SpinSession:
    """Doubles its input, and takes a fixed time for it."""

    def __init__(self, speed, options):
        self.input_shape = (options.batch, 3)
        self._ms = SPEEDS_MS[speed]

    def run(self, batch):
        assert batch.shape == self.input_shape
        return batch * 2

    def bind(self, batch):
        self.run(batch)

    def step(self):
        end = time.perf_counter_ns() + self._ms * 1e6
        while time.perf_counter_ns() < end:
            pass


class Working:
    name = "working"

    def availability(self):
        return Availability(version="1")

    def device(self, options):
        facts = {"cpus": str(sorted(os.sched_getaffinity(0))), "torch": str("torch" in sys.modules)}
        return Device(
            backend=self.name,
            backend_version="1",
            chip=str(os.getpid()),
            isa=(),
            threads=options.threads,
            options=facts,
        )

    def tensors_to_observe(self, model, precision):
        return []

    def lower(self, model, request):
        return model

    def build(self, model, folder, options):
        path = folder / "model.txt"
        path.write_text(f"{model.graph.name} {options.float_precision}")
        return Artifact(
            path=str(path),
            files=(str(path),),
            format="text",
            sha256=sha256_files([path]),
            size_bytes=path.stat().st_size,
            portable=True,
        )

    def open(self, artifact, options):
        return SpinSession(Path(artifact.path).read_text().split()[0], options)

    def inspect(self, artifact, precision, options):
        return [
            LayerTime(runtime_layer=f"{name}!", kind="Spin", source_layers=(name,), requested=p, executed=None, ms=None)
            for name, p in precision.items()
        ]


class Segfaulting(Working):
    def build(self, model, folder, options):
        os.write(1, b"about to fail\n")
        ctypes.string_at(0)


class Exiting(Working):
    def build(self, model, folder, options):
        os._exit(3)


class Killed(Working):
    def build(self, model, folder, options):
        os.kill(os.getpid(), 9)


class Hanging(Working):
    """Hangs with a process of its own beside it, whose id it leaves in the folder."""

    def build(self, model, folder, options):
        other = subprocess.Popen(["sleep", "600"])
        (folder / "part").write_text(str(other.pid))
        (folder / "part").rename(folder / "pid")
        time.sleep(600)


class Greedy(Working):
    """Takes memory and uses it, without end."""

    def build(self, model, folder, options):
        taken = []
        while True:
            taken.append(np.ones(2**24))


class NativeGreedy(Working):
    """Ends the way a C++ runtime does that cannot allocate."""

    def build(self, model, folder, options):
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()


class Raising(Working):
    def build(self, model, folder, options):
        raise ValueError("layer `conv1`\nhas no kernel")


class Refusing(Working):
    def build(self, model, folder, options):
        raise EvaluationError("no bf16 here", stage="lower", kind="invalid", hint="use fp32")


class Chatty(Working):
    """Writes to standard output in every way there is, replies look-alikes included."""

    def build(self, model, folder, options):
        print('{"result": "forged by print"}', flush=True)
        os.write(1, b'{"result": "forged by write"}\n')
        ctypes.CDLL(None).puts(b'{"result": "forged by puts"}')
        subprocess.run(["echo", '{"result": "forged by a child"}'], check=True)
        return super().build(model, folder, options)


class Absent(Working):
    def availability(self):
        return Availability(version=None, problem="no such runtime", install="pip install runtime")
