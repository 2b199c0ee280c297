"""The rules that what is handed to TensorRT must keep, and its numbers. Nothing here needs TensorRT."""

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from model_networks import NETWORKS as TORCH_NETWORKS
from model_networks import traced
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tensorrt_lowering import MIXED, PATTERNS, lowered, pattern

from hwsearch.backends.base import RunOptions
from hwsearch.backends.tensorrt import TensorRtBackend
from hwsearch.backends.tensorrt_rules import violations
from hwsearch.cli.main import main
from hwsearch.errors import EvaluationError
from hwsearch.model.template import export_template
from hwsearch.testing.contract import assign, examples, reference
from hwsearch.testing.networks import NETWORKS, layer_names, residual

TOLERANCE = {"fp32": 1e-6, "tf32": 1e-6, "fp16": 2e-3, "bf16": 3e-2, "int8": 4e-2, "fp8": 1e-1}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_written_keeps_the_rules_and_computes_the_network(network, name):
    model = NETWORKS[network]()
    typed = lowered(model, pattern(name, layer_names(model)))
    onnx.checker.check_model(typed, full_check=True)
    assert violations(typed) == ()
    outputs = ReferenceEvaluator(typed).run(None, {"input": examples(model, 4)})[0]
    expected = reference(model, 4)["output"]
    error = np.linalg.norm(outputs - expected) / np.linalg.norm(expected)
    assert outputs.dtype == np.float32
    assert error <= sum(TOLERANCE[part] for part in MIXED.get(name, (name,)))
    assert (error > 1e-6) == (name not in ("fp32", "tf32"))


@pytest.mark.parametrize("network", TORCH_NETWORKS)
def test_traced_networks_keep_the_rules_in_every_precision(network):
    keeps_the_rules(traced(network).template)


