"""The ``recover`` section of a study file: how pruned networks get their accuracy back."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hwsearch.config_section import Count, Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]


class OnceForAllConfig(Section):
    """One training run before the search, over many candidates that share their weights.

    Attributes:
        minutes: Of training.
        lr: Peak learning rate.
        min_keep: Least share of a group's channels that is trained for.
        drop_branches: Whether candidates with dropped branches are trained for.
    """

    minutes: Positive
    lr: Positive = 0.01
    min_keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    drop_branches: bool = True


class RecoverConfig(Section):
    """What repairs every candidate without training, and how the best ones are trained in the end.

    Attributes:
        repair: Weights refitted by sequential least squares, statistics of batch norms estimated again, or nothing.
        selection: Channels chosen by optimal brain surgery, or by the magnitude of their weights.
        method: Training on the original's outputs beside the labels (``distill``) or on labels alone (``finetune``).
        minutes: Of training for one target, split over the models that are trained.
        top: How many those are.
        models: Keys of models of the run, or how they begin, that are trained before any other.
        accuracy_drop_points: Training goes for the fastest model that loses no more than this on the search split; None
            to go for the whole front within the study's own limit.
        qat: Whether training ends with rounding in the network; ``auto``: where rounding alone costs .3 % of the
            accuracy.
        lr: Peak learning rate; None to scale it to the damage, .004 if next to none, .02 from a tenth of the accuracy.
        weight, temperature: Of the original's outputs beside the labels, and what softens them.
        features: Weight of the original's activations at the ends of residual stages, relative squared distance.
        batch, weight_decay, seed: Of the training.
        shift, flip: Random shifts by so many pixels, and mirroring, of images.
        once_for_all: A training run before the search; None to search with the weights as they are.
    """

    repair: Literal["least_squares", "batch_norm", "none"] = "least_squares"
    selection: Literal["obs", "magnitude"] = "obs"
    method: Literal["none", "distill", "finetune"] = "none"
    minutes: Positive = 10.0
    top: Count = 5
    models: tuple[str, ...] = ()
    accuracy_drop_points: Positive | None = None
    qat: Literal["auto"] | bool = "auto"
    lr: Positive | None = None
    weight: Share = 0.9
    temperature: Positive = 4.0
    features: Annotated[float, Field(ge=0)] = 0.0
    batch: Count = 64
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    once_for_all: OnceForAllConfig | None = None

    @model_validator(mode="after")
    def _taught(self) -> Self:
        if self.features and self.method == "finetune":
            raise ValueError("`features` are the original's, and `finetune` learns from labels alone: use `distill`")
        return self
