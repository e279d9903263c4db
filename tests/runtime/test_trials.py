"""Versions on trial: a canary that answers a share of the requests, and a shadow that is only compared."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrmsdk.errors import DataError, FieldError
from rrmsdk.runtime import server
from rrmsdk.runtime.service import Service
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.loopback import until
from tests.runtime.test_app_busy import GatedEngine
from tests.served import lit, make_classifier, make_served, pixel_classifier

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
PLACE = "/v2/repository/models/digits"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Version 1 knows its pixels, 2 takes class 0 for class 1 and the other way round."""
    make_classifier(tmp_path / "versions" / "1", pixel_classifier())
    make_classifier(tmp_path / "versions" / "2", pixel_classifier(swapped=True))
    (tmp_path / "versions" / "pinned").write_text("1\n")
    return tmp_path / "versions"


@contextmanager
def serving(root: Path, **settings: Any) -> Iterator[tuple[Service, Callable[..., tuple[int, Any]]]]:
    """The service, and what asks it (method, path, body)."""
    tokens = root.parent / "admin"
    tokens.write_text("admin-token-of-the-tests")
    wanted = {"threads": 1, "max_batch": 8, "name": "digits", "models": root, "admin_token_file": tokens} | settings
    service = prepared(None, Serving(**wanted))
    with (
        server.running(service, server.listening("127.0.0.1", 0)) as url,
        closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection,
    ):

        def ask(method: str, path: str, body: Any = None, headers: dict[str, str] = ADMIN) -> tuple[int, Any]:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        yield service, ask


