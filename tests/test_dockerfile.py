"""serve/Dockerfile: what every image of ours keeps to, and its instructions replayed, since there is no engine here."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image as Picture

import rrmsdk
from rrmsdk.cli import app
from tests import dockerfile
from tests.served import make_served

pytestmark = pytest.mark.timeout(900)  # the replay downloads and installs

ROOT = Path(__file__).parents[1]
STEPS = dockerfile.read(ROOT / "serve" / "Dockerfile")
COMPOSE = yaml.safe_load((ROOT / "serve" / "compose.yaml").read_text())
LAST = STEPS[max(at for at, step in enumerate(STEPS) if step.word == "FROM") :]
LARGEST = 200 << 20  # bytes that are installed to serve
TOKEN = "token-of-the-tests-of-images"


def said(word: str) -> dockerfile.Step:
    (only,) = [step for step in LAST if step.word == word]
    return only


def options() -> dict[str, Any]:
    """What the command line makes of the command. Raises click's errors for what it does not know."""
    verb, *arguments = said("CMD").command
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return command.make_context(verb, arguments).params


def test_it_has_stages_and_every_base_a_tag_that_is_not_latest() -> None:
    (base,) = [step.rest.removeprefix("BASE=") for step in STEPS if step.word == "ARG"]
    assert re.fullmatch(r"python:\d\.\d+-slim-[a-z]+", base)
    assert [step.rest for step in STEPS if step.word == "FROM"] == ["${BASE} AS build", "${BASE}"]


def test_the_last_stage_runs_nothing_and_copies_what_was_installed_alone() -> None:
    assert [(step.word, step.rest) for step in LAST if step.word in ("RUN", "COPY", "ADD")] == [
        ("COPY", "/opt/rrmsdk /opt/rrmsdk")
    ]


def test_nothing_goes_through_a_shell() -> None:
    programs = [step.command[0] for step in STEPS if step.word in ("RUN", "HEALTHCHECK", "ENTRYPOINT", "CMD")]
    assert len(programs) > 5
    assert not {"sh", "bash", "/bin/sh", "/bin/bash", "env"} & set(programs)
    assert not [step for step in STEPS if step.word in ("SHELL", "ADD")]


def test_it_runs_as_somebody_with_a_number_and_no_rights() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", said("USER").rest)


def test_onnxruntime_is_told_to_report_nothing_while_it_is_built_and_while_it_serves() -> None:
    assert [step.word for step in STEPS if "ORT_DISABLE_TELEMETRY=1" in step.rest] == ["ENV", "ENV"]


def test_no_secret_is_in_it() -> None:
    told = " ".join(step.rest for step in STEPS if step.word in ("ARG", "ENV", "RUN", "LABEL"))
    assert not re.search(r"token|secret|password|index-url|://", told, re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "kept_out"),
    [
        ("rrmsdk/serving.py", False), ("rrmsdk/runtime/app.py", False), ("zoo/resnet18-linf.toml", False),
        ("constraints.txt", False), ("zoo/embedded/resnet18-linf/model.safetensors", True), (".git/config", True),
        ("runs/r50/model.safetensors", True), ("serve/token", True), ("token", True), (".venv/bin/python", True),
        ("rrmsdk/runtime/__pycache__/app.cpython-311.pyc", True), ("__pycache__/x", True),
    ],
)  # fmt: skip
def test_a_build_is_given_what_it_copies_and_nothing_else(name: str, kept_out: bool) -> None:
    assert dockerfile.ignored(name, ROOT) is kept_out


def test_the_command_line_knows_the_command() -> None:
    given = options()
    assert said("ENTRYPOINT").command == ["rrmsdk"]
    assert (given["host"], str(given["port"]), given["insecure"]) == ("0.0.0.0", said("EXPOSE").rest, False)
    assert f"'127.0.0.1', {given['port']}" in said("HEALTHCHECK").command[-1]


def test_compose_gives_the_image_its_bundle_its_token_and_no_rights() -> None:
    (service,), given = COMPOSE["services"].values(), options()
    assert (ROOT / "serve" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
        ROOT / "serve" / "Dockerfile"
    )
    assert service["image"] == f"rrmsdk-serve:{rrmsdk.__version__}"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"][0].split(":")[1:] == [given["model"], "ro"]
    assert [f"/run/secrets/{name}" for name in service["secrets"]] == [str(given["token_file"])]
    assert set(service["secrets"]) == set(COMPOSE["secrets"])
    assert service["ports"] == [f"127.0.0.1:{given['port']}:{given['port']}"]
    assert int(service["stop_grace_period"].removesuffix("s")) > given["drain"] + given["timeout"] + 5


