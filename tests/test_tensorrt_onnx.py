"""The form of what is handed to TensorRT: quantisers and float formats. Nothing here needs TensorRT."""

from collections import Counter

import numpy as np
import onnx
import pytest
from model_networks import traced
from onnx import TensorProto, numpy_helper
from tensorrt_lowering import initializers, lowered, quantised

from hwsearch.backends.base import LowerRequest, RunOptions
from hwsearch.backends.tensorrt import TensorRtBackend, typed_model
from hwsearch.backends.tensorrt_qdq import lower, tensors_to_observe
from hwsearch.backends.tensorrt_rules import violations
from hwsearch.errors import EvaluationError
from hwsearch.testing.contract import assign
from hwsearch.testing.networks import NETWORKS, Builder, layer_names, residual
from hwsearch.types import TensorRange

# --------------------------------------------------------------------------- where quantisers stand


@pytest.fixture(scope="module")
def int8():
    return lowered(residual(), assign("int8", layer_names(residual())))


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


def test_lowering_through_the_backend_is_the_same():
    model = residual()
    precision = assign("int8", layer_names(model))
    ranges = {name: TensorRange(low=-1.0, high=1.0) for name in TensorRtBackend().tensors_to_observe(model, precision)}
    assert TensorRtBackend().lower(model, LowerRequest(precision=precision, ranges=ranges)) == lower(
        model, precision, ranges
    )
