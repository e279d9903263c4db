"""A server whose graph takes bytes: clients that send bytes see no difference, those that send floats are told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import rrmsdk
from rrmsdk.errors import DataError, IntegrityError, MismatchError
from rrmsdk.runtime.endpoint import open_endpoint
from rrmsdk.runtime.rounding import in_unit
from rrmsdk.runtime.served import Opening, open_served
from rrmsdk.runtime.session import PREFIX
from rrmsdk.schema.bundle import Bundle
from tests.loopback import until
from tests.runtime.http_served import Served, ask, plain, serving
from tests.served import (
    lit,
    make_classifier,
    make_served,
    pixel_classifier,
    some_digits,
    with_bytes,
    with_parity,
    with_reference,
)  # fmt: skip

BYTES = Opening(threads=1, most=8, window=40, input="uint8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_bytes(make_served(tmp_path_factory.mktemp("bytes") / "b"))


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    with serving(bundle, input="uint8") as running:
        yield running


@pytest.fixture(scope="module")
def floats(bundle: Bundle) -> Iterator[Served]:
    with serving(bundle) as running:
        yield running


def some_bytes() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


def as_uint8(images: np.ndarray) -> dict:
    data = images.ravel().tolist()
    return {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(images.shape), "data": data}]}


def test_bytes_get_the_logits_that_the_float_graph_gives_them(served: Served, floats: Served) -> None:
    ours, theirs = (
        ask(one, "POST", "/v2/models/b/infer", as_uint8(some_bytes()))[1]["outputs"] for one in (served, floats)
    )
    assert ours == theirs


def test_floats_are_refused_and_told_what_to_send(served: Served) -> None:
    status, told, _ = ask(served, "POST", "/v2/models/b/infer", plain(some_digits(1)))
    assert (status, told["error"]) == (
        400, "the datatype is 'FP32'; this model takes bytes: send UINT8 [B, 8, 8, 1] in [0, 255]. Its server takes "
        "FP32 when it is started with --input float",
    )  # fmt: skip


def test_another_datatype_is_told_the_one_that_there_is(served: Served) -> None:
    asked = as_uint8(some_bytes())
    asked["inputs"][0]["datatype"] = "INT64"
    told = ask(served, "POST", "/v2/models/b/infer", asked)[1]
    assert told["error"] == "the datatype is 'INT64'; this model takes UINT8 images"


def test_metadata_and_config_say_bytes_in_their_order(served: Served, floats: Served) -> None:
    said = [ask(one, "GET", "/v2/models/b")[1]["inputs"] for one in (served, floats)]
    assert said == [
        [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
        [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    ]
    assert ask(served, "GET", "/v2/models/b/config")[1]["input"] == [
        {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [8, 8, 1]}
    ]


def test_the_page_that_describes_it_shows_and_names_what_it_takes(served: Served, floats: Served) -> None:
    page, other = (ask(one, "GET", "/openapi.json")[1] for one in (served, floats))
    told = page["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert ask(served, "POST", "/v2/models/b/infer", told["example"])[0] == 200
    takes = [
        one["components"]["schemas"]["Infer"]["properties"]["inputs"]["items"]["properties"]["datatype"]["enum"]
        for one in (page, other)
    ]
    assert takes == [["UINT8"], ["FP32", "UINT8"]]


def test_an_image_file_gets_the_same_classes(served: Served, floats: Served) -> None:
    file = io.BytesIO()
    Image.fromarray(some_bytes()[0, :, :, 0]).save(file, "PNG")
    ours, theirs = (ask(one, "POST", "/predict", file.getvalue())[1]["classes"] for one in (served, floats))
    assert ours == theirs


def test_the_version_is_named_by_the_graph_that_answers(served: Served, floats: Served, bundle: Bundle) -> None:
    assert served.service.version == bundle.card.files["onnx/model_input_uint8.onnx"][:12] != floats.service.version


@pytest.mark.parametrize(
    ("opening", "missing"),
    [
        (Opening(input="uint8"), r"onnx/model_input_uint8\.onnx, .*path:\S+ --onnx --input uint8$"),
        (Opening(precision="int8"), r"onnx/model_int8\.onnx, .*--onnx --precision int8$"),
        (
            Opening(precision="int8", provider="tensorrt", input="uint8"),
            r"onnx/model_int8_tensorrt_input_uint8\.onnx, .*--onnx --precision int8 --target tensorrt --input uint8$",
        ),
    ],
)
def test_a_graph_that_was_never_exported_is_told_how(tmp_path: Path, opening: Opening, missing: str) -> None:
    with pytest.raises(DataError, match=missing):
        open_served(make_served(tmp_path / "b").path, None, opening)


def test_a_graph_of_another_precision_than_its_name_says_is_refused(tmp_path: Path) -> None:
    bundle = make_served(tmp_path / "b")
    graph = onnx.load(bundle.onnx)
    onnx.helper.set_model_props(
        graph, {one.key: one.value for one in graph.metadata_props} | {f"{PREFIX}precision": "int4"}
    )
    onnx.save(graph, bundle.onnx)
    with pytest.raises(MismatchError, match=r"model\.onnx says that it computes in int4, its name says fp32"):
        open_served(with_parity(bundle).path, None, Opening())


def test_a_float_graph_under_the_name_of_one_of_bytes_is_refused(tmp_path: Path) -> None:
    bundle = with_bytes(make_served(tmp_path / "b"))
    bundle.onnx.write_bytes((bundle.path / "onnx/model_input_uint8.onnx").read_bytes())
    with pytest.raises(MismatchError, match=r"model\.onnx takes uint8 pixels, its name says float"):
        open_served(with_parity(bundle).path, None, Opening())


def test_a_graph_of_bytes_gives_the_golden_logits_or_is_refused(tmp_path: Path) -> None:
    bundle = with_bytes(with_reference(make_served(tmp_path / "b")))
    assert open_served(bundle.path, None, BYTES).golden == 32
    off = with_bytes(with_reference(make_served(tmp_path / "off"), off=0.5))
    with pytest.raises(IntegrityError, match=r"model_input_uint8\.onnx with cpu gives logits that differ by 0\.5"):
        open_served(off.path, None, BYTES)


def test_the_drift_of_bytes_is_that_of_the_same_pixels(tmp_path: Path) -> None:
    bundle = with_bytes(with_reference(make_served(tmp_path / "b")))
    dark, drifts = some_bytes() // 4, []
    for opening in (BYTES, replace(BYTES, input="float")):
        served = open_served(bundle.path, None, opening)
        pixels = served.session.from_bytes(dark)
        for _ in range(14):
            served.seen(pixels, served.predict(pixels))
        assert served.windows is not None
        assert served.windows.last is not None
        drifts.append(served.windows.last.drift)
    assert drifts[0] == drifts[1]
    assert drifts[0]["channel_0"].above


def test_a_canary_and_a_shadow_are_given_the_bytes(tmp_path: Path) -> None:
    for version, swapped in (("1", True), ("2", False)):
        with_bytes(make_classifier(tmp_path / version, pixel_classifier(swapped)))
    asked = as_uint8((255 * lit(0, 5)).astype(np.uint8).transpose(0, 2, 3, 1))
    with serving(models=tmp_path, name="digits", input="uint8", canary="1=100", shadow="1") as running:
        for place, classes in (("", [1, 5]), ("/versions/2", [0, 5])):
            told = ask(running, "POST", f"/v2/models/digits{place}/infer", asked)[1]
            assert np.reshape(told["outputs"][0]["data"], (2, 10)).argmax(axis=1).tolist() == classes
        shadow = running.service.shadow
        assert shadow is not None
        until(lambda: shadow.images == 2)
        assert (shadow.disagree, shadow.failed) == (1, 0)


def test_graphs_that_nobody_makes_are_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(rrmsdk.FieldError, match=r"'input' = 'bytes': .*'float' or 'uint8'"):
        rrmsdk.serve(bundle, input="bytes")


def test_it_is_attacked_from_afar_as_its_graph_is_here(served: Served, bundle: Bundle) -> None:
    """Pixels between two levels go to the nearest, on the way to the server as in front of the session."""
    session = served.service.store.find(None).session
    with closing(open_endpoint(f"{served.url}/v2/models/b")) as endpoint:
        assert (endpoint.input, endpoint.input_shape) == ("uint8", session.input_shape)
        np.testing.assert_array_equal(endpoint.predict(some_digits(7)), in_unit(session).predict(some_digits(7)))
    told = [
        rrmsdk.attack(model, "digits", "linf:1/10", images=30, queries=50, batch=8, quiet=True).outcomes
        for model in (f"{served.url}/v2/models/b", session.path)
    ]
    assert told[0] == told[1]
    assert set(told[0]) > {"."}
