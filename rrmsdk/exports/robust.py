"""Does the exported graph withstand what the network withstands?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rrmsdk.attacks.losses import margin
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.data import Dataset, to_unit
from rrmsdk.errors import ParityError
from rrmsdk.runtime.rounding import Rounding
from rrmsdk.runtime.session import Session
from rrmsdk.schema.parity import Judged, RobustParity
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Report
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import provenance, saved
from rrmsdk.verification.attacking import Progress
from rrmsdk.verification.blackbox import BlackBox
from rrmsdk.verification.judge import judging
from rrmsdk.verification.replaying import replay
from rrmsdk.verification.verify import verify

STEPS = 50  # of AutoPGD on the network
FURTHER = 20  # steps of PGD from what it found


@dataclass(frozen=True)
class Trial:
    """What the graph has to withstand: the first `images` of the test split of `data`, under `threat`.

    progress: called as it goes with (attack and robust accuracy so far, steps done, steps in all).
    """

    data: Dataset
    threat: ThreatModel
    images: int = 200
    queries: int = 500
    margin: float = 0.01
    batch: int = 64
    seed: int = 0
    progress: Progress | None = None


def check_robust(network: nn.Module, weights_sha256: str, session: Session | Rounding, trial: Trial) -> RobustParity:
    """Attack both, and compare what is left standing.

    The network is attacked by AutoPGD with all its gradients. What that finds lies just behind the border, where
    rounding decides, so PGD climbs further from there; the images go to both, and Square then asks each of them alone.
    A graph of bytes is given them rounded to 8 bits, as whoever sends it an image would have to.

    Raises:
        ParityError: robust accuracy of the graph is lower than the network's by more than the margin.
    """
    told = f"apgd-{STEPS}x1, climbed further by pgd-{FURTHER}"
    with tempfile.TemporaryDirectory(prefix="rrmsdk-parity-") as place:
        path = Path(place) / "adversarial.safetensors"
        spec = VerifySpec(
            attack="apgd", steps=STEPS, restarts=1, images=trial.images, batch=trial.batch, seed=trial.seed
        )
        _judge(network, weights_sha256, trial, spec, save_to=path)
        found = saved.read(path)
        pixels = _further(network, found, trial)
        saved.write(saved.Adversarial(pixels, found.labels, found.ids, found.outcomes, found.facts), path)
        blind = spec.model_copy(update={"attack": "square", "steps": None, "restarts": None, "queries": trial.queries})
        asked = BlackBox(session, {"onnxruntime": provenance.version("onnxruntime")})
        ours, theirs = (
            _judge(one, weights_sha256, trial, blind, replayed=path, name=name)
            for one, name in ((network, "network"), (asked, "graph"))
        )
    parity = RobustParity(
        images=ours.images, threat=str(trial.threat), attack=told, queries=trial.queries, seed=trial.seed,
        margin=trial.margin, network=_shares(ours), graph=_shares(theirs),
    )  # fmt: skip
    _passes(parity, session.path.name)
    return parity


def _judge(
    model: nn.Module, weights_sha256: str, trial: Trial, spec: VerifySpec, *, save_to: Path | None = None,
    replayed: Path | None = None, name: str = "network",
) -> Report:  # fmt: skip
    told: Callable[[str, int, int], None] | None = None
    if trial.progress is not None:
        show = trial.progress
        told = lambda says, done, of: show(f"{name}: {says}", done, of)  # noqa: E731
    return verify(
        model, trial.data.test, trial.threat, spec, info=trial.data.info, weights_sha256=weights_sha256,
        save_adversarial=save_to, progress=told,
        replay=None if replayed is None else replay(replayed, trial.threat, trial.data.info),
    )  # fmt: skip


def _further(network: nn.Module, found: saved.Adversarial, trial: Trial) -> Tensor:
    """Of each image, what was found or where PGD climbs to from there, whichever misleads the network more.

    What the network withstands is climbed as well: where it does so by little, its graph may not.
    """
    natural = to_unit(trial.data.test.take(len(found.labels)).pixels)
    parts = zip(*(all_.split(trial.batch) for all_ in (natural, found.pixels, found.labels)), strict=True)
    misleading = []
    with judging(network, trial.seed):
        for x, start, y in parts:
            climbed = pgd_on_labels(network, x, y, trial.threat, steps=FURTHER, start=start)
            with torch.no_grad():
                better = margin(network(climbed), y) > margin(network(start), y)
            misleading.append(torch.where(better.view(-1, 1, 1, 1), climbed, start))
    return torch.cat(misleading)


def _shares(report: Report) -> Judged:
    return Judged(clean=report.clean, replayed=report.attacks[0].robust, robust=report.robust)


def _passes(parity: RobustParity, name: str) -> None:
    network, graph = parity.network, parity.graph
    if network.robust - graph.robust <= parity.margin + 1e-9:  # shares of a hundred images are no binary fractions
        return
    raise ParityError(
        f"{name} keeps a robust accuracy of {graph.robust:.4f} where the network keeps {network.robust:.4f} "
        f"({parity.threat}, {parity.images} images; clean {graph.clean:.4f} and {network.clean:.4f}): "
        f"{network.robust - graph.robust:.4f} lower, allowed is {parity.margin:g}. The bundle is as it was. Try "
        "another precision, or allow more: --margin"
    )
