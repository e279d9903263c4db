"""Everything needed to build a network again, and `config.json` of a bundle, which other tools read too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

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


class ConfigFile(ModelConfig):
    """`config.json`: the network, and what the Hub and transformers.js look for in a file of that name.

    id2label, label2id: the names of the classes; None in bundles of before they were written.
    """

    model_type: Literal["rrmsdk"] = "rrmsdk"
    num_labels: int | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(**{name: getattr(self, name) for name in ModelConfig.model_fields})


def config_file(model: ModelConfig, labels: Sequence[str]) -> ConfigFile:
    """What `config.json` says of a network whose classes have these names."""
    return ConfigFile(
        **model.model_dump(), num_labels=model.classes,
        id2label={str(number): label for number, label in enumerate(labels)},
        label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
