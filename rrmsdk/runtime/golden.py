"""A few images and what the network says of them, in the bundle: a server must give the same before it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.runtime.session import Session

# Of the largest |logit|, by what the graph computes in: fp32 on any hardware, 10 bits of mantissa, 8 bits in all.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.25}
_WEIGHTS = "weights_sha256"


@dataclass(frozen=True)
class Golden:
    """pixels: uint8 [N, C, H, W]. logits: float32 [N, classes], of the network with the weights of this hash."""

    pixels: np.ndarray
    logits: np.ndarray
    weights_sha256: str


def write(golden: Golden, path: Path) -> None:
    """The same images and logits give the same bytes. Raises SaveError."""
    tensors = {"pixels": np.ascontiguousarray(golden.pixels), "logits": np.ascontiguousarray(golden.logits)}
    # One entry alone: safetensors writes several in any order.
    files.write_bytes(path, save(tensors, metadata={_WEIGHTS: golden.weights_sha256}))


def read(path: Path) -> Golden:
    """Raises IntegrityError: it is no such file."""
    try:
        with safe_open(path, "numpy") as file:
            pixels, logits = file.get_tensor("pixels"), file.get_tensor("logits")
            about = (file.metadata() or {})[_WEIGHTS]
    except (OSError, SafetensorError, KeyError) as exc:
        raise IntegrityError(f"{path} holds no golden answers: {exc}. Export the bundle again") from exc
    if (pixels.dtype, logits.dtype) != (np.uint8, np.float32) or len(pixels) != len(logits) or not len(pixels):
        raise IntegrityError(
            f"{path}: {pixels.dtype}{list(pixels.shape)} and {logits.dtype}{list(logits.shape)} are "
            "no images and their logits. Export the bundle again"
        )
    return Golden(pixels, logits, about)


def reproduce(golden: Golden, session: Session, most: int) -> int:
    """How many images `session` gives the golden logits of: all.

    Args:
        most: images of a batch.

    Raises:
        IntegrityError: they are off by more than `TOLERANCE` of its precision.
        MismatchError: the images or the logits are of another shape than the session's.
    """
    if golden.pixels.shape[1:] != session.input_shape or golden.logits.shape != (len(golden.pixels), session.classes):
        raise MismatchError(
            f"{session.path} maps images {list(session.input_shape)} to {session.classes} logits, the golden ones are "
            f"{list(golden.pixels.shape)} and {list(golden.logits.shape)}. Export the bundle again"
        )
    pixels = session.from_bytes(np.ascontiguousarray(golden.pixels.transpose(0, 2, 3, 1)))
    parts = (pixels[at : at + most] for at in range(0, len(pixels), most))
    gap = float(np.abs(np.concatenate([session.predict(part) for part in parts]) - golden.logits).max())
    largest, precision = float(np.abs(golden.logits).max()), session.metadata.get("precision", "fp32")
    allowed = _tolerance(precision, session.provider) * max(1.0, largest)
    if not gap <= allowed:  # NaN is no agreement either
        raise IntegrityError(
            f"{session.path} with {session.provider} gives logits that differ by {gap:.3g} from those of the network "
            f"on the {len(pixels)} golden images (allowed {allowed:.3g} in {precision}, largest {largest:.3g}). "
            "Do not serve it"
        )
    return len(pixels)


def _tolerance(precision: str, provider: str) -> float:
    """TensorRT may compute fp32 in TF32, whose mantissa is that of fp16."""
    if provider == "tensorrt" and precision == "fp32":
        precision = "fp16"
    return TOLERANCE.get(precision, TOLERANCE["fp32"])
