"""`rrmsdk job`: the template is a job, a wrong file is exit code 64, and what a job would do is said in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rrmsdk.cli import app
from rrmsdk.errors import EndpointError, FieldError
from rrmsdk.retraining.explain import explained, next_slots
from rrmsdk.schema import job as jobs
from rrmsdk.schema import value
from rrmsdk.schema.job import Gate, Job

TEMPLATE = Path(jobs.__file__).parents[1] / "retraining" / "template.toml"


def _rrmsdk(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["job", *map(str, words)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A job of which everything is on this machine."""
    text = TEMPLATE.read_text().replace("hub:resnet18-linf", "hub:digits-cnn-linf").replace('"cifar10"', '"digits"')
    (tmp_path / "job.toml").write_text(text)
    return tmp_path / "job.toml"


def test_init_writes_a_job_that_check_accepts(tmp_path):
    assert _rrmsdk("init", tmp_path / "job.toml").exit_code == 0
    done = _rrmsdk("check", tmp_path / "job.toml")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'job.toml'}  r50-weekly is a job. sha256 ")


def test_every_line_that_the_template_leaves_out_is_a_field_too(tmp_path):
    whole = re.sub(r"^# (?=\[\[|\w+ = )", "", TEMPLATE.read_text(), flags=re.M).replace('"hub:resnet18', '"hub:acme/r')
    (tmp_path / "job.toml").write_text(whole)
    job = jobs.read(tmp_path / "job.toml")
    assert [one.kind for one in job.trigger] == ["cron", "data", "teacher", "drift", "regression"]
    assert [one.kind for one in job.notify] == ["webhook", "command"]
    assert set(re.findall(r"^(\w+) = ", whole.partition("[gate]")[2].partition("[export]")[0], flags=re.M)) == set(
        Gate.model_fields
    )


def test_init_never_overwrites(file):
    before = file.read_text()
    done = _rrmsdk("init", file)
    assert isinstance(done.exception, FieldError)
    assert str(done.exception) == f"{file} is there already. Name another file, or type rrmsdk job check {file}"
    assert file.read_text() == before


def test_a_file_that_is_no_job_is_one_line_and_exit_code_64(file):
    file.write_text(file.read_text().replace("robust_margin", "robust_margn"))
    for verb in ("check", "explain"):
        done = subprocess.run([sys.executable, "-m", "rrmsdk", "job", verb, str(file)], capture_output=True, text=True)
        assert done.returncode == 64
        assert done.stderr.startswith(
            f"rrmsdk: {file}: unknown field 'gate.robust_margn'. Did you mean 'robust_margin'"
        )
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("old", "new", "says"), [
    ('"0 3 * * sun"', '"0 3 * * someday"', "expression = '0 3 * * someday': bad day-of-week"),
    ('name = "rrm"', 'name = "rmm"', "Did you mean"),
    ("version = 1", "version = = 1", "is not TOML"),
    ('{ env = "HF_TOKEN" }', '"hf_aBcDeF"', "a secret is never written here"),
])  # fmt: skip
def test_check_finds_what_a_run_would_stumble_over(old, new, says, file):
    file.write_text(file.read_text().replace(old, new))
    done = _rrmsdk("check", file)
    assert (done.exit_code, done.stdout) == (64, "")
    assert says in done.stderr
    assert "hf_aBcDeF" not in done.stderr


