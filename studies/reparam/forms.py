"""What the training forms cost beside the merged network: parameters, memory of a step, latency in ONNX Runtime."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import torch
from network import build
from run import KINDS

from hwsearch.backends.base import RunOptions
from hwsearch.backends.benchmark import benchmark
from hwsearch.backends.environment import usable_cores
from hwsearch.model.template import export_template
from hwsearch.reparam.expand import expand
from hwsearch.reparam.merge import merge
from hwsearch.store import write_json

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks" / "orepa"))
from memory import kept_bytes  # noqa: E402

BATCH = (64, 3, 32, 32)
MIB = 2**20


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        forms = {"plain network": build(), **{kind: expand(build(), kind, fresh=True) for kind in KINDS[1:]}}
        rows = {name: described(form) for name, form in forms.items()}
        files = [written(form.eval(), Path(folder) / f"{name}.onnx") for name, form in forms.items()]
        merged = {f"{kind} merged": merge(forms[kind]) for kind in KINDS[1:]}
        files += [written(form, Path(folder) / f"{name}.onnx") for name, form in merged.items()]
        found = benchmark(files, "onnxruntime", RunOptions(cpus=tuple(usable_cores()[-1:])), progress=print)
        for file, measured in zip(files, found.rows, strict=True):
            row = rows.setdefault(file.stem, {})
            row["operators"] = operators(file)
            row["ms"], row["against_plain"] = measured.latency.best_ms, 1.0
            if measured.against_first is not None:
                row |= {"against_plain": measured.against_first.ratio, "verdict": measured.against_first.verdict}
    write_json(HERE / "forms.json", {"chip": found.device.chip, "warnings": found.warnings, "forms": rows})
    for name, row in rows.items():
        print(name, row)


def described(form):
    parameters = sum(parameter.numel() for parameter in form.parameters())
    return {"parameters_m": parameters / 1e6, "kept_mib": kept_bytes(form, BATCH) / MIB}


def written(form, path):
    """The file of a network; in ONNX, batch norms that a convolution can swallow are folded already."""
    onnx.save(export_template(form, torch.zeros(1, 3, 32, 32)).bind(), path)
    return path


def operators(path):
    return dict(Counter(node.op_type for node in onnx.load(path).graph.node))


if __name__ == "__main__":
    main()
