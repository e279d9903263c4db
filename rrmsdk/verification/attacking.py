"""A sequence of attacks, each on what those before it left standing.

A row is an image and a turn (a restart, or a target). The batch is kept full: a row that is done, or whose image
another row has just broken, leaves after the step, and the next one takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from rrmsdk.attacks.searching import Attack, Precision, Rows, Searched, State, begun, joined, padded, searched, select
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.report import BROKEN_BY, CLEAN_WRONG, ROBUST, UNJUDGED, AttackResult, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.blackbox import BlackBox
from rrmsdk.verification.journal import Entry, Journal
from rrmsdk.verification.judge import into_ball, logits_of, misled

Progress = Callable[[str, int, int], None]
Row = tuple[int, int]  # turn, position

_BETWEEN = 0.2  # seconds between two words of progress in which nothing ended


@dataclass(frozen=True)
class Found:
    """What was found: `pixels` are natural where no attack broke the image; `outcomes` as in the report."""

    pixels: Float32[Tensor, "N C H W"]
    outcomes: str
    results: tuple[AttackResult, ...]


@dataclass
class Tally:
    """What one attack did so far, to all blocks of images."""

    attacked: int = 0
    broken_in_turn: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Standing:
    """The images while they are attacked. An image is robust until our own count of a lawful image says otherwise."""

    model: nn.Module
    network: Searched
    split: Split
    threat: ThreatModel
    batch: int
    natural: Float32[Tensor, "N C H W"]
    pixels: Float32[Tensor, "N C H W"]
    logits: Float32[Tensor, "N K"]
    robust: Bool[Tensor, " N"]
    outcomes: list[str]
    journal: Journal
    tallies: list[Tally]
    begun: Bool[Tensor, " N"]
    judged_by: int = 1  # passes

    def says(self) -> str:
        """Robust accuracy of what was begun, as far as is known."""
        robust, of = int(self.robust[self.begun].sum()), int(self.begun.sum())
        low, high = wilson(robust, of)
        return f"robust at most {robust / max(of, 1):.4f} [{low:.4f}, {high:.4f}]"

    def rows(self, waiting: Sequence[Row]) -> Rows:
        """Rows of images, on the model's device."""
        turn, at = (torch.tensor(part) for part in zip(*waiting, strict=True))
        parts = self.natural[at], self.split.labels[at], self.split.ids[at], turn, self.logits[at]
        return Rows(*(part.to(device_of(self.model)) for part in parts))

    def judged(self, state: State, at: Int64[Tensor, " n"]) -> tuple[Bool[Tensor, " n"], Float32[Tensor, "n C H W"]]:
        """Whether the model itself, in fp32, is wrong about what these rows found, and the lawful images."""
        rows = select(state.rows, at)
        lawful = into_ball(state.adversarial[at], rows.x, self.threat)
        shown, labels = (padded(one, self.network.lane) for one in (lawful, rows.y))
        return misled(self.model, shown, labels, self.judged_by)[: len(lawful)], lawful

    def fell(self, number: int, turn: int, position: int, pixels: Float32[Tensor, "C H W"]) -> None:
        """An image has fallen."""
        self.robust[position] = False
        self.pixels[position] = pixels
        self.outcomes[position] = BROKEN_BY[number]
        broken = self.tallies[number].broken_in_turn
        broken[turn] = broken.get(turn, 0) + 1


def stand(
    model: nn.Module, split: Split, threat: ThreatModel, attacks: Sequence[Attack], batch: int,
    journal: Journal | None = None, passes: int = 1, judged_by: int = 1, search: Precision = "fp32",
) -> Standing:  # fmt: skip
    """All images before the first attack, those that are wrong already counted out."""
    natural = to_unit(split.pixels)
    logits = logits_of(model, natural, batch, judged_by)
    robust = logits.argmax(1) == split.labels
    if isinstance(model, BlackBox):
        network = Searched(model, lane=1)
    else:
        network = searched(model, natural[:2].to(device_of(model)), passes=passes, precision=search)
    return Standing(
        model, network, split, threat, batch, natural, natural.clone(), logits, robust,
        [UNJUDGED] * len(split),
        journal or Journal.nowhere(), [Tally() for _ in attacks], torch.zeros(len(split), dtype=torch.bool),
        judged_by,
    )  # fmt: skip


def run(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attacks: Sequence[Attack],
    batch: int,
    progress: Progress | None = None,
    search: Precision = "fp32",
) -> Found:
    """What the attacks find, in turn. The split is on the CPU, the model is being judged (see `judging`)."""
    standing = stand(model, split, threat, attacks, batch, search=search)
    attack_all(standing, attacks, torch.arange(len(split)), progress)
    return found(standing, attacks)


def attack_all(
    standing: Standing, attacks: Sequence[Attack], positions: Int64[Tensor, " n"],
    progress: Progress | None = None, first: int = 0,
) -> None:  # fmt: skip
    """All attacks (those from number `first` on) on some of the images, which are judged afterwards."""
    standing.begun[positions] = True
    for position in positions[~standing.robust[positions]].tolist():
        if standing.outcomes[position] == UNJUDGED:
            standing.outcomes[position] = CLEAN_WRONG
    for number, attack in enumerate(attacks[first:], first):
        _attack(standing, attack, number, positions, progress)
    standing.journal.flush()
    for position in positions.tolist():
        if standing.outcomes[position] == UNJUDGED:
            standing.outcomes[position] = ROBUST


