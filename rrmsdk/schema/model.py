"""Everything needed to build a network again: what `config.json` of a bundle holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rrmsdk.schema.value import Value

PerChannel = tuple[float, ...]


class ModelConfig(Value):
    """An architecture and its shape. The arguments of `rrmsdk.models.build`.

    width: RRM's projection inside the student (embedding -> width -> classes); None: none.
    width_mult: factor on the channels of every stage.
    input_mean, input_std: the normaliser inside the network, one number a channel.
    """

    arch: str
    classes: Annotated[int, Field(ge=2)]
    input_size: Annotated[int, Field(ge=4, le=2048)]
    channels: Annotated[int, Field(ge=1, le=16)] = 3
    width: Annotated[int, Field(ge=1)] | None = None
    width_mult: Annotated[float, Field(gt=0, le=16)] = 1.0
    input_mean: PerChannel = ()
    input_std: PerChannel = ()

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> ModelConfig:
        for name in ("input_mean", "input_std"):
            given = getattr(self, name)
            if len(given) not in (0, self.channels):
                raise ValueError(f"{name} has {len(given)} numbers for {self.channels} channels")
        if any(std <= 0 for std in self.input_std):
            raise ValueError("input_std must be above 0")
        return self
