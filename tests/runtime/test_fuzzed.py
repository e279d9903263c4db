"""Bodies that nobody would write are pixels or a refusal; `benchmarks/serve_fuzz.py` looks for ten minutes."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rrmsdk.runtime import images, messages, v2
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session, open_session

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TENSOR = {"name": "pixels", "datatype": "FP32", "shape": [1, 2, 4, 4], "data": [0.5] * 32}
quickly = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def session(network: bytes, tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    path.write_bytes(network)
    return open_session(path, threads=1)


def cut(content: bytes, changes: list[tuple[int, int]], keep: int) -> bytes:
    """Some bytes changed, and only the first kept."""
    made = bytearray(content)
    for at, byte in changes:
        made[at % len(made)] = byte
    return bytes(made[: 1 + keep % len(made)])


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)
KEEP = st.one_of(st.just(-2), st.integers(0, 1 << 16))  # -2: all of it


def let_through(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    assert (pixels.dtype, pixels.shape[1:]) == (np.float32, shape)
    assert 0 <= pixels.min() <= pixels.max() <= 1


@quickly
@given(where=st.sampled_from([*TENSOR, "parameters", "id", "outputs", "options"]), value=JSON)
def test_any_value_in_any_field_is_pixels_or_a_refusal(session: Session, where: str, value: Any) -> None:
    asked: dict[str, Any] = {"inputs": [TENSOR | ({where: value} if where in (*TENSOR, "parameters") else {})]}
    asked |= {{"options": "parameters"}.get(where, where): value} if where not in (*TENSOR, "parameters") else {}
    with suppress(Refused):
        let_through(v2.read(json.dumps(asked).encode(), None, session, 4).pixels, session.input_shape)


@quickly
@given(changes=CHANGES, keep=KEEP, length=st.none() | st.integers(0, 400).map(str) | st.text(max_size=4))
def test_damaged_bodies_are_pixels_or_a_refusal(
    session: Session, changes: list[tuple[int, int]], keep: int, length: str | None
) -> None:
    head = json.dumps({"inputs": [{k: v for k, v in TENSOR.items() if k != "data"} | {
        "parameters": {"binary_data_size": 128}
    }]}).encode()  # fmt: skip
    body = cut(head + np.full(32, 0.5, "<f4").tobytes(), changes, keep)
    with suppress(Refused):
        let_through(v2.read(body, length or str(len(head)), session, 4).pixels, session.input_shape)


@quickly
@given(changes=CHANGES, keep=KEEP, raw=st.booleans())
def test_damaged_messages_are_pixels_or_a_refusal(
    session: Session, changes: list[tuple[int, int]], keep: int, raw: bool
) -> None:
    tensor = {key: one for key, one in TENSOR.items() if key != "data"}
    if not raw:
        tensor["contents"] = {"fp32_contents": TENSOR["data"]}
    whole = messages.made("inference.ModelInferRequest", {"model_name": "m", "inputs": [tensor]})
    if raw:
        whole.raw_input_contents.append(np.full(32, 0.5, "<f4").tobytes())
    with suppress(Refused):
        asked = messages.parsed("inference.ModelInferRequest", cut(whole.SerializeToString(), changes, keep))
        let_through(messages.read(asked, session, 4).pixels, session.input_shape)


@quickly
@given(
    changes=CHANGES, keep=KEEP, mode=st.sampled_from(["L", "P", "RGB", "RGBA", "1", "I;16"]),
    kind=st.sampled_from(["PNG", "JPEG"]),
)  # fmt: skip
def test_damaged_images_are_pixels_or_a_refusal(
    changes: list[tuple[int, int]], keep: int, mode: str, kind: str
) -> None:
    file = io.BytesIO()
    Image.new(mode if kind == "PNG" else "RGB", (9, 7)).save(file, kind)
    with suppress(Refused):
        made = images.pixels(cut(file.getvalue(), changes, keep), (3, 4, 4))[0]
        assert (made.dtype, made.shape) == (np.uint8, (1, 4, 4, 3))
