"""The page that describes the server: it leaves no address out, and what it promises is what comes."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from starlette.routing import Route

from rrmsdk.runtime import openapi, server
from rrmsdk.runtime.app import App
from rrmsdk.runtime.openapi import OPERATIONS, Operation
from rrmsdk.runtime.service import Service
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.served import make_served

BEARER = {"Authorization": "Bearer admin-token-of-the-tests"}
IDS = [f"{one.method} {one.path}" for one in OPERATIONS]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    place = tmp_path_factory.mktemp("versions")
    for seed in (1, 2):
        make_served(place / "versions" / str(seed), seed=seed)
    (place / "admin").write_text("admin-token-of-the-tests")
    settings = {"models": place / "versions", "name": "digits", "admin_token_file": place / "admin"}
    return prepared(None, Serving(**settings, threads=1))


@pytest.fixture(scope="module")
def host(service: Service) -> Iterator[str]:
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        yield url.removeprefix("http://")


def ask(host: str, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    with closing(http.client.HTTPConnection(host, timeout=30)) as line:
        line.request(method, path, body, BEARER)
        got = line.getresponse()
        return got.status, got.headers.get_content_type(), got.read()


@pytest.fixture(scope="module")
def page(host: str) -> dict[str, Any]:
    return json.loads(ask(host, "GET", "/openapi.json")[2])


def test_every_route_is_in_it_and_nothing_else(service: Service) -> None:
    routes = [one for one in App(service, nullcontext()).router.routes if isinstance(one, Route)]
    there = {(method.lower(), one.path.rstrip("/") or "/") for one in routes for method in one.methods or ()}
    assert {(one.method, one.path) for one in OPERATIONS} == {one for one in there if one[0] != "head"}


def test_the_versions_in_it_are_those_that_a_request_may_name(service: Service) -> None:
    store = service.store
    canary = store.begin_beside("canary", "1")
    try:
        told = openapi.page(service)["paths"]["/v2/models/{model}/versions/{version}"]["get"]["parameters"]
        assert told[1]["schema"]["enum"] == [one.version for one in store.named] == ["2", canary.version]
    finally:
        store.end("canary")


def test_its_names_are_unique_and_its_references_lead_somewhere(page: dict[str, Any]) -> None:
    made = [operation for path in page["paths"].values() for operation in path.values()]
    assert len({one["operationId"] for one in made}) == len(made) == len(OPERATIONS)
    named = set(json.dumps(page).split('"#/components/schemas/')[1:])
    assert {one.split('"')[0] for one in named} == set(page["components"]["schemas"])
    for schema in page["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def conforms(page: dict[str, Any], schema: dict[str, Any], told: Any) -> None:
    jsonschema.validate(told, schema | {"components": page["components"]}, jsonschema.Draft202012Validator)


# These versions say nothing of what to expect, and none of them is on trial.
ABSENT = {"drift": 404, "canary": 409, "shadow": 409}


@pytest.mark.parametrize("one", OPERATIONS, ids=IDS)
def test_what_it_shows_is_taken_and_what_it_promises_is_given(host: str, page: dict[str, Any], one: Operation) -> None:
    if one.path.endswith("rollback"):
        assert ask(host, "POST", "/v2/repository/models/digits/load", b'{"parameters": {"version": "1"}}')[0] == 200
    told = page["paths"][one.path][one.method]
    path = one.path.format(**{at["name"]: at["example"] for at in told["parameters"] if at["in"] == "path"})
    body = None
    if one.takes == "image":
        file = io.BytesIO()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
        body = file.getvalue()
    elif one.takes:
        content = told["requestBody"]["content"]["application/json"]
        conforms(page, content["schema"], content["example"])
        body = json.dumps(content["example"]).encode()
    try:
        status, kind, answer = ask(host, one.method.upper(), path, body)
        absent = ABSENT.get(one.path.rpartition("/")[2]) if one.takes or one.gives == "Drift" else None
        assert status == (absent or 200)
        promised = told["responses"]["default" if absent else "200"]["content"][kind]
        conforms(page, promised["schema"], json.loads(answer) if kind == "application/json" else answer.decode())
    finally:
        if one.path.endswith("unload"):
            ask(host, "POST", "/v2/repository/models/digits/load", b"")


def test_a_refusal_is_as_it_says(host: str, page: dict[str, Any]) -> None:
    status, _, answer = ask(host, "POST", "/v2/models/digits/infer", b"{}")
    assert status == 400
    told = page["paths"]["/v2/models/{model}/infer"]["post"]["responses"]["default"]["content"]["application/json"]
    conforms(page, told["schema"], json.loads(answer))


def test_tokens_are_asked_for_where_the_server_does(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef")
    service = prepared(make_served(tmp_path / "b"), Serving(token_file=tmp_path / "tokens", threads=1))
    paths = openapi.page(service)["paths"]
    assert paths["/v2"]["get"]["security"] == [{"token": []}]
    assert paths["/v2/health/ready"]["get"]["security"] == []
    assert paths["/v2/repository/index"]["post"]["security"] == [{"admin": []}]