def asked(pixels: np.ndarray, id: str = "") -> dict[str, Any]:
    data = pixels.astype(np.float64).ravel().tolist()
    return {"id": id, "inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data}]}


def given(**parameters: Any) -> dict[str, Any]:
    return {"parameters": parameters}


# The canary.


def test_an_id_draws_the_same_at_any_share_and_shares_are_kept(root: Path) -> None:
    with serving(root, canary="2=5") as (service, _):
        made = service.canary
    assert made is not None
    ids = [f"request-{number}" for number in range(3000)]
    shares = {percent: {id for id in ids if replace(made, percent=percent).takes(id)} for percent in (5.0, 20.0, 100.0)}
    assert shares[5.0] < shares[20.0] < shares[100.0] == set(ids)
    for percent in (5.0, 20.0):  # within four standard deviations
        p = percent / 100
        assert abs(len(shares[percent]) / len(ids) - p) < 4 * (p * (1 - p) / len(ids)) ** 0.5
    assert [id for id in ids[:100] if id in shares[5.0]] == ["request-49", "request-55", "request-65", "request-68"]


def test_a_canary_answers_the_requests_that_its_share_of_the_ids_says(root: Path) -> None:
    with serving(root) as (service, ask):
        status, told = ask("POST", f"{PLACE}/canary", given(version="2", percent=30))
        assert (status, told["canary"]["version"], told["canary"]["percent"]) == (200, "2", 30.0)
        made = service.canary
        assert made is not None
        for number in range(40):
            answer = ask("POST", "/v2/models/digits/infer", asked(lit(3), f"r{number}"))[1]
            assert answer["model_version"] == ("2" if made.takes(f"r{number}") else "1")
        assert 0 < sum(made.takes(f"r{number}") for number in range(40)) < 40


def test_without_an_id_of_the_body_the_request_id_counts(root: Path) -> None:
    with serving(root, canary="2=50") as (service, _):
        chosen = {service.choose("digits", None, f"x{number}").version for number in range(50)}
        assert chosen == {"1", "2"}
        assert {service.choose("digits", "1", f"x{number}").version for number in range(50)} == {"1"}
        assert service.choose("digits", "2", "x").version == "2"


def test_the_canary_is_compared_with_what_answers_the_others(root: Path) -> None:
    with serving(root) as (_, ask):
        ask("POST", "/v2/models/digits/infer", asked(lit(5)))  # before it began, so not counted
        ask("POST", f"{PLACE}/canary", given(version="2", percent=100))
        ask("POST", "/v2/models/digits/infer", asked(lit(0, 0, 4)))
        ask("POST", "/v2/models/digits/versions/1/infer", asked(lit(0, 7)))
        ask("POST", "/v2/models/digits/versions/1/infer", asked(np.zeros((1, 1, 8, 8), np.float32)))
        status, told = ask("GET", f"{PLACE}/canary")
    assert status == 200
    answering, canary = told["compared"]
    assert (answering["version"], answering["requests"], answering["images"]) == ("1", 2, 3)
    assert (canary["version"], canary["requests"], canary["images"]) == ("2", 1, 3)
    assert answering["low_margin_rate"] == pytest.approx(1 / 3)  # the black image, which ten classes share
    assert canary["class_rates"] == pytest.approx({"1": 2 / 3, "4": 1 / 3})
    assert (canary["failed"], canary["failed_rate"], canary["mean_ms"] > 0) == (0, 0.0, True)


def test_a_canary_is_given_another_share_and_goes_on_counting(root: Path) -> None:
    with serving(root, canary="2=1") as (service, ask):
        before = service.canary
        status, told = ask("POST", f"{PLACE}/canary", given(percent=60))
        assert (status, told["canary"]["percent"]) == (200, 60.0)
        after = service.canary
        assert before is not None
        assert after is not None
        assert after.served is before.served
        assert after.before is before.before


def test_a_canary_is_stopped(root: Path) -> None:
    with serving(root, canary="2=100") as (_, ask):
        assert ask("POST", f"{PLACE}/canary", given(stop=True)) == (
            200, {"name": "digits", "canary": None, "compared": []},
        )  # fmt: skip
        assert ask("POST", "/v2/models/digits/infer", asked(lit(3)))[1]["model_version"] == "1"
        assert ask("GET", "/v2/models/digits")[1]["versions"] == ["1"]
        assert ask("POST", f"{PLACE}/canary", given(stop=True))[0] == 409


def test_a_canary_is_promoted_without_being_loaded_again_and_one_can_go_back(root: Path) -> None:
    (root / "pinned").unlink()
    (root / "2").rename(root / "0")
    with serving(root, canary="0=10") as (service, ask):
        served = service.canary and service.canary.served
        status, told = ask("POST", f"{PLACE}/canary", given(promote=True))
        assert (status, told["version"]) == (200, "0")
        assert service.store.find(None) is served
        assert service.canary is None
        assert ask("POST", f"{PLACE}/rollback", {})[1]["version"] == "1"
        assert ask("POST", f"{PLACE}/canary", given(promote=True)) == (409, {"error": "there is no canary"})


def test_a_pinned_version_is_not_replaced_by_a_promotion(root: Path) -> None:
    with serving(root, canary="2=10") as (_, ask):
        status, told = ask("POST", f"{PLACE}/canary", given(promote=True))
        assert (status, told["error"].startswith("version 1 is pinned")) == (409, True)


def test_a_canary_ends_when_its_version_is_loaded_or_unloaded_and_does_not_come_back(root: Path) -> None:
    (root / "pinned").unlink()
    (root / "2").rename(root / "0")
    with serving(root, canary="0=100") as (service, ask):
        ask("POST", f"{PLACE}/load", given(version="0"))
        ask("POST", f"{PLACE}/rollback", {})
        assert (service.version, service.canary) == ("1", None)
        ask("POST", f"{PLACE}/canary", given(version="0", percent=100))
        assert service.canary is not None
        ask("POST", f"{PLACE}/unload", given(version="0"))
        assert service.canary is None
        assert ask("POST", "/v2/models/digits/infer", asked(lit(3)))[1]["model_version"] == "1"


def test_a_roll_back_never_goes_to_the_canary(root: Path) -> None:
    (root / "pinned").unlink()
    with serving(root, canary="1=10") as (_, ask):
        assert ask("POST", f"{PLACE}/rollback", {}) == (409, {"error": "there is no version to go back to"})


def test_a_bad_canary_is_told_and_the_one_before_goes_on(root: Path) -> None:
    make_served(root / "3").onnx.write_bytes(b"no graph")
    with serving(root, canary="2=10") as (service, ask):
        status, told = ask("POST", f"{PLACE}/canary", given(version="3", percent=10))
        assert (status, "versions/3/onnx/model.onnx has sha256" in told["error"]) == (409, True)
        assert service.canary is not None
        assert service.canary.served.version == "2"


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"version": "1", "percent": 5}, 409, "version 1 answers already"),
        ({"version": "9", "percent": 5}, 404, "there is no version 9"),
        ({"version": "2"}, 400, "'percent' must be a number above 0, at most 100"),
        ({"version": "2", "percent": 0}, 400, "'percent' must be a number above 0, at most 100"),
        ({"version": "2", "percent": True}, 400, "'percent' must be a number above 0, at most 100"),
        ({"version": "2", "percent": 101}, 400, "'percent' must be a number above 0, at most 100"),
        ({"percent": 5}, 400, "name the version that is to be the canary"),
        ({"promote": True, "percent": 5}, 400, "'promote' must be true, and the only parameter"),
        ({"stop": False}, 400, "'stop' must be true, and the only parameter"),
        ({"share": 5}, 400, "the parameters are version, percent, stop and promote; "),
    ],
)
def test_a_canary_that_cannot_be_is_refused(root: Path, parameters: dict[str, Any], status: int, says: str) -> None:
    with serving(root) as (_, ask):
        found, told = ask("POST", f"{PLACE}/canary", {"parameters": parameters})
        assert (found, told["error"].startswith(says)) == (status, True), told


