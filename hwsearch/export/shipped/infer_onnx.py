"""Run the model: python infer.py [inputs.npy]

The inputs are float32 [N, ...], preprocessed as hwsearch.json says. Without a file the stored samples run.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

FOLDER = Path(__file__).resolve().parent
FACTS = json.loads((FOLDER / "hwsearch.json").read_text())


def load(batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function from inputs [batch, ...] to outputs [batch, ...]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = FACTS["target"]["threads"]
    options.add_free_dimension_override_by_name("N", batch)
    path = str(FOLDER / FACTS["artifact"]["path"])
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {FACTS["input"]["name"]: inputs})[0]


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
