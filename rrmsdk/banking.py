"""Write the feature bank of a recipe ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrmsdk import teachers
from rrmsdk.opening import device_here, needs_torch
from rrmsdk.schema import value
from rrmsdk.schema.bank import BankInfo
from rrmsdk.schema.recipe import BankSpec, Recipe


def bank(recipe: str | Path | Recipe | Mapping[str, Any], *, quiet: bool = False) -> BankInfo:
    """The feature bank that `train` with this recipe and its `train.bank` reads; what is there already is checked.

    Args:
        recipe: a TOML file, a Recipe, or its fields. Without `train.bank`: the bank that its defaults ask for.

    Raises:
        As `transfer`; and as `rrmsdk.training.bank.write`.
    """
    needs_torch("bank")
    from rrmsdk import data, methods
    from rrmsdk.models.pair import Pair
    from rrmsdk.training import bank as banks
    from rrmsdk.training import folder, prepare

    read = value.read(Recipe, Path(recipe)) if isinstance(recipe, str | Path) else value.parse(Recipe, recipe, "recipe")
    spec = read.train if read.train.bank else read.train.model_copy(update={"bank": BankSpec()})
    method = methods.parse(read.method)
    images = data.load(read.data)
    networks = teachers.networks(teachers.fetch(read.teachers), images.info, method)
    pair = Pair(folder.student(read, images.info, networks), networks)  # targets do not depend on the student
    training = prepare(pair, method, images.train.to(device_here()), read.threat, spec, seed=read.seed)
    return banks.write(training, quiet=quiet)[1]
