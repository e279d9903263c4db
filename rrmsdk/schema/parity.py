"""What is known of an exported graph: how far its logits are from the network's, and what both withstand."""

from __future__ import annotations

from typing import Literal

from rrmsdk.schema.report import Share
from rrmsdk.schema.value import Value

# Which graph of a network.
Precision = Literal["fp32", "fp16", "int8"]
Input = Literal["float", "uint8"]


class Parity(Value):
    """How far a session's logits are from the network's.

    max_abs: largest gap of a logit, over all images and batch sizes.
    largest_logit: largest |logit| of the network.
    tolerance: the largest `max_abs` that passes; None: whatever is finite, for a graph of another precision.
    argmax_agree: share of the images whose class is the same at every batch size.
    """

    images: int
    batches: tuple[int, ...]
    max_abs: float
    largest_logit: float
    tolerance: float | None
    argmax_agree: float


class Judged(Value):
    """Shares of the images that are classified right.

    clean: without an attack.
    replayed: and also as the network's adversarial images.
    robust: and also under noise and Square, made for the one that is judged.
    """

    clean: Share
    replayed: Share
    robust: Share


class RobustParity(Value):
    """The network and its exported graph under the same attacks, on the first `images` of the test split.

    The graph gives no gradients, so its robust accuracy is bounded less tightly than the network's: where it is
    higher, that says nothing. What passes has not lost more than `margin` to these attacks, and that is all.

    attack: on the network, whose adversarial images are then replayed.
    queries: of Square, on the network and on the graph alike.
    margin: by how much robust accuracy may fall.
    """

    images: int
    threat: str
    attack: str
    queries: int
    seed: int
    margin: Share
    network: Judged
    graph: Judged


class Calibration(Value):
    """`images` of the train split, drawn by `seed`."""

    images: int
    seed: int
    fingerprint: str


class ExportParity(Value):
    """What `onnx/parity.json` holds: which file, checked against which weights, on what.

    input: what the graph takes; of `uint8`, both were asked about pixels that a byte can say.
    calibration: which train images decided the ranges of an int8 graph.
    robust: None in files of before it was measured.
    hardware: on which the graph ran; int8 saturates where a processor has no instructions for it.
    """

    precision: str = "fp32"
    input: Input = "float"
    onnx_sha256: str
    weights_sha256: str
    calibration: Calibration | None = None
    clean: Parity
    attacked: Parity
    robust: RobustParity | None = None
    versions: dict[str, str]
    hardware: str | None = None
