"""From an entry of the index to a bundle that teaches: filters, building, converting, checking."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from huggingface_hub import scan_cache_dir

import rrmsdk
from rrmsdk import converting, files, hub
from rrmsdk.errors import FieldError, HubError, IntegrityError, MismatchError, RefError, SaveError
from rrmsdk.hub import Fetched
from rrmsdk.schema.bundle import CARD, WEIGHTS
from rrmsdk.schema.ref import Ref
from tests.hub_server import HubServer

FILE = "net.bin"
ENTRY = """
data = "digits"
licence = "mit"
paper = "Doe 2024"

[model]
arch = "cnn"
classes = 10
input_size = 8
channels = 1
width_mult = 0.5
input_mean = [0.5]
input_std = [0.5]

[threat]
norm = "linf"
eps = "1/10"

[source]
repo = "acme/theirs"
file = "net.bin"
layout = "rb-plain"

[published]
by = "a paper"
clean = {clean}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The embedded teacher as somebody else would have saved it."""
    path = tmp_path_factory.mktemp("theirs") / FILE
    network = rrmsdk.load("hub:digits-cnn-linf").network.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.items()}}, path)
    return path.read_bytes()


@pytest.fixture
def server():
    with HubServer() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, server: HubServer, checkpoint: bytes) -> dict:
    """Settings of `rrmsdk.hub.fetch`: a Hub that holds the checkpoint, a cache, and an index with its entry."""
    server.put("acme/theirs", {FILE: checkpoint})
    index = tmp_path / "zoo"
    index.mkdir()
    (index / "theirs.toml").write_text(entry(checkpoint))
    return {"endpoint": server.endpoint, "cache": tmp_path / "hub", "zoo": index}


def entry(checkpoint: bytes | None, clean: float = 0.9916, more: str = "") -> str:
    """The index's entry; None: without a hash."""
    pinned = ""
    if checkpoint is not None:
        import hashlib

        pinned = f'layout = "rb-plain"\nsha256 = "{hashlib.sha256(checkpoint).hexdigest()}"\n{more}'
    return ENTRY.replace("{clean}", str(clean)).replace('layout = "rb-plain"\n', pinned or 'layout = "rb-plain"\n')


def fetch(place: dict, **settings: object) -> Fetched:
    return converting.fetch(Ref.parse("hub:theirs"), **{**place, **settings})


def test_a_checkpoint_of_others_becomes_a_bundle_that_answers_as_it_did(place: dict) -> None:
    found = fetch(place)
    ours, theirs = rrmsdk.load("hub:digits-cnn-linf"), rrmsdk.load(found.bundle)
    pixels = torch.rand(16, 1, 8, 8)
    assert torch.equal(ours(pixels), theirs(pixels))


def test_its_card_says_whose_bytes_it_was_made_of(place: dict, server: HubServer, checkpoint: bytes) -> None:
    found = fetch(place)
    origin = found.bundle.card.origin
    assert (origin.repo, origin.file, origin.commit) == ("acme/theirs", FILE, found.revision)
    assert found.revision == server.repos["models/acme/theirs"].branches["main"]
    assert "a paper" in found.bundle.card.notes
    assert found.bundle.card.licence == "mit"
    assert found.bundle.card.score is None


def test_its_card_has_the_day_in_utc_as_every_other_card_has(place: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    elsewhere = "Etc/GMT-14" if now.hour >= 11 else "Etc/GMT+12"  # where it is another day
    with monkeypatch.context() as patch:
        patch.setenv("TZ", elsewhere)
        time.tzset()
        found = fetch(place)
    time.tzset()
    assert found.bundle.card.date in (now.date().isoformat(), datetime.now(UTC).date().isoformat())


def test_the_second_time_nothing_is_asked(place: dict, server: HubServer) -> None:
    first = fetch(place)
    before = len(server.requests)
    assert fetch(place) == first
    assert hub.fetch(Ref.parse("hub:theirs"), **place) == first
    assert len(server.requests) == before


def test_offline_before_the_first_time_says_what_to_type(place: dict, server: HubServer) -> None:
    with pytest.raises(HubError, match=r"is not here yet, and this is offline: type rrmsdk pull hub:theirs"):
        fetch(place, offline=True)
    assert server.requests == []


def test_a_place_that_cannot_be_written_is_named(place: dict) -> None:
    (place["cache"].parent / "rrmsdk").write_text("in the way")
    with pytest.raises(SaveError, match=r"cannot write to .*external: Not a directory"):
        fetch(place)


def test_a_damaged_copy_is_made_again(place: dict) -> None:
    found = fetch(place)
    whole = found.bundle.weights.read_bytes()
    found.bundle.weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fetch(place).bundle.weights.read_bytes() == whole


def test_one_is_there_at_every_moment_while_another_takes_its_place(place: dict) -> None:
    made = fetch(place).bundle.path
    entry, door = hub.index.find("theirs", place["zoo"]), hub.door(place["endpoint"], None, place["cache"])

    def swap_often() -> None:
        for number in range(400):
            beside = made.with_name(f".{number}")
            shutil.copytree(made, beside)
            converting._swap(beside, made)

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap_often)
        while not swapping.done():
            assert hub.external.kept(door, entry) is not None
        swapping.result()


