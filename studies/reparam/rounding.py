"""Accuracy with weights rounded to few bits: of all layers, or of one layer at a time; activations stay float."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from hwsearch.model.metric import TOP1
from hwsearch.reparam.guard import health, rounded, sqnr_db

BITS = (8, 6, 5, 4)
SCHEMES = ("tensor", "channel")
OPTIONS = tuple((bits, scheme) for bits in BITS for scheme in SCHEMES)
BATCH = 250


def accuracy(network, split):
    return TOP1(outputs(network, split).numpy(), split.targets)


def outputs(network, split):
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.from_numpy(split.inputs).split(BATCH)])


def all_rounded(network, split):
    """Option -> accuracy with the weights of every layer rounded."""
    found = {}
    for option in OPTIONS:
        parts = [coarse(part, *option) if has_weights(part) else part for part in network]
        found[named(option)] = accuracy(nn.Sequential(*parts), split)
    return found


def one_rounded(network, split):
    """For each layer what the guard says of it, and what becomes of the network with its weights alone rounded."""
    layers = [i for i, part in enumerate(network) if has_weights(part)]
    weak = {(i, option): coarse(network[i], *option) for i in layers for option in OPTIONS}
    answers = {key: [] for key in weak}
    with torch.no_grad():
        for x in torch.from_numpy(split.inputs).split(BATCH):
            for i, part in enumerate(network):
                for option in OPTIONS if i in layers else ():
                    answers[i, option].append(network[i + 1 :](weak[i, option](x)))
                x = part(x)  # noqa: PLW2901 - what the next part reads
    expected = outputs(network, split)
    joined = {key: torch.cat(found) for key, found in answers.items()}
    return [
        {
            "layer": str(i),
            **guarded(network[i]),
            "accuracy": {named(o): TOP1(joined[i, o].numpy(), split.targets) for o in OPTIONS},
            "divergence": {named(o): divergence(joined[i, o], expected) for o in OPTIONS},
        }
        for i in layers
    ]


def guarded(layer):
    """The guard's numbers of a layer, known from its weights alone."""
    found, rows = health("", layer.weight.detach().numpy()), matrix(layer)
    return {
        "kurtosis": found.kurtosis,
        "peak": found.peak,
        "channel_ratio": found.channel_ratio,
        "fragile": found.fragile,
        "sqnr_db": {named(o): sqnr_db(rows, o[0], per_channel=o[1] == "channel") for o in OPTIONS},
    }


def divergence(found, expected):
    """Mean Kullback-Leibler divergence of the class probabilities from the expected ones."""
    logs = functional.log_softmax(found, 1), functional.log_softmax(expected, 1)
    return functional.kl_div(*logs, reduction="batchmean", log_target=True).item()


def coarse(layer, bits, scheme):
    """A copy of a layer with weights of so many bits."""
    layer = copy.deepcopy(layer)
    values = torch.from_numpy(rounded(matrix(layer), bits, per_channel=scheme == "channel"))
    layer.weight.data.copy_(values.view_as(layer.weight))
    return layer


def matrix(layer):
    return layer.weight.detach().double().flatten(1).numpy()


def named(option):
    return f"{option[0]} bits per {option[1]}"


def has_weights(part):
    return isinstance(part, nn.Conv2d | nn.Linear)
