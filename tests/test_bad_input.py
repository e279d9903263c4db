"""Bad input and what is said of it, to who types `rrmsdk serve` and to who asks a server: what is wrong, what to do."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from rrmsdk import files
from rrmsdk.runtime import server
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.bundles import make_bundle
from tests.served import make_served, some_digits, with_parity

ADMIN = "admin-token-of-the-tests"

# One process for all rows: importing the command line takes longer than any of them.
TYPED = """
import contextlib, io, json, sys
from rrmsdk.cli import main
told = []
for arguments in json.load(sys.stdin):
    sys.argv, error = ["rrmsdk", "serve", *arguments], io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as exc:
            told.append([exc.code, error.getvalue()])
print(json.dumps(told))
"""


def typed(commands: Sequence[Sequence[str]], **env: str) -> list[list[Any]]:
    """Exit code and stderr of each."""
    done = subprocess.run(
        [sys.executable, "-c", TYPED], input=json.dumps(commands), capture_output=True, text=True, timeout=120,
        env=os.environ | env,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # the runtime itself wrote nothing either
    return json.loads(done.stdout)


def with_graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    """A bundle with a changed graph, which its card and its parity check name as if nothing had happened."""

    def make(folder: Path) -> None:
        bundle = make_served(folder)
        model = onnx.load(bundle.onnx)
        change(model)
        files.write_bytes(bundle.onnx, model.SerializeToString())
        with_parity(bundle)

    return make


def another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def no_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Flatter"


def external_data(model: onnx.ModelProto) -> None:
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def another_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "images"


def another_shape(model: onnx.ModelProto) -> None:
    for at, size in ((2, 4), (3, 16)):
        model.graph.input[0].type.tensor_type.shape.dim[at].dim_value = size


def another_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype("float64")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))


def changed_afterwards(folder: Path) -> None:
    bundle = make_served(folder)
    bundle.onnx.write_bytes(bundle.onnx.read_bytes()[:-9])


AGAIN = r"Pull it again, or export it again: rrmsdk export path:BUNDLE --onnx"
ENDS = r"networks of this library map float 'pixels' \[batch, C, H, W\], or uint8 .*Export it: rrmsdk export path:"
# A bundle, what is typed to who serves it, what a running server answers to who loads it (None: the same), its status.
BUNDLES: dict[str, tuple[Callable[[Path], object], str, str | None, int]] = {
    "not a bundle": (
        Path.mkdir, r"no bundle: it has no card\.json\. Name the folder that ",
        r"there is no version not-a-bundle\. POST /v2/repository/index names those that there are", 404,
    ),
    "no onnx": (
        make_bundle, r"no onnx/model\.onnx, which a server needs\. Make it: rrmsdk export path:\S+no-onnx --onnx",
        r"no onnx/model\.onnx, which a server needs\. Make it: rrmsdk export path:\S+no-onnx --onnx", 409,
    ),
    "another domain": (
        with_graph(another_domain), rf"operators of the domain 'com\.microsoft'; only ONNX's own .*{AGAIN}", None, 409,
    ),
    "no operator": (with_graph(no_operator), r"cannot read .*No Op registered for Flatter.*Export it again", None, 409),
    "external data": (
        with_graph(external_data), rf"keeps weights in other files \(external data\); .*{AGAIN}", None, 409,
    ),
    "changed afterwards": (
        changed_afterwards, r"has sha256 \w{64}, its card says \w{64}: it changed .*Get the bundle again", None, 409,
    ),
    "another name": (with_graph(another_name), rf"maps \[\('images', .*{ENDS}", None, 409),
    "another shape": (
        with_graph(another_shape), r"has \[1, 4, 16\], the card says \[1, 8, 8\]\. Export it again", None, 409,
    ),
    "another type": (with_graph(another_type), rf"maps \[\('pixels', 'tensor\(double\)'.*{ENDS}", None, 409),
}  # fmt: skip


def folder_of(name: str) -> str:
    return name.replace(" ", "-")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good one, `1`, beside all the bad ones."""
    root = tmp_path_factory.mktemp("versions")
    make_served(root / "1")
    for name, (make, *_) in BUNDLES.items():
        make(root / folder_of(name))
    return root


