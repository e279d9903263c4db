"""Telling somebody how a run stands: a webhook, or a program that reads JSON. Whether they hear it changes no run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from rrmsdk.retraining.journal import Journal
from rrmsdk.schema.job import Job, Notify
from rrmsdk.schema.secret import Secret, reveal

SECONDS = 10.0  # for each of them


def announce(job: Job, journal: Journal, run: int, told: Mapping[str, Any], seconds: float = SECONDS) -> None:
    """Tell everybody who asked for this state, unless they were told already.

    A run that waits is asked again and again; what it waits for stands before the colon, and is told once.
    """
    said = {"state": told["state"], "why": told["why"]}
    before = [event.told for event in journal.events(run) if event.kind == "announced"]
    if before and _point(before[-1]) == _point(said):
        return
    heard = [_tell(notify, told, seconds) for notify in job.notify if told["state"] in notify.on]
    journal.note(run, "announced", **said, to=heard)


def _point(said: Mapping[str, Any]) -> tuple[str, str]:
    state, why = said["state"], said["why"]
    return state, why.partition(":")[0] if state == "blocked" else why


def _tell(notify: Notify, told: Mapping[str, Any], seconds: float) -> str:
    """How it went, in words that hold no secret."""
    text = json.dumps(told).encode()
    try:
        if notify.kind == "webhook":
            return f"{_shown(notify)}: {_posted(notify, text, seconds)}"
        assert notify.command is not None
        done = subprocess.run(notify.command, input=text, capture_output=True, timeout=seconds)
        return f"{_shown(notify)}: exit code {done.returncode}"
    # Whatever a stranger's server or program does. Its own words may repeat the address: only the kind is told.
    except Exception as exc:
        return f"{_shown(notify)}: {type(exc).__name__}"


def _posted(notify: Notify, text: bytes, seconds: float) -> int:
    import urllib.request  # slow to import, and few ticks have anything to tell

    assert notify.url is not None
    url = reveal(notify.url) if isinstance(notify.url, Secret) else notify.url
    asked = urllib.request.Request(url, data=text, headers={"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(asked, timeout=seconds) as answer:
        return answer.status


def _shown(notify: Notify) -> str:
    """Of an address its host: the path of a webhook is often the secret."""
    if notify.command is not None:
        return notify.command[0]
    return str(notify.url) if isinstance(notify.url, Secret) else str(notify.url).split("/")[2].rpartition("@")[2]
