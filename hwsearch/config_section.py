"""What all sections of a study file share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in a study file: its keys are checked, and it does not change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
