"""The ``recover`` section of a study file: how pruned networks get their accuracy back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hwsearch.config_section import Count, Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]


class RecoverConfig(Section):
    """What repairs every candidate without training, and how the best ones are trained in the end.

    Attributes:
        repair: Weights refitted by sequential least squares, statistics of batch norms estimated again, or nothing.
        selection: Channels chosen by optimal brain surgery, or by the magnitude of their weights.
        method: Training on the original's outputs beside the labels (``distill``) or on labels alone (``finetune``).
        minutes: Of training for one target, split over the models that are trained.
        top: How many those are.
        qat: Whether training ends with rounding in the network; ``auto``: where rounding alone costs .3 % of the
            accuracy.
        lr: Peak learning rate; None to scale it to the damage, .004 if next to none, .02 from a tenth of the accuracy.
        weight, temperature: Of the original's outputs beside the labels, and what softens them.
        batch, weight_decay, seed: Of the training.
        shift, flip: Random shifts by so many pixels, and mirroring, of images.
    """

    repair: Literal["least_squares", "batch_norm", "none"] = "least_squares"
    selection: Literal["obs", "magnitude"] = "obs"
    method: Literal["none", "distill", "finetune"] = "none"
    minutes: Positive = 10.0
    top: Count = 5
    qat: Literal["auto"] | bool = "auto"
    lr: Positive | None = None
    weight: Share = 0.9
    temperature: Positive = 4.0
    batch: Count = 64
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