@pytest.fixture(scope="module")
def said(versions: Path) -> dict[str, list[Any]]:
    """What the command line says of each bundle, and of what else is typed wrongly."""
    good = versions / "1"
    commands = {name: [f"path:{versions / folder_of(name)}", "--port", "0"] for name in BUNDLES}
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        commands["port in use"] = [str(good), "--port", str(taken.getsockname()[1])]
        commands["empty batch"] = [str(good), "--max-batch", "0"]
        commands["a lone file"] = [f"path:{good}/onnx/model.onnx"]
        return dict(zip(commands, typed(list(commands.values())), strict=True))


@pytest.fixture(scope="module")
def address(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of version 1."""
    tokens = tmp_path_factory.mktemp("tokens") / "admin"
    tokens.write_text(ADMIN)
    wanted = Serving(models=versions, name="digits", admin_token_file=tokens, threads=1, max_batch=8)
    service = prepared(versions / "1", wanted)
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        yield url.removeprefix("http://")


def ask(address: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", path, body, {"Authorization": f"Bearer {ADMIN}"} | (headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bad_bundle_is_one_line_and_exit_code_two(said: dict[str, list[Any]], name: str) -> None:
    code, told = said[name]
    assert (code, told.count("\n")) == (2, 1), told
    assert re.search(rf"^rrmsdk: .*{BUNDLES[name][1]}", told), told


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bad_version_is_refused_with_the_reason_and_without_places(address: str, versions: Path, name: str) -> None:
    _, typed, answered, expected = BUNDLES[name]
    body = json.dumps({"parameters": {"version": folder_of(name)}}).encode()
    status, told = ask(address, "/v2/repository/models/digits/load", body)
    assert status == expected, told
    assert re.search(answered or typed, told["error"]), told
    assert str(versions) not in told["error"]
    assert ask(address, "/v2/models/digits/infer", asked())[1]["outputs"][0]["shape"] == [1, 10]  # the old one answers


# What clients send.


def asked(images: int = 1, **changes: Any) -> bytes:
    data = some_digits(images).astype(float).ravel().tolist()
    given = {"name": "pixels", "datatype": "FP32", "shape": [images, 1, 8, 8], "data": data}
    return json.dumps({"inputs": [given | changes]}).encode()


TAKES = "this model takes FP32 of shape [B, 1, 8, 8]"
GZIP = {"Content-Encoding": "gzip"}
REQUESTS = {
    "wrong name": (asked(name="image"), {}, "the input is called 'image', this model's is called 'pixels'"),
    "wrong shape": (asked(shape=[1, 8, 8, 1]), {}, f"the shape is [1, 8, 8, 1]; {TAKES}"),
    "wrong type": (asked(datatype="FP64"), {}, "the datatype is 'FP64'; this model takes FP32, or UINT8 images"),
    "empty batch": (
        asked(shape=[0, 1, 8, 8], data=[]), {}, f"there is no image in the request; {TAKES}, B from 1 to 8",
    ),
    "large batch": (asked(9), {}, "9 images in one request; this server takes at most 8. Send them in several"),
    "truncated gzip": (gzip.compress(asked())[:-12], GZIP, "the compressed body is cut off. Send all of it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_400_with_what_to_send_instead(address: str, name: str) -> None:
    body, headers, says = REQUESTS[name]
    assert ask(address, "/v2/models/digits/infer", body, headers) == (400, {"error": says})


# What is wrong with the machine, or typed wrongly.


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("port in use", r"port \d+ on 127\.0\.0\.1 cannot be had: .* Take another: --port 0 finds a free one"),
        ("empty batch", r"serve: 'max_batch' = 0: Input should be greater than or equal to 1"),
        ("a lone file", r"'path:\S+' is a file, and a bundle is a folder\. Name the one that holds its card\.json"),
    ],
)
def test_what_is_typed_wrongly_is_one_line_and_exit_code_two(said: dict[str, list[Any]], name: str, says: str) -> None:
    code, told = said[name]
    assert code == 2
    assert re.fullmatch(rf"rrmsdk: {says}\n", told), told


def test_both_builds_of_onnxruntime_are_told_how_to_mend(versions: Path, tmp_path: Path) -> None:
    """Two packages of these names as pip leaves them; that they are installed is all that is looked at."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-1.31.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ((code, told),) = typed([[str(versions / "1"), "--port", "0"]], PYTHONPATH=path)
    assert (code, told) == (2, (
        "rrmsdk: onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. Type: pip "
        "uninstall -y onnxruntime onnxruntime-gpu, then pip install 'rrmsdk[ort]' or 'rrmsdk[ort-gpu]'\n"
    ))  # fmt: skip
