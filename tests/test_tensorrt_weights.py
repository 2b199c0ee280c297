"""Stored values of what is handed to TensorRT: int4, scales, sparsity."""

import functools

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from tensorrt_lowering import lowered, quantised

from hwsearch.backends.tensorrt_build import has_sparse_weights, is_two_four
from hwsearch.backends.tensorrt_rules import violations
from hwsearch.backends.tensorrt_scales import quantize_blocks, quantize_channels, representable
from hwsearch.errors import EvaluationError
from hwsearch.testing.contract import assign, examples, reference
from hwsearch.testing.networks import Builder, layer_names, residual


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
