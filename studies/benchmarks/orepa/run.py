"""Memory and time of a training step: plain, DBB and OREPA; see README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from memory import kept_bytes
from models import variants
from torch.nn import functional

MIB = 2**20


def main():
    arguments = parse()
    torch.manual_seed(0)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    networks = {
        name: network.to(arguments.device) for name, network in variants(arguments.model, arguments.width).items()
    }
    report = {**vars(arguments), "threads": torch.get_num_threads()}
    report["parameters_m"] = {name: sum(p.numel() for p in n.parameters()) / 1e6 for name, n in networks.items()}
    memory = {name: kept_bytes(network, shape) / MIB for name, network in networks.items()}
    report["kept_mib"] = memory
    report["extra_saved_of_dbb"] = extra_saved(memory)
    if arguments.device != "meta":
        steps = {name: Step(network, shape) for name, network in networks.items()}
        seconds = timed(steps, arguments.steps)
        report["step_ms"] = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
        report["dbb_over_orepa"] = report["step_ms"]["dbb"] / report["step_ms"]["orepa"]
    if arguments.device == "cuda":
        peak = {name: peak_bytes(step) / MIB for name, step in steps.items()}
        report |= {"device": torch.cuda.get_device_name(), "peak_mib": peak, "extra_saved_peak": extra_saved(peak)}
    print(json.dumps(rounded(report), indent=1))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet18", choices=["resnet18", "resnet34", "resnet50"])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each, in turns, after one that is not")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "meta"], help="meta: memory alone, computed")
    return parser.parse_args()


class Step:
    """One training step on random images: forward, backward, SGD with momentum."""

    def __init__(self, network, shape):
        self.network = network.train()
        self.device = next(network.parameters()).device
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        self.images = torch.randn(shape, device=self.device)
        self.labels = torch.randint(1000, shape[:1], device=self.device)

    def __call__(self):
        """Take the step and wait for it."""
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def extra_saved(memory):
    """Share of the memory DBB needs beyond the plain network that OREPA does not need."""
    return 1 - (memory["orepa"] - memory["plain"]) / (memory["dbb"] - memory["plain"])


def timed(steps, count):
    """Seconds of `count` steps of each, taken in turns, after one to warm up."""
    seconds = {name: [] for name in steps}
    for turn in range(count + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_bytes(step):
    """Largest allocation on the GPU during one step, without what the other networks hold there."""
    others = torch.cuda.memory_allocated() - own_bytes(step)
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - others


def own_bytes(step):
    tensors = [*step.network.parameters(), *step.network.buffers(), step.images, step.labels]
    tensors += [p.grad for p in step.network.parameters() if p.grad is not None]
    tensors += [value for state in step.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
