"""`rrmsdk schedule ui`: what it answers, to whom, and that it only reads."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from rrmsdk.files import sha256
from rrmsdk.retraining import page
from rrmsdk.retraining.room import entered
from rrmsdk.retraining.watching import Watched, showing
from rrmsdk.runtime.access import Access, open_tokens
from rrmsdk.runtime.server import listening
from tests.chromium import browser
from tests.retraining import weekly

HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKEN = "0123456789abcdef0123456789abcdef"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs, and the state of one that ran twice, for a reason that somebody hostile wrote."""
    place = tmp_path_factory.mktemp("watched")
    (place / "jobs").mkdir()
    (place / "jobs" / "weekly.toml").write_text(weekly.JOB)
    with entered(place / "state" / "weekly") as room:
        _, champion = weekly.ran(room, 1, 0.5, None)
        weekly.ran(room, 2, 0.4, champion, says=HOSTILE)
    return place


@contextmanager
def shown(place: Path, access: Access) -> Iterator[str]:
    with showing(Watched(place / "jobs", place / "state", access), listening("127.0.0.1", 0)) as url:
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def at(place: Path) -> Iterator[str]:
    with shown(place, Access()) as at:
        yield at


def ask(at: str, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(at, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    told = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return told


def digest_of(at: str, stage: str) -> str:
    artefacts = ask(at, "/api/jobs/weekly/runs/000001").json()["artefacts"]
    return next(one["digest"] for one in artefacts if one["stage"] == stage)


def test_jobs_a_job_and_a_run_are_objects(at: str) -> None:
    assert [one["job"] for one in ask(at, "/api/jobs").json()["jobs"]] == ["weekly"]
    assert [one["run"] for one in ask(at, "/api/jobs/weekly").json()["runs"]] == ["000002", "000001"]
    assert ask(at, "/api/jobs/weekly/runs/000002").json()["state"] == "kept"


def test_an_artefact_can_be_had_by_its_digest(at: str, tmp_path: Path) -> None:
    digest = digest_of(at, "verify")
    assert [one["name"] for one in ask(at, f"/api/jobs/weekly/objects/{digest}").json()["files"]] == [""]
    answer = ask(at, f"/api/jobs/weekly/objects/{digest}/file")
    (tmp_path / "report").write_bytes(answer.body)
    assert sha256(tmp_path / "report") == digest
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("name", ["../../journal.sqlite", "/etc/passwd", "none", "", "bundle/../model.safetensors"])
def test_nothing_else_can_be_had(at: str, name: str) -> None:
    assert ask(at, f"/api/jobs/weekly/objects/{digest_of(at, 'transfer')}/file?name={name}").status == 404


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/jobs/wekly", "there is no job 'wekly' here. Did you mean 'weekly'"),
        ("/api/jobs/%2e%2e", "there is no job '..' here"),
        ("/api/jobs/weekly/runs/000009", "weekly has no run 000009"),
        ("/api/jobs/weekly/runs/x", "'x' names no run"),
        ("/api/jobs/weekly/objects/..", "'..' is no digest"),
        ("/else", "there is nothing at this address"),
    ],
)
def test_what_is_not_there_is_told(at: str, path: str, says: str) -> None:
    answer = ask(at, path)
    assert answer.status == 404
    assert says in answer.json()["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_only_reads(at: str, method: str) -> None:
    answer = ask(at, "/api/jobs/weekly", method)
    assert (answer.status, answer.json()["error"]) == (405, "this server only reads: GET")


def test_a_damaged_journal_is_told_and_a_run_of_it_is_503(place: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "weekly").mkdir(parents=True)
    (tmp_path / "state" / "weekly" / "journal.sqlite").write_bytes(b"no database at all" * 500)
    with showing(Watched(place / "jobs", tmp_path / "state", Access()), listening("127.0.0.1", 0)) as url:
        at = url.removeprefix("http://")
        assert "is damaged" in ask(at, "/api/jobs").json()["jobs"][0]["trouble"]
        assert "is damaged" in ask(at, "/api/jobs/weekly").json()["trouble"]
        answer = ask(at, "/api/jobs/weekly/runs/000001")
        assert (answer.status, "is damaged" in answer.json()["error"]) == (503, True)


class TestThePage:
    def test_holds_nothing_of_any_job(self, at: str) -> None:
        assert ask(at, "/").body.decode() == page.HTML

    def test_may_load_nothing_and_runs_its_own_script_alone(self, at: str) -> None:
        policy = ask(at, "/").headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.HTML)

    def test_never_reads_a_text_as_html(self) -> None:
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in page.HTML

    def test_gets_a_hostile_text_as_json_that_no_browser_takes_for_a_page(self, at: str) -> None:
        answer = ask(at, "/api/jobs/weekly/runs/000002")
        assert answer.json()["says"] == HOSTILE
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


