"""Are the gradients masked? Attacks that should not find more than others, compared image by image.

Athalye, Carlini, Wagner, Obfuscated gradients give a false sense of security, 2018 (arXiv:1802.00420), section 3.1;
Carlini et al., On evaluating adversarial robustness, 2019 (arXiv:1902.06705).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor, nn, tensor

from rrmsdk.attacks.autoattack import climb, search
from rrmsdk.attacks.restarts import pgd_attack
from rrmsdk.attacks.sanity import noise_attack, one_step_attack
from rrmsdk.attacks.searching import Attack
from rrmsdk.data import Split
from rrmsdk.schema.diagnosis import Comparison
from rrmsdk.schema.report import BROKEN_BY, ROBUST, UNJUDGED, Report, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.attacking import run

# Adversarially trained networks lose 2 to 4 points from the cross-entropy to a scale-free loss, and less than 1 from 10
# steps to 100; an attack that knows less finds nothing more, but for AutoAttack's own allowance. Our choice.
USUAL, NOTHING = 0.05, 0.002
CLIMB = 50  # steps of AutoPGD
QUERIES = 1000  # of Square: a fifth of AutoAttack's, enough to show that the gradients point nowhere

Progress = Callable[[str, int, int], None]

LOSS = "the cross-entropy shows an attacker less than a loss that does not depend on the size of the logits"
BOUNDARY = "the nearest boundary is found without the cross-entropy, and closer"
BLACK_BOX = "an attack without gradients finds more than one with them"
STEPS = "few steps are far from enough, so accuracy under a short attack says little"
ONE_STEP = "one step finds more than many: the gradient leads astray"
NOISE = "random points find more than the gradient"


def compared(
    first: str, second: str, broken_1: Bool[Tensor, " N"], broken_2: Bool[Tensor, " N"], margin: float, says: str
) -> Comparison:
    """Two attacks on the same images.

    Of the b + c images on which they disagree, b fell to the second alone. The Wilson interval of b / (b + c), put into
    gap = (b - c) / n, leaves out 0 exactly where McNemar's test (1947, without continuity correction) rejects at 5 %.

    Args:
        broken_1, broken_2: also true for an image that is wrong without an attack.
    """
    n, b, c = len(broken_1), int((broken_2 & ~broken_1).sum()), int((broken_1 & ~broken_2).sum())
    low, high = ((2 * end - 1) * (b + c) / n for end in wilson(b, b + c))
    return Comparison(
        first=first, second=second, images=n, only_first=c, only_second=b, gap=(b - c) / n, interval=(low, high),
        first_robust=1 - int(broken_1.sum()) / n, second_robust=1 - int(broken_2.sum()) / n, margin=margin, says=says,
    )  # fmt: skip


def masking(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    classes: int,
    report: Report | None = None,
    queries: int = QUERIES,
    seed: int = 0,
    batch: int = 256,
    progress: Progress | None = None,
) -> tuple[Comparison, ...]:
    """Every pair of attacks that says something of the gradients.

    Args:
        model: being judged (see `judging`).
        split: on the CPU.
        report: of this model, where it can be used (see `tells`); then only the short attacks are run.
    """

    def broken(attack: Attack) -> Bool[Tensor, " N"]:
        outcomes = run(model, split, threat, (attack,), batch, progress).outcomes
        return tensor([outcome != ROBUST for outcome in outcomes])

    few, many = (broken(pgd_attack(model, threat, steps=steps, seed=seed)) for steps in (10, 100))
    found = [
        compared("pgd-10", "pgd-100", few, many, USUAL, STEPS),
        compared("pgd-100", "fgsm", many, broken(one_step_attack(model, threat)), NOTHING, ONE_STEP),
        compared("pgd-100", "noise", many, broken(noise_attack(model, threat, seed=seed)), NOTHING, NOISE),
    ]
    if report is not None:
        return (*from_report(report), *found)
    ce = broken(climb(threat, steps=CLIMB, seed=seed))
    square = broken(search(threat, queries=queries, rescale=True, seed=seed))
    longer = [compared("apgd-ce", "square", ce, square, NOTHING, BLACK_BOX)]
    if classes >= 3:  # DLR divides by the distance of the third-highest logit
        dlr = broken(climb(threat, "dlr", steps=CLIMB, seed=seed))
        longer.insert(0, compared("apgd-ce", "apgd-dlr", ce, dlr, USUAL, LOSS))
    return (*longer, *found)


def tells(report: Report) -> bool:
    """Whether a report compares the cross-entropy with anything: it begins with it and went on to Square."""
    names = [result.name for result in report.attacks]
    return names[:1] == ["apgd-ce"] and "square" in names


def from_report(report: Report) -> tuple[Comparison, ...]:
    """What a report's own sequence of attacks says.

    Each attack saw only what those before it left, so how many of the earlier finds it would have missed is not known:
    `only_first` is 0, and the gap is that from the cross-entropy to both together.
    """
    rows = {"apgd-t": (USUAL, LOSS), "apgd-dlr": (USUAL, LOSS), "fab-t": (USUAL, BOUNDARY),
            "square": (NOTHING, BLACK_BOX)}  # fmt: skip
    judged = report.outcomes.replace(UNJUDGED, "")
    first = tensor([outcome not in (ROBUST, *BROKEN_BY[1:]) for outcome in judged])
    found = []
    for letter, result in zip(BROKEN_BY, report.attacks, strict=False):
        if result.name in rows and result.attacked:
            both = first | tensor([outcome == letter for outcome in judged])
            found.append(compared("apgd-ce", result.name, first, both, *rows[result.name]))
    return tuple(found)
