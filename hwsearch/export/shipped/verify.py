"""Check a bundle: python verify.py

Hashes every file, then runs the stored samples again; exits with 1 if something is wrong. Needs only numpy and the
runtime. `hwsearch verify` makes the same two checks and adds device, accuracy and latency.
"""

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-3  # of the largest expected output


def digest(facts: dict[str, Any]) -> str:
    """SHA-256 of hwsearch.json without its own entry ``sha256``."""
    rest = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, facts: dict[str, Any]) -> dict[str, str]:
    """File -> what is wrong with it; empty when every file is there, unchanged, and nothing else is."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    found["hwsearch.json"], stored = digest(facts), {**facts["files"], "hwsearch.json": facts.get("sha256")}
    differ = [name for name in sorted(found.keys() | stored.keys()) if found.get(name) != stored.get(name)]
    both = found.keys() & stored.keys()
    return {n: "changed" if n in both else "missing" if n in stored else "not part of the bundle" for n in differ}


def judge(outputs: Any, expected: Any, *, exact: bool) -> tuple[bool, str]:
    """Whether outputs [N, ...] are those expected, and by how much they differ.

    Where `exact` is False (8 or 16 bits on another processor or runtime version, which round differently), it is
    enough that most top classes agree.
    """
    if outputs.shape != expected.shape:
        return False, f"outputs have shape {outputs.shape}, expected {expected.shape}"
    error = float(np.abs(outputs - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    classes = [array.reshape(len(array), -1).argmax(axis=1) for array in (outputs, expected)]
    agree = int((classes[0] == classes[1]).sum())
    close = error <= TOLERANCE or (not exact and 2 * agree > len(outputs))
    return close, f"{agree} of {len(outputs)} top classes agree, outputs differ by {error:.1e} of the largest"


def main() -> int:
    """Check the bundle this file lies in; the exit code."""
    folder = Path(__file__).resolve().parent
    facts = json.loads((folder / "hwsearch.json").read_text())
    if problems := damage(folder, facts):
        print("\n".join(f"FAILED  {name}: {what}" for name, what in problems.items()))
        return 1
    print(f"ok      {len(facts['files'])} files unchanged")
    sys.dont_write_bytecode = True
    samples = np.load(folder / "samples.npz")
    inputs = samples["inputs"]
    outputs = importlib.import_module("infer").load(len(inputs))(inputs)
    ok, detail = judge(outputs, samples["outputs"], exact=set(facts["candidate"]["precision"].values()) == {"fp32"})
    print(f"{'ok    ' if ok else 'FAILED'}  {detail}; recorded on {facts['device']['chip']}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
