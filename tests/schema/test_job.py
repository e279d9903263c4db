"""A job file: what is read, what is refused and how it is said, and that no secret is ever in it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from rrmsdk.errors import DataError, FieldError
from rrmsdk.schema import job as jobs
from rrmsdk.schema import value
from rrmsdk.schema.job import Gate, Job, Judge
from rrmsdk.schema.secret import Secret, reveal

SECRET = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ"
RECIPE = """
teacher = "hub:resnet18-linf"
student = { arch = "resnet50" }
data = { name = "path:images" }
threat = { eps = "8/255" }
method = { name = "rrm" }
"""
JOB = f"""
version = 1
name = "r50-weekly"
[recipe]{RECIPE}
[[trigger]]
kind = "cron"
expression = "0 3 * * mon"
timezone = "Europe/Berlin"
[[trigger]]
kind = "data"
source = "path:images"
[push]
repo = "acme/r50"
token = {{ env = "HF_TOKEN" }}
[[notify]]
kind = "webhook"
url = {{ file = "hook" }}
"""


def _read(folder: Path, text: str = JOB) -> Job:
    (folder / "job.toml").write_text(text)
    return jobs.read(folder / "job.toml")


def _refused(folder: Path, old: str, new: str) -> str:
    assert old in JOB
    with pytest.raises(FieldError) as told:
        _read(folder, JOB.replace(old, new))
    return str(told.value)


def test_a_job_is_read_with_its_defaults(tmp_path):
    job = _read(tmp_path)
    assert (job.gate, job.judge) == (Gate(), Judge())
    assert job.push.token == Secret(env="HF_TOKEN")
    assert job.trigger[0].timezone == "Europe/Berlin"


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_a_job_is_the_same_after_a_trip_through_a_file(ending, tmp_path):
    job = _read(tmp_path)
    value.write(job, tmp_path / f"again.{ending}")
    assert value.read(Job, tmp_path / f"again.{ending}") == job


def test_folders_are_meant_from_where_the_file_lies(tmp_path):
    job = _read(tmp_path)
    assert job.recipe.data.name == job.trigger[1].source == f"path:{tmp_path}/images"
    assert job.notify[0].url == Secret(file=str(tmp_path / "hook"))
    above = _read(tmp_path, JOB.replace("path:images", "path:../images"))
    assert above.recipe.data.name == above.trigger[1].source == f"path:{tmp_path.parent}/images"


def test_a_recipe_may_be_a_file_of_its_own(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert _read(tmp_path, JOB.replace(RECIPE, '\npath = "recipe.toml"\n')) == _read(tmp_path)


def test_a_recipe_is_a_file_or_fields_not_both(tmp_path):
    told = _refused(tmp_path, "[recipe]", '[recipe]\npath = "recipe.toml"')
    assert told.endswith("[recipe] has either `path`, which names a file, or the fields of a recipe")


def test_the_digest_changes_with_any_field_and_with_nothing_else(tmp_path):
    job = _read(tmp_path)
    assert job.digest == _read(tmp_path, f"# a comment\n{JOB}").digest
    assert job.digest != _read(tmp_path, JOB.replace("0 3", "0 4")).digest


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version = 1", "version = 2", "'version' = 2: Input should be 1"),
        ("version = 1", "", "field 'version' is missing"),
        ("r50-weekly", "../x", "'name': String should match pattern"),
        ("timezone", "timezon", "unknown field 'trigger.0.cron.timezon'. Did you mean 'timezone'?"),
        ("source", "sorce", "unknown field 'trigger.1.data.sorce'. Did you mean 'source'?"),
        ("[push]", "[gate]\nrobust_margn = 0.1\n[push]", "'gate.robust_margn'. Did you mean 'robust_margin'"),
        ("method = {", "train = { epoch = 3 }\nmethod = {", "'recipe.train.epoch'. Did you mean 'epochs'"),
        ("Europe/Berlin", "Europe/Berln", "no such time zone here. Did you mean 'Europe/Berlin'"),
        ("Europe/Berlin", "../../etc", "'trigger.0.cron.timezone': no such time zone here."),
        ("0 3 * * mon", "0 3 * *", "'trigger.0.cron.expression': String should match pattern"),
        ('kind = "cron"', 'kind = "crn"', "'trigger.0' is of an unknown kind. Did you mean 'cron'?"),
        ('kind = "cron"', "", "field 'trigger.0.kind' is missing"),
        ('source = "path:images"', 'source = "hub:images"', "a source is path:DIR, or hub:org/name for a data set"),
        ('source = "path:images"', 'source = "images"', "a source is path:DIR, or hub:org/name for a data set"),
        ("[push]", "[push]\nrepo = 'a/b'", "(at line 20, column 18): repo is given twice"),
        ("[push]", "[push]\n[push]", "(at line 19, column 6): [push] is given twice"),
        ("[push]", "[judge]\nattack = 'autoatack'\n[push]", "'fast', 'apgd' or 'pgd'. Did you mean 'autoattack'"),
        ("[push]", "[judge]\nattack = 'fast'\nversion = 'plus'\n[push]", "version = 'plus' goes with attack = 'autoat"),
        ("[push]", "[judge]\ncurve = '1/5..0:3'\n[push]", "curve '1/5..0:3' does not go up"),
        ("[push]", "[judge]\nimages = -1\n[push]", "'judge.images' = -1: Input should be greater than or equal to 0"),
        ("[push]", "[gate]\naudit_every = 3\n[push]", "audit_every = 3 and audit_images = 0: give both"),
        ("url = { file", "command = { file", "'notify.0.command'"),
        ('url = { file = "hook" }', 'command = ["mail"]', "kind = 'webhook' needs url, and no command"),
        ("{ file = \"hook\" }", '"ftp://x"', "'notify.0.url': an address begins with http:// or https://"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_to_type(old, new, says, tmp_path):
    assert says in _refused(tmp_path, old, new)


def test_a_teacher_in_a_folder_has_no_new_revisions(tmp_path):
    with pytest.raises(FieldError, match="needs a recipe whose teacher is hub:NAME or hub:org/name"):
        _read(tmp_path, JOB.replace("hub:resnet18-linf", "path:r18") + "[[trigger]]\nkind = 'teacher'\n")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.toml"):
        jobs.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{ env = "HF_TOKEN" }', f'"{SECRET}"'),
        ('{ env = "HF_TOKEN" }', f'["{SECRET}"]'),
        ('{ env = "HF_TOKEN" }', f'{{ env = "{SECRET}" }}'),
        ('{ env = "HF_TOKEN" }', f'{{ vault = "{SECRET}" }}'),
        ('{ env = "HF_TOKEN" }', f'{{ env = "A", file = "{SECRET}" }}'),
        ('token = { env = "HF_TOKEN" }', f'tokn = "{SECRET}"'),
        ('token = { env = "HF_TOKEN" }', f'token = "{SECRET}'),
        ('token = { env = "HF_TOKEN" }', f'token = "{SECRET}"\ntoken = "{SECRET}"'),
        ("acme/r50", SECRET),
        ('{ file = "hook" }', f'"{SECRET}"'),
        ("Europe/Berlin", SECRET),
        ('kind = "cron"', f'kind = "{SECRET}"'),
        ("r50-weekly", SECRET),
        ("8/255", SECRET),
        ("[push]", f'[gate]\nconfidence = "{SECRET}"\n[push]'),
        ("[push]", f'[gate]\napproval = "{SECRET}"\n[push]'),
        ("[push]", f'[judge]\nattack = "{SECRET}"\n[push]'),
        ("[push]", f'[budget]\nmin_interval = "{SECRET}"\n[push]'),
    ],
)
def test_a_token_that_was_typed_is_refused_and_never_shown(old, new, tmp_path):
    assert old in JOB
    with pytest.raises(FieldError) as told:
        _read(tmp_path, JOB.replace(old, new))
    # Without the line of this file that calls, everything a log would show, causes included.
    assert SECRET not in "".join(traceback.format_exception(told.value, limit=0))


def test_neither_the_job_nor_its_schema_holds_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "hook").write_text(f"https://hooks.example/{SECRET}\n")
    job = _read(tmp_path)
    assert [reveal(secret) for secret in job.secrets()] == [SECRET, f"https://hooks.example/{SECRET}"]
    assert SECRET not in f"{job!r}{job}{value.to_json(job)}{value.to_toml(job)}{json.dumps(jobs.json_schema())}"


def test_a_secret_is_looked_up_when_it_is_used(monkeypatch):
    monkeypatch.setenv("LATE", "one")
    secret = Secret(env="LATE")
    monkeypatch.setenv("LATE", "two")
    assert reveal(secret) == "two"


def test_a_secret_that_is_not_there_is_named_by_its_place(monkeypatch, tmp_path):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(FieldError, match=r"\$NOT_SET holds no secret\. Set it where the job runs"):
        reveal(Secret(env="NOT_SET"))
    with pytest.raises(FieldError, match=r"cannot read the secret in .*gone: No such file"):
        reveal(Secret(file=str(tmp_path / "gone")))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(FieldError, match="empty holds no secret"):
        reveal(Secret(file=str(tmp_path / "empty")))


def test_the_schema_for_editors_knows_every_field(tmp_path):
    schema = jobs.json_schema()
    assert schema["properties"].keys() == Job.model_fields.keys()
    assert schema["$defs"]["Gate"]["properties"].keys() == Gate.model_fields.keys()
    assert {"$ref": "#/$defs/Recipe"} in schema["properties"]["recipe"]["anyOf"]
    assert "path" in schema["properties"]["recipe"]["anyOf"][1]["properties"]


def test_both_are_judged_by_the_engine_as_the_job_says():
    spec = Judge(attack="apgd", images=50, seed=3).spec()
    assert (spec.attack, spec.images, spec.seed) == ("apgd", 50, 3)
    assert Judge().spec(images=900).images == 900
