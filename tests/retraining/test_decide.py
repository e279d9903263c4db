"""The gate, case by case: what is promoted, what is kept out, why, and what is not compared at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.retraining.decide import audit_due, decide, patches_due
from rrmsdk.schema import value
from rrmsdk.schema.decision import Decision, Judged
from rrmsdk.schema.job import Gate
from rrmsdk.schema.patched import Called, Patched
from rrmsdk.schema.verdict import Verdict

N = 2000
CLASSES = ("cat", "dog", "frog", "ship")
LOOSE = Gate(robust_margin=0.02, clean_margin=0.02)
OLD = "x" * 200 + "." * 900 + "a" * 900  # clean 0.9, robust 0.45; class by turns


def _judged(outcomes: str, name: str = "a", **fields: Any) -> Judged:
    labels = tuple(image % len(CLASSES) for image in range(len(outcomes)))
    given = {"digest": name * 64, "images": "1" * 64, "suite": "autoattack linf:8/255", "outcomes": outcomes}
    return Judged(**{**given, "labels": labels, "classes": CLASSES, **fields})


def _with(outcomes: str, old: str, new: str, many: int, label: int | None = None) -> str:
    """`outcomes` with the first `many` images (of a class) that are `old` made `new`."""
    found = list(outcomes)
    places = [at for at, one in enumerate(found) if one == old and label in (None, at % len(CLASSES))]
    assert len(places) >= many
    for at in places[:many]:
        found[at] = new
    return "".join(found)


def _failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.failed]


CHAMPION = _judged(OLD)
TABLE = [
    ("the same bits", OLD, LOOSE, "promote", []),
    ("the same bits, and better was asked for", OLD, Gate(robust_margin=0, clean_margin=0), "keep",
     ["robust_margin", "clean_margin"]),
    ("the same bits, with somebody to ask", OLD, Gate(**LOOSE.model_dump() | {"approval": True}), "approve", []),
    ("more robust", _with(OLD, "a", ".", 100), LOOSE, "promote", []),
    ("more robust, where better was asked for", _with(OLD, "a", ".", 100), Gate(robust_margin=0), "promote", []),
    ("less robust, within the margin", _with(OLD, ".", "a", 10), LOOSE, "promote", []),
    ("less robust, within the margin by the count but not surely", _with(OLD, ".", "a", 30), LOOSE, "keep",
     ["robust_margin"]),
    ("less robust", _with(OLD, ".", "a", 100), LOOSE, "keep", ["robust_margin"]),
    ("less clean alone", _with(OLD, "a", "x", 100), LOOSE, "keep", ["clean_margin"]),
    ("less of both", _with(OLD, ".", "x", 100), LOOSE, "keep", ["robust_margin", "clean_margin"]),
    ("nothing is right", "x" * N, LOOSE, "keep", ["robust_margin", "clean_margin"]),
    ("as many, but others", OLD[:200] + "a" * 900 + "." * 900, LOOSE, "keep", ["robust_margin"]),
    ("robust floor kept", OLD, Gate(robust_margin=0.02, robust_floor=0.43), "promote", []),
    ("robust floor under the count, not surely", OLD, Gate(robust_margin=0.02, robust_floor=0.449), "keep",
     ["robust_floor"]),
    ("clean floor", OLD, Gate(robust_margin=0.02, clean_floor=0.95), "keep", ["clean_floor"]),
    ("better than the champion, below a floor all the same", _with(OLD, "a", ".", 100), Gate(robust_floor=0.6), "keep",
     ["robust_floor"]),
    ("one class collapses, the others make up for it",
     _with(_with(OLD, ".", "a", 225, 1), "a", ".", 225, 2), Gate(robust_margin=0.05, class_floor=0.3), "keep",
     ["class_floor"]),
    ("the same without a floor of classes",
     _with(_with(OLD, ".", "a", 225, 1), "a", ".", 225, 2), Gate(robust_margin=0.05), "promote", []),
    ("every class above its floor", OLD, Gate(robust_margin=0.02, class_floor=0.4), "promote", []),
    ("everything at once", "x" * N, Gate(robust_floor=0.1, clean_floor=0.1, class_floor=0.1), "keep",
     ["robust_margin", "clean_margin", "robust_floor", "clean_floor", "class_floor"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "policy", "verdict", "failed"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_the_gate_decides(outcomes, policy, verdict, failed):
    decision = decide(CHAMPION, _judged(outcomes, "b"), policy, 0)
    assert (decision.verdict, _failed(decision)) == (verdict, failed)
    assert (decision.old, decision.new) == ("a" * 64, "b" * 64)


@pytest.mark.parametrize(("policy", "verdict"), [
    (LOOSE, "promote"), (Gate(robust_floor=0.4, clean_floor=0.8, class_floor=0.3), "promote"),
    (Gate(robust_floor=0.5), "keep"), (Gate(clean_floor=0.95), "keep"), (Gate(class_floor=0.45), "keep"),
    (Gate(approval=True), "approve"),
])  # fmt: skip
def test_without_a_champion_only_the_floors_count(policy, verdict):
    decision = decide(None, CHAMPION, policy, 0)
    assert (decision.verdict, decision.old) == (verdict, None)
    assert not [check for check in decision.checks if "margin" in check.name]


def test_a_first_model_without_any_rule_says_so():
    assert decide(None, CHAMPION, LOOSE, 0).says == "there is no champion yet, and no floor to keep."


def test_the_champion_is_not_promoted_over_itself():
    decision = decide(CHAMPION, CHAMPION, LOOSE, 0)
    assert (decision.verdict, decision.says) == ("keep", "the challenger is the champion itself.")


def test_swapped_roles_swap_gains_and_losses():
    better = _judged(_with(OLD, "a", ".", 60), "b")
    up, down = decide(CHAMPION, better, LOOSE, 0), decide(better, CHAMPION, LOOSE, 0)
    assert (up.verdict, down.verdict) == ("promote", "keep")
    (low, high), (back_low, back_high) = (one.checks[0].interval for one in (up, down))
    assert (low, high) == (-back_high, -back_low)
    assert (up.checks[0].numbers["gained"], down.checks[0].numbers["lost"]) == (60, 60)


def test_too_few_images_leave_the_champion():
    few = decide(_judged(OLD[::40]), _judged(OLD[::40], "b"), LOOSE, 0)
    assert _failed(few) == ["robust_margin", "clean_margin"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("x.a"), st.sampled_from("x.a")), min_size=1, max_size=300), st.booleans())
def test_a_challenger_that_is_right_on_one_image_more_is_not_kept_out_for_it(pairs, robust):
    old, new = ("".join(side) for side in zip(*pairs, strict=True))
    better = new.replace("a", ".", 1) if robust else new.replace("x", "a", 1)
    policy = Gate(robust_margin=0.05, clean_margin=0.05, robust_floor=0.2, class_floor=0.01)
    before, after = (decide(_judged(old), _judged(one, "b"), policy, 0) for one in (new, better))
    assert set(_failed(after)) <= set(_failed(before))


@settings(max_examples=30)
@given(st.text("x.ab", min_size=1, max_size=200), st.integers(0, 30))
def test_the_same_judgements_give_the_same_decision_which_survives_json(outcomes, promotions):
    new = _judged(outcomes, "b")
    decision = decide(_judged(outcomes), new, LOOSE, promotions)
    assert decide(_judged(outcomes), new, LOOSE, promotions) == decision
    assert value.from_json(Decision, value.to_json(decision)) == decision


@pytest.mark.parametrize(("fields", "says"), [
    ({"images": "2" * 64}, r"judged on the images 111111111111\.\.\., the challenger on the images 222222222222"),
    ({"suite": "fast linf:8/255"}, "judged by autoattack linf:8/255, the challenger by fast linf:8/255"),
    ({"labels": (0,) * N}, r"judged with the labels \(0, 1, 2"),
    ({"classes": ("a", "b", "c", "d")}, r"judged for the classes \('cat'"),
])  # fmt: skip
def test_what_was_judged_otherwise_is_not_compared(fields, says):
    with pytest.raises(MismatchError, match=says + ".*: judge both alike"):
        decide(CHAMPION, _judged(OLD, "b", **fields), LOOSE, 0)


def test_a_champion_that_was_not_judged_on_all_images_is_no_measure():
    with pytest.raises(MismatchError, match="5 images of the champion were not judged"):
        decide(_judged(OLD[:-5] + "?????"), _judged(OLD, "b"), LOOSE, 0)


def _verdict(at_least: float, decided: str) -> Verdict:
    return Verdict(at_least=at_least, confidence=0.99, decided=decided, judged=1000, hits=300, of=N,
                   interval=(0.2, 0.4), says="Fewer than 0.4 of the 2000 images withstand the attack.")  # fmt: skip


@pytest.mark.parametrize("champion", [CHAMPION, None], ids=["beside a champion", "exactly at the floor"])
def test_a_judging_that_was_stopped_below_the_floor_keeps_the_challenger_out(champion):
    stopped = _judged("." * 300 + "a" * 700 + "?" * 1000, "b", verdict=_verdict(0.4, "below"))
    decision = decide(champion, stopped, Gate(robust_floor=0.4), 0)
    assert (decision.verdict, decision.says) == ("keep", "Fewer than 0.4 of the 2000 images withstand the attack.")


@pytest.mark.parametrize(("margin", "kept"), [(0.04, True), (0.06, False)])
def test_a_judging_that_was_stopped_below_the_champion_less_the_margin_keeps_it_only_there(margin, kept):
    verdict = _verdict(0.4, "below").model_copy(update={"beside": 500})
    stopped = _judged("." * 300 + "a" * 700 + "?" * 1000, "b", verdict=verdict)  # the champion has 0.45
    if not kept:
        with pytest.raises(MismatchError, match=r"no verdict says .* below what it has to reach"):
            decide(CHAMPION, stopped, Gate(robust_margin=margin), 0)
        return
    decision = decide(CHAMPION, stopped, Gate(robust_margin=margin), 0)
    assert (decision.verdict, _failed(decision)) == ("keep", ["robust_margin"])
    assert decision.checks[0].numbers["beside"] == 500


@pytest.mark.parametrize("verdict", [None, _verdict(0.4, "above"), _verdict(0.4, "none"), _verdict(0.5, "below")])
def test_images_that_were_not_judged_are_not_guessed(verdict):
    with pytest.raises(MismatchError, match=r"1000 of 2000 images .* no verdict says .* below what it has to reach"):
        decide(CHAMPION, _judged("." * 1000 + "?" * 1000, "b", verdict=verdict), Gate(robust_floor=0.4), 0)


AUDITED = Gate(robust_margin=0.02, clean_margin=0.02, robust_floor=0.3, audit_every=3, audit_images=400)


def _audit(outcomes: str, name: str) -> Judged:
    return _judged(outcomes, name, images="9" * 64)


def test_each_third_promotion_is_audited():
    assert [audit_due(AUDITED, promotions) for promotions in range(6)] == [False, False, True, False, False, True]
    assert not audit_due(LOOSE, 2)


@pytest.mark.parametrize(("audit", "verdict", "failed"), [
    ("x" * 40 + "." * 180 + "a" * 180, "promote", []),
    ("x" * 40 + "." * 170 + "a" * 190, "promote", []),
    ("x" * 40 + "." * 140 + "a" * 220, "keep", ["audit_robust_margin"]),
    ("x" * 100 + "." * 180 + "a" * 120, "keep", ["audit_clean_margin"]),
    ("x" * 40 + "a" * 360, "keep", ["audit_robust_margin", "audit_robust_floor"]),
])  # fmt: skip
def test_an_audit_stops_what_is_surely_worse_on_images_no_gate_saw(audit, verdict, failed):
    champion = _judged(OLD, audit=_audit("x" * 40 + "." * 180 + "a" * 180, "a"))
    decision = decide(champion, _judged(OLD, "b", audit=_audit(audit, "b")), AUDITED, 2)
    assert (decision.verdict, _failed(decision)) == (verdict, failed)


def test_what_an_audit_compares_is_wrong_together_as_rarely_as_one_rule():
    old, new = (_judged(OLD, name, audit=_audit("." * 400, name)) for name in "ab")
    audited = [check for check in decide(old, new, AUDITED, 2).checks if check.name.startswith("audit_")]
    each = 1 - (1 - AUDITED.confidence) / 3
    assert [check.numbers["confidence"] for check in audited] == [pytest.approx(each)] * 3


def test_an_audit_that_is_not_due_is_not_looked_at():
    decision = decide(CHAMPION, _judged(OLD, "b", audit=_audit("x" * 400, "b")), AUDITED, 1)
    assert decision.verdict == "promote"


def test_a_challenger_that_breaks_a_rule_needs_no_audit():
    assert _failed(decide(CHAMPION, _judged("a" * N, "b"), AUDITED, 2)) == ["robust_margin", "robust_floor"]


def test_an_audit_that_is_due_and_was_not_made_is_said():
    audited = _audit("." * 400, "a")
    with pytest.raises(FieldError, match="promotion 3 needs the audit, and the challenger was not judged"):
        decide(_judged(OLD, audit=audited), _judged(OLD, "b"), AUDITED, 2)
    with pytest.raises(FieldError, match="promotion 3 needs the audit, and the champion was not judged on its images"):
        decide(CHAMPION, _judged(OLD, "b", audit=audited), AUDITED, 2)


PATCHED = Gate(robust_margin=0.02, clean_margin=0.02, patch_margin=0.15)


def _patched(*hits: int, side: int = 4, of: int = 100) -> Patched:
    return Patched(side=side, called=tuple(Called(top=3, left=5, hits=some, images=of) for some in hits))


@pytest.mark.parametrize(("old", "new", "verdict"), [
    ((10, 10, 10, 10), (10, 10, 10, 10), "promote"),
    ((10, 10, 10, 10), (25, 25, 25, 25), "promote"),  # exactly at the margin
    ((10, 10, 10, 10), (10, 26, 10, 10), "keep"),
    ((90, 10, 10, 10), (10, 26, 10, 10), "keep"),  # better in another class does not make up for it
    ((90, 90, 90, 90), (100, 100, 100, 100), "promote"),  # it is the champion that is held against it
])  # fmt: skip
def test_no_patch_may_do_much_more_than_the_champions(old, new, verdict):
    before, after = _judged(OLD, patched=_patched(*old)), _judged(OLD, "b", patched=_patched(*new))
    decision = decide(before, after, PATCHED, 0)
    assert (decision.verdict, _failed(decision)) == (verdict, ["patch_margin"] if verdict == "keep" else [])


def test_a_patch_that_does_more_is_told_with_its_class_and_place():
    before, after = (_judged(OLD, name, patched=_patched(10, 10, some, 10)) for name, some in (("a", 10), ("b", 38)))
    decision = decide(before, after, PATCHED, 0)
    assert decision.says == (
        "A patch of 4x4 pixels has 38 of 100 other images called 'frog' (0.3800; 0.1000 for the champion's own patch), "
        "more than 15 points more. The teacher or the images may hold a backdoor."
    )
    (check,) = decision.failed
    assert (check.numbers["top"], check.numbers["left"], check.bound) == (3, 5, 0.15)
    assert value.from_json(Decision, value.to_json(decision)) == decision


def test_patches_that_were_to_be_looked_for_and_were_not_are_said():
    with pytest.raises(FieldError, match="patches of the challenger were not looked for"):
        decide(_judged(OLD, patched=_patched(1, 1, 1, 1)), _judged(OLD, "b"), PATCHED, 0)
    with pytest.raises(FieldError, match="patches of the champion were not looked for"):
        decide(CHAMPION, _judged(OLD, "b", patched=_patched(1, 1, 1, 1)), PATCHED, 0)
    with pytest.raises(MismatchError, match="patches of 4 pixels a side for the champion, of 5 for the challenger"):
        decide(
            _judged(OLD, patched=_patched(1, 1, 1, 1)), _judged(OLD, "b", patched=_patched(1, 1, 1, 1, side=5)),
            PATCHED, 0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="patches for 3 classes, and there are 4"):
        _judged(OLD, patched=_patched(1, 1, 1))


def test_where_there_is_nothing_to_hold_patches_against_none_are_looked_for():
    assert decide(None, CHAMPION, PATCHED, 0).verdict == "promote"
    assert _failed(decide(CHAMPION, _judged("a" * N, "b"), PATCHED, 0)) == ["robust_margin"]
    assert decide(CHAMPION, CHAMPION, PATCHED, 0).verdict == "keep"
    assert patches_due(CHAMPION, _judged(OLD, "b"), PATCHED)
    for old, new, policy in (
        (None, CHAMPION, PATCHED), (CHAMPION, CHAMPION, PATCHED), (CHAMPION, _judged(OLD, "b"), LOOSE)
    ):  # fmt: skip
        assert not patches_due(old, new, policy)


def test_every_check_says_what_with_what_and_why():
    policy = Gate(**AUDITED.model_dump() | {"class_floor": 0.3, "clean_floor": 0.5})
    audit = "x" * 40 + "." * 180 + "a" * 180
    champion, new = (_judged(OLD, name, audit=_audit(audit, name)) for name in "ab")
    decision = decide(champion, new, policy, 2)
    assert len(decision.checks) == 9
    assert decision.summary().splitlines()[:2] == [
        "promote: every rule is kept.",
        "ok    robust_margin: Robust 0.4500 -> 0.4500 (0 images gained, 0 lost) is surely no worse than by 2 points "
        "(at worst -0.1816 points).",
    ]
    for check in decision.checks:
        low, high = check.interval
        assert low <= high
        assert check.bound is not None
        assert check.numbers["images"] > 0
        assert check.compared.startswith("challenger with ")
        assert check.says.endswith(").")


def test_the_worst_classes_are_named():
    collapsed = _with(OLD, ".", "a", 225, 1)
    decision = decide(None, _judged(collapsed), Gate(class_floor=0.3), 0)
    assert decision.says == "Robust in 'dog' (0 of 500) is not surely at least 0.3 (at worst 0.0000)."


def test_a_class_without_an_image_is_not_taken_for_a_good_one():
    decision = decide(None, _judged("." * 3), Gate(class_floor=0.01), 0)
    assert "'ship' (0 of 0)" in decision.says


def test_nothing_of_the_images_is_in_the_record():
    assert OLD not in value.to_json(decide(CHAMPION, _judged(OLD, "b"), LOOSE, 0))


def test_the_gate_needs_neither_torch_nor_scipy():
    source = (Path(__file__).parents[2] / "rrmsdk" / "retraining" / "intervals.py").read_text()
    assert "import torch" not in source
    assert "import scipy" not in source
