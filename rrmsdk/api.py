"""The verbs. Each is a straight list of what happens; torch is imported inside, so that `import rrmsdk` stays cheap."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import launching, teachers, verifying
from rrmsdk.errors import MismatchError, MissingExtraError, RefError, SaveError, did_you_mean
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import Recipe, StudentSpec, TrainSpec, VerifySpec
from rrmsdk.schema.ref import Ref, without_place
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from rrmsdk.hub import Listed
    from rrmsdk.methods import Method
    from rrmsdk.models import Classifier

Fields = Mapping[str, Any]


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
    _needs_torch("transfer")
    from rrmsdk import methods

    refs = (teacher,) if isinstance(teacher, str) else tuple(teacher)
    first = teachers.fetch(refs[:1])[0].bundle.card
    arch: Fields | StudentSpec = {"arch": student, "width": "teacher"} if isinstance(student, str) else student
    how = method if isinstance(method, methods.Method) else methods.parse(dict(_fields(method, "name")))
    fields = {
        "teacher": refs[0] if len(refs) == 1 else refs, "student": _as(StudentSpec, arch, "arch"),
        "data": _as(DataSpec, data, "name"),
        "threat": first.threat if threat is None else _threat(threat),
        "method": _described(how), "train": _as(TrainSpec, train or {}, "epochs"),
        "verify": _as(VerifySpec, verify or {}, "attack"), "seed": seed,
    }  # fmt: skip
    recipe = value.parse(Recipe, fields, "recipe")
    folder = Path(out) if out else Path("runs") / _name(recipe)
    return _run(recipe, folder, how, attack=verify is not None, devices=devices, quiet=quiet)


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
    _needs_torch("train")
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


def export(
    model: str | Path | Bundle,
    *,
    onnx: bool = True,
    data: str | DataSpec | Fields | None = None,
    out: str | Path | None = None,
) -> Bundle:
    """Write `onnx/model.onnx` into a bundle, after it agreed with the network on clean and on attacked images.

    Args:
        model, out: as in `verify`.

    Raises:
        ParityError: the graph and the network disagree; the bundle is as it was.
        ExportError, MissingExtraError
    """
    _needs_torch("export")
    import torch.nn.functional as F

    from rrmsdk import data as rooms
    from rrmsdk import models
    from rrmsdk.attacks.pgd import pgd
    from rrmsdk.exports import export_onnx

    if not onnx:
        raise MismatchError("nothing to export: onnx=True is the one format so far")
    bundle = _own(model, out)
    images = _images(_data_of(bundle, data), bundle)
    network = models.from_bundle(bundle).eval()
    golden = images.test.take(min(GOLDEN, len(images.test)))
    clean, labels = rooms.to_unit(golden.pixels), golden.labels
    attacked = pgd(lambda x: F.cross_entropy(network(x), labels, reduction="sum"), clean, bundle.card.threat, steps=10)
    return export_onnx(bundle, network, clean, attacked)


GOLDEN = 71  # images of the parity check: one batch of 64, one of 7


def push(model: str | Path | Bundle, repo: str, **settings: Any) -> str:
    """Put a bundle on the Hub in one commit; gives back the commit's URL. See `rrmsdk.hub.push`."""
    from rrmsdk import hub

    return hub.push(_open(model), repo, **settings)


def pull(ref: str, out: str | Path | None = None, **settings: Any) -> Bundle:
    """Bring a bundle here, hashes checked, and its signature where RRMSDK_TRUST asks for one; `out` copies it into a
    folder of yours.
    """
    from rrmsdk import hub
    from rrmsdk.runtime import signature

    found = hub.fetch(_model_ref(ref), **settings)
    if out is None:
        return found.bundle
    copy = _copied(found.bundle, Path(out))
    if found.revision is not None:  # a copy that lay there already may be another's
        signature.required(copy.path)
    return copy


