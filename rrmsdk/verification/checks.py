"""What must be so before anything is attacked (errors), and what makes the number mean less (checks, as data)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.gradients import MOST, can_be_followed
from rrmsdk.data import Split
from rrmsdk.errors import DataError, MismatchError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import AttackResult, Check
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.blackbox import BlackBox

RANDOM = "randomised outputs"  # a check
LOOKED_AT = 32  # images, however large a batch is
_SAME = 1e-4  # largest relative difference of two forward passes that counts as rounding
_BLIND = ("replay", "noise", "square")  # attacks that follow no gradient
_SQUARE = 0.002  # AutoAttack's own threshold for a black-box attack that finds more than the white-box ones


def first_of(split: Split, model: nn.Module, batch: int) -> Split:
    """The images that are looked at before an attack.

    What is found on them decides which adaptive attacks come, and no outcome is to depend on the batch. A black box
    meets none of those, and may refuse more than a batch.
    """
    return split.take(min(LOOKED_AT, batch) if isinstance(model, BlackBox) else LOOKED_AT)


def usable(pixels: Tensor, labels: Tensor, classes: int) -> None:
    """Raises DataError: no images, pixels outside [0, 1] or not finite, labels that are no class of the model."""
    if len(labels) == 0:
        raise DataError("there are no images to attack: the split is empty")
    if pixels.dtype != torch.uint8:
        low, high = pixels.min().item(), pixels.max().item()
        if not pixels.isfinite().all():
            raise DataError("pixels are not finite: there is NaN or infinity among them")
        if low < 0 or high > 1:
            raise DataError(f"pixels lie in [{low:g}, {high:g}]; they must lie in [0, 1]: normalise inside the model")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise DataError(f"labels run from {least} to {most}, but the model has {classes} classes: 0 to {classes - 1}")


def classes_of(model: nn.Module, x: Images, info: DataInfo) -> int:
    """The number of classes, after one look at two images.

    Raises:
        MismatchError: the model refuses the images, gives something else than one row of logits an image, another
            number of classes than the data set, logits without a gradient (unless it is a black box), or is not fp32.
    """
    kinds = {str(p.dtype) for p in model.parameters() if p.is_floating_point()} - {"torch.float32"}
    if kinds:
        raise MismatchError(f"the weights are {', '.join(sorted(kinds))}; judging needs torch.float32: model.float()")
    at, wanted = x[:2].detach().clone().requires_grad_(), (len(x[:2]), len(info.labels))
    try:
        with torch.enable_grad():
            logits = model(at)
    except RuntimeError as exc:
        raise MismatchError(f"the model refuses images of shape {tuple(x.shape[1:])} ('{info.name}'): {exc}") from exc
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != wanted:
        raise MismatchError(
            f"the model gives {shape} for {wanted[0]} images; '{info.name}' has {wanted[1]} classes and needs {wanted}"
        )
    if not logits.requires_grad and not isinstance(model, BlackBox):
        raise MismatchError("the logits carry no gradient to the pixels (torch.no_grad inside the model?)")
    return wanted[1]


def before(
    model: nn.Module, x: Images, y: Int64[Tensor, " B"], classes: int, in_train_mode: int, threat: ThreatModel
) -> tuple[Check, ...]:
    """What a look at one batch of natural images tells. The model is in eval mode by now."""
    at, gradients = x.detach().clone().requires_grad_(), ()
    with torch.enable_grad():
        logits = model(at)
        if not isinstance(model, BlackBox):
            gradients = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), at)
    with torch.no_grad():
        logits, again = logits.detach(), model(x)
    followed = () if isinstance(model, BlackBox) else (can_be_followed(model, x, y, threat),)
    return (
        _train_mode(in_train_mode), _pixels(x), _few_classes(classes), _softmax(logits), _size(logits),
        *map(_zero_gradients, gradients), *map(_shattered, followed), _randomised(logits, again),
    )  # fmt: skip


def after(results: Sequence[AttackResult], images: int, excess: float, slack: float, drift: int) -> tuple[Check, ...]:
    """What the finished attacks tell.

    Args:
        excess: how far the farthest image lies outside the ball.
        drift: images whose outcome changed when all were judged once more at the end.
    """
    found = (
        Check(
            name="inside the ball", ok=excess <= slack, value=excess,
            says=f"no image leaves the ball by more than {slack:g}, by rounding",
        ),
        Check(
            name="re-evaluation", ok=drift == 0, value=drift,
            says="the number of images whose outcome changed when all were judged once more; a model that is not "
            "deterministic brings some, or another one's journal, and robust accuracy is an accident of the moment",
        ),
    )  # fmt: skip
    if all(result.name in _BLIND for result in results):
        return (*found, Check(
            name="white box", ok=False, value=None,
            says="gradients were not available or not used, so this number is a weak upper bound; AutoAttack on the "
            "network itself may be lower",
        ))  # fmt: skip
    square = only_square(results, images)
    return found if square is None else (*found, square)


def only_square(results: Sequence[AttackResult], images: int) -> Check | None:
    """Whether Square found what no gradient showed; None where it had nothing to attack."""
    ran = [result for result in results if result.name == "square" and result.attacked]
    share = sum(result.broken for result in ran) / images
    return Check(
        name="black box beats white box", ok=share <= _SQUARE, value=share,
        says="the share of images that only Square broke; above 0.002 the gradients may be masked",
    ) if ran else None  # fmt: skip


def _train_mode(modules: int) -> Check:
    return Check(
        name="train mode", ok=modules == 0, value=modules,
        says="modules that were in train mode when the model was handed over; it was judged in eval mode and put back",
    )  # fmt: skip


def _pixels(x: Tensor) -> Check:
    return Check(
        name="pixel range", ok=2 / 255 < x.max().item() <= 1, value=x.max().item(),
        says="the brightest pixel; next to 0 when bytes were divided by 255 twice",
    )  # fmt: skip


def _few_classes(classes: int) -> Check:
    return Check(
        name="few classes", ok=classes >= 4, value=classes,
        says="the number of classes; the targeted DLR loss of AutoAttack needs 4",
    )  # fmt: skip


def _softmax(logits: Tensor) -> Check:
    off = (logits.sum(1) - 1).abs().max().item()
    probabilities = off < 1e-4 and logits.min().item() >= 0 and logits.max().item() <= 1 + 1e-5
    return Check(
        name="softmax outputs", ok=not probabilities, value=off,
        says="how far the rows are from summing to 1; outputs that are probabilities hide the gradient: give logits",
    )  # fmt: skip


def _size(logits: Tensor) -> Check:
    return Check(
        name="largest logit", ok=logits.abs().max().item() < 1e3, value=logits.abs().max().item(),
        says="in absolute value, all of them finite; beyond 1000 the softmax saturates and the cross-entropy is flat",
    )  # fmt: skip


def _zero_gradients(grad: Tensor) -> Check:
    flat = grad.flatten(1)
    share = ((flat == 0).all(1) | ~flat.isfinite().all(1)).float().mean().item()
    return Check(
        name="zero gradients", ok=share == 0, value=share,
        says="the share of natural images whose cross-entropy has no gradient, or none that is finite; "
        "attacks by gradient stand still there",
    )  # fmt: skip


def _shattered(share: float) -> Check:
    return Check(
        name="shattered gradients", ok=share >= MOST, value=share,
        says="the share of natural images on which a quarter of eps along the gradient brings at least half of what it "
        "promises; 1.00 for natural and adversarially trained networks; below 0.5 attacks by gradient are led astray",
    )  # fmt: skip


def _randomised(logits: Tensor, again: Tensor) -> Check:
    apart = ((logits - again).abs().max() / logits.abs().max().clamp_min(1e-12)).item()
    return Check(
        name=RANDOM, ok=apart <= _SAME, value=apart,
        says="the largest difference between two forward passes, relative to the largest logit; "
        "a randomised model must be attacked in expectation, and judged by the mean of passes (`passes` of the report)",
    )  # fmt: skip