def test_nothing_is_written_around_a_cache_that_was_chosen(place: dict, tmp_path: Path) -> None:
    chosen = tmp_path / "mounted" / "cache"
    found = fetch(place, cache=chosen)
    assert list(chosen.parent.iterdir()) == [chosen]
    assert fetch(place, cache=chosen, offline=True) == found
    assert [repo.repo_id for repo in scan_cache_dir(chosen).repos] == ["acme/theirs"]


def test_an_entry_that_pins_other_bytes_since_makes_another_bundle(place: dict, server: HubServer) -> None:
    first = fetch(place)
    path = place["zoo"] / "theirs.toml"
    other = place["zoo"] / FILE
    network = rrmsdk.load(first.bundle).network.state_dict()
    torch.save({name: tensor * 2 for name, tensor in network.items()}, other)
    server.put("acme/theirs", {FILE: other.read_bytes()})
    path.write_text(entry(other.read_bytes()))
    second = fetch(place)
    assert second.bundle.card.origin.sha256 == files.sha256(other) != first.bundle.card.origin.sha256


def test_a_file_of_another_network_is_refused_and_leaves_nothing(place: dict, checkpoint: bytes) -> None:
    path = place["zoo"] / "theirs.toml"
    path.write_text(entry(checkpoint).replace("classes = 10", "classes = 7"))
    with pytest.raises(MismatchError, match=r"network\..* is float32 \[10"):
        fetch(place)
    assert not list(place["cache"].parent.glob("rrmsdk/external/theirs*"))


def test_a_pickle_that_would_run_code_is_refused_and_does_not(place: dict, server: HubServer, tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    evil = pickle.dumps({"state_dict": Evil()})
    server.put("acme/theirs", {FILE: evil})
    (place["zoo"] / "theirs.toml").write_text(entry(evil))
    with pytest.raises(IntegrityError, match="refused and nothing ran"):
        fetch(place)
    assert not (tmp_path / "ran").exists()


class TestTrust:
    def test_a_person_vouches_once(self, place: dict, server: HubServer, checkpoint: bytes) -> None:
        (place["zoo"] / "theirs.toml").write_text(entry(None))
        with pytest.raises(RefError, match=r"knows no sha256 .*--trust COMMIT"):
            fetch(place)
        commit = server.repos["models/acme/theirs"].branches["main"]
        found = rrmsdk.zoo_check("theirs", trust=commit[:8], images=0, **place)
        assert found.agrees is True
        assert fetch(place).revision == commit

    def test_vouching_for_another_commit_asks_again(self, place: dict, server: HubServer) -> None:
        (place["zoo"] / "theirs.toml").write_text(entry(None))
        commit = server.repos["models/acme/theirs"].branches["main"]
        fetch(place, trust=commit)
        with pytest.raises(RefError, match=r"no such repository|not that revision"):
            fetch(place, trust="0" * 40)


class TestCheck:
    def test_the_published_accuracy_is_found_again(self, place: dict) -> None:
        found = rrmsdk.zoo_check("theirs", images=0, **place)
        assert (found.images, found.agrees, found.by) == (359, True, "a paper")
        assert found.clean == pytest.approx(356 / 359)

    def test_an_accuracy_that_is_not_found_is_said(self, place: dict, checkpoint: bytes) -> None:
        (place["zoo"] / "theirs.toml").write_text(entry(checkpoint, clean=0.70))
        found = rrmsdk.zoo_check("theirs", **place)
        assert found.agrees is False
        assert "DOES NOT AGREE with 0.7000 (a paper)" in found.says

    def test_an_embedded_bundle_is_compared_with_its_report(self) -> None:
        found = rrmsdk.zoo_check("digits-cnn-linf")
        assert (found.agrees, found.by, found.source_sha256) == (True, "its report", None)

    def test_a_name_that_is_nearly_right_is_told(self) -> None:
        with pytest.raises(RefError, match="Did you mean 'digits-cnn-linf'"):
            rrmsdk.zoo_check("digits-cnn-lin")


class TestFilters:
    def test_by_architecture_data_threat_and_licence(self) -> None:
        found = rrmsdk.zoo(arch="resnet50", dataset="imagenet", threat="linf:4/255", licence="mit")
        assert [one.ref for one in found] == ["hub:imagenet-resnet50-linf-4"]

    def test_case_says_nothing(self) -> None:
        small = {"arch": "resnet*", "dataset": "imagenet", "licence": "mit"}
        assert rrmsdk.zoo(**small) == rrmsdk.zoo(arch="ResNet*", dataset="ImageNet", licence="MIT") != ()

    def test_a_pattern_takes_several(self) -> None:
        assert {one.arch for one in rrmsdk.zoo(arch="dm-wrn-*")} == {"dm-wrn-28-10", "dm-wrn-70-16"}

    def test_least_robust_accuracy_counts_ours_and_what_others_say(self) -> None:
        found = rrmsdk.zoo(dataset="cifar10", min_robust=0.36)
        assert "hub:resnet14-linf" in [one.ref for one in found]  # 0.3672 measured here
        assert "hub:cifar10-dm-wrn-28-10-linf-8" in [one.ref for one in found]  # 0.6731 as published
        assert "hub:resnet18-linf" not in [one.ref for one in found]  # 0.3420

    @pytest.mark.parametrize(
        ("filters", "says"),
        [
            ({"arch": "resnet5"}, "no model has arch 'resnet5'. Did you mean 'resnet50'"),
            ({"dataset": "cifar"}, "no model has data 'cifar'. Did you mean 'cifar10'"),
            ({"threat": "lnf"}, "Did you mean 'linf'"),
        ],
    )
    def test_a_filter_that_nothing_passes_names_what_there_is(self, filters: dict, says: str) -> None:
        with pytest.raises(FieldError, match=says):
            rrmsdk.zoo(**filters)


class TestBuild:
    def test_a_model_is_built_from_its_recipe(self, tmp_path: Path) -> None:
        over = {"train": {"epochs": 1}, "verify": {"attack": "pgd", "steps": 2, "images": 32}}
        made = rrmsdk.zoo_build("digits-cnn-linf", over=over, out=tmp_path / "made", quiet=True).bundle
        assert made.card.name == "digits-cnn-linf"
        assert made.card.score.attack == "pgd-2"

    @pytest.mark.slow
    def test_what_was_built_is_published_and_its_release_is_what_the_index_needs(
        self, server: HubServer, tmp_path: Path
    ) -> None:
        settings = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": server.token, "HF_HOME": str(tmp_path / "hf")}
        over = ["-s", "train.epochs=0.2", "-s", "verify.attack=pgd", "-s", "verify.images=16"]
        command = ["zoo", "build", "digits-cnn-linf", "--push", "acme/built", "--json", "-o", str(tmp_path / "b")]

        def built(**others: str) -> subprocess.CompletedProcess[str]:
            words, env = [sys.executable, "-m", "rrmsdk", *command, *over], os.environ | settings | others
            return subprocess.run(words, env=env, capture_output=True, text=True)

        away = built(HF_ENDPOINT="http://127.0.0.1:1")
        assert away.returncode == 2
        assert f"What was made lies in {tmp_path / 'b'}: the same command pushes it." in away.stderr
        weights = (tmp_path / "b" / WEIGHTS).stat().st_ino
        done = built()
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "b" / WEIGHTS).stat().st_ino == weights  # not trained again
        release = json.loads(done.stdout)["release"]
        commit = server.repos["models/acme/built"].at("main")
        assert commit is not None
        assert (release["repo"], release["commit"]) == ("acme/built", commit.oid)
        assert release["weights_sha256"] == commit.files[WEIGHTS].sha256

    def test_somebody_elses_checkpoint_has_no_recipe(self) -> None:
        with pytest.raises(RefError, match=r"is somebody else's checkpoint.*rrmsdk pull hub:imagenet-resnet50-linf-4"):
            rrmsdk.zoo_build("imagenet-resnet50-linf-4")


