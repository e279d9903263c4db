"""The command line: the same verbs, `--json` for programs, one clear line and exit code 2 for what is foreseen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.cli import FIRST
from rrmsdk.cli.app import recipe_fields
from rrmsdk.errors import FieldError
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[1]


def _rrmsdk(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rrmsdk", *arguments], capture_output=True, text=True, **settings)


def test_zoo_lists_the_embedded_teachers_as_json():
    done = _rrmsdk("zoo", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["ref"]: entry for entry in json.loads(done.stdout)}
    assert {"hub:digits-cnn-linf", "hub:resnet14-linf"} <= listed.keys()
    assert listed["hub:resnet14-linf"]["threat"] == {"norm": "linf", "eps": "8/255"}


def test_a_filter_that_nothing_passes_says_so():
    assert "no model of the zoo is like that" in _rrmsdk("zoo", "--min-robust", "1").stdout


def test_the_help_begins_with_what_is_wanted_first():
    told = _rrmsdk("--help").stdout
    assert sorted(FIRST, key=lambda name: told.index(f"│ {name} ")) == list(FIRST)


def test_the_version_is_told():
    assert _rrmsdk("--version").stdout == f"rrmsdk {rrmsdk.__version__}\n"


def test_what_stands_in_brackets_is_shown_by_the_help():
    told = _rrmsdk("verify", "--help", env=os.environ | {"COLUMNS": "200"}).stdout
    assert "path:DIR[@epoch=N], hub:NAME or hub:org/name[@revision]." in told


def test_the_table_of_the_zoo_says_the_whole_reference_of_what_was_pulled(tmp_path):
    bundle = make_bundle(tmp_path / "made")
    commit = "ab12" * 10
    shutil.copytree(bundle.path, tmp_path / f"hub/models--acme--a-rather-long-name/snapshots/{commit}")
    listed = _rrmsdk("zoo", "--dataset", "digits", env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}).stdout
    assert f"hub:acme/a-rather-long-name@{commit} " in listed


def test_zoo_shows_a_table_to_a_person():
    done = _rrmsdk("zoo", env=os.environ | {"COLUMNS": "160"})
    assert "digits-cnn-linf" in done.stdout
    assert "linf:1/10" in done.stdout


def test_an_unknown_teacher_is_one_line_and_exit_code_two():
    done = _rrmsdk("pull", "hub:digits-cn-linf", "--offline")
    assert done.returncode == 2
    assert done.stderr.startswith("rrmsdk: ")
    assert "digits-cnn-linf" in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_json_carries_card_and_report():
    done = _rrmsdk("pull", "hub:digits-cnn-linf", "--json")
    told = json.loads(done.stdout)
    assert told["card"]["model"]["arch"] == "cnn"
    assert told["report"]["note"].startswith("Robust accuracy here is an upper bound found by attacking")


# One process for all rows: to begin takes longer than to refuse.
REFUSED = """
import contextlib, io, json, sys
from rrmsdk.cli import main
told = []
for arguments in json.load(sys.stdin):
    sys.argv, error = ["rrmsdk", *arguments], io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as exc:
            told.append([exc.code, error.getvalue()])
