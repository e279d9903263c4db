"""The verb: what it asks of a bundle and of its options, and how it begins and ends as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

import rrmsdk
from rrmsdk import serving
from rrmsdk.errors import DataError, FieldError, RefError
from rrmsdk.runtime.endpoint import open_endpoint
from rrmsdk.runtime.served import Opening, open_served
from tests.bundles import make_bundle
from tests.served import make_served, some_digits


@dataclass
class Process:
    """`rrmsdk serve`, answering at `url`. told: its first line."""

    process: subprocess.Popen[str]
    url: str
    told: dict[str, Any]

    def get(self, path: str) -> int:
        with closing(http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def line(self) -> dict[str, Any]:
        """The next of the log."""
        assert self.process.stderr is not None
        return json.loads(self.process.stderr.readline())

    def until(self, event: str) -> dict[str, Any]:
        while (told := self.line())["event"] != event:
            pass
        return told


@contextmanager
def started(*options: Any, **env: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "rrmsdk", "serve", "--port", "0", "--threads", "1", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | env)
    try:
        made = Process(process, "", {})
        made.told = made.until("serving")
        made.url = made.told["url"]
        yield made
    finally:
        process.kill()
        process.communicate()


def ended(*options: Any, **env: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "rrmsdk", "serve", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | env)
    return done.returncode, done.stderr


def test_it_serves_until_sigterm_says_not_ready_first_and_ends_well(tmp_path: Path) -> None:
    bundle = make_served(tmp_path / "b")
    with started(bundle.path, "--drain", 30) as server:
        with closing(open_endpoint(f"{server.url}/v2/models/b")) as endpoint:
            wanted = open_served(bundle.path, None, Opening(threads=1)).session.predict(some_digits(3))
            np.testing.assert_array_equal(endpoint.predict(some_digits(3)), wanted)
        assert server.get("/v2/health/ready") == 200
        server.process.send_signal(signal.SIGTERM)
        server.until("stopping")
        assert server.get("/v2/health/ready") == 503
        assert server.get("/v2/models/b") == 200
        server.process.send_signal(signal.SIGTERM)  # a second one does not wait for the end of the drain
        server.until("stopped")
        assert server.process.wait(30) == 0


def test_an_older_export_is_served_and_the_log_says_what_it_lacks(tmp_path: Path) -> None:
    with started(make_served(tmp_path / "b").path) as server:
        told = server.until("lacks")
    assert told["level"] == "warning"
    assert "has no onnx/golden.safetensors and no onnx/serving.json. Export it again" in told["reason"]


def test_over_grpc_it_drains_on_sigterm_as_well(tmp_path: Path) -> None:
    with started(make_served(tmp_path / "b").path, "--grpc-port", 0, "--drain", 30) as server:
        with closing(InferenceServerClient(server.told["grpc"])) as client:
            assert client.is_server_ready()
            server.process.send_signal(signal.SIGTERM)
            server.until("stopping")
            assert not client.is_server_ready()
            assert client.is_model_ready("b")
        server.process.send_signal(signal.SIGTERM)
        server.until("stopped")
        assert server.process.wait(30) == 0


def test_ctrl_c_ends_it_as_well(tmp_path: Path) -> None:
    with started(make_served(tmp_path / "b").path, "--drain", 0) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_a_folder_of_versions_is_served_without_a_bundle(tmp_path: Path) -> None:
    make_served(tmp_path / "versions" / "7")
    service = serving.prepared(None, rrmsdk.Serving(models=tmp_path / "versions", threads=1))
    assert (service.name, service.version) == ("7", "7")


def test_a_port_in_use_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        code, told = ended(make_served(tmp_path / "b").path, "--port", port)
    assert code == 2
    assert told == (
        f"rrmsdk: port {port} on 127.0.0.1 cannot be had: Address already in use. "
        "Take another: --port 0 finds a free one\n"
    )


def test_a_port_in_use_is_told_for_grpc_too(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        code, told = ended(make_served(tmp_path / "b").path, "--port", 0, "--grpc-port", port)
    assert (code, told.startswith(f"rrmsdk: port {port} on 127.0.0.1 cannot be had: Address already in use")) == (
        2,
        True,
    )


def test_a_bundle_that_was_never_exported_is_told_how(tmp_path: Path) -> None:
    code, told = ended(make_bundle(tmp_path / "b").path)
    assert code == 2
    assert told == (
        f"rrmsdk: {tmp_path}/b has no onnx/model.onnx, which a server needs. Make it: "
        f"rrmsdk export path:{tmp_path}/b --onnx\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_a_public_host_without_tokens_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(FieldError, match=r"is open to others, and no token.*--token-file FILE .*--insecure"):
        serving.prepared(make_served(tmp_path / "b"), rrmsdk.Serving(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_needs_no_tokens(tmp_path: Path, host: str) -> None:
    assert serving.prepared(make_served(tmp_path / "b"), rrmsdk.Serving(host=host, threads=1)).version


def test_a_public_host_is_served_with_tokens_or_where_that_is_said(tmp_path: Path) -> None:
    bundle, tokens = make_served(tmp_path / "b"), tmp_path / "tokens"
    tokens.write_text("0123456789abcdef\n")
    assert serving.prepared(bundle, rrmsdk.Serving(host="0.0.0.0", token_file=tokens, threads=1)).access.tokens
    assert serving.prepared(bundle, rrmsdk.Serving(host="0.0.0.0", insecure=True, threads=1)).access.tokens is None


@pytest.mark.parametrize("content", ["", "short\n", None])
def test_a_file_without_tokens_is_told_how_to_make_one(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokens").write_text(content)
    says = "holds no token of 16 letters or more.*openssl rand -hex 16" if content is not None else "cannot be read: No"
    for option in ("token_file", "admin_token_file"):
        with pytest.raises(FieldError, match=says):
            serving.prepared(make_served(tmp_path / "b"), rrmsdk.Serving(**{option: tmp_path / "tokens"}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_batch": 0}, "'max_batch' = 0: .*greater than or equal to 1"),
        ({"max_queue": -1}, "'max_queue' = -1: .*greater than or equal to 1"),
        ({"timeout": float("nan")}, "'timeout' = nan: "),
        ({"threads": 0}, "'threads' = 0: .*greater than or equal to 1"),
        ({"max_body": 0}, "'max_body' = 0: .*greater than or equal to 1"),
        ({"window": 0}, "'window' = 0: .*greater than or equal to 1"),
        ({"drain": -1}, "'drain' = -1: .*greater than or equal to 0"),
        ({"name": "a/b"}, "'name' = 'a/b': .*a-z"),
        ({"provider": "gpu"}, "'provider' = 'gpu': .*'cpu', 'cuda' or 'tensorrt'"),
        ({"max_bach": 8}, "unknown field 'max_bach'. Did you mean 'max_batch'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(FieldError, match=says):
        rrmsdk.serve(make_served(tmp_path / "b"), **options)


def test_nothing_to_serve_is_told_what_to_type() -> None:
    with pytest.raises(FieldError, match=r"rrmsdk serve runs/r50.*--models DIR"):
        rrmsdk.serve()


def test_an_architecture_is_no_bundle() -> None:
    with pytest.raises(RefError, match="'resnet50' is an architecture"):
        serving.prepared("resnet50", rrmsdk.Serving())


def test_a_folder_of_versions_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder of versions, is not there"):
        serving.prepared(None, rrmsdk.Serving(models=tmp_path / "nowhere"))


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client", "orjson", "httptools"])
@pytest.mark.slow
def test_without_its_packages_the_pip_command_is_said(tmp_path: Path, package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from rrmsdk.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "serve", "runs/x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "rrmsdk: rrmsdk.serve needs the extra 'serve': pip install 'rrmsdk[serve]'\n"


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_without_the_packages_of_grpc_its_extra_is_said(tmp_path: Path, package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from rrmsdk.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "runs/x", "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "rrmsdk: serving over gRPC (grpc_port) needs the extra 'grpc': pip install 'rrmsdk[grpc]'\n",
    )


def test_over_http_alone_grpc_is_not_imported(tmp_path: Path) -> None:
    make_served(tmp_path / "b")
    code = (
        "import sys, rrmsdk\n"
        "from rrmsdk import serving\n"
        "from rrmsdk.runtime import server\n"
        f"service = serving.prepared({os.fspath(tmp_path / 'b')!r}, rrmsdk.Serving(threads=1))\n"
        "with server.running(service, server.listening('127.0.0.1', 0)):\n"
        "    print({'grpc', 'google.protobuf'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_it_needs_no_torch_and_no_onnx(tmp_path: Path) -> None:
    make_served(tmp_path / "b")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'jaxtyping', 'beartype'): sys.modules[name] = None\n"
        "import rrmsdk\n"
        "from rrmsdk import serving\n"
        "from rrmsdk.runtime import server\n"
        f"service = serving.prepared({os.fspath(tmp_path / 'b')!r}, rrmsdk.Serving(threads=1))\n"
        "with server.running(service, server.listening('127.0.0.1', 0)) as url:\n"
        "    import urllib.request\n"
        "    print(urllib.request.urlopen(url + '/v2/health/ready').status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "200\n", done.stderr


def test_where_keys_are_trusted_a_bundle_that_nobody_signed_is_not_served(tmp_path: Path) -> None:
    from tests.signatures import write_key

    key = write_key(tmp_path / "release.pem")
    bundle = make_served(tmp_path / "b")
    command = [sys.executable, "-m", "rrmsdk", "serve", os.fspath(bundle.path)]
    env = os.environ | {"RRMSDK_TRUST": os.fspath(key.with_name("release.pem.pub"))}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2
    assert "is not signed: it has no model.sig" in done.stderr
