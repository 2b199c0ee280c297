"""What is handed to TensorRT: its form, its numbers, and the rules it must keep. Nothing here needs TensorRT."""

import functools
import json
from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_networks import NETWORKS as TORCH_NETWORKS
from model_networks import traced
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.tensorrt import TensorRtBackend, typed_model
from hwsearch.backends.tensorrt_build import has_sparse_weights, is_two_four
from hwsearch.backends.tensorrt_qdq import PRECISIONS, lower, tensors_to_observe
from hwsearch.backends.tensorrt_rules import violations
from hwsearch.backends.tensorrt_scales import quantize_blocks, quantize_channels, representable
from hwsearch.cli.main import main
from hwsearch.errors import EvaluationError
from hwsearch.model.template import export_template
from hwsearch.testing.contract import CALIBRATION, assign, examples, reference
from hwsearch.testing.networks import NETWORKS, Builder, layer_names, residual
from hwsearch.types import TensorRange

MIXED = {"int8 and fp16": ("int8", "fp16"), "fp8 and bf16": ("fp8", "bf16"), "fp32 and fp16": ("fp32", "fp16")}
PATTERNS = (*(name for name in PRECISIONS if name != "w4a16"), *MIXED)
TOLERANCE = {"fp32": 1e-6, "tf32": 1e-6, "fp16": 2e-3, "bf16": 3e-2, "int8": 4e-2, "fp8": 1e-1}


def pattern(name, layers):
    cycle = MIXED.get(name, (name,))
    return {layer: cycle[i % len(cycle)] for i, layer in enumerate(layers)}


def lowered(model, precision, *, width=None):
    """The model lowered with ranges it was seen to have, or with [-width, width] for all tensors."""
    names = tensors_to_observe(model, precision)
    if width is not None:
        return lower(model, precision, {name: TensorRange(low=-width, high=width) for name in names})
    seen = reference(model, CALIBRATION)
    ranges = {name: TensorRange(low=float(seen[name].min()), high=float(seen[name].max())) for name in names}
    return lower(model, precision, ranges)


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# --------------------------------------------------------------------------- rules


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


# --------------------------------------------------------------------------- where quantisers stand


@pytest.fixture(scope="module")
def int8():
    return lowered(residual(), assign("int8", layer_names(residual())))


def quantised(model):
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_only_the_skip_of_an_addition_is_quantised(int8):
    found = quantised(int8)
    pooled = next(node.output[0] for node in residual().graph.node if node.op_type == "MaxPool")
    assert {"input", pooled, "a.conv1_out", "b.conv1_out"} - found == {"a.conv1_out", "b.conv1_out"}  # past their ReLU
    assert "a.conv2_out" not in found
    adds = [node for node in int8.graph.node if node.op_type == "Add"]
    sources = [[name.rpartition("_dequantized")[0] or name for name in node.input] for node in adds]
    assert sources[0][0] == "a.conv2_out"
    assert sources[0][1].startswith(pooled)


def test_the_skip_of_an_addition_whose_result_stays_float_does_not():
    layers = layer_names(residual())
    precision = {layer: "int8" if layer in ("a.conv1", "a.conv2") else "fp16" for layer in layers}
    found = quantised(lowered(residual(), precision))
    pooled = next(node.output[0] for node in residual().graph.node if node.op_type == "MaxPool")
    assert len(found) == 2  # what the two layers read; the first of these is also the skip, and shared
    assert any(name.startswith(pooled) for name in found)


def test_of_two_layers_that_are_added_the_shorter_way_is_the_skip():
    net = Builder()
    x = net.op("Relu", net.conv("stem", "input", 3, 16))
    long = net.conv("b", net.op("Relu", net.conv("a", x, 16, 16)), 16, 16)
    short = net.conv("shortcut", x, 16, 16, 1)
    x = net.op("Relu", net.op("Add", long, short))
    model = net.finish((3, 8, 8), net.conv("last", x, 16, 8), (8, 8, 8))
    found = quantised(lowered(model, assign("int8", layer_names(model))))
    assert "shortcut_out" in found
    assert "b_out" not in found