@pytest.mark.parametrize("text", ["2", "2=", "=5", "2=0", "2=nan", "2=101", "2=x"])
def test_a_canary_of_the_command_line_that_cannot_be_is_told(root: Path, text: str) -> None:
    with pytest.raises(FieldError, match=f"canary = '{text}': VERSION=PERCENT is wanted, such as 8=5"):
        prepared(None, Serving(models=root, threads=1, canary=text))


def test_a_trial_of_a_version_that_is_not_there_is_told_at_the_start(root: Path) -> None:
    for options in ({"canary": "9=5"}, {"shadow": "9"}):
        with pytest.raises(DataError, match="no trial: there is no version 9"):
            prepared(None, Serving(models=root, threads=1, **options))


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_trials_are_for_the_admin_token_alone(root: Path, role: str) -> None:
    with serving(root) as (_, ask):
        for method in ("GET", "POST"):
            assert ask(method, f"{PLACE}/{role}", headers={})[0] == 403
            assert ask(method, f"{PLACE}/{role}", headers=ADMIN)[0] != 403


# The shadow.


def test_a_shadow_disagrees_exactly_where_the_graphs_do(root: Path) -> None:
    with serving(root) as (service, ask):
        assert ask("POST", f"{PLACE}/shadow", given(version="2"))[0] == 200
        for classes in ([0, 1, 2], [3], [1, 1, 4, 5]):
            answer = ask("POST", "/v2/models/digits/infer", asked(lit(*classes)))[1]
            assert answer["model_version"] == "1"
            assert np.reshape(answer["outputs"][0]["data"], (-1, 10)).argmax(axis=1).tolist() == classes
        until(lambda: service.shadow is not None and service.shadow.images == 8)
        told = ask("GET", f"{PLACE}/shadow")[1]["shadow"]
        text = service.metrics.text().decode()
    assert (told["version"], told["images"], told["disagree"], told["dropped"], told["failed"]) == ("2", 8, 4, 0, 0)
    assert told["disagree_rate"] == 0.5
    assert told["margin_change_largest"] == pytest.approx(0, abs=1e-6)
    assert 'rrmsdk_shadow_images_total{outcome="disagree",version="2"} 4.0' in text
    assert 'rrmsdk_shadow_images_total{outcome="agree",version="2"} 4.0' in text


