"""Record: the base class of the manifest's parts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of the manifest: immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
