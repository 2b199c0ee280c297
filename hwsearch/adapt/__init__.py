"""Follow the scene: adapters that merge away, statistics that are calibrated again, updates that do not forget.

adapted = hs.adapt.insert(model)      # computes what `model` computes; only adapters and head are trained
...                                   # train it on the scene
deployed = hs.adapt.merge(adapted)    # the layers and names of `model`: no cost at inference
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