@dataclass
class Container:
    """The image's command, running. port: in the place of the one that the image names."""

    image: dockerfile.Image
    process: subprocess.Popen[str]
    port: int

    def ask(self, path: str, body: bytes | None = None, token: str | None = TOKEN) -> tuple[int, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def health(self) -> int:
        """The exit code of the image's own check."""
        words = [word.replace(str(options()["port"]), str(self.port)) for word in said("HEALTHCHECK").command]
        return self.image.start(words, stderr=subprocess.DEVNULL).wait(30)

    def until(self, event: str) -> None:
        assert self.process.stderr is not None
        while json.loads(self.process.stderr.readline())["event"] != event:
            pass


@pytest.fixture(scope="module")
def image() -> Iterator[dockerfile.Image]:
    """With a bundle and a token mounted."""
    place = Path(tempfile.mkdtemp(prefix="rrmsdk-image-"))
    place.chmod(0o755)  # the image's user is somebody else
    try:
        made = dockerfile.build(STEPS, ROOT, place)
        make_served(made.place("/model"))
        made.place("/run/secrets").mkdir(parents=True)
        made.place("/run/secrets/token").write_text(TOKEN)
        yield made
    finally:
        shutil.rmtree(place)


@pytest.fixture
def container(image: dockerfile.Image) -> Iterator[Container]:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    swaps = {"0.0.0.0": "127.0.0.1", str(options()["port"]): str(port)}
    words = [swaps.get(word, word) for word in [*said("ENTRYPOINT").command, *said("CMD").command]]
    process = image.start(words, stderr=subprocess.PIPE)
    try:
        running = Container(image, process, port)
        running.until("serving")
        yield running
    finally:
        process.kill()
        process.communicate()


def a_digit() -> bytes:
    file = io.BytesIO()
    Picture.new("L", (8, 8), 128).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.nightly
def test_what_it_installs_is_small_and_without_torch(image: dockerfile.Image) -> None:
    sizes = {path: path.stat().st_size for path in image.files() if image.place("/opt") in path.parents}
    names = {path.name for path in image.place("/opt/rrmsdk").glob("lib/python*/site-packages/*")}
    assert {"rrmsdk", "onnxruntime", "starlette"} <= names
    assert not {"torch", "onnx", "pip", "setuptools"} & names
    assert LARGEST / 2 < sum(sizes.values()) <= LARGEST


@pytest.mark.slow
@pytest.mark.nightly
def test_it_answers_with_its_token_and_is_healthy(container: Container) -> None:
    assert container.health() == 0
    assert container.ask("/v2/health/ready", token=None) == (200, {"ready": True})
    assert container.ask("/predict", a_digit(), token=None)[0] == 401
    status, told = container.ask("/predict", a_digit())
    assert (status, len(told["classes"])) == (200, 10)


@pytest.mark.slow
@pytest.mark.nightly
def test_it_runs_as_the_images_user_and_writes_nothing(image: dockerfile.Image, container: Container) -> None:
    if image.user is not None:
        assert Path(f"/proc/{container.process.pid}").stat().st_uid == int(said("USER").rest.partition(":")[0])
    before = {path: path.stat().st_mtime_ns for path in image.files()}
    container.ask("/predict", a_digit())
    container.process.send_signal(signal.SIGTERM)
    container.process.wait(60)
    assert {path: path.stat().st_mtime_ns for path in image.files()} == before


@pytest.mark.slow
@pytest.mark.nightly
def test_on_sigterm_it_says_not_ready_answers_on_and_ends_well(container: Container) -> None:
    container.process.send_signal(signal.SIGTERM)
    container.until("stopping")
    assert container.ask("/v2/health/ready")[0] == 503
    assert container.health() == 1
    assert container.ask("/predict", a_digit())[0] == 200
    container.until("stopped")
    assert container.process.wait(30) == 0
    assert container.health() == 1


@pytest.mark.slow
@pytest.mark.nightly
def test_without_its_token_it_says_how_to_make_one_and_ends(image: dockerfile.Image) -> None:
    token = image.place("/run/secrets/token").rename(image.place("/run/secrets/elsewhere"))
    try:
        process = image.start([*said("ENTRYPOINT").command, *said("CMD").command], stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=60)
    finally:
        token.rename(image.place("/run/secrets/token"))
    assert process.returncode == 2
    assert re.fullmatch(r"rrmsdk: .*/run/secrets/token cannot be read: .*openssl rand -hex 16 > .*\n", told)
