"""How far an exported file is from the network it was made of: `onnx/parity.json`."""

from __future__ import annotations

from rrmsdk.schema.value import Value


class Parity(Value):
    """How far a session's logits are from the network's.

    max_abs: largest gap of a logit, over all images and batch sizes.
    largest_logit: largest |logit| of the network.
    tolerance: the largest `max_abs` that passes.
    argmax_agree: share of the images whose class is the same at every batch size.
    """

    images: int
    batches: tuple[int, ...]
    max_abs: float
    largest_logit: float
    tolerance: float
    argmax_agree: float


class ExportParity(Value):
    """What `onnx/parity.json` holds: which file, checked against which weights, on what."""

    onnx_sha256: str
    weights_sha256: str
    clean: Parity
    attacked: Parity
    versions: dict[str, str]
