"""The section `reparam` of a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hwsearch.config_section import Count, Positive, Section


class ReparamConfig(Section):
    """Training in a form with more branches, which are merged before the search; see `hwsearch.reparam`.

    Attributes:
        kind: Block that convolutions become; ``plain`` trains on without further branches.
        layers: Globs over names of convolutions.
        fresh: Whether blocks start with their own initialisation instead of the network's weights.
        lr: Peak learning rate.
        shift, flip: Random shifts by so many pixels, and mirroring, of images.
        distill: Weight of learning from the network's own outputs as it was before, beside the labels; for a network
            that comes trained.
        temperature: Both networks' outputs are divided by it in that comparison.
        squeeze, prior, branches: Options of the OREPA kinds; `copies` of ``mobileone``; None for the block's own.
        guard: Whether low precision is kept from layers whose merged weights quantise badly.
    """

    kind: Literal["acb", "dbb", "mobileone", "orepa", "plain", "qarepvgg", "repvgg", "repvgg_orepa"]
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    fresh: bool = False
    epochs: Count = 10
    lr: Positive = 0.02
    batch: Count = 64
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    seed: Annotated[int, Field(ge=0)] = 0
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Positive = 4.0
    squeeze: Literal["auto", "always", "never"] | None = None
    prior: Literal["paper", "dct"] | None = None
    branches: tuple[str, ...] | None = None
    copies: Count | None = None
    guard: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the block, those that were given."""
        given = {name: getattr(self, name) for name in ("squeeze", "prior", "branches", "copies")}
        return {name: value for name, value in given.items() if value is not None}