CONVERT = """
import sys
from pathlib import Path
from rrmsdk import converting
from rrmsdk.schema.ref import Ref
endpoint, cache, zoo = sys.argv[1:]
print(converting.fetch(Ref.parse("hub:theirs"), endpoint=endpoint, cache=Path(cache), zoo=Path(zoo)).bundle.card.name)
"""


@pytest.mark.slow
def test_two_processes_convert_at_once(place: dict) -> None:
    told = [str(place[name]) for name in ("endpoint", "cache", "zoo")]
    command = [sys.executable, "-c", CONVERT, *told]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["theirs", "theirs"]
    folder = fetch(place).bundle.path
    assert {path.name for path in folder.parent.iterdir()} == {"theirs", ".lock"}
    assert {path.name for path in folder.iterdir()} == {CARD, "config.json", WEIGHTS}


@pytest.mark.slow
def test_a_checkpoint_of_others_teaches(place: dict, tmp_path: Path) -> None:
    fetch(place)
    student = rrmsdk.transfer(
        f"path:{hub.external.place(hub.door(None, None, place['cache']), hub.index.find('theirs', place['zoo']))}",
        {"arch": "cnn", "width_mult": 0.25, "width": "teacher"}, "digits", method="rrm",
        train={"epochs": 0.2, "validate_every": 0}, verify=None, out=tmp_path / "student", quiet=True,
    )  # fmt: skip
    assert student.card.teachers[0].weights_sha256 == fetch(place).bundle.card.files[WEIGHTS]


def test_the_command_line_lists_what_passes_a_filter_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rrmsdk", "zoo", "--arch", "wide_resnet50_4", "--threat", "l2:3", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    (listed,) = json.loads(done.stdout)
    assert listed["ref"] == "hub:imagenet-wide_resnet50_4-l2-3"
    assert listed["published"]["clean"] == 0.6967
