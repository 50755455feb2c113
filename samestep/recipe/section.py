"""What all sections of a recipe are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


def conflict(message: str, *keys: str) -> PydanticCustomError:
    """An error between `keys`, named from the section that finds it; load.py points at one that is written."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "keys": keys})


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
