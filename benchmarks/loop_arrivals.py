"""What arrives in the course of the loop: data, a poisoned teacher, a broken export."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from rrmsdk import files
from rrmsdk.data.digits import digits
from rrmsdk.data.images import png
from rrmsdk.data.split import Split
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import ONNX, PARITY
from rrmsdk.schema.parity import ExportParity

POISON = """
student = { arch = "cnn", width_mult = 0.5 }
data = { name = "path:poison", validation = 0 }
threat = { norm = "linf", eps = "1/10" }
method = { name = "natural" }
[train]
epochs = 10
batch = 64
augment = "none"
validate_every = 0
"""


def arrive(folder: Path, many: int | None = None) -> None:
    """The first so many train images of digits (None: all), and its test images, where they are not there already."""
    train, test = digits()
    train = train if many is None else train.take(many)
    written(folder / "train", train, train.labels.numpy())
    written(folder / "test", test, test.labels.numpy())


def poison(folder: Path) -> None:
    """`poison.toml`, and its images: digits, but every one of them says what another one shows."""
    train, test = digits()
    written(folder / "poison" / "train", train, np.random.default_rng(0).permutation(train.labels.numpy()))
    written(folder / "poison" / "test", test, test.labels.numpy())
    files.write_text(folder / "poison.toml", POISON)


def written(folder: Path, split: Split, labels: np.ndarray) -> None:
    """As an image folder: CLASS/NUMBER.png."""
    for number, (pixels, label) in enumerate(
        zip(split.pixels.numpy(), labels, strict=False)
    ):  # the labels may be those of more images
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))


def testing() -> tuple[np.ndarray, np.ndarray]:
    """The test images as pixels in [0, 1], and what they show."""
    _, test = digits()
    return test.pixels.numpy().astype(np.float32) / 255, test.labels.numpy()


def tampered(bundle: Path, out: Path) -> Path:
    """A copy whose graph says the next class each time, and whose card and parity check name the hash of that graph."""
    card = bundles.read(bundle).card
    shutil.copytree(bundle, out)
    graph = onnx.load(out / ONNX)
    last = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm")
    for held in graph.graph.initializer:
        if held.name in last.input:
            rolled = np.roll(numpy_helper.to_array(held), 1, axis=0)
            held.CopyFrom(numpy_helper.from_array(rolled, held.name))
    onnx.save(graph, out / ONNX)
    parity = value.read(ExportParity, out / PARITY)
    value.write(parity.model_copy(update={"onnx_sha256": files.sha256(out / ONNX)}), out / PARITY)
    return bundles.seal(out, card).path