print(json.dumps(told))
"""
TYPED = {
    "curve x --attack fsat": "'fsat' is not one of 'fast', 'autoattack', 'apgd', 'pgd'. Did you mean 'fast'?",
    "sweep r.toml -f a -v 1 --by zzz": "'zzz' is not one of 'mean', 'robust', 'clean'. Type rrmsdk sweep -h",
    "export x --onnx --precision fp61": "'fp61' is unknown. Did you mean 'fp16' or 'fp32'? Known: fp32, fp16, int8",
    "export x --onnx --precision zzz": "precision = 'zzz' is unknown. Known: fp32, fp16, int8",
    "verify x --images abc": "Invalid value for '--images' / '-n'",
    "transfer --teacer x": "No such option: --teacer. Did you mean '--teacher'",
    "verify x --steps": "Option '--steps' requires an argument.",
    "zoo shw": "No such command 'shw'. Did you mean 'show'?",
    "verfy x": "No such command 'verfy'. Did you mean 'verify'",
    "verify": "Missing argument 'model'. Type rrmsdk verify -h",
    "verify a b": "unexpected extra argument",
}


@pytest.fixture(scope="module")
def refused():
    given = json.dumps([typed.split() for typed in TYPED])
    done = subprocess.run([sys.executable, "-c", REFUSED], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(TYPED, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_wrongly_is_one_line_with_what_was_meant(typed, refused):
    code, told = refused[typed]
    assert (code, told.count("\n")) == (2, 1), told
    assert told.startswith("rrmsdk: ")
    assert TYPED[typed] in told


def test_a_job_in_the_place_of_a_recipe_is_told(tmp_path):
    (tmp_path / "r50.toml").write_text('version = 1\nname = "r50"\n[recipe]\nteacher = "hub:digits-cnn-linf"\n')
    with pytest.raises(FieldError, match=r"r50.toml is a job, with a recipe in it. Type: rrmsdk retrain .*r50.toml$"):
        recipe_fields(tmp_path / "r50.toml", None, None)


def test_a_word_of_its_own_is_answered_by_the_help():
    done = _rrmsdk("job")
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage" in done.stdout


@pytest.mark.parametrize("verb", ["", "transfer", "train", "verify", "export", "push", "pull", "zoo", "quickstart",
                                  "sweep", "diagnose", "corrupt", "certify", "curve", "report",
                                  "attack", "sign", "verify-signature", "serve", "retrain", "schedule",
                                  "job", "job check"])  # fmt: skip
def test_every_verb_explains_itself(verb):
    done = _rrmsdk(*verb.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.slow
def test_a_field_that_does_not_exist_is_told_its_near_matches(tmp_path):
    done = _rrmsdk(
        "transfer",
        "-t",
        "hub:digits-cnn-linf",
        "--student",
        "resnet14",
        "-d",
        "digits",
        "-s",
        "train.epoch=1",
        "-o",
        str(tmp_path / "r"),
    )
    assert done.returncode == 2
    assert "epochs" in done.stderr


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_continues(tmp_path):
    asked = f"transfer -t hub:digits-cnn-linf --student resnet14 -d digits --attack none -o {tmp_path / 'run'}"
    asked += " -s train.epochs=1.5 -s train.checkpoint_every=2"
    command = [sys.executable, "-m", "rrmsdk", *asked.split()]
    going = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    while going.poll() is None and not checkpoint.exists():
        time.sleep(0.01)  # waits for a file of another process
    going.send_signal(signal.SIGINT)
    _, told = going.communicate()
    assert going.returncode == 130
    assert "the same command continues" in told
    assert "Traceback" not in told
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"] is None
    assert not checkpoint.exists()


@pytest.mark.slow
def test_a_fraction_of_the_data_is_a_field_like_any_other(tmp_path):
    fields = ("data.fraction=0.3", "train.epochs=1", "train.batch=64", "student.width_mult=0.25")
    done = _rrmsdk(
        *("transfer", "-t", "hub:digits-cnn-linf", "--student", "cnn", "-d", "digits", "--attack", "none", "--json"),
        *(word for field in fields for word in ("--set", field)), "--out", str(tmp_path / "run"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)["card"]["data"]
    assert (info["train"], info["validation"], info["test"]) == (414, 58, 359)


@pytest.mark.slow
def test_teachers_given_twice_are_an_ensemble(tmp_path):
    asked = ["transfer", "-t", "hub:digits-cnn-linf", "-t", "hub:digits-cnn-linf", "--student", "cnn", "-d", "digits"]
    fields = ["-m", "akd", "-s", "method.inner.steps=1", "-s", "train.epochs=0.05", "-s", "student.width_mult=0.25"]
    done = _rrmsdk(*asked, *fields, "-s", "train.batch=64", "--attack", "none", "-o", str(tmp_path / "run"), "--json")
    assert len(json.loads(done.stdout)["card"]["teachers"]) == 2


@pytest.mark.slow
def test_what_is_typed_as_the_attack_judges_a_recipe(tmp_path):
    recipe = tmp_path / "teacher.toml"
    recipe.write_text("""
student = { arch = "cnn", width_mult = 0.25 }
data = { name = "digits" }
threat = { eps = "1/10" }
method = { name = "natural" }
train = { epochs = 0.05, batch = 64 }
verify = { attack = "autoattack", images = 20 }
""")
    told = {}
    for attack in ("none", "pgd", "pdg"):
        done = _rrmsdk("train", str(recipe), "--attack", attack, "--out", str(tmp_path / "run"), "--json")
        told[attack] = done.stderr if done.returncode else json.loads(done.stdout)["report"]
    assert told["none"] is None
    assert ([one["name"] for one in told["pgd"]["attacks"]], told["pgd"]["images"]) == (["pgd"], 20)
    assert "Did you mean 'pgd'" in told["pdg"]
