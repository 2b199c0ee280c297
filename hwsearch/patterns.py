"""Patterns of zero weights by name: ``dense``, ``2:4`` (two in every four input channels), or a share such as ``0.75``.

A share is of all weights of a layer, wherever they are (unstructured): no runtime on a CPU skips such zeros, but packed
files are smaller for them. Sparse tensor cores skip those of 2:4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

DENSE, TWO_FOUR = "dense", "2:4"


def pattern_name(value: str | float) -> str:
    """The name of a pattern as a study or target file may write it.

    Raises:
        ValueError: it is neither ``2:4`` nor a share between 0 and 1.
    """
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if value != TWO_FOUR and not 0 < share < 1:
        raise ValueError(f"`{value}` is no pattern: expected {TWO_FOUR}, or the share of zeros, e.g. 0.75")
    return TWO_FOUR if value == TWO_FOUR else f"{share:g}"


def share_of_zeros(pattern: str) -> float:
    """How many of a layer's weights are zero, from 0 to 1."""
    if pattern == DENSE:
        return 0.0
    return 0.5 if pattern == TWO_FOUR else float(pattern)


def not_dense(patterns: Mapping[str, str]) -> dict[str, str]:
    """Layer -> pattern, of the layers that are not dense: the form in which candidates hold it."""
    return {layer: pattern for layer, pattern in patterns.items() if pattern != DENSE}


def sparsest_first(pattern: str) -> tuple[float, bool]:
    """Sorting key: most zeros first; of equally many, those with less freedom."""
    return -share_of_zeros(pattern), pattern != TWO_FOUR


def packed_bits(weight_bits: int, pattern: str) -> float:
    """About the bits a weight takes in a packed file: those that are not zero, and the entropy of where they are.

    Deflated int8 weights take a fifth more or less at 50 and 75 % zeros, and a third more at 90 %.
    """
    zeros = share_of_zeros(pattern)
    entropy = -sum(p * math.log2(p) for p in (zeros, 1 - zeros) if p > 0)
    return (1 - zeros) * weight_bits + entropy