def test_every_reader_has_a_dequantiser_of_its_own(int8):
    readers = Counter(name for node in int8.graph.node for name in node.input)
    for node in int8.graph.node:
        if node.op_type == "DequantizeLinear":
            assert readers[node.output[0]] == 1
        if node.op_type == "QuantizeLinear":
            assert readers[node.input[0]] == 1


def test_weights_are_int8_per_output_channel_and_biases_are_float(int8):
    values = initializers(int8)
    for layer in layer_names(residual()):
        assert values[f"{layer}.weight_quantized"].dtype == np.int8
        assert values[f"{layer}.weight_scale"].shape == (values[f"{layer}.weight_quantized"].shape[0],)
        assert values[f"{layer}.bias"].dtype == np.float32
    assert not any(value.dtype == np.int32 for value in values.values())
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[1]].shape == values[node.input[2]].shape == ()


def test_layers_that_read_one_tensor_in_two_formats_are_refused():
    model = NETWORKS["concat"]()
    precision = assign("fp32", layer_names(model)) | {"left": "int8", "right": "fp8"}
    with pytest.raises(EvaluationError, match="`right` reads in fp8"):
        tensors_to_observe(model, precision)


def test_ranges_of_zeros_are_taken():
    model = residual()
    typed = lowered(model, assign("int8", layer_names(model)), width=0.0)
    assert violations(typed) == ()


# --------------------------------------------------------------------------- float formats


def types_of(model):
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize(("name", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_every_layer_computes_in_the_format_asked_for(name, kind):
    model = residual()
    typed = lowered(model, assign(name, layer_names(model)))
    types = types_of(typed)
    for node in typed.graph.node:
        if node.op_type != "Cast":
            assert {types[entry] for entry in (*node.input, *node.output)} - {TensorProto.INT64} == {kind}
    assert types["input"] == types["output"] == TensorProto.FLOAT
    assert [node.op_type for node in typed.graph.node].count("Cast") == 2


def test_sensitive_operations_stay_in_fp32():
    network = traced("transformer")
    typed = lowered(network.template.bind(), assign("fp16", network.template.layers))
    types = types_of(typed)
    sensitive = [node for node in typed.graph.node if node.op_type in ("Softmax", "LayerNormalization", "ReduceMean")]
    assert sensitive
    for node in sensitive:
        assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT


def test_constants_beyond_fp16_are_refused_by_name():
    net = Builder()
    model = net.finish((1, 4, 4), net.conv("layer", "input", 1, 2), (2, 4, 4))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([7e4, 0], np.float32), "layer.bias"))
    with pytest.raises(EvaluationError, match=r"`layer.bias` holds 70000"):
        lowered(model, {"layer": "fp16"})
    assert violations(lowered(model, {"layer": "bf16"})) == ()


def test_a_model_is_left_alone_when_no_layer_is_named():
    typed = lowered(residual(), assign("fp16", layer_names(residual())))
    again = lower(typed, {}, {})
    assert again.SerializeToString(deterministic=True) == typed.SerializeToString(deterministic=True)


def test_a_16_bit_format_that_the_model_does_not_hold_is_refused():
    with pytest.raises(EvaluationError, match="holds nothing in fp16"):
        typed_model(residual(), RunOptions(float_precision="fp16"))
    typed = lowered(residual(), assign("fp16", layer_names(residual())))
    fixed = typed_model(typed, RunOptions(float_precision="fp16", batch=5))
    assert fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5


def test_a_broken_rule_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(EvaluationError, match="`bias_dequantize` breaks the rule") as caught:
        TensorRtBackend().build(BAD["quantised bias"][0], tmp_path, RunOptions())
    assert caught.value.stage == "build"


# --------------------------------------------------------------------------- int4, scales, sparsity


@functools.cache
def wide():
    net = Builder()
    x = net.op("Relu", net.gemm("hidden", "input", 128, 192))
    return net.finish((128,), net.gemm("head", x, 192, 10), (10,))


