"""What a hurried user types wrongly in Python is one sentence that shows the value, before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.errors import RefError
from rrmsdk.hub import index
from rrmsdk.opening import opened
from rrmsdk.schema.threat import ThreatModel

# A process of its own, for all rows: here the tests' own type checker would speak first, which users do not have.
CALLS = """
import json, sys
import rrmsdk
TEACHER = "hub:digits-cnn-linf"
RECIPE = {"teacher": TEACHER, "student": {"arch": "cnn"}, "data": {"name": "digits"}, "threat": {"eps": "1/10"},
          "method": {"name": "rrm"}}
def transfer(**over):
    rrmsdk.transfer(**{"teacher": TEACHER, "student": "cnn", "data": "digits"} | over)
def sweep(**over):
    rrmsdk.sweep(RECIPE, "method.ce_weight", "log:1e-3..1:3", **over)
told = []
for call in json.load(sys.stdin):
    try:
        told.append(["nothing", repr(eval(call))])
    except Exception as exc:
        told.append([type(exc).__name__, str(exc)])
print(json.dumps(told))
"""
WRONG = {
    "transfer(teacher=[])": ("RefError", "teacher = []: type hub:NAME"),
    "transfer(teacher=5)": ("RefError", "teacher = 5: type hub:NAME"),
    "transfer(student=5)": ("FieldError", "StudentSpec = 5: give a text (its 'arch'), or its fields"),
    "transfer(data=None)": ("FieldError", "DataSpec = None: give a text (its 'name'), or its fields"),
    "transfer(method=5)": ("FieldError", "method = 5: give a text"),
    "transfer(threat=0.03)": ("FieldError", "threat '0.03': type NORM:EPS, for example linf:8/255"),
    "transfer(devices='2')": ("MismatchError", "devices is '2'; give 1 or more"),
    "rrmsdk.corrupt(TEACHER, images=2.5)": ("FieldError", "images = 2.5: give a whole number, 0 or more"),
    "rrmsdk.export(TEACHER, images='all')": ("FieldError", "images = 'all': give a whole number"),
    "rrmsdk.report(TEACHER, images='x')": ("FieldError", "images = 'x': give a whole number"),
    "transfer(out=5)": ("FieldError", "out = 5: give a str, a Path or None"),
    "transfer(method={})": ("FieldError", "method: field 'name' is missing. Known: adaad"),
    "transfer(method={'name': 'awp', 'base': 5})": ("FieldError", "'base' = 5: give a method's name, or its fields"),
    "transfer(method={'name': [1]})": ("FieldError", "unknown method [1]."),
    "transfer(method={'name': 'mixacm', 'blocks': []})": ("FieldError", "'blocks' = []"),
    "rrmsdk.train(RECIPE, out=['a'])": ("FieldError", "out = ['a']: give a str, a Path or None"),
    "rrmsdk.verify(TEACHER, out=b'y')": ("FieldError", "out = b'y': give a str, a Path or None"),
    "rrmsdk.verify(TEACHER, margin='x')": ("FieldError", "margin = 'x': give a float"),
    "rrmsdk.verify(TEACHER, journal=5)": ("FieldError", "journal = 5: give a str, a Path or None"),
    "rrmsdk.export(TEACHER, onnx=True, precision=8)": ("FieldError", "precision = 8: give a str"),
    "rrmsdk.certify(TEACHER, radii=5)": ("FieldError", "radii = 5: give a list, such as [0.25, 0.5]"),
    "rrmsdk.certify(TEACHER, radii='0.5')": ("FieldError", "radii = '0.5': give a list"),
    "rrmsdk.certify(TEACHER, radii=['a'])": ("FieldError", "radii hold 'a': a radius is a number"),
    "rrmsdk.certify(TEACHER, seed='x')": ("FieldError", "seed = 'x': give a whole number, 0 or more"),
    "rrmsdk.corrupt(TEACHER, seed=-1)": ("FieldError", "seed = -1: 0 is the least"),
    "rrmsdk.diagnose(TEACHER, seed=2.5)": ("FieldError", "seed = 2.5: give a whole number, 0 or more"),
    "rrmsdk.curve(TEACHER, eps=5)": ("FieldError", "eps = 5: give a list, such as ['2/255', '4/255']"),
    "rrmsdk.predict(TEACHER, 'cnn', 'digits', seconds='x')": (
        "FieldError",
        "seconds = 'x': give a float or None",
    ),
    "rrmsdk.predict(TEACHER, 'cnn', 'digits', steps='x')": ("FieldError", "steps = 'x': give a whole number"),
    "rrmsdk.curve(TEACHER, eps='5')": ("FieldError", "eps = 5 in linf: pixels are in [0, 1], so 1 is the most"),
    "rrmsdk.curve(TEACHER, eps='0..2:2', norm='l2', attack='fsat')": ("FieldError", "Did you mean 'fast'"),
    "rrmsdk.predict(5, 'cnn', 'digits')": ("FieldError", "teacher = 5: give a str"),
    "rrmsdk.robustify(TEACHER, 'digits', 'x', images='x')": ("FieldError", "images = 'x': give a whole number"),
    "rrmsdk.attack(5, 'digits', 'linf:1/10')": ("RefError", "'5' is no .onnx file and no http"),
    "rrmsdk.attack('a.onnx', 'digits', 'linf:1/10', timeout='x')": ("FieldError", "timeout = 'x': give a float"),
    "rrmsdk.sweep(RECIPE, 5, '1')": ("FieldError", "field = 5: give a list, such as ['method.ce_weight']"),
    "rrmsdk.sweep(RECIPE, 'method.ce_weight', 5)": ("FieldError", "method.ce_weight = 5: give a list"),
    "rrmsdk.report(TEACHER, diagnosis={'a': 1})": ("FieldError", "diagnosis = {'a': 1}: give a str, a Path or None"),
    "rrmsdk.pull(5)": ("FieldError", "ref = 5: give a str"),
    "rrmsdk.push(TEACHER, None)": ("FieldError", "repo = None: give a str"),
    "rrmsdk.zoo_build('digits-cnn-linf', over=5)": ("FieldError", "over = 5: give fields (a dict) or None"),
    "rrmsdk.sign(TEACHER, key=5)": ("FieldError", "key = 5: give a str, a Path or None"),
    "rrmsdk.verify_signature(TEACHER, keys=5)": ("FieldError", "keys = 5: give a list, such as ['release.pem.pub']"),
    "rrmsdk.retrain(5)": ("FieldError", "job = 5: give a TOML file, or a Job"),
    "rrmsdk.load(5)": ("RefError", "5 is no model: give a folder, path:DIR, hub:NAME or a Bundle"),
    "sweep(search='gird')": (
        "FieldError",
        "'search' = 'gird': Input should be 'grid' or 'optuna'. Did you mean 'grid'",
    ),
    "rrmsdk.verify(TEACHER, margin=0.1)": (
        "FieldError",
        "margin = 0.1 is how much worse than another bundle: give against",
    ),
    "rrmsdk.verify(TEACHER, stop='below')": (
        "FieldError",
        "stop = 'below' is said of a floor: give at_least, or against",
    ),
    "rrmsdk.verify(TEACHER, attack='pgd', search='bf16')": (
        "FieldError",
        "search = 'bf16' goes with our own autoattack",
    ),
    "rrmsdk.verify(TEACHER, attack='pgd', version='plus')": (
        "FieldError",
        "version = 'plus' goes with attack = 'autoattack', not 'pgd'",
    ),
    "rrmsdk.verify(TEACHER, attack='pgd', engine='reference')": (
        "FieldError",
        "runs autoattack (standard) and apgd, not 'pgd'",
    ),
    "rrmsdk.verify(TEACHER, version='plus', engine='reference')": ("FieldError", "not version 'plus'"),
    "rrmsdk.verify(TEACHER, queries=5)": ("FieldError", "queries = 5 goes with attack = 'square', not 'autoattack'"),
    "rrmsdk.curve(TEACHER, attack='pgd', search='bf16')": ("FieldError", "search = 'bf16' goes with our own"),
    "rrmsdk.curve(TEACHER, steps=5)": ("FieldError", "fast has its own. Leave them out"),
    "transfer(verify={'steps': 5})": (
        "FieldError",
        "steps = 5 and restarts = None go with attack = 'apgd' or 'pgd'; AutoAttack has its own",
    ),
    "rrmsdk.train(RECIPE | {'verify': {'attack': 'fast', 'engine': 'reference'}})": (
        "FieldError",
        "not 'fast'. Use engine = 'native'",
    ),
    "rrmsdk.zoo_check('digits-cnn-linf', images=-5)": ("FieldError", "images = -5: 0 is the least"),
    "rrmsdk.zoo_check('digits-cnn-linf', batch=0)": ("FieldError", "batch = 0: 1 is the least"),
    "rrmsdk.zoo(min_robust=45)": ("FieldError", "min_robust = 45: a share of the test images, such as 0.3"),
    "rrmsdk.zoo(min_robust=float('nan'))": ("FieldError", "min_robust = nan: a share"),
    "rrmsdk.zoo(min_robust='0.3')": ("FieldError", "min_robust = '0.3': a share"),
    "rrmsdk.zoo(threat=0.03)": ("FieldError", "threat 0.03: type a norm or NORM:EPS"),
    "rrmsdk.zoo(threat='linf:8/')": ("FieldError", "'eps' = '8/': a radius is a fraction"),
    "rrmsdk.zoo_show('../x')": ("RefError", "'../x' is not in the zoo"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    here = tmp_path_factory.mktemp("here")
    done = subprocess.run(
        [sys.executable, "-c", CALLS], input=json.dumps(list(WRONG)), capture_output=True, text=True, timeout=120,
        cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir()), "refused only after something had been written"
    return dict(zip(WRONG, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("call", WRONG)
def test_what_is_no_value_is_one_sentence_that_shows_it(call: str, told: dict[str, tuple[str, str]]) -> None:
    kind, says = told[call]
    assert (kind, "\n" in says) == (WRONG[call][0], False), says
    assert WRONG[call][1] in says


def test_a_threat_that_no_model_was_trained_for_is_an_empty_answer() -> None:
    assert rrmsdk.zoo(threat="linf:1/3") == ()
    assert rrmsdk.zoo(threat=ThreatModel(eps="1/10")) == rrmsdk.zoo(threat="linf:1/10") != ()


def test_a_name_of_the_zoo_is_no_way_to_another_folder(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (tmp_path / "resnet50-linf.toml").write_bytes((index.root() / "resnet50-linf.toml").read_bytes())
    (zoo / "resnet50-linf.toml").write_bytes((index.root() / "resnet50-linf.toml").read_bytes())
    with pytest.raises(RefError, match=r"'\.\./resnet50-linf' is not in the zoo.*Did you mean 'resnet50-linf'"):
        rrmsdk.zoo_show("../resnet50-linf", zoo=zoo)


def test_a_name_is_shown_as_the_zoo_lists_it_too() -> None:
    assert rrmsdk.zoo_show("hub:resnet50-linf") == rrmsdk.zoo_show("resnet50-linf")


def test_a_folder_that_is_no_bundle_is_not_called_an_architecture(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(rrmsdk.DataError, match=r"runs is no bundle: it has no card\.json"):
        opened("runs")
    with pytest.raises(RefError, match="there is no folder runs/r50"):
        opened("runs/r50")
    with pytest.raises(RefError, match=r"there is no folder /nowhere/r50\.$"):
        opened("/nowhere/r50")
    with pytest.raises(RefError, match="'nowhere' is an architecture, or a folder that is not there"):
        opened("nowhere")


@pytest.mark.parametrize("named", ["card.json", "./card.json", "path:card.json"])
def test_a_file_is_called_one(named: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.json").write_text("{}")
    with pytest.raises(RefError, match="is a file, and a bundle is a folder"):
        opened(named)
