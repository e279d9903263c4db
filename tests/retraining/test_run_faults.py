"""Bad days of a run: each loses nothing that was finished, publishes nothing twice, keeps the champion."""

from __future__ import annotations

import _thread
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rrmsdk.data.digits import digits as digits_of_sklearn
from rrmsdk.hub.promote import promote, standing
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.journal import Event
from rrmsdk.retraining.room import STORE
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from tests.hub_server import Trouble
from tests.retraining.digits_job import World


def first(part: str, *troubles: Trouble, method: str = "POST") -> Callable[[str, str], Trouble | None]:
    """These troubles, one after another, for requests with `part` in their path; then none."""
    left: Iterator[Trouble] = iter(troubles)
    return lambda said, path: next(left, None) if said == method and part in path else None


def attempts(digits: World, stage: str) -> list[Event]:
    with journals.opened(digits.folder) as kept:
        return [event for event in kept.events(kind="attempt") if event.told["stage"] == stage]


class TestHub:
    def test_a_hub_that_is_down_blocks_and_the_same_command_publishes_what_was_made(self, digits: World) -> None:
        digits.hub.trouble = lambda method, path: 503 if "/commit/" in path else None
        blocked = digits.retrain()
        assert (blocked.state, blocked.exit_code) == ("blocked", 76)
        assert blocked.why.startswith("hub: ")
        digits.hub.trouble = lambda method, path: 429 if "/commit/" in path else None
        assert digits.retrain().why != blocked.why
        digits.hub.trouble = lambda method, path: None
        outcome = digits.retrain()
        assert (outcome.run, outcome.state) == (blocked.run, "promoted")
        assert digits.published == [digits.champion] == [outcome.commit]
        assert digits.kinds(1).count("attempt") == 5  # each stage once
        assert digits.kinds(1).count("announced") == 2  # that it waits for the Hub, and that it is done

    @pytest.mark.slow
    def test_a_hub_that_is_busy_for_a_moment_is_asked_again(self, digits: World) -> None:
        digits.hub.trouble = first("/commit/", 503, 429)
        assert digits.retrain(patience=30.0).state == "promoted"
        assert len(digits.published) == 1

    @pytest.mark.parametrize("part", ["/commit/", pytest.param("/tag/", marks=pytest.mark.slow)])
    def test_a_lost_reply_makes_no_second_commit(self, digits: World, part: str) -> None:
        digits.hub.trouble = first(part, "lost")
        outcome = digits.retrain(patience=30.0)
        assert outcome.state == "promoted"
        assert digits.published == [digits.champion] == [outcome.commit]

    @pytest.mark.slow
    def test_a_champion_that_moves_while_it_is_compared_is_compared_again(self, digits: World) -> None:
        digits.retrain()
        theirs = digits.student("equal-2", gate={"robust_floor": 1.0, "early": False}).retrain().made["export"]
        mine, push = digits.student("equal-1"), digits.job.push.repo
        settings = {"endpoint": digits.hub.endpoint, "token": digits.hub.token}
        rival: list[str] = []

        def faster(method: str, path: str) -> None:
            if method == "POST" and "/commit/" in path:
                digits.hub.trouble = lambda method, path: None
                bundle = bundles.read(digits.folder / STORE / theirs)
                rival.append(promote(bundle, push, theirs, standing(push, **settings), **settings).commit)

        digits.hub.trouble = faster
        outcome = mine.retrain()
        assert outcome.state == "promoted"
        assert digits.published[1:] == [rival[0], outcome.commit]
        assert digits.champion == outcome.commit
        one, two = mine.decisions(outcome)
        assert one.old != two.old
        assert "moved" in mine.kinds(3)