@pytest.mark.parametrize("rest", ["w4a16", "bf16", "fp32"])
def test_int4_weights_come_in_blocks_and_leave_activations_alone(rest):
    precision = {"hidden": "w4a16", "head": rest}
    typed = lowered(wide(), precision)
    assert violations(typed) == ()
    onnx.checker.check_model(typed, full_check=True)
    values, nodes = {t.name: t for t in typed.graph.initializer}, {n.name: n for n in typed.graph.node}
    assert values["hidden.weight_quantized"].data_type == TensorProto.INT4
    assert list(values["hidden.weight_scale" + ("_bfloat16" if rest == "bf16" else "_float16")].dims) == [1, 192]
    assert nodes["hidden"].op_type == "MatMul"
    assert not quantised(typed)
    if rest == "w4a16":
        assert list(values["head.weight_scale_float16"].dims) == [3, 10]  # 192 inputs are three blocks of 64
    outputs = ReferenceEvaluator(typed).run(None, {"input": examples(wide(), 4)})[0]
    expected = reference(wide(), 4)["output"]
    assert 1e-3 < np.linalg.norm(outputs - expected) / np.linalg.norm(expected) < 0.2


def test_int4_needs_a_linear_layer_whose_inputs_divide_into_blocks():
    with pytest.raises(EvaluationError, match="`head` do not divide into blocks of 64"):
        lowered(residual(), assign("fp16", layer_names(residual())) | {"head": "w4a16"})
    with pytest.raises(EvaluationError, match="exist for linear layers, and `stem` is a Conv"):
        lowered(residual(), assign("fp16", layer_names(residual())) | {"stem": "w4a16"})


@given(scale=st.floats(0, 1e4), name=st.sampled_from(["fp32", "fp16", "bf16"]))
def test_scales_are_positive_and_survive_their_format(scale, name):
    dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[name]
    found = representable(np.array(scale), name)
    assert found.shape == ()
    assert found > 0
    assert found == found.astype(dtype).astype(np.float32)
    if scale > 1e-4:
        assert abs(found - scale) <= scale * 2.0**-8


@given(seed=st.integers(0, 100), kind=st.sampled_from(["int8", "fp8"]), rest=st.sampled_from(["fp32", "fp16", "bf16"]))
def test_weights_are_rounded_to_the_nearest_stored_value(seed, kind, rest):
    weight = np.random.default_rng(seed).normal(0, 0.1, (5, 3, 2)).astype(np.float32)
    stored = quantize_channels(weight, 0, kind, rest)
    shaped = stored.scale[:, None, None]
    error = np.abs(stored.values.astype(np.float32) * shaped - weight)
    step = shaped if kind == "int8" else np.maximum(np.abs(weight) / 8, shaped * 2.0**-6)
    clipped = np.abs(weight) > shaped * {"int8": 127, "fp8": 448}[kind]
    assert (error[~clipped] <= 0.51 * np.broadcast_to(step, weight.shape)[~clipped]).all()
    assert (error[clipped] <= np.abs(weight[clipped]) * 2.0**-8).all()


def test_blocks_share_a_scale():
    weight = np.ones((128, 2), np.float32)
    weight[64:] = 70
    stored = quantize_blocks(weight, 64, "fp32")
    np.testing.assert_allclose(stored.scale, [[1 / 7, 1 / 7], [10, 10]], rtol=1e-6)
    assert (stored.values.astype(int) == 7).all()


def test_two_zeros_in_four_inputs_are_seen_through_the_quantiser():
    model = residual()
    assert not has_sparse_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name == "a.conv1.weight":
            weight = numpy_helper.to_array(tensor).copy()
            weight[:, ::4] = weight[:, 1::4] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    assert has_sparse_weights(model)
    assert has_sparse_weights(lowered(model, assign("int8", layer_names(model))))


def test_two_four_is_along_one_axis():
    weight = np.tile(np.array([1, 1, 0, 0], np.float32), (8, 2))
    assert is_two_four(weight, 1)
    assert not is_two_four(weight, 0)
    assert not is_two_four(np.zeros((4, 8), np.float32), 1)
    assert not is_two_four(np.ones((4, 6), np.float32), 1)


def test_lowering_through_the_backend_is_the_same():
    model = residual()
    precision = assign("int8", layer_names(model))
    ranges = {name: TensorRange(low=-1.0, high=1.0) for name in TensorRtBackend().tensors_to_observe(model, precision)}
    assert TensorRtBackend().lower(model, LowerRequest(precision=precision, ranges=ranges)) == lower(
        model, precision, ranges
    )