def found(standing: Standing, attacks: Sequence[Attack]) -> Found:
    """What came out for the images that were judged."""
    results, judged = [], len(standing.outcomes) - standing.outcomes.count(UNJUDGED)
    left = judged - standing.outcomes.count(CLEAN_WRONG)
    for attack, tally in zip(attacks, standing.tallies, strict=True):
        broken = sum(tally.broken_in_turn.values())
        left -= broken
        results.append(
            AttackResult(
                name=attack.name, settings=attack.settings | _by_restart(attack, tally), attacked=tally.attacked,
                broken=broken, robust=left / judged if judged else 0.0, seconds=tally.seconds,
            )
        )  # fmt: skip
    return Found(standing.pixels, "".join(standing.outcomes), tuple(results))


def _by_restart(attack: Attack, tally: Tally) -> dict[str, list[int]]:
    if attack.turns < 2:
        return {}
    before = [
        sum(count for turn, count in tally.broken_in_turn.items() if turn < number) for number in range(attack.turns)
    ]
    name = "attacked_by_target" if "targets" in attack.settings else "attacked_by_restart"
    return {name: [tally.attacked - count for count in before]}


def _attack(
    standing: Standing, attack: Attack, number: int, positions: Int64[Tensor, " n"], progress: Progress | None
) -> None:
    """One attack on what is robust among the positions."""
    tally, journal, began, told = standing.tallies[number], standing.journal, time.perf_counter(), 0.0
    left = positions[standing.robust[positions]].tolist()
    if not attack.turns:
        return
    tally.attacked += len(left)
    past = journal.past(number, standing.split.ids[left].tolist(), left)
    tally.seconds += past.seconds
    for turn, position, pixels in past.broken:
        standing.fell(number, turn, position, pixels)
    waiting = (
        (turn, position) for turn in range(attack.turns) for position in left if (turn, position) not in past.survived
    )
    total = len(left) * attack.turns * attack.length
    done = len(past.survived) * attack.length
    for finished, underway in _steps(standing, attack, number, waiting):
        done += finished
        if progress and (finished or time.perf_counter() - told >= _BETWEEN):
            told = time.perf_counter()
            progress(f"{attack.name}: {standing.says()}", min(total, done + underway), total)
    if progress and told:
        progress(f"{attack.name}: {standing.says()}", total, total)
    tally.seconds += time.perf_counter() - began


def _steps(standing: Standing, attack: Attack, number: int, waiting: Iterator[Row]) -> Iterator[tuple[int, int]]:
    """Step after step until no row is left; tells steps of rows that have left, and of those that have not."""
    state: State | None = None
    inside: list[Row] = []
    began = time.perf_counter()
    while True:
        useful = ((turn, position) for turn, position in waiting if standing.robust[position])
        fresh = list(islice(useful, standing.batch - len(inside)))
        if fresh:
            new = begun(attack, standing.rows(fresh))
            state = new if state is None or not inside else joined(state, new)
            inside += fresh
        if state is None or not inside:
            return
        state = attack.step(standing.network, state)
        if not state.found.any() and not (state.k >= attack.length).any():
            yield 0, int(state.k.sum())
            continue
        broken = _broken(standing, state, number, inside)
        ended = (state.k >= attack.length).tolist()
        stays, survived, finished = [], [], 0
        for at, (turn, position) in enumerate(inside):
            if not standing.robust[position]:
                finished += attack.length
            elif ended[at]:
                survived.append((turn, position))
                finished += attack.length
            else:
                stays.append(at)
        if broken or survived:
            now = time.perf_counter()
            standing.journal.add(_entry(standing, number, survived, broken, now - began))
            began = now
        if len(stays) < len(inside):
            inside = [inside[at] for at in stays]
            state = select(state, torch.tensor(stays, dtype=torch.int64, device=state.k.device))
        yield finished, int(state.k.sum()) if inside else 0


def _broken(standing: Standing, state: State, number: int, inside: list[Row]) -> list[Row]:
    """The rows whose find the model itself confirms, the first of each image; its outcome is written down."""
    at = state.found.nonzero().flatten()
    if not len(at):
        return []
    wrong, lawful = standing.judged(state, at)
    broken = []
    for here, hit, pixels in zip(at.tolist(), wrong.tolist(), lawful.cpu(), strict=True):
        turn, position = inside[here]
        if hit and standing.robust[position]:
            standing.fell(number, turn, position, pixels)
            broken.append((turn, position))
    return broken


def _entry(standing: Standing, number: int, survived: list[Row], broken: list[Row], seconds: float) -> Entry:
    ids = standing.split.ids
    return Entry(
        attack=number,
        survived=tuple((turn, int(ids[position])) for turn, position in survived),
        broken=tuple((turn, int(ids[position]), standing.pixels[position]) for turn, position in broken),
        seconds=seconds,
    )
