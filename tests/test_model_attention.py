"""Attention heads: found in what people write, pruned exactly, refused where the module counts on their number."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwsearch.compress.prune import slice_module
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.config import SpaceConfig
from hwsearch.model.graph import trace
from hwsearch.model.template import folded_parameters
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.types import ChannelAxis

HEADS, SIZE, WIDTH = 3, 4, 8


class Attention(nn.Module):
    """Queries, keys and values from layers of their own, in any of several ways to write the rest."""

    def __init__(self, product="plain", split="free"):
        super().__init__()
        self.product, self.split = product, split
        self.query, self.key, self.value = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.proj = nn.Linear(HEADS * SIZE, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        if self.product == "fused":
            y = functional.scaled_dot_product_attention(q, k, v)
        elif self.product == "masked":
            mask = torch.full((x.shape[1], x.shape[1]), -1e4).triu(1)
            y = (q @ k.transpose(-2, -1) / SIZE**0.5 + mask).softmax(-1) @ v
        else:
            y = (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1) @ v
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))

    def heads(self, x):
        shape = {"free": (-1, SIZE), "fixed": (HEADS, SIZE), "sized": (HEADS, -1)}[self.split]
        return x.unflatten(-1, shape).transpose(1, 2)


class Shared(Attention):
    """Multi-query attention: one head of keys and values for all queries."""

    def __init__(self):
        super().__init__()
        self.key, self.value = nn.Linear(WIDTH, SIZE), nn.Linear(WIDTH, SIZE)


@functools.cache
def traced(build):
    torch.manual_seed(0)
    module = build().eval()
    for layer in (module.query, module.key):  # so that attention attends
        layer.weight.data *= 4
    return trace(module, torch.zeros(1, 6, WIDTH), name="attention")


def inputs(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 6, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("product", ["plain", "fused", "masked"])
def test_heads_tie_queries_keys_values_and_the_layer_behind(product):
    (group,) = traced(functools.partial(Attention, product)).source.groups
    assert (group.name, group.channels, group.kind) == ("query", HEADS, "inner")
    assert set(group.axes) == {
        *(ChannelAxis(module=name, side="out", repeat=SIZE) for name in ("query", "key", "value")),
        ChannelAxis(module="proj", side="in", repeat=SIZE),
    }


@pytest.mark.parametrize("split", ["fixed", "sized"])
def test_a_number_of_heads_that_the_module_counts_on_is_refused(split):
    source = traced(functools.partial(Attention, split=split)).source
    assert source.groups == ()
    assert [line for line in source.refused if line.startswith("query: `forward` fixes the number of heads")]


def test_heads_that_share_keys_and_values_stay():
    assert traced(Shared).source.groups == ()


def test_heads_go_from_the_module_and_from_the_graph_alike():
    import onnxruntime

    network = traced(functools.partial(Attention, "fused"))
    smaller = slice_module(network.module, network.source, {"query": np.array([2])})
    silent = copy.deepcopy(network.module)
    with torch.no_grad():
        silent.proj.weight[:, : 2 * SIZE] = 0
        expected = silent(torch.from_numpy(inputs(3))).numpy()
        found = smaller(torch.from_numpy(inputs(3))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    graph = network.template.bind(folded_parameters(smaller, {})).SerializeToString()
    (built,) = onnxruntime.InferenceSession(graph).run(None, {"input": inputs(3)})
    np.testing.assert_allclose(built, expected, atol=1e-6)


def test_a_head_that_nothing_reads_goes_first():
    torch.manual_seed(0)
    module = Attention().eval()
    with torch.no_grad():
        module.proj.weight[:, SIZE : 2 * SIZE] *= 1e-3
    network = trace(module, torch.zeros(1, 6, WIDTH), name="attention")
    reconstructor = Reconstructor(network, inputs(64))
    assert reconstructor.select({"query": 2})["query"].tolist() == [0, 2]


def test_a_head_counts_as_the_channels_it_has():
    source = traced(Attention).source
    target = load_target("ort-cpu")
    widths = [
        build_space(source, target, SpaceConfig(granularity=granularity, min_keep=0.1), ()).widths.get("query")
        for granularity in (1, SIZE, 2 * SIZE, 3 * SIZE)
    ]
    assert widths == [(1, 2, 3), (1, 2, 3), (2, 3), None]
