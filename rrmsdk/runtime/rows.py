"""Does an image get its own answer: in any batch, in any row of it, and whatever runs the graph?

Nothing is raised where a runtime gets this wrong: TensorRT 11.1 gave equal rows of a batch different answers
(NVIDIA/TensorRT issue 4813), and a batch norm that was left in training mode answers by the batch.
"""

from __future__ import annotations

import numpy as np

from rrmsdk.errors import IntegrityError
from rrmsdk.runtime.session import Session

ROWS = 32  # equal ones in a batch
AGREE = 1e-4  # of the largest |logit|: how far the same image's logits may be at another batch size
# The same between a GPU and the CPU: TensorRT may multiply fp32 as TF32, and an int8 that falls on the other side of a
# half is a whole level off. Chosen to tell rounding from another network; no GPU has measured it.
AGREE_ON_GPU = {"fp32": 1e-2, "fp16": 3e-2, "int8": 0.25}


def check(session: Session, most: int) -> None:
    """Also warms it up, at the smallest and the largest batch.

    Args:
        most: images of the largest batch.

    Raises:
        IntegrityError: an answer depends on what else is in the batch, or where the image stands in it.
    """
    same_at_any_batch(session, most)
    for batch in sorted({min(ROWS, most), most}):
        same_in_any_row(session, batch)


def same_at_any_batch(session: Session, most: int) -> None:
    """The logits of one image do not depend on how many others come with it. Raises IntegrityError."""
    pixels = some_images(session, most)
    alone = session.predict(pixels[:1])
    for batch in sorted({1, min(2, most), most}):
        logits = session.predict(pixels[:batch])
        gap, largest = float(np.abs(logits[:1] - alone).max()), float(np.abs(alone).max())
        if not gap <= AGREE * max(1.0, largest):  # NaN is no agreement either
            raise IntegrityError(
                f"{session.path} with {session.provider} gives one image logits that differ by {gap:.3g} between batch "
                f"1 and {batch} (largest {largest:.3g}). Do not serve it"
            )


def same_in_any_row(session: Session, batch: int) -> None:
    """`batch` equal images get equal logits, to the last bit. Raises IntegrityError."""
    logits = session.predict(np.repeat(some_images(session, 1), batch, axis=0))
    others = np.flatnonzero((logits != logits[0]).any(axis=1) | ~np.isfinite(logits).all(axis=1))
    if len(others):
        gap = float(np.abs(logits - logits[0]).max())
        raise IntegrityError(
            f"{session.path} with {session.provider} gives {len(others)} of {batch} equal images other logits than the "
            f"first (up to {gap:.3g} apart). Do not serve it"
        )


def same_as(session: Session, reference: Session, most: int) -> None:
    """The graph computes on its device what it computes on the CPU, up to rounding. Raises IntegrityError.

    Args:
        reference: the same file on the CPU, where it was judged when it was exported.
    """
    pixels = some_images(session, most)
    told, made = reference.predict(pixels), session.predict(pixels)
    gap, largest = float(np.abs(made - told).max()), float(np.abs(told).max())
    allowed = AGREE_ON_GPU[session.metadata.get("precision", "fp32")] * max(1.0, largest)
    if not gap <= allowed:
        raise IntegrityError(
            f"{session.path} with {session.provider} is off by up to {gap:.3g} from what it gives with "
            f"{reference.provider} (allowed {allowed:.3g}, largest {largest:.3g}). Do not serve it"
        )


def some_images(session: Session, many: int) -> np.ndarray:
    """Noise, as `session` takes it; always the same."""
    channels, height, width = session.input_shape
    noise = np.random.default_rng(0).integers(0, 256, (many, height, width, channels), dtype=np.uint8)
    return session.from_bytes(noise)