class TestStopped:
    @pytest.mark.parametrize(
        ("part", "heard"),
        [
            ("/commit/", True),
            pytest.param("/commit/", False, marks=pytest.mark.slow),
            pytest.param("/tag/", True, marks=pytest.mark.slow),
            pytest.param("/tag/", False, marks=pytest.mark.slow),
        ],
    )
    def test_stopped_while_it_publishes_it_publishes_once(self, digits: World, part: str, heard: bool) -> None:
        def stops(method: str, path: str) -> Trouble | None:
            if method != "POST" or part not in path:
                return None
            digits.hub.trouble = lambda method, path: None
            _thread.interrupt_main()
            return "lost" if heard else "unheard"

        digits.hub.trouble = stops
        with pytest.raises(KeyboardInterrupt):
            digits.retrain(patience=30.0)
        with journals.opened(digits.folder) as kept:
            assert kept.run(1).state == "running"
        outcome = digits.retrain()
        assert (outcome.run, outcome.state) == ("000001", "promoted")
        assert digits.published == [digits.champion] == [outcome.commit]
        assert digits.kinds(1).count("attempt") - digits.kinds(1).count("crashed") == 5 + ("champion" in outcome.made)

    @pytest.mark.slow
    @pytest.mark.nightly
    @pytest.mark.timeout(900)  # seven processes, each of which imports torch
    def test_killed_in_each_stage_it_ends_as_it_would_have(self, digits: World) -> None:
        trains = digits.but(
            recipe={"student": {"width": "teacher"}, "train": {"epochs": 2, "lr": 0.001, "checkpoint_every": 5}},
            export={"onnx": ["fp32"]},
        )
        rng = random.Random(3)
        for stage in ("plan", "fetch", "transfer", "verify", "export"):  # three in one place would suspend it
            going = command(trains)
            begun = len(attempts(trains, stage))
            while going.poll() is None and len(attempts(trains, stage)) == begun:
                time.sleep(0.01)  # waits for another process
            time.sleep(rng.uniform(0, 0.5))
            going.kill()
            going.wait()
        assert f"models/{trains.job.push.repo}" not in trains.hub.repos
        killed = command(trains)
        trains.hub.trouble = lambda method, path: killed.kill() if method == "POST" and "/commit/" in path else None
        assert killed.wait() == -signal.SIGKILL
        trains.hub.trouble = lambda method, path: None
        assert command(trains).wait() == 0
        assert trains.published == [trains.champion]
        with journals.opened(trains.folder) as kept:
            (run,) = kept.runs()
            done = [event.told["stage"] for event in kept.events(run.number, kind="done")]
        assert run.state == "promoted"
        assert len(done) == len(set(done))  # nothing that was finished was made again


def command(digits: World) -> subprocess.Popen[bytes]:
    """The job, by a process of its own."""
    path = digits.place / "job.toml"
    value.write(digits.job, path)
    clean = {name: said for name, said in os.environ.items() if not name.startswith("HF_")}
    mine = {"HF_ENDPOINT": digits.hub.endpoint, "HF_HOME": str(digits.place / "hf"), "OMP_NUM_THREADS": "1"}
    words = ["retrain", str(path), "--state", str(digits.place / "state"), "--quiet"]
    return subprocess.Popen([sys.executable, "-m", "rrmsdk", *words], env=clean | mine)


