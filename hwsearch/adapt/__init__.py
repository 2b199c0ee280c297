"""Follow the scene: adapters that merge away, statistics that are calibrated again, updates that do not forget.

Example:
    >>> model = hs.load_model("hwsearch.zoo.resnet:resnet20")
    >>> adapted = hs.adapt.insert(model)  # computes what `model` computes; only adapters and head are trained
    >>> deployed = hs.adapt.merge(adapted)  # the layers and names of `model`: no cost at inference
    >>> [name for name, _ in deployed.named_modules()] == [name for name, _ in model.named_modules()]
    True
"""

from hwsearch.adapt.files import load_adapter, save_adapter
from hwsearch.adapt.insert import AdapterSpec, base_weights, insert, merge, remove, size, unmerge

__all__ = [
    "AdapterSpec",
    "base_weights",
    "insert",
    "load_adapter",
    "merge",
    "remove",
    "save_adapter",
    "size",
    "unmerge",
]
