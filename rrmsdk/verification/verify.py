"""A model, its images and a threat: what an attacker gets out of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.searching import Attack
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.errors import DataError, SaveError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import CLEAN_WRONG, ROBUST, UNJUDGED, Check, Report, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.verdict import Verdict
from rrmsdk.verification import anytime, checks, paired, provenance, saved
from rrmsdk.verification.adapting import adapted, after_square
from rrmsdk.verification.attacking import Found, Progress, Standing, Tally, attack_all, found, stand
from rrmsdk.verification.blackbox import BlackBox
from rrmsdk.verification.journal import ANSWERS, Journal
from rrmsdk.verification.judge import excess, judging, logits_of, right, slack
from rrmsdk.verification.sequences import Chosen, chosen

_ASKED, _SHOWN = 2, 5  # images whose logits are in a journal's key, and of how many classes
_LOOK = 32  # images between two looks at the verdict on a CPU; on a GPU a batch


class Share(NamedTuple):
    """This process's part of the images, where several judge them together over one journal.

    wait: comes back once all of them have called it.
    """

    number: int = 0
    of: int = 1
    wait: Callable[[], None] = lambda: None


def verify(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    spec: VerifySpec,
    *,
    info: DataInfo,
    weights_sha256: str,
    split_name: str = "test",
    save_adversarial: Path | None = None,
    journal: Path | None = None,
    against: Report | None = None,
    share: Share = Share(),  # noqa: B008  (a frozen value)
    replay: Attack | None = None,
    progress: Progress | None = None,
) -> Report:
    """Attack `model` on the first images of the split (all, where it has fewer), and say what was found.

    An image is robust if no attack of the sequence broke it. Everything is judged in fp32 and eval mode; the model, its
    gradients and torch's random generators are left as they were.

    Args:
        model: takes pixels in [0, 1]; runs where its weights are.
        save_adversarial: a .safetensors file; `reevaluate` gives exactly `report.robust` from it.
        journal: a folder where what is found is kept as it is found; a judgement that was interrupted goes on from it.
        against: of another model: the floor (`at_least`) is then decided by comparing the two image by image (see
            `paired`). None: by this model's outcomes alone.
        share: each process gives the same report.
        replay: an attack that comes first (see `replaying`).
        progress: called as it goes with (attack and robust accuracy so far, steps done, steps in all).

    Raises:
        DataError: images, labels or logits that cannot be used.
        MismatchError: the model does not fit the images, or `against` is of other images or attacks.
        FieldError: settings that belong to another attack.
        IntegrityError: the journal is about something else.
        SaveError: the adversarial images or the journal cannot be written.
    """
    started, in_train_mode = time.perf_counter(), sum(module.training for module in model.modules())
    split = _first(split, spec)
    if save_adversarial is not None:
        saved.room_for(save_adversarial, 4 * split.pixels.numel())
    with judging(model, spec.seed):
        classes = checks.classes_of(model, to_unit(split.pixels[:2]).to(device_of(model)), info)
        checks.usable(split.pixels, split.labels, classes)
        how = chosen(model, threat, spec, classes, device_of(model), replay)
        first = checks.first_of(split, model, spec.batch).to(device_of(model))
        looked = checks.before(model, to_unit(first.pixels), first.labels, classes, in_train_mode, threat)
        how = adapted(model, first, threat, spec, how, looked, classes)
        attack = paired.judged_with(how.name, how.engine)
        beside = "" if against is None else paired.outcomes(against, info, split_name, threat, attack, len(split))
        about = {"weights": weights_sha256, "data": info.fingerprint, "split": split_name}
        key = about | answers(model, first, spec.batch, looked) | key_of(threat, spec, how)
        kept = Journal.nowhere() if journal is None else Journal.opened(journal, key)
        standing = stand(model, split, threat, how.attacks, spec.batch, kept, how.passes, how.judged_by, how.search)
        verdict = _judge(standing, how, spec, beside, share, progress)
        if verdict is None:  # else judging has ended with a verdict on the attacks so far
            how = _judge_further(standing, how, spec, share, progress, first, classes)
        what = found(standing, how.attacks)
        looked += _checked_again(standing, what)
    report = Report(
        attack=how.name, engine=how.engine, threat=threat, split=split_name, data=info, weights_sha256=weights_sha256,
        seed=spec.seed, batch=spec.batch, passes=how.judged_by, attacks=what.results, checks=looked,
        **_counted(what.outcomes, verdict),
        versions=provenance.versions() | (model.versions if isinstance(model, BlackBox) else {}),
        hardware=provenance.hardware(device_of(model)), seconds=time.perf_counter() - started,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if save_adversarial is not None and share.number == 0:
        _save(report, what, split, save_adversarial)
    return report


def answers(model: nn.Module, first: Split, batch: int, looked: Sequence[Check]) -> dict[str, str]:
    """What the model says of a few images: two modules may share their weights, or have none.

    Nothing of one that gives other logits each time.
    """
    if not all(check.ok for check in looked if check.name == checks.RANDOM):
        return {}
    z = logits_of(model, to_unit(first.pixels[:_ASKED]), batch)
    return {ANSWERS: " ".join(f"{number:.6g}" for number in z[:, :_SHOWN].flatten().tolist())}


def key_of(threat: ThreatModel, spec: VerifySpec, how: Chosen) -> dict[str, str]:
    """What decides the outcome of an image, beside the model and the image; not the batch, nor where judging stops."""
    strength = "; ".join(f"{attack.name} {attack.settings}" for attack in how.attacks)
    return {"threat": str(threat), "attack": f"{how.name}: {strength}", "engine": how.engine, "seed": str(spec.seed)}


def _first(split: Split, spec: VerifySpec) -> Split:
    """The images to judge, on the CPU."""
    if len(split) == 0:
        raise DataError("there are no images to attack: the split is empty")
    return split.take(spec.images or len(split)).to("cpu")


def _judge(
    standing: Standing, how: Chosen, spec: VerifySpec, beside: str, share: Share, progress: Progress | None
) -> Verdict | None:
    """Judge all images; with a floor, block after block of a random order until it is clear on which side they are."""
    order: list[int] = []
    verdict, enough = None, ("below",) if spec.stop == "below" else ("above", "below")
    for block in _blocks(len(standing.outcomes), spec, device_of(standing.model)):
        _together(standing, how, block, share, progress)
        order += block.tolist()
        if spec.at_least is not None:
            verdict = _verdict(standing.outcomes, order, beside, spec.at_least, spec.confidence)
            if verdict.decided in enough:
                return verdict
    return verdict if spec.stop == "either" else None


def _verdict(outcomes: Sequence[str], order: Sequence[int], beside: str, floor: float, confidence: float) -> Verdict:
    """What the images of `order`, all of them judged, say of the floor."""
    n, of, hits = len(order), len(outcomes), sum(outcomes[at] == ROBUST for at in order)
    if not beside:
        said = anytime.verdict(n, hits, of, floor, confidence)
        return anytime.summary(n, hits, of, floor, confidence, said)
    differences = [(outcomes[at] == ROBUST) - (beside[at] == ROBUST) for at in order]
    said = paired.verdict(differences, of, beside.count(ROBUST), floor, confidence)
    return anytime.summary(n, hits, of, floor, confidence, said, hits - sum(differences))


def _judge_further(
    standing: Standing, how: Chosen, spec: VerifySpec, share: Share, progress: Progress | None, first: Split,
    classes: int,
) -> Chosen:  # fmt: skip
    """What is still robust once more, if Square found what gradients did not show."""
    square = checks.only_square(found(standing, how.attacks).results, len(standing.outcomes))
    more = after_square(standing.model, first, standing.threat, spec, how, square, classes)
    if more is not how:
        standing.tallies += [Tally() for _ in more.attacks[len(how.attacks) :]]
        _together(standing, more, torch.arange(len(standing.outcomes)), share, progress, len(how.attacks))
    return more


def _together(
    standing: Standing, how: Chosen, block: Int64[Tensor, " n"], share: Share, progress: Progress | None,
    since: int = 0,
) -> None:  # fmt: skip
    """A block of images, this process's part and those of the others; attacks from number `since` on."""
    attack_all(standing, how.attacks, block[share.number :: share.of], progress, since)
    if share.of > 1:
        _from_others(standing, how, block, share, since)


