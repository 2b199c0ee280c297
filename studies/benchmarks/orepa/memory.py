"""What one training step keeps in memory, counted tensor by tensor."""

from __future__ import annotations

import torch
from torch.nn import functional


def kept_bytes(network, shape):
    """What a step keeps at its peak: tensors saved for the backward pass, weights, gradients and momenta."""
    parameters = list(network.parameters())
    own = {storage_of(tensor) for tensor in [*parameters, *network.buffers()]}
    saved = {}

    def pack(tensor):
        if storage_of(tensor) not in own:
            # The tensor is held as well, so that no later one can take its address.
            saved[storage_of(tensor)] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    device = parameters[0].device
    images, labels = torch.empty(shape, device=device), torch.zeros(shape[:1], dtype=torch.long, device=device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.cross_entropy(network.train()(images), labels)
    return sum(count for count, _ in saved.values()) + 3 * sum(p.numel() * p.element_size() for p in parameters)


def storage_of(tensor):
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - the only name that tensors without data have, too
