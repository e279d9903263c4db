"""The verbs. Each is a straight list of what happens; torch is imported inside, so that `import rrmsdk` stays cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import launching, teachers, verifying
from rrmsdk.opening import (
    as_value,
    copied,
    fields_of,
    model_ref,
    needs_torch,
    opened,
    threat_of,
    typed,
)
from rrmsdk.runtime import signature
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import Recipe, StudentSpec, TrainSpec, VerifySpec
from rrmsdk.schema.ref import without_place
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from rrmsdk.methods import Method
    from rrmsdk.models import Classifier

Fields = Mapping[str, Any]


@typed
def transfer(
    teacher: str | Sequence[str],
    student: str | StudentSpec | Fields,
    data: str | DataSpec | Fields = "cifar10",
    *,
    method: str | Fields | Method = "rrm",
    threat: str | ThreatModel | None = None,
    train: TrainSpec | Fields | None = None,
    verify: str | VerifySpec | Fields | None = "autoattack",
    out: str | Path | None = None,
    seed: int = 0,
    devices: int = 1,
    quiet: bool = False,
) -> Bundle:
    """A student with the robustness of `teacher`, trained on natural images, attacked, in a folder of its own.

    Args:
        teacher: `hub:NAME`, `hub:org/name[@revision]` or `path:DIR[@epoch=N]`; several for a method that takes an
            ensemble. The first one's threat and embedding count.
        student: an architecture (`resnet50`), or `{arch, width, width_mult}`. The default width is RRM's projection to
            the teacher's embedding, where the two differ.
        data: `digits`, `cifar10`, `cifar100` or `path:DIR`.
        method: a name, `{name, ...fields}`, or any object with `loss(pair, batch)`.
        threat: None: the teacher's.
        train: fields of TrainSpec that differ from its defaults (48 epochs of SGD, cosine).
        verify: an attack, or fields of VerifySpec; None: do not attack.
        out: the run's folder; None: `runs/STUDENT-METHOD-DATA`. A run that was interrupted there is continued.
        devices: GPUs of this machine (or processes that share its CPU) to train on. The batch is that of the recipe,
            however many. Under torchrun or another launcher its ranks train together, and this number does not count.

    Raises:
        RefError, FieldError, MismatchError, DataError, HubError, IntegrityError, DivergedError, SaveError, OutOfMemory,
        RankError
    """
    needs_torch("transfer")
    from rrmsdk import methods

    refs = teachers.named(teacher)
    first = teachers.fetch(refs[:1])[0].bundle.card
    arch: Fields | StudentSpec = {"arch": student, "width": "teacher"} if isinstance(student, str) else student
    how = method if isinstance(method, methods.Method) else methods.parse(dict(fields_of(method, "name", "method")))
    fields = {
        "teacher": refs[0] if len(refs) == 1 else refs, "student": as_value(StudentSpec, arch, "arch"),
        "data": as_value(DataSpec, data, "name"),
        "threat": first.threat if threat is None else threat_of(threat),
        "method": _described(how), "train": as_value(TrainSpec, train or {}, "epochs"),
        "verify": as_value(VerifySpec, verify or {}, "attack"), "seed": seed,
    }  # fmt: skip
    recipe = value.parse(Recipe, fields, "recipe")
    folder = Path(out) if out else Path("runs") / _name(recipe)
    return _run(recipe, folder, how, attack=verify is not None, devices=devices, quiet=quiet)


@typed
def train(
    recipe: str | Path | Recipe | Fields, *, out: str | Path | None = None, attack: bool = True, devices: int = 1,
    quiet: bool = False,
) -> Bundle:  # fmt: skip
    """Run a recipe: a teacher (`pgd_at`, `fast_at`), a natural network, or a transfer.

    Args:
        recipe: a TOML file, a Recipe, or its fields.
        out: the run's folder; None: `runs/NAME`.
        attack: whether to judge the result by the recipe's `verify`.
        devices: as in `transfer`.

    Raises:
        As `transfer`.
    """
    needs_torch("train")
    from rrmsdk import methods

    if isinstance(recipe, str | Path):
        named = Path(recipe)
        recipe = value.read(Recipe, named)
        recipe = recipe if recipe.name else recipe.model_copy(update={"name": named.stem})
    recipe = value.parse(Recipe, recipe, "recipe")
    how = methods.parse(recipe.method)
    recipe = recipe.model_copy(update={"method": _described(how)})
    folder = Path(out) if out else Path("runs") / _name(recipe)
    return _run(recipe, folder, how, attack=attack, devices=devices, quiet=quiet)


@typed
def push(model: str | Path | Bundle, repo: str, **settings: Any) -> str:
    """Put a bundle on the Hub in one commit; gives back the commit's URL. See `rrmsdk.hub.push`."""
    from rrmsdk import hub

    return hub.push(opened(model), repo, **settings)


@typed
def pull(ref: str, out: str | Path | None = None, **settings: Any) -> Bundle:
    """Bring a bundle here, its hashes checked, and where RRMSDK_TRUST names keys its signature too.

    Args:
        out: a folder of yours for a copy.
    """
    from rrmsdk import converting

    found = converting.fetch(model_ref(ref), **settings).bundle
    if out is None:
        return found
    copy = copied(found, Path(out))
    if (found.path / bundles.SIGNATURE).is_file():  # a copy that was there already may be one of before the signature
        signature.required(copy.path)
    return copy


def load(ref: str | Path | Bundle) -> Classifier:
    """The network of a bundle: an nn.Module in eval mode that takes pixels in [0, 1]."""
    needs_torch("load")
    from rrmsdk import models

    return models.from_bundle(opened(ref)).eval()


def _run(recipe: Recipe, folder: Path, method: Method, *, attack: bool, devices: int, quiet: bool) -> Bundle:
    """Train, then attack; both are done by the first of several ranks, and an attack that was made already is kept."""
    bundle = launching.trained(recipe, folder, method, title=_name(recipe), devices=devices, quiet=quiet)
    if not attack or not launching.first() or (bundle.path / bundles.REPORT).exists():
        return bundle
    return verifying.run(verifying.job(bundle, recipe.data, recipe.verify, quiet=quiet), devices, alone=True)


def _described(method: Any) -> dict[str, Any]:
    """The method's fields; a method of the user's own is named by its class, and cannot be read back."""
    if hasattr(method, "model_dump"):
        return method.model_dump(mode="json", exclude_none=True)
    return {"name": f"{type(method).__module__}.{type(method).__qualname__}"}


def _name(recipe: Recipe) -> str:
    data = without_place(recipe.data.name).removeprefix("path:")
    return recipe.name or f"{recipe.student.arch}-{recipe.method['name']}-{data}".replace(":", "-")
