"""What most verbs begin with: the bundle a reference names, a copy that may be written to, its images, a device."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rrmsdk.errors import (
    DataError,
    FieldError,
    MismatchError,
    MissingExtraError,
    RefError,
    SaveError,
    did_you_mean,
)
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from rrmsdk.data import Dataset, Split

Fields = Mapping[str, Any]
P = ParamSpec("P")
R = TypeVar("R")
_KINDS: dict[str, type] = {"str": str, "Path": os.PathLike, "float": Real, "Fields": Mapping, "None": type(None)}


def typed(verb: Callable[P, R]) -> Callable[P, R]:
    """`verb`, which raises FieldError before it begins where a text, a path or a number is wanted and not given.

    Looked at are arguments annotated with these alone. The rest is the verb's own to refuse: it knows how few images
    are too few, or what a data set may be given as.
    """
    annotations = {name: str(one.annotation).split(" | ") for name, one in signature(verb).parameters.items()}
    names = tuple(annotations)
    plain = {name: kinds for name, kinds in annotations.items() if set(kinds) <= _KINDS.keys()}

    @wraps(verb)
    def begun(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, given in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            kinds = plain.get(name)
            if kinds is not None and not isinstance(given, tuple(_KINDS[kind] for kind in kinds)):
                raise FieldError(f"{name} = {value.short(given)}: give {_listed(kinds)}")
        return verb(*args, **kwargs)

    return begun


def _listed(kinds: list[str]) -> str:
    """As in `a str, a Path or None`."""
    words = [{"None": "None", "Fields": "fields (a dict)"}.get(kind, f"a {kind}") for kind in kinds]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def opened(model: str | Path | Bundle) -> Bundle:
    """The bundle that `model` is, or names."""
    if isinstance(model, Bundle):
        return bundles.read(model.path)
    if not isinstance(model, str | Path):
        raise RefError(f"{model!r} is no model: give a folder, path:DIR, hub:NAME or a Bundle")
    if isinstance(model, Path) or Path(model).is_dir():
        return bundles.read(Path(model))
    if Path(model).is_file():
        raise RefError(f"'{model}' is a file, and a bundle is a folder. Name the one that holds its card.json")
    if ":" not in model and "/" in model:
        named = re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", model) and not model.startswith(".")
        raise RefError(f"there is no folder {model}." + (f" A repository on the Hub is hub:{model}" if named else ""))
    from rrmsdk import converting  # the Hub's client is slow to import, and `import rrmsdk` comes by here

    return converting.fetch(model_ref(model)).bundle


def owned(model: str | Path | Bundle, out: str | Path | None) -> Bundle:
    """A bundle that may be written to: what lies in the zoo or the Hub's cache is copied first."""
    bundle = opened(model)
    pulled = isinstance(model, str) and model.startswith("hub:")
    return copied(bundle, Path(out) if out else Path("runs") / bundle.card.name) if pulled or out else bundle


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """`bundle` in `folder`; a copy of the same weights that is there already is kept.

    Raises:
        MismatchError: something else lies there.
    """
    if folder.exists():
        there = bundles.read(folder) if bundles.is_bundle(folder) else None
        if there is None or there.card.files[bundles.WEIGHTS] != bundle.card.files[bundles.WEIGHTS]:
            raise MismatchError(f"{folder} exists already and is not {bundle.card.name}. Choose another folder")
        return there
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        # A copy on this machine keeps what says where its images lie here.
        beyond = [name for name in (bundles.RUN, bundles.SIGNATURE) if (bundle.path / name).is_file()]
        for name in (*bundle.card.files, bundles.CARD, *beyond):
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, beside / name)
        beside.replace(folder)
    except OSError as exc:
        shutil.rmtree(beside, ignore_errors=True)
        raise SaveError(f"could not copy {bundle.card.name} to {folder}: {exc.strerror or exc}") from exc
    return bundles.read(folder)


def model_ref(text: str) -> Ref:
    """A reference to a trained model. Raises RefError: an architecture."""
    ref = Ref.parse(text)
    if ref.kind == "arch":
        from rrmsdk import hub

        hint = did_you_mean(text, [f"hub:{name}" for name in hub.index.names()])
        raise RefError(f"'{text}' is an architecture, or a folder that is not there: no trained model.{hint}")
    return ref


def data_of(bundle: Bundle, data: str | DataSpec | Fields | None) -> DataSpec:
    """What was asked for, else what the run says, else the recipe (which names a folder, but not its place)."""
    if data is not None:
        return as_value(DataSpec, data, "name")
    for recipe in (bundle.path / bundles.RUN, bundle.path / bundles.RECIPE):
        if recipe.is_file():
            return value.read(Recipe, recipe).data
    return DataSpec(name=bundle.card.data.name)


def images_of(spec: DataSpec, fits: Bundle | None):
    """The data set, compared with the model that is to see it."""
    from rrmsdk import data as rooms

    images = rooms.load(spec if fits is None else spec.alone())
    if fits is not None:
        card, info = fits.card, images.info
        for what, has, wants in (
            ("classes", len(info.labels), card.model.classes),
            ("input size", info.size, card.model.input_size),
            ("channels", info.channels, card.model.channels),
        ):
            if has != wants:
                raise MismatchError(f"{what}: data set '{info.name}' has {has}, model '{card.name}' has {wants}")
    return images


def split_of(images: Dataset, split: str, count: int) -> Split:
    """The first `count` images of `test` or `validation`, on the CPU; 0: all.

    Raises:
        FieldError: another split.
        DataError: it is empty.
    """
    if split not in ("test", "validation"):
        raise FieldError(f"split = '{split}': type test or validation")
    found: Split = getattr(images, split)
    if len(found) == 0:
        raise DataError(f"the {split} split of '{images.info.name}' is empty; name another, or data.validation = 0.04")
    return found.take(count or len(found)).to("cpu")


def device_here():
    """The GPU, where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def needs_torch(verb: str) -> None:
    """Raises MissingExtraError: a verb needs torch, and it is not installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError("train", f"rrmsdk.{verb}")


def as_value(kind: type[Any], given: Any, key: str) -> Any:
    """A value, its fields, or the one field that names it, as a value."""
    name = kind.__name__
    return given if isinstance(given, kind) else value.parse(kind, dict(fields_of(given, key, name)), name)


def fields_of(given: Any, key: str, what: str) -> Fields:
    """Fields, or the one field that a text stands for. Raises FieldError: neither; `what` says what it was to be."""
    if not isinstance(given, str | Mapping):
        raise FieldError(f"{what} = {given!r}: give a text (its '{key}'), or its fields")
    return {key: given} if isinstance(given, str) else given


def at_least(**given: tuple[Any, int]) -> None:
    """Raises FieldError: of the (number, least) by their names, one is no whole number or below its least."""
    for name, (number, least) in given.items():
        if not isinstance(number, Integral):
            raise FieldError(f"{name} = {number!r}: give a whole number, {least} or more")
        if number < least:
            raise FieldError(f"{name} = {number}: {least} is the least")


def threat_of(threat: str | ThreatModel) -> ThreatModel:
    """A threat, or the one that a text spells."""
    return threat if isinstance(threat, ThreatModel) else ThreatModel.parse(threat)


def merged(fields: Fields, over: Fields) -> dict[str, Any]:
    """`fields` with those of `over` in their place, table by table."""
    both = dict(fields)
    for name, new in over.items():
        old = both.get(name)
        both[name] = merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return both