class TestWhoMayLook:
    def test_without_tokens_only_names_of_this_machine_are_answered(self, at: str) -> None:
        answer = ask(at, "/api/jobs", Host="evil.example")
        assert (answer.status, "--token-file" in answer.json()["error"]) == (403, True)
        assert ask(at, "/", Host="evil.example").status == 403
        assert ask(at, "/", Host="[").status == 403
        assert ask(at, "/api/jobs", Host="localhost:8081").status == 200

    def test_with_tokens_who_has_one(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "tokens").write_text(TOKEN)
        with shown(place, Access(open_tokens(tmp_path / "tokens"))) as at:
            assert ask(at, "/", Host="jobs.example").status == 200
            refused = ask(at, "/api/jobs")
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert ask(at, "/api/jobs", Authorization=f"Bearer {TOKEN[::-1]}").status == 401
            assert ask(at, "/api/jobs", Authorization=f"Bearer {TOKEN}", Host="jobs.example").status == 200


class TestShell:
    def rrmsdk(self, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rrmsdk", "schedule", *words, "--jobs", str(place / "jobs")]
        environment = os.environ | {"RRMSDK_STATE": str(place / "state")}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    def test_a_public_host_wants_tokens(self, place: Path) -> None:
        done = self.rrmsdk(place, "ui", "--host", "0.0.0.0")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "host 0.0.0.0 is open to others, and no token is asked for. Give --token-file FILE" in done.stderr

    def test_it_answers_until_it_is_told_to_end(self, place: Path) -> None:
        command = [sys.executable, "-m", "rrmsdk", "schedule", "ui", "--port", "0", "-j", str(place / "jobs")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            url = json.loads(process.stderr.readline())["url"]
            assert ask(url.removeprefix("http://"), "/").status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0

    def test_show_tells_a_run_in_lines(self, place: Path) -> None:
        done = self.rrmsdk(place, "show", "weekly", "2")
        assert done.stdout.startswith("weekly 000002: kept. ")
        assert re.search(r"^verify +done +[0-9.]+ s  [0-9a-f]{64}$", done.stdout, flags=re.M)
        assert "\n  FAIL  robust_margin: Robust 0.4" in done.stdout

    def test_show_tells_a_program_what_the_page_is_told(self, place: Path, at: str) -> None:
        done = self.rrmsdk(place, "show", "weekly", "000002", "--json")
        assert json.loads(done.stdout) == ask(at, "/api/jobs/weekly/runs/000002").json()


@pytest.mark.slow
def test_a_browser_shows_a_run_with_both_curves_and_runs_nothing_that_was_written_into_it(
    at: str, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.tell("Page.navigate", url=f"http://{at}/#weekly/000002")
        tab.until("document.querySelectorAll('svg .line').length > 0")
        assert tab.value("[...document.querySelectorAll('svg .line')].map(one => one.classList[1]).join()") == (
            "champion,challenger"
        )
        assert HOSTILE in tab.value("document.body.innerText")
        assert tab.value("document.images.length") == 0
        assert tab.complaints == []
