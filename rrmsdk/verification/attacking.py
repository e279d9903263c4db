"""A sequence of attacks, each on what those before it left standing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from rrmsdk.attacks.configured import Attack, Round, device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.report import BROKEN_BY, CLEAN_WRONG, ROBUST, AttackResult
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.judge import into_ball, right

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Found:
    """What was found: `pixels` are natural where no attack broke the image; `outcomes` as in the report."""

    pixels: Float32[Tensor, "N C H W"]
    outcomes: str
    results: tuple[AttackResult, ...]


@dataclass
class Standing:
    """The images while they are attacked. An image is robust until our own count of a lawful image says otherwise."""

    model: nn.Module
    split: Split
    threat: ThreatModel
    batch: int
    natural: Float32[Tensor, "N C H W"]
    pixels: Float32[Tensor, "N C H W"]
    robust: Bool[Tensor, " N"]

    def attack(self, one_round: Round, tell: Callable[[int, int], None]) -> Int64[Tensor, " n"]:
        """Attack what is robust, gathered into full batches; gives the positions that broke."""
        left, device, done = self.robust.nonzero().flatten(), device_of(self.model), 0
        for at in left.split(self.batch):
            x, y, ids = (part[at].to(device) for part in (self.natural, self.split.labels, self.split.ids))
            self.pixels[at] = into_ball(one_round(x, y, ids), x, self.threat).cpu()
            done += len(at)
            tell(done, len(left))
        stands = right(self.model, self.pixels, self.split.labels, self.batch, left)
        self.pixels[left[stands]] = self.natural[left[stands]]
        self.robust[left] = stands
        return left[~stands]


def run(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attacks: tuple[Attack, ...],
    batch: int,
    progress: Progress | None = None,
) -> Found:
    """What the attacks find, in turn. The split is on the CPU, the model is being judged (see `judging`)."""
    natural = to_unit(split.pixels)
    robust = right(model, natural, split.labels, batch)
    standing = Standing(model, split, threat, batch, natural, natural.clone(), robust)
    outcomes = [ROBUST if hit else CLEAN_WRONG for hit in robust.tolist()]
    results = []
    for letter, attack in zip(BROKEN_BY, attacks, strict=False):
        result, broken = _one(standing, attack, progress)
        results.append(result)
        for position in broken:
            outcomes[position] = letter
    return Found(standing.pixels, "".join(outcomes), tuple(results))


def _one(standing: Standing, attack: Attack, progress: Progress | None) -> tuple[AttackResult, list[int]]:
    """All rounds of one attack: its line of the report, and the positions it broke."""
    started, broken, attacked = time.perf_counter(), [], []
    for number, one_round in enumerate(attack.rounds, start=1):
        name = f"{attack.name} {number}/{len(attack.rounds)}" if len(attack.rounds) > 1 else attack.name
        attacked.append(int(standing.robust.sum()))
        broken += standing.attack(one_round, lambda done, of, name=name: progress and progress(name, done, of)).tolist()
    result = AttackResult(
        name=attack.name,
        settings=attack.settings | ({"attacked_by_restart": attacked} if len(attacked) > 1 else {}),
        attacked=attacked[0] if attacked else 0,
        broken=len(broken),
        robust=int(standing.robust.sum()) / len(standing.robust),
        seconds=time.perf_counter() - started,
    )
    return result, broken