class TestChallenger:
    @pytest.mark.slow
    def test_a_student_of_poisoned_images_is_kept_out(self, digits: World, tmp_path: Path) -> None:
        """Labels of half of the train images are changed; the job is told of the folder as of any new data."""
        first = digits.but(gate={"robust_margin": 0.05, "clean_margin": 0.05}, judge={"images": 200})
        first.retrain()
        poisoned = first.but(recipe={"data": {"name": f"path:{written(tmp_path / 'poisoned')}"}})
        recipe = poisoned.job.recipe
        fresh = recipe.model_copy(
            update={
                "student": recipe.student.model_copy(update={"start": None, "width": "teacher"}),
                "train": recipe.train.model_copy(update={"epochs": 3.0, "augment": "none"}),
                "method": {"name": "rrm", "ce_weight": 1.0},
            }
        )
        outcome = replace(poisoned, job=poisoned.job.model_copy(update={"recipe": fresh})).retrain()
        assert outcome.state == "kept"
        assert outcome.decision is not None
        assert "robust_margin" in {check.name for check in outcome.decision.failed}
        assert len(digits.published) == 1

    @pytest.mark.slow
    def test_a_graph_that_does_not_compute_what_the_network_does_keeps_it_out(self, digits: World) -> None:
        digits.retrain()
        outcome = digits.student("loud", export={"onnx": ["fp16"]}).retrain()
        assert (outcome.state, outcome.exit_code) == ("failed", 1)
        assert "fp16 ends at 65504" in outcome.why
        assert len(digits.published) == 1

    def test_training_that_diverges_fails_and_keeps_its_last_good_state(self, digits: World) -> None:
        train = {"epochs": 1, "lr": 1e9, "checkpoint_every": 1, "precision": "fp32"}
        outcome = digits.but(recipe={"train": train, "method": {"name": "rrm", "ce_weight": 1.0}}).retrain()
        assert outcome.state == "failed"
        assert "the loss is nan" in outcome.why or "the loss is inf" in outcome.why
        (kept,) = (digits.folder / "runs" / outcome.run).glob("transfer-*/run/checkpoint.safetensors")
        assert str(kept) in outcome.why
        assert f"models/{digits.job.push.repo}" not in digits.hub.repos

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
    def test_a_step_that_does_not_fit_into_memory_is_made_in_parts(self, digits: World, tmp_path: Path) -> None:
        recipe = {
            "student": {"start": None, "width_mult": 2.0, "width": "teacher"},
            "train": {"epochs": 1, "batch": 1024, "lr": 0.01, "augment": "crop"},
        }
        job = digits.but(recipe=recipe)
        (tmp_path / "job.json").write_text(job.job.model_dump_json())
        words = [str(tmp_path / "job.json"), str(tmp_path / "state"), digits.hub.endpoint, "170"]
        # A fixed threshold (see tests/training/test_parts.py), and no address space that is set aside for threads.
        fixed = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_ARENA_MAX": "1"}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | fixed
        done = subprocess.run(
            [sys.executable, "-m", "tests.retraining.starved", *words], cwd=Path(__file__).parents[2], env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (state, *tried), _ = (line.split() for line in done.stdout.splitlines())
        assert state == "promoted", done.stdout
        assert tried in (["2"], ["2", "4"], ["2", "4", "8"])
        assert len(digits.published) == 1

    @pytest.mark.slow
    def test_a_full_disk_blocks_and_the_run_goes_on_when_there_is_room(self, digits: World, small_disk: Path) -> None:
        digits.folder.parent.mkdir()
        digits.folder.symlink_to(small_disk / "tiny")
        (small_disk / "tiny").mkdir()
        (small_disk / "filler").write_bytes(bytes(200_000))
        blocked = digits.retrain()
        assert blocked.state == "blocked"
        assert blocked.why.startswith("disk: ")
        assert f"models/{digits.job.push.repo}" not in digits.hub.repos
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=5000", str(small_disk)], check=True)
        outcome = digits.retrain()
        assert (outcome.run, outcome.state) == (blocked.run, "promoted")
        assert len(digits.published) == 1


def written(folder: Path) -> Path:
    """Digits as PNG files; every second train image is said to be of the next class."""
    for split, images in zip(("train", "test"), digits_of_sklearn(), strict=True):
        for number, (pixels, label) in enumerate(zip(images.pixels.numpy(), images.labels.tolist(), strict=True)):
            said = (label + (split == "train" and number % 2)) % 10
            (folder / split / str(said)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0]).save(folder / split / str(said) / f"{number:04d}.png")
    return folder


@pytest.mark.slow
def test_told_to_end_a_run_stops_and_that_is_none_of_its_crashes(digits: World) -> None:
    long = digits.but(recipe={"train": {"epochs": 500, "checkpoint_every": 2}})
    value.write(long.job, digits.place / "job.toml")
    command = [sys.executable, "-m", "rrmsdk", "retrain", str(digits.place / "job.toml"), "--quiet"]
    own = {"RRMSDK_STATE": str(digits.place / "state"), "HF_ENDPOINT": digits.hub.endpoint}
    process = subprocess.Popen(command, env=os.environ | own)
    try:
        while not list(digits.folder.glob("runs/*/transfer-*/run/checkpoint.safetensors")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    with journals.opened(digits.folder) as kept:
        (run,) = kept.runs()
        (crashed,) = kept.events(kind="crashed")
    assert (run.state, crashed.told["signature"]) == ("running", journals.STOPPED)