def _blocks(of: int, spec: VerifySpec, device: torch.device) -> Iterator[Int64[Tensor, " n"]]:
    if spec.at_least is None:
        yield torch.arange(of)
    else:
        order = draws.permutation(spec.seed, 0, of, draws.JUDGED)
        yield from order.split(min(spec.batch, _LOOK) if device.type == "cpu" else spec.batch)


def _from_others(standing: Standing, how: Chosen, block: Int64[Tensor, " n"], share: Share, since: int) -> None:
    """What the other processes found about their part of a block; what one of them left out is done here."""
    share.wait()
    standing.journal.read()
    others = torch.ones(len(block), dtype=torch.bool)
    others[share.number :: share.of] = False
    attack_all(standing, how.attacks, block[others], first=since)


def _checked_again(standing: Standing, what: Found) -> tuple[Check, ...]:
    """Count everything once more, from the images that go into the file."""
    split, threat = standing.split, standing.threat
    again = right(
        standing.model, what.pixels, split.labels, standing.batch, passes=standing.judged_by
    ).tolist()  # fmt: skip
    drift = sum(
        (outcome == ROBUST) != hit for outcome, hit in zip(what.outcomes, again, strict=True) if outcome != UNJUDGED
    )
    farthest = excess(what.pixels, to_unit(split.pixels), threat).max().item()
    judged = len(what.outcomes) - what.outcomes.count(UNJUDGED)
    return checks.after(what.results, judged, farthest, slack(threat), drift)


def _counted(outcomes: str, verdict: Verdict | None) -> dict[str, Any]:
    wrong, robust = outcomes.count(CLEAN_WRONG), outcomes.count(ROBUST)
    of = len(outcomes) - outcomes.count(UNJUDGED)
    # Wilson's interval is for a number of images that was fixed before, as all of them is.
    interval = wilson(robust, of) if verdict is None or of == len(outcomes) else verdict.interval
    return {
        "outcomes": outcomes, "images": of, "clean": (of - wrong) / of, "robust": robust / of, "interval": interval,
        "verdict": verdict,
    }  # fmt: skip


def _save(report: Report, what: Found, split: Split, path: Path) -> None:
    judged = torch.tensor([at for at, outcome in enumerate(what.outcomes) if outcome != UNJUDGED])
    kept = saved.Adversarial(
        what.pixels[judged], split.labels[judged], split.ids[judged], what.outcomes.replace(UNJUDGED, ""),
        saved.facts_of(report),
    )  # fmt: skip
    try:
        saved.write(kept, path)
    except SaveError as exc:
        exc.add_note(f"What was found is not lost: {report.summary()}")
        raise