def test_how_far_the_margins_are_apart_is_measured(root: Path) -> None:
    make_classifier(root / "3", pixel_classifier() * 2)
    with serving(root, shadow="3") as (service, ask):
        ask("POST", "/v2/models/digits/infer", asked(lit(0, 4)))
        until(lambda: service.shadow is not None and service.shadow.images == 2)
        told = ask("GET", f"{PLACE}/shadow")[1]["shadow"]

    def margin(logit: float) -> float:
        return (np.exp(logit) - 1) / (np.exp(logit) + 9)

    for name in ("margin_change_mean", "margin_change_mean_size", "margin_change_largest"):
        assert told[name] == pytest.approx(margin(4.0) - margin(2.0), rel=1e-5)
    assert told["disagree"] == 0


def gated(service: Service) -> GatedEngine:
    """The shadow's network, which runs when the test lets it."""
    assert service.shadow is not None
    session = service.shadow.served.session
    gate = GatedEngine(session.engine)
    object.__setattr__(session, "engine", gate)
    return gate


def test_a_busy_shadow_drops_what_comes_and_delays_no_answer(root: Path) -> None:
    with serving(root, shadow="2", max_batch=2) as (service, ask):
        gate = gated(service)
        try:
            for _ in range(12):  # 2 images run, 4 batches of 2 wait, the others are dropped
                assert ask("POST", "/v2/models/digits/infer", asked(lit(0, 5)))[0] == 200
            assert gate.started.acquire(timeout=30)
            until(lambda: service.shadow is not None and service.shadow.dropped == 14)
        finally:
            gate.go.set()
        until(lambda: service.shadow is not None and service.shadow.images == 10)
        told = ask("GET", f"{PLACE}/shadow")[1]["shadow"]
    assert (told["dropped"], told["images"], told["disagree"]) == (14, 10, 5)


def test_a_shadow_that_fails_is_counted_and_changes_no_answer(root: Path) -> None:
    with serving(root, shadow="2") as (service, ask):
        assert service.shadow is not None
        object.__setattr__(service.shadow.served.session, "engine", None)
        assert ask("POST", "/v2/models/digits/infer", asked(lit(0, 5)))[0] == 200
        until(lambda: service.shadow is not None and service.shadow.failed == 2)


def test_the_server_ends_though_its_shadow_has_much_to_do(root: Path) -> None:
    with serving(root, shadow="2", max_batch=2) as (service, ask):
        gate, shadow = gated(service), service.shadow
        for _ in range(5):
            ask("POST", "/v2/models/digits/infer", asked(lit(0, 5)))
        assert gate.started.acquire(timeout=30)
        gate.go.set()
    assert shadow is not None
    assert service.background.images == 0


def test_a_shadow_is_stopped_and_answers_nobody(root: Path) -> None:
    with serving(root, shadow="2") as (service, ask):
        assert ask("POST", "/v2/models/digits/versions/2/infer", asked(lit(3)))[0] == 404
        assert ask("POST", f"{PLACE}/shadow", given(stop=True)) == (
            200, {"name": "digits", "version": "1", "shadow": None},
        )  # fmt: skip
        assert service.store.beside == {}
        assert ask("POST", f"{PLACE}/shadow", given(stop=True)) == (409, {"error": "there is no shadow"})
        assert ask("POST", f"{PLACE}/shadow", {})[1] == {"error": "name the version that is to be the shadow"}


def test_what_the_canary_answers_is_not_compared(root: Path) -> None:
    make_classifier(root / "3", pixel_classifier())
    with serving(root, shadow="3", canary="2=100") as (service, ask):
        ask("POST", "/v2/models/digits/infer", asked(lit(0, 5)))
        ask("POST", "/v2/models/digits/versions/1/infer", asked(lit(6)))
        until(lambda: service.shadow is not None and service.shadow.images == 1)