def test_check_looks_up_what_the_job_names_where_that_is_asked(file, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert _rrmsdk("check", file).exit_code == 0
    done = _rrmsdk("check", file, "--online")
    assert (done.exit_code, done.stderr) == (64, "rrmsdk: $HF_TOKEN holds no secret. Set it where the job runs\n")
    monkeypatch.setenv("HF_TOKEN", "hf_aBcDeF")
    told = json.loads(_rrmsdk("check", file, "--online", "--json").stdout)
    assert told["found"].keys() == {"$HF_TOKEN", "hub:digits-cnn-linf"}
    assert told["digest"] == jobs.read(file).digest
    assert "hf_aBcDeF" not in json.dumps(told)


def test_a_source_that_is_not_there_is_a_wrong_job_and_a_server_that_is_not_there_is_not(file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_aBcDeF")
    gone, down = "source = 'path:gone'\nkind = 'data'", "url = 'http://127.0.0.1:9/v2/models/m/drift'\nkind = 'drift'"
    text = file.read_text()
    file.write_text(f"{text}\n[[trigger]]\n{gone}\n")
    done = _rrmsdk("check", file, "--online")
    assert done.exit_code == 64
    assert "gone is no folder" in done.stderr
    file.write_text(f"{text}\n[[trigger]]\n{down}\nabove = 0.2\n")
    assert isinstance(_rrmsdk("check", file, "--online").exception, EndpointError)  # exit code 2, as of every verb


def test_explain_says_what_the_job_would_do(file):
    done = _rrmsdk("explain", file)
    assert done.exit_code == 0, done.stderr
    for said in (
        "A resnet50 by rrm from hub:digits-cnn-linf, 48 epochs on digits, to withstand linf:8/255.",
        "At 03:00 on Sunday (UTC); of slots that were missed, the latest is made up for.",
        "- its robust accuracy is not worse than the champion's by 0.3 points, on the same images",
        "Without robust_floor each promotion may lose up to 0.3 points, again and again.",
        "One commit to acme/resnet50-linf on the Hub for each promotion, with the token in $HF_TOKEN;",
    ):
        assert said in done.stdout
    assert len(re.findall(r"Sun \d{4}-\d\d-\d\d 03:00 \+0000 UTC", done.stdout)) == 5


def test_explain_as_json_is_one_object(file):
    told = json.loads(_rrmsdk("explain", file, "--json").stdout)
    assert len(told["slots"]) == 5
    assert told["starts"] == ["At 03:00 on Sunday (UTC); of slots that were missed, the latest is made up for."]


def _job(**fields) -> Job:
    recipe = {
        "teacher": "hub:acme/r18", "student": {"arch": "resnet50"}, "data": {"name": "cifar10"},
        "threat": {"eps": "8/255"}, "method": {"name": "rrm"},
    }  # fmt: skip
    return value.parse(Job, {"version": 1, "name": "r50", "recipe": recipe, "push": {"repo": "acme/r50"}} | fields)


NOW = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)


def test_slots_of_several_triggers_are_told_in_their_order_each_with_its_zone():
    triggers = [
        {"kind": "cron", "expression": "30 2 * * *", "timezone": "Europe/Berlin"},
        {"kind": "cron", "expression": "0 1 * * *", "timezone": "America/New_York"},
    ]
    assert next_slots(_job(trigger=triggers), NOW, 4) == (
        "Sun 2026-10-25 02:30 +0200 Europe/Berlin", "Sun 2026-10-25 01:00 -0400 America/New_York",
        "Mon 2026-10-26 02:30 +0100 Europe/Berlin", "Mon 2026-10-26 01:00 -0400 America/New_York",
    )  # fmt: skip


def test_every_trigger_rule_and_person_to_tell_has_its_sentence():
    triggers = [
        {"kind": "data", "source": "path:/images", "min_new_rows": 500, "quiet": 600}, {"kind": "teacher"},
        {"kind": "drift", "url": "http://localhost:8000/v2/models/r50/drift", "above": 0.2},
        {"kind": "regression", "above": 0.01},
    ]  # fmt: skip
    gate = {"robust_floor": 0.45, "class_floor": 0.2, "audit_every": 10, "audit_images": 1000, "approval": True}
    notify = [
        {"kind": "webhook", "url": "https://hooks.example/secret/path"}, {"kind": "webhook", "url": {"env": "HOOK"}},
        {"kind": "command", "command": ["/bin/tell"], "on": ["failed"]},
    ]  # fmt: skip
    job = _job(
        trigger=triggers,
        gate=gate,
        notify=notify,
        budget={"hours_per_week": 40},
        judge={"images": 1000, "curve": "0..1:4"},
    )
    told = explained(job)
    text = " ".join(line for lines in told.values() for line in lines)
    for said in (
        "When path:/images has at least 500 new train images and then not changed for 600 s.",
        "When a teacher has a new revision: that is proposed, and waits for approval.",
        "When classes is above 0.2 in 2 windows in a row at localhost.", "surely lost more than 1 points",
        "a curve of each challenger at radii 0..1:4, by fast. It decides nothing.",
        "No run begins once 40 hours of the last seven days are spent.",
        "on the same images: the first 1000 of the test split but the last 1000.",
        "- its robust accuracy is at least 0.45", "- its robust accuracy in each class is at least 0.2",
        "Each promotion number 10, 20, ... must also not be surely worse on 1000 images that no gate saw.",
        "Then a person has the last word.", "The webhook at hooks.example of: promoted,",
        "The webhook at the address in $HOOK of:", "The command /bin/tell of: failed.",
    ):  # fmt: skip
        assert said in text
    assert "secret/path" not in text
    assert "Without robust_floor" not in text


def test_few_images_are_said_to_tell_little():
    (_, said) = explained(_job(judge={"images": 1000}))["judges"]
    assert said == (
        "Should 10 % of so many images differ between the two, a challenger that is exactly as robust is within 0.3 "
        "points surely enough in about 8 % of all cases."
    )


def test_schema_is_the_one_that_editors_need():
    told = json.loads(_rrmsdk("schema").stdout)
    assert told == jobs.json_schema()
    assert TEMPLATE.read_text().startswith("#:schema ./job.schema.json\n")