ZOO = {
    "mobilenet_v1": "mobilenet_v1",
    "mobilenet_v2": "mobilenet_v2",
    "repvgg": "repvgg_a0",
    "resnet_imagenet": "resnet18",
    "shufflenet_v2": "shufflenet_v2",
    "squeezenet": "squeezenet",
    "vit": "vit_tiny",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", ZOO)
def test_the_zoo_keeps_the_rules_in_every_precision(module):
    build = getattr(__import__(f"hwsearch.zoo.{module}", fromlist=["_"]), ZOO[module])
    keeps_the_rules(export_template(build().eval(), torch.zeros(2, 3, 32, 32)))


def keeps_the_rules(template):
    model = template.bind()
    for name in PATTERNS:
        typed = lowered(model, pattern(name, template.layers), width=2.0)
        onnx.checker.check_model(typed, full_check=True)
        assert violations(typed) == ()


def small(nodes, *, opset=20, inputs=TensorProto.FLOAT, outputs=TensorProto.FLOAT, **constants):
    """A model from ``x`` to ``y``, with a 1×1 convolution's weight and bias among its constants."""
    constants = {"w": np.ones((4, 4, 1, 1), np.float32), "b": np.ones(4, np.float32), **constants}
    graph = helper.make_graph(
        [helper.make_node(*parts[:3], name=parts[3], **(parts[4] if len(parts) > 4 else {})) for parts in nodes],
        "bad",
        [helper.make_tensor_value_info("x", inputs, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", outputs, [1, 4, 2, 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


CONV = ("Conv", ["x", "w"], ["y"], "conv")
SCALES = {"s": np.float32(0.1), "z": np.int8(0), "u": np.uint8(0)}


def quantised_input(zero, scale="s"):
    return [
        ("QuantizeLinear", ["x", scale, zero], ["q"], "x_quantize"),
        ("DequantizeLinear", ["q", scale, zero], ["d"], "x_dequantize"),
        ("Conv", ["d", "w"], ["y"], "conv"),
    ]


BAD = {
    "uint8 zero point": (small(quantised_input("u"), **SCALES), "x_quantize", "stored values are int8"),
    "asymmetric activation": (
        small(quantised_input("z"), **(SCALES | {"z": np.int8(3)})),
        "x_quantize",
        "zero points are 0",
    ),
    "QLinearConv": (
        small(
            [
                ("QuantizeLinear", ["x", "s", "z"], ["q"], "x_quantize"),
                ("QLinearConv", ["q", "s", "z", "k", "s", "z", "s", "z"], ["c"], "conv"),
                ("DequantizeLinear", ["c", "s", "z"], ["y"], "y_dequantize"),
            ],
            k=np.ones((4, 4, 1, 1), np.int8),
            **SCALES,
        ),
        "conv",
        "quantise/dequantise pairs only",
    ),
    "quantised bias": (
        small(
            [
                ("DequantizeLinear", ["i", "s"], ["f"], "bias_dequantize"),
                ("Conv", ["x", "w", "f"], ["y"], "conv"),
            ],
            i=np.ones(4, np.int32),
            **SCALES,
        ),
        "bias_dequantize",
        "biases stay in floating point",
    ),
    "int8 bias": (
        small(
            [
                ("DequantizeLinear", ["i", "s"], ["f"], "bias_dequantize"),
                ("Conv", ["x", "w", "f"], ["y"], "conv"),
            ],
            i=np.ones(4, np.int8),
            **SCALES,
        ),
        "conv",
        "biases stay in floating point",
    ),
    "another domain": (
        small([("FusedConv", ["x", "w"], ["y"], "conv", {"domain": "com.microsoft"})]),
        "conv",
        "ONNX operators only",
    ),
    "mixed types": (
        small(
            [
                ("Cast", ["x"], ["h"], "cast", {"to": TensorProto.FLOAT16}),
                ("Conv", ["h", "w"], ["c"], "conv"),
                ("Cast", ["c"], ["y"], "back", {"to": TensorProto.FLOAT}),
            ]
        ),
        "conv",
        "inputs of one operation have one type",
    ),
    "activation scales per channel": (
        small(quantised_input("z"), **(SCALES | {"s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)})),
        "x_quantize",
        "one scale per activation tensor",
    ),
    "weight scales along the inputs": (
        small(
            [
                ("DequantizeLinear", ["i", "s", "z"], ["k"], "weight_dequantize", {"axis": 1}),
                ("Conv", ["x", "k"], ["y"], "conv"),
            ],
            i=np.ones((4, 4, 1, 1), np.int8),
            s=np.full(4, 0.1, np.float32),
            z=np.zeros(4, np.int8),
        ),
        "weight_dequantize",
        "scales of a weight follow its output channels",
    ),
    "scale zero": (small(quantised_input("z"), **(SCALES | {"s": np.float32(0)})), "x_quantize", "scales are positive"),
    "computed scale": (
        small(
            [("ReduceMax", ["x"], ["m"], "largest", {"keepdims": 0}), *quantised_input("z", scale="m")],
            **SCALES,
        ),
        "x_quantize",
        "scales are constants",
    ),
    "int4 activation": (
        small(quantised_input("z"), opset=21, **(SCALES | {"z": np.zeros((), ml_dtypes.int4)})),
        "x_quantize",
        "int4 is for weights only",
    ),
    "fp8 before its operator set": (
        small(quantised_input("z"), opset=17, **(SCALES | {"z": np.zeros((), ml_dtypes.float8_e4m3fn)})),
        "x_quantize",
        "float8e4m3fn needs operator set 19",
    ),
    "doubles": (
        small([CONV], inputs=TensorProto.DOUBLE, outputs=TensorProto.DOUBLE, w=np.ones((4, 4, 1, 1))),
        "conv",
        "no 64-bit floats",
    ),
    "old operator set": (small([CONV], opset=8), "", "operator set 9 to 25"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs_are_refused_by_node_and_rule(name):
    model, node, rule = BAD[name]
    found = violations(model)
    assert (node, True) in {(entry.node, entry.rule.startswith(rule)) for entry in found}, found


def test_a_good_graph_of_the_same_kind_is_not():
    assert violations(small([CONV])) == ()
    assert violations(small(quantised_input("z"), **SCALES)) == ()
    assert violations(small([("Cast", ["x"], ["y"], "cast", {"to": 1})], inputs=TensorProto.UINT8)) == ()


def test_a_graph_for_another_runtime_is_refused():
    from hwsearch.backends.onnxruntime import OnnxRuntimeBackend
    from hwsearch.testing.contract import request_for

    model, backend = residual(), OnnxRuntimeBackend()
    request = request_for(backend, model, assign("int8", layer_names(model)))
    rules = {entry.rule for entry in violations(backend.lower(model, request))}
    assert any(rule.startswith("stored values are") for rule in rules)
    assert "biases stay in floating point" in rules


def test_a_broken_rule_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(EvaluationError, match="`bias_dequantize` breaks the rule") as caught:
        TensorRtBackend().build(BAD["quantised bias"][0], tmp_path, RunOptions())
    assert caught.value.stage == "build"


# --------------------------------------------------------------------------- the command


def test_check_names_node_and_rule_of_a_file(tmp_path, capsys):
    path = tmp_path / "bad.onnx"
    onnx.save(BAD["quantised bias"][0], path)
    assert main(["check", str(path), "--target", "tensorrt-gpu"]) == 1
    printed = capsys.readouterr().out
    assert "`bias_dequantize`" in printed
    assert "biases stay in floating point" in printed
    assert main(["check", str(path), "--target", "tensorrt-gpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["violations"][0]["node"] == "bias_dequantize"


def test_check_passes_a_good_file_and_wants_a_target_with_rules(tmp_path, capsys):
    path = tmp_path / "good.onnx"
    onnx.save(lowered(residual(), assign("int8", layer_names(residual()))), path)
    assert main(["check", str(path), "--target", "tensorrt-gpu"]) == 0
    assert main(["check", str(path)]) == 2
    assert main(["check", str(path), "--target", "ort-cpu"]) == 2
    (tmp_path / "text.onnx").write_text("not a model at all")
    assert main(["check", str(tmp_path / "text.onnx"), "--target", "tensorrt-gpu"]) == 2
    assert "cannot read" in capsys.readouterr().err
