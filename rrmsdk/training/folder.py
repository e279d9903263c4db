"""A run's folder: one run at a time, one recipe a folder, a bundle when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from rrmsdk import models
from rrmsdk.errors import MismatchError, SaveError
from rrmsdk.hub import Fetched
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card, Pinned
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.recipe import Recipe
from rrmsdk.training import distributed
from rrmsdk.training.epochs import Draft, written
from rrmsdk.training.log import BOARD
from rrmsdk.training.run import BEST, CHECKPOINT, LAST, Trained, made_of, unchanged

LOCK = ".lock"


def student(recipe: Recipe, info: DataInfo, teachers: tuple[Classifier, ...]) -> Classifier:
    """The network of the recipe, its weights a function of the recipe's seed, or those it starts from."""
    spec, width = recipe.student, recipe.student.width
    if width == "teacher":
        width = teachers[0].embedding_width if teachers else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = models.build(
            spec.arch, len(info.labels), info.size, info.channels, width=width, width_mult=spec.width_mult
        )
    if spec.start is not None:
        models.start_from(network, spec.start)
    return network


@contextmanager
def opened(folder: Path, draft: Draft) -> Iterator[Bundle | None]:
    """Hold the folder for one run; gives its bundle if that run is finished already.

    Rank 0 holds it for all ranks.

    Raises:
        MismatchError: the folder holds a run of another recipe, or a finished one of other images or teachers; what
            differs is shown. Or another rank does not see what rank 0 has written there.
        SaveError: another process is training there, or the folder cannot be written.
    """
    if distributed.here().number:
        yield _opened_by_the_first(folder)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as exc:
        raise SaveError(f"another process is training in {folder}. Wait for it, or choose another folder") from exc
    except OSError as exc:
        raise SaveError(f"cannot write to {folder}: {exc.strerror or exc}") from exc
    with lock:
        kept = folder / bundles.RUN
        if kept.exists() and not _nothing_saved(folder):
            same_recipe(value.read(Recipe, kept), draft.recipe, folder)
        else:
            value.write(draft.recipe, kept)
        finished = bundles.read(folder) if bundles.is_bundle(folder) else None
        if finished is not None:
            unchanged(made_of(finished.card), made_of(draft.card), folder)
        distributed.agreed(finished is not None)
        yield finished


def _nothing_saved(folder: Path) -> bool:
    """The run was refused, killed or diverged before its first checkpoint: another recipe may have the folder."""
    return {path.name for path in folder.iterdir()} <= {LOCK, bundles.RUN, BOARD}


def _opened_by_the_first(folder: Path) -> Bundle | None:
    finished = distributed.agreed(False)
    if not (folder / bundles.RUN).exists():
        raise MismatchError(
            f"rank {distributed.here().number} does not see {folder}, where rank 0 is training. Choose a folder on a "
            "disk that all machines share: --out"
        )
    return bundles.read(folder) if finished else None


def same_recipe(kept: Recipe, asked: Recipe, folder: Path) -> None:
    """Raises MismatchError: they differ in more than how the result is judged."""
    old, new = _flat(kept.model_dump(mode="json")), _flat(asked.model_dump(mode="json"))
    differ = [f"{name} {old.get(name)!r} there, {new.get(name)!r} asked" for name in sorted(old | new)
              if old.get(name) != new.get(name) and not name.startswith("verify.")]  # fmt: skip
    if differ:
        raise MismatchError(f"{folder} holds a run of another recipe ({'; '.join(differ[:5])}). Choose another folder")


def _flat(fields: dict, prefix: str = "") -> dict:
    flat = {}
    for name, entry in fields.items():
        flat |= _flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}": entry}
    return flat


def draft(
    folder: Path, recipe: Recipe, config: ModelConfig, info: DataInfo, taught: Sequence[Fetched], notes: str = ""
) -> Draft:
    """What the cards of this run will say, but for its weights."""
    public = recipe.published()
    teachers = tuple(
        Pinned(ref=ref, revision=fetched.revision, weights_sha256=fetched.bundle.card.files[bundles.WEIGHTS])
        for ref, fetched in zip(public.teachers, taught, strict=True)
    )
    card = Card(
        name=recipe.name or folder.name, model=config, data=info, threat=recipe.threat, method=recipe.method,
        teachers=teachers, weights=recipe.train.keep, licence=recipe.licence, notes=f"{recipe.notes} {notes}".strip(),
        rrmsdk_version=version("rrmsdk"), date="",
    )  # fmt: skip
    return Draft(recipe, card)


def bundle(folder: Path, draft: Draft, trained: Trained) -> Bundle:
    """Make the folder a bundle of the weights to serve. The checkpoint goes last, when all is there."""
    kept = draft.recipe.train.keep
    network = models.load(draft.card.model, folder / (BEST if kept == "best" else LAST))
    says = " ".join(
        f"{name}: step {v.step}, validation clean {v.clean:.4f}, PGD-10 {v.robust:.4f}."
        for name, v in (("last", trained.last), ("best", trained.best))
    )
    sealed = written(folder, network, draft, kept, says)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return sealed
