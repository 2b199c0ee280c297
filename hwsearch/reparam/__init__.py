"""Train big, infer small: branches that exist while training and merge into one convolution.

Example:
    >>> model = hs.load_model("hwsearch.zoo.resnet:resnet20")
    >>> big = hs.reparam.expand(model, "orepa")  # computes what `model` computes; train it
    >>> small = hs.reparam.merge(big)  # the layers of `model`, with better weights
    >>> [name for name, _ in small.named_children()] == [name for name, _ in model.named_children()]
    True
"""

from hwsearch.reparam.expand import expand
from hwsearch.reparam.merge import merge

__all__ = ["expand", "merge"]
