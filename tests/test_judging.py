"""attack: modules, ONNX files and models behind HTTP, judged by what they answer themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from onnx import load_model as load_onnx
from onnx import save_model as save_onnx

import rrmsdk
from rrmsdk import files
from rrmsdk.data import load
from rrmsdk.errors import DataError, EndpointError, FieldError, IntegrityError, MismatchError, RefError
from rrmsdk.exports.onnx import to_onnx
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.data import DataSpec
from rrmsdk.verification import read_adversarial, reevaluate, saved
from rrmsdk.verification.attacking import stand
from rrmsdk.verification.blackbox import BlackBox
from tests.oip_server import OipServer
from tests.synthetic import synthetic

THREAT = "linf:1/10"  # the teacher's
WIDE = "linf:3/10"  # where twenty queries break half of the images
FEW: dict[str, Any] = {"images": 24, "queries": 20, "quiet": True}
SECRET = "s3cr3t-t0k3n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return rrmsdk.pull("hub:digits-cnn-linf", tmp_path_factory.mktemp("twin") / "digits")


@pytest.fixture(scope="module")
def onnx(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    to_onnx(rrmsdk.load(bundle), path, metadata={"name": bundle.card.name})
    return path


@pytest.fixture(scope="module")
def found(bundle, tmp_path_factory):
    """What AutoPGD finds on the network itself: the report and its file."""
    path = tmp_path_factory.mktemp("found") / "adversarial.safetensors"
    attacked = rrmsdk.verify(
        bundle, attack="apgd", steps=20, restarts=1, images=100, save_adversarial=path, quiet=True
    )  # fmt: skip
    return attacked.report, path


@pytest.fixture(scope="module")
def of_onnx(onnx):
    return rrmsdk.attack(onnx, "digits", WIDE, **FEW)


@pytest.fixture
def server(onnx):
    with OipServer(onnx) as running:
        yield running


def attack(model, threat=WIDE, **more):
    return rrmsdk.attack(model, "digits", threat, **(FEW | more))


def checks(report):
    return {check.name: check for check in report.checks}


def test_an_onnx_file_is_judged_by_its_own_answers_and_its_report_says_how_weak_that_is(onnx, of_onnx):
    assert of_onnx.attack == "square-20 (black box)"
    assert [result.name for result in of_onnx.attacks] == ["noise", "square"]
    assert of_onnx.weights_sha256 == files.sha256(onnx)
    assert of_onnx.versions["onnxruntime"]
    assert 0 < of_onnx.robust < of_onnx.clean


def test_the_missing_gradients_are_a_check_that_fails_and_none_is_made_with_gradients(of_onnx):
    told = checks(of_onnx)
    assert not told["white box"].ok
    assert "weak upper bound; AutoAttack on the network itself may be lower" in told["white box"].says
    assert not told.keys() & {"zero gradients", "black box beats white box"}
    assert [name for name, check in told.items() if not check.ok] == ["white box"]


def test_somebody_elses_file_with_a_fixed_batch_and_other_names_is_judged_the_same(onnx, of_onnx, tmp_path):
    proto = load_onnx(onnx)
    for end, name in ((proto.graph.input[0], "image"), (proto.graph.output[0], "scores")):
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if one == end.name else one for one in names]
        end.name = name
        end.type.tensor_type.shape.dim[0].dim_value = 5
    del proto.metadata_props[:]
    save_onnx(proto, tmp_path / "theirs.onnx")
    assert attack(tmp_path / "theirs.onnx").outcomes == of_onnx.outcomes


def test_the_network_itself_falls_to_the_same_queries_as_its_onnx_twin(bundle, of_onnx):
    report = attack(rrmsdk.load(bundle), attack="square")
    assert report.attack == "square-20"
    assert sum(a != b for a, b in zip(report.outcomes, of_onnx.outcomes, strict=True)) <= 1
    assert {"white box", "zero gradients"} <= checks(report).keys()


def test_a_model_behind_http_gives_the_outcomes_of_its_onnx_file(server, of_onnx):
    report = attack(server.url)
    assert report.outcomes == of_onnx.outcomes
    assert report.versions["endpoint"] == "digits 3 (onnxruntime)"
    assert len(report.weights_sha256) == 64


def test_no_request_holds_more_images_than_the_batch_and_the_outcomes_do_not_depend_on_it(server, of_onnx):
    assert attack(server.url, batch=7).outcomes == of_onnx.outcomes
    assert max(server.images) == 7


def test_saved_images_of_a_black_box_re_evaluate_to_its_number(onnx, tmp_path):
    from rrmsdk.runtime.session import open_session

    report = attack(onnx, save_adversarial=tmp_path / "found.safetensors")
    model = BlackBox(open_session(onnx, threads=1), {})
    assert reevaluate(model, tmp_path / "found.safetensors", weights_sha256=report.weights_sha256) == report.robust


def test_what_is_asked_is_never_copied(onnx):
    from rrmsdk.runtime.session import open_session

    model = BlackBox(open_session(onnx, threads=1), {})
    standing = stand(model, load(DataSpec(name="digits")).test.take(4), rrmsdk.ThreatModel.parse(THREAT), (), 4)
    assert standing.network.network is model
    assert standing.network.lane == 1


@pytest.mark.parametrize("name", ["autoattack", "fast", "apgd", "pgd"])
def test_an_attack_by_gradient_is_refused_and_what_is_possible_named(onnx, name):
    with pytest.raises(MismatchError, match=f"'{name}' follows gradients.*Possible are 'square', and 'replay'"):
        rrmsdk.attack(onnx, "digits", THREAT, attack=name, images=4, quiet=True)


def test_replay_on_the_onnx_twin_reproduces_the_report_of_the_network(bundle, onnx, found):
    expected, path = found
    report = rrmsdk.attack(onnx, "digits", THREAT, attack="replay", replay=path, images=100, quiet=True)
    assert report.attack == "replay"
    assert abs(report.robust - expected.robust) <= 0.01
    assert report.attacks[0].settings["weights_sha256"] == bundle.card.files[bundles.WEIGHTS]
    assert report.attacks[0].settings["attack"] == expected.attack


def test_replay_comes_before_square_which_sees_only_what_it_left(server, found):
    report = attack(server.url, THREAT, replay=found[1], images=60, queries=5)
    assert report.attack == "replay + square-5 (black box)"
    assert [result.name for result in report.attacks] == ["replay", "noise", "square"]
    assert report.outcomes.count("a") == report.attacks[0].broken > 0
    assert report.attacks[1].attacked == report.attacks[0].attacked - report.attacks[0].broken


def test_images_that_the_file_does_not_have_are_not_replayed(onnx, found, tmp_path):
    kept = read_adversarial(found[1])
    many = kept.outcomes.index("a") + 1  # the last of them falls
    parts = {name: getattr(kept, name)[:many] for name in ("pixels", "labels", "ids", "outcomes")}
    saved.write(replace(kept, **parts), tmp_path / "few.safetensors")
    report = rrmsdk.attack(
        onnx, "digits", THREAT, attack="replay", replay=tmp_path / "few.safetensors", images=100, quiet=True
    )  # fmt: skip
    assert [at for at, outcome in enumerate(report.outcomes) if outcome == "a"] == [many - 1]
    assert kept.outcomes.count("a") > 1
    assert report.attacks[0].settings["images"] == many


@pytest.mark.parametrize(("change", "shown"), [
    ({"threat": "linf:1/5"}, "threat: .*linf:1/5, here it is linf:1/10"),
    ({"fingerprint": "0" * 64}, f"fingerprint: .*{'0' * 64}, here"), ({"split": "validation"}, "split: .*validation"),
])  # fmt: skip
def test_what_was_found_under_another_threat_or_on_other_images_is_not_replayed(onnx, found, tmp_path, change, shown):
    kept = read_adversarial(found[1])
    saved.write(replace(kept, facts=kept.facts | change), tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match=shown):
        attack(onnx, THREAT, replay=tmp_path / "other.safetensors")


def test_replay_without_a_file_says_what_to_type(onnx):
    with pytest.raises(FieldError, match=r"needs images: .*replay=FILE.*--replay FILE"):
        rrmsdk.attack(onnx, "digits", THREAT, attack="replay", images=4, quiet=True)


@pytest.mark.parametrize("trouble", [503, 429, "close", "cut"])
def test_a_request_that_fails_twice_is_sent_again_and_changes_no_outcome(server, of_onnx, trouble):
    server.trouble = lambda number, path: trouble if number in (3, 4) else None
    assert attack(server.url).outcomes == of_onnx.outcomes


@pytest.mark.parametrize(("trouble", "error", "shown"), [
    ("nan", DataError, "a logit of nan for pixels inside"),
    ("shape", MismatchError, r"\[2, 9\]; it promised \[2, 10\]"),
    ("html", EndpointError, "does not speak the Open Inference Protocol v2: no JSON"),
    ("words", EndpointError, "does not speak the Open Inference Protocol v2: no numbers"),
    (404, EndpointError, "answers 404: trouble 404. Is that the model's name?"),
    (413, EndpointError, "answers 413: trouble 413. Give it smaller batches"),
])  # fmt: skip
def test_what_a_server_answers_amiss_is_an_error_that_says_what(server, trouble, error, shown):
    server.trouble = lambda number, path: trouble if path.endswith("/infer") else None
    with pytest.raises(error, match=shown):
        attack(server.url)


def test_another_version_in_the_middle_of_a_judgement_is_an_error(server):
    server.trouble = lambda number, path: "swap" if number == 6 else None
    with pytest.raises(IntegrityError, match=r"version 3 answered before, now 4 does.*versions/V"):
        attack(server.url)


def test_a_redirect_is_refused_and_the_other_host_never_asked(server, onnx):
    with OipServer(onnx) as other:
        server.elsewhere = other.url + "/infer"
        server.trouble = lambda number, path: 307 if path.endswith("/infer") else None
        with pytest.raises(EndpointError, match=r"redirects to another address .307., which is not followed"):
            attack(server.url, token=SECRET)
        assert other.requests == []


def test_a_proxy_of_the_environment_is_not_asked(server, onnx, monkeypatch, of_onnx):
    with OipServer(onnx) as other:
        monkeypatch.setenv("http_proxy", other.url)
        assert attack(server.url).outcomes == of_onnx.outcomes
        assert other.requests == []


def test_a_judgement_that_a_server_ended_goes_on_from_its_journal(server, of_onnx, tmp_path):
    server.trouble = lambda number, path: 500 if number >= 20 else None
    with pytest.raises(EndpointError, match="answers 500"):
        attack(server.url, journal=tmp_path / "journal", batch=4)
    asked = len(server.requests)
    server.trouble = lambda number, path: None
    assert attack(server.url, journal=tmp_path / "journal", batch=4).outcomes == of_onnx.outcomes
    assert asked > 15


def test_the_token_is_sent(server, of_onnx):
    server.token = SECRET
    assert attack(server.url, token=SECRET).outcomes == of_onnx.outcomes
    assert {shown for _, shown in server.requests} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("trouble", ["repeat", 401, 403])
def test_the_token_is_in_no_message_whatever_the_server_repeats(server, trouble):
    server.trouble = lambda number, path: trouble
    with pytest.raises(EndpointError) as caught:
        attack(server.url, token=SECRET)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(server):
    with pytest.raises(FieldError, match="a line break") as caught:
        attack(server.url, token=f"{SECRET}\r\nHost: elsewhere")
    assert SECRET not in str(caught.value)
    assert server.requests == []


def test_a_server_that_wants_a_token_is_told_apart(server):
    server.token = SECRET
    with pytest.raises(EndpointError, match=r"answers 401: it wants a token: token=, or --url-token-env NAME"):
        attack(server.url)


@pytest.mark.parametrize("model", ["hub:digits-cnn-linf", "runs/some"])
def test_a_bundle_is_sent_to_verify(model):
    with pytest.raises(RefError, match=r"Bundles are attacked by rrmsdk verify"):
        attack(model)


def test_images_of_another_size_are_refused_with_both_shown(onnx):
    with pytest.raises(MismatchError, match=r"pixels have shape \[3, 4, 4\], the model takes \[1, 8, 8\]"):
        rrmsdk.attack(onnx, synthetic(lambda x: x.flatten(1)[:, :10], 10), THREAT, quiet=True)


def test_labels_that_are_no_class_are_refused(onnx):
    digits = load(DataSpec(name="digits"))
    wrong = replace(digits, test=replace(digits.test, labels=digits.test.labels + 1))
    with pytest.raises(DataError, match="labels run from 1 to 10, but the model has 10 classes"):
        rrmsdk.attack(onnx, wrong, THREAT, **FEW)


def test_another_number_of_classes_than_the_data_has_is_refused(onnx):
    digits = load(DataSpec(name="digits"))
    fewer = replace(digits, info=digits.info.model_copy(update={"labels": digits.info.labels[:9]}))
    with pytest.raises(MismatchError, match=r"gives \(2, 10\) for 2 images; 'digits' has 9 classes"):
        rrmsdk.attack(onnx, fewer, THREAT, **FEW)


def _rrmsdk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rrmsdk", "attack", *arguments], capture_output=True, text=True)


def test_the_command_line_gives_the_same_report_as_json(onnx, of_onnx):
    done = _rrmsdk(str(onnx), "-d", "digits", "--threat", WIDE, "-n", "24", "--queries", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcomes"] == of_onnx.outcomes


def test_the_command_line_refuses_a_token_variable_that_is_not_there(server):
    done = _rrmsdk(server.url, "-d", "digits", "--threat", THREAT, "--url-token-env", "NOT_THERE")
    assert done.returncode == 2
    assert "--url-token-env NOT_THERE: there is no such environment variable" in done.stderr
    assert server.requests == []
