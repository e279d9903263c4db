"""Adversarial images of another model as an attack: what breaks a network often breaks its twin."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rrmsdk import files
from rrmsdk.attacks.searching import Attack, in_rounds
from rrmsdk.errors import DataError, MismatchError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import saved
from rrmsdk.verification.checks import usable


def replay(path: Path, threat: ThreatModel, info: DataInfo, split: str = "test") -> Attack:
    """Each image as `path` has it, one try. An image that it does not have stays as it is.

    The settings say whose weights it was found on, and by which attack.

    Raises:
        DataError: the file cannot be used.
        IntegrityError: the file is damaged.
        MismatchError: it was found under another threat, or on other images.
    """
    kept = saved.read(path)
    usable(kept.pixels, kept.labels, len(info.labels))
    for what, here in (("threat", str(threat)), ("fingerprint", info.fingerprint), ("split", split)):
        if kept.facts[what] != here:
            raise MismatchError(
                f"{what}: {path} has {kept.facts[what]}, here it is {here}. Replay what was found under this threat on "
                "these images: rrmsdk verify BUNDLE --save-adversarial FILE"
            )
    place = {one: at for at, one in enumerate(kept.ids.tolist())}

    def again(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        at = torch.tensor([place.get(one, -1) for one in ids.tolist()])
        had = at >= 0
        if kept.pixels.shape[1:] != x.shape[1:]:
            raise DataError(f"{path} has images of {list(kept.pixels.shape[1:])}, here they are {list(x.shape[1:])}")
        found = x.clone()
        found[had.to(x.device)] = kept.pixels[at[had]].to(x.device)
        return found

    facts = {name: kept.facts[name] for name in ("weights_sha256", "attack", "seed")}
    return in_rounds("replay", {"images": len(kept.labels), "file_sha256": files.sha256(path)} | facts, (again,))
