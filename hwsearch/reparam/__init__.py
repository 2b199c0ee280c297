"""Train big, infer small: branches that exist while training and merge into one convolution.

big = hs.reparam.expand(model, "orepa")     # computes what `model` computes
...                                         # train it
small = hs.reparam.merge(big)               # the layers of `model`, better weights
"""

from hwsearch.reparam.expand import expand
from hwsearch.reparam.merge import merge

__all__ = ["expand", "merge"]