def load(ref: str | Path | Bundle) -> Classifier:
    """The network of a bundle: an nn.Module in eval mode that takes pixels in [0, 1]."""
    _needs_torch("load")
    from rrmsdk import models

    return models.from_bundle(_open(ref)).eval()


def zoo(*, online: bool = False) -> tuple[Listed, ...]:
    """What can be pulled: embedded bundles, those in the cache and, `online`, those of the organisation on the Hub."""
    from rrmsdk import hub

    return hub.listing(online=online)


def _run(recipe: Recipe, folder: Path, method: Method, *, attack: bool, devices: int, quiet: bool) -> Bundle:
    """Train, then attack; both are done by the first of several ranks, and an attack that was made already is kept."""
    bundle = launching.trained(recipe, folder, method, title=_name(recipe), devices=devices, quiet=quiet)
    if not attack or not launching.first() or (bundle.path / bundles.REPORT).exists():
        return bundle
    return verifying.run(verifying.job(bundle, recipe.data, recipe.verify, quiet=quiet), devices, alone=True)


def _open(model: str | Path | Bundle) -> Bundle:
    from rrmsdk import hub

    if isinstance(model, Bundle):
        return bundles.read(model.path)
    if isinstance(model, Path) or bundles.is_bundle(Path(model)):
        return bundles.read(Path(model))
    return hub.fetch(_model_ref(model)).bundle


def _own(model: str | Path | Bundle, out: str | Path | None) -> Bundle:
    """A bundle that may be written to: what lies in the zoo or the Hub's cache is copied first."""
    bundle = _open(model)
    pulled = isinstance(model, str) and model.startswith("hub:")
    return _copied(bundle, Path(out) if out else Path("runs") / bundle.card.name) if pulled or out else bundle


def _copied(bundle: Bundle, folder: Path) -> Bundle:
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
        raise SaveError(f"could not copy {bundle.card.name} to {folder}: {exc.strerror}") from exc
    return bundles.read(folder)


def _model_ref(text: str) -> Ref:
    ref = Ref.parse(text)
    if ref.kind == "arch":
        from rrmsdk import hub

        hint = did_you_mean(text, [f"hub:{name}" for name in hub.embedded.names()])
        raise RefError(f"'{text}' is an architecture, not a trained model.{hint} A folder is path:{text}")
    return ref


def _data_of(bundle: Bundle, data: str | DataSpec | Fields | None) -> DataSpec:
    """What was asked for, else what the run says, else the recipe (which names a folder, but not its place)."""
    if data is not None:
        return _as(DataSpec, data, "name")
    for recipe in (bundle.path / bundles.RUN, bundle.path / bundles.RECIPE):
        if recipe.is_file():
            return value.read(Recipe, recipe).data
    return DataSpec(name=bundle.card.data.name)


def _images(spec: DataSpec, fits: Bundle | None):
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


def _as(kind: type[Any], given: Any, key: str) -> Any:
    """A value, its fields, or the one field that names it, as a value."""
    return given if isinstance(given, kind) else value.parse(kind, dict(_fields(given, key)), kind.__name__)


def _fields(given: Any, key: str) -> Fields:
    return {key: given} if isinstance(given, str) else given


def _threat(threat: str | ThreatModel) -> ThreatModel:
    return threat if isinstance(threat, ThreatModel) else ThreatModel.parse(threat)


def _described(method: Any) -> dict[str, Any]:
    """The method's fields; a method of the user's own is named by its class, and cannot be read back."""
    if hasattr(method, "model_dump"):
        return method.model_dump(mode="json", exclude_none=True)
    return {"name": f"{type(method).__module__}.{type(method).__qualname__}"}


def _name(recipe: Recipe) -> str:
    data = without_place(recipe.data.name).removeprefix("path:")
    return recipe.name or f"{recipe.student.arch}-{recipe.method['name']}-{data}".replace(":", "-")


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _needs_torch(verb: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError("train", f"rrmsdk.{verb}")
