"""Stands in for NVIDIA's ``trtexec``: takes the same options, writes the same files, and computes with ONNX Runtime.

Its engines are the ONNX files themselves. Like the real tool it refuses options it does not know, and models its parser
does not take; the environment variable STANDIN_VERSION says which version it is.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

VERSIONS = {"10": "101602", "11": "110400"}
COMMON = (
    "--onnx --saveEngine --loadEngine --skipInference --timingCacheFile --memPoolSize --noTF32 --sparsity --iterations "
    "--profilingVerbosity --exportTimes --exportOutput --exportLayerInfo --exportProfile --loadInputs --warmUp "
    "--duration --avgRuns --help"
)
OPTIONS = {"10": f"{COMMON} --stronglyTyped --useCudaGraph --useSpinWait --noDataTransfers", "11": COMMON}


def fail(message):
    print(f"[11/21/2026-10:00:00] [E] {message}")
    print("&&&& FAILED TensorRT.trtexec")
    sys.exit(1)


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(Path(path).read_bytes(), providers=["CPUExecutionProvider"])


def shape(value):
    return [int(size) for size in value.shape]


def run(asked, version):
    engine = asked.get("--loadEngine") or asked["--onnx"]
    if "--onnx" in asked:
        import onnx

        from hwsearch.backends.tensorrt_rules import violations

        if broken := violations(onnx.load(engine)):
            fail(f"[TRT] {broken[0]}")
        Path(asked["--saveEngine"]).write_bytes(Path(engine).read_bytes())
        cache = Path(asked["--timingCacheFile"])
        cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"timed ")
    if "--skipInference" in asked:
        return
    model = session(engine)
    source, target = model.get_inputs()[0], model.get_outputs()[0]
    batch = np.zeros(shape(source), np.float32)
    if "--loadInputs" in asked:
        name, path = asked["--loadInputs"].split(":", 1)
        assert name == source.name
        batch = np.fromfile(path, np.float32).reshape(shape(source))
    output = model.run(None, {source.name: batch})[0]
    if path := asked.get("--exportOutput"):
        entry = {"name": target.name, "dimensions": "x".join(map(str, output.shape)), "values": output.ravel().tolist()}
        Path(path).write_text(json.dumps([entry]))
    if path := asked.get("--exportTimes"):
        copies = 0.0 if version == "11" or "--noDataTransfers" in asked else 0.5
        times = {"h2dMs": copies, "computeMs": 0.25, "d2hMs": copies, "latencyMs": 0.25 + 2 * copies}
        Path(path).write_text(json.dumps([{"startComputeMs": 1.0, **times}] * int(asked["--iterations"])))
    nodes = [node for node in layers(engine) if not node.op_type.endswith("Linear")]
    if path := asked.get("--exportLayerInfo"):
        read = [{"Format/Datatype": "Row major linear FP32"}]
        entries = [{"Name": n.name, "LayerType": n.op_type, "Inputs": read} for n in nodes]
        Path(path).write_text(json.dumps({"Layers": entries, "Bindings": [source.name, target.name]}))
    if path := asked.get("--exportProfile"):
        entries = [{"name": n.name, "timeMs": 5.0, "averageMs": 0.3, "medianMs": 0.25, "percentage": 1} for n in nodes]
        Path(path).write_text(json.dumps([{"count": 20}, *entries]))


def layers(path):
    import onnx

    return onnx.load(path).graph.node


def main():
    version = os.environ.get("STANDIN_VERSION", "10")
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSIONS[version]}] [b1] # {' '.join(sys.argv)}")
    asked = dict(word.partition("=")[::2] for word in sys.argv[1:])
    known = OPTIONS[version].split()
    for option in asked:
        if option not in known:
            fail(f"Unknown option: {option}")
    if "--help" in asked:
        print("\n".join(f"  {option}=<value>   what it does" for option in known))
        return
    with Path(os.environ["STANDIN_LOG"]).open("a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    run(asked, version)
    print("&&&& PASSED TensorRT.trtexec")


if __name__ == "__main__":
    main()
