"""Run the model: python infer.py [inputs.npy]

The inputs are float32 [N, ...], preprocessed as hwsearch.json says. Without a file the stored samples run.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov

FOLDER = Path(__file__).resolve().parent
FACTS = json.loads((FOLDER / "hwsearch.json").read_text())


def load(batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function from inputs [batch, ...] to outputs [batch, ...]."""
    model = ov.Core().read_model(FOLDER / FACTS["artifact"]["path"])
    model.reshape([batch, *FACTS["input"]["shape"]])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": FACTS["target"]["threads"]}
    settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[FACTS["float_precision"]]
    compiled = ov.compile_model(model, "CPU", settings)
    return lambda inputs: compiled(inputs)[0]


def main() -> None:
    """Print the top class of each example."""
    samples = np.load(FOLDER / "samples.npz")
    inputs = np.load(sys.argv[1]) if len(sys.argv) > 1 else samples["inputs"]
    outputs = load(len(inputs))(inputs.astype(np.float32))
    expected = samples["outputs"] if len(sys.argv) == 1 else [None] * len(outputs)
    for number, (output, stored) in enumerate(zip(outputs, expected, strict=True)):
        match = "" if stored is None else "  as stored" if output.argmax() == stored.argmax() else "  DIFFERS"
        print(f"{number}: class {output.argmax()}{match}")


if __name__ == "__main__":
    main()
