"""What else may start runs: systemd, cron, Kubernetes, SLURM, Prefect. No cluster has seen these; our shell has."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import rrmsdk
from rrmsdk.cli import app
from rrmsdk.retraining import on_prefect

ROOT = Path(__file__).parents[1]
SYSTEMD, SBATCH = ROOT / "serve" / "systemd", ROOT / "serve" / "slurm" / "retrain.sbatch"
OURS = "/opt/rrmsdk/bin/rrmsdk"


def understood(line: str) -> dict[str, Any]:
    """The options of a command line, as the shell's verb reads them; typer raises errors for those it does not know."""
    command, (_, *words) = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    return command.make_context("verb", words).params


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((SYSTEMD / name).read_text())
    return parser


class TestSystemd:
    def test_the_service_runs_a_command_that_we_know_where_it_may_write(self) -> None:
        service = unit("rrmsdk-tick.service")["Service"]
        assert str(understood(service["ExecStart"])["jobs"]) == "/etc/rrmsdk/jobs"
        assert service["ExecStart"].startswith(OURS)
        assert f"RRMSDK_STATE=/var/lib/{service['StateDirectory']}" in service["Environment"].split()

    def test_what_a_tick_has_started_outlives_it(self) -> None:
        service = unit("rrmsdk-tick.service")["Service"]
        assert (service["Type"], service["KillMode"]) == ("oneshot", "process")
        assert "PrivateTmp" not in service

    def test_the_timer_asks_each_minute_and_after_a_power_cut(self) -> None:
        timer = unit("rrmsdk-tick.timer")["Timer"]
        assert (timer["OnCalendar"], timer["Persistent"]) == ("minutely", "true")

    @pytest.mark.parametrize("broken", ["", "OnCalendar=never-ever"])
    def test_systemd_takes_them_and_would_say_what_it_does_not(self, tmp_path: Path, broken: str) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd-analyze is not installed")
        for path in SYSTEMD.iterdir():
            text = path.read_text().replace(OURS, "/bin/true")
            (tmp_path / path.name).write_text(re.sub("OnCalendar=.*", broken, text) if broken else text)
        command = ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert bool(done.returncode or done.stderr) == bool(broken), done.stderr


def test_the_line_for_cron_is_one_that_we_know() -> None:
    (line,) = re.findall(r"^\* \* \* \* \* +(\S+ schedule tick [^#\n]*)", (ROOT / "README.md").read_text(), flags=re.M)
    assert understood(line)["jobs"].is_absolute()


class TestKubernetes:
    claim, cron = yaml.safe_load_all((ROOT / "serve" / "k8s" / "retrain-cronjob.yaml").read_text())
    job = cron["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]

    def test_the_container_is_the_run_itself(self) -> None:
        options = understood(shlex.join(["rrmsdk", *self.container["args"]]))
        assert (str(options["job"]), str(options["state"])) == ("/jobs/weekly.toml", "/state")
        assert self.container["image"].endswith(f":{rrmsdk.__version__}")

    def test_one_at_a_time_on_a_disk_that_stays(self) -> None:
        volumes = {one["name"]: one for one in self.pod["volumes"]}
        assert self.cron["spec"]["concurrencyPolicy"] == "Forbid"
        assert volumes["state"]["persistentVolumeClaim"]["claimName"] == self.claim["metadata"]["name"]
        assert {one["name"] for one in self.container["volumeMounts"]} == set(volumes)

    def test_a_run_that_is_over_is_not_tried_again_and_one_that_can_go_on_is(self) -> None:
        rules = {one["action"]: one for one in self.job["podFailurePolicy"]["rules"]}
        assert rules["FailJob"]["onExitCodes"]["values"] == [1, 2, 64, 77]
        assert rules["FailJob"]["onExitCodes"]["containerName"] == self.container["name"]
        assert (self.pod["restartPolicy"], self.job["backoffLimit"] > 0) == ("Never", True)

    def test_the_token_is_a_secret(self) -> None:
        (token,) = [one for one in self.container["env"] if one["name"] == "HF_TOKEN"]
        assert set(token) == {"name", "valueFrom"}
        assert "secretKeyRef" in token["valueFrom"]


class TestSlurm:
    """By bash, beside programs that stand where SLURM's scontrol and a run of some exit code would."""

    def begun(self, tmp_path: Path, run: str, sleep: str = "exit 0") -> subprocess.Popen[bytes]:
        for name, does in (("rrmsdk", run), ("scontrol", f'echo "$@" >> {tmp_path}/asked'), ("sleep", sleep)):
            (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
            (tmp_path / name).chmod(0o755)
        paths = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(SBATCH)], env={"PATH": paths, "SLURM_JOB_ID": "7", "JOB": "weekly.toml"}
        )  # fmt: skip

    def asked(self, tmp_path: Path) -> str:
        return (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""

    @pytest.mark.parametrize("code", [0, 1, 64, 77, 75, 76])
    def test_it_is_queued_again_where_the_same_command_goes_on(self, tmp_path: Path, code: int) -> None:
        assert self.begun(tmp_path, f'echo "rrmsdk $*" > {tmp_path}/ran; exit {code}').wait(60) == code
        assert str(understood((tmp_path / "ran").read_text())["job"]) == "weekly.toml"
        assert self.asked(tmp_path) == ("requeue 7\n" if code in (75, 76) else "")

    def test_it_is_queued_again_when_its_time_is_up(self, tmp_path: Path) -> None:
        process = self.begun(tmp_path, f"touch {tmp_path}/runs; exec /bin/sleep 60")
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert self.asked(tmp_path) == "requeue 7\n"

    def test_it_is_queued_again_when_its_time_is_up_while_it_waits(self, tmp_path: Path) -> None:
        process = self.begun(tmp_path, "exit 76", sleep=f"touch {tmp_path}/waits; exec /bin/sleep 10")
        while not (tmp_path / "waits").exists():
            time.sleep(0.01)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert time.monotonic() - begun < 5
        assert self.asked(tmp_path) == "requeue 7\n"

    def test_slurm_is_told_to_warn_the_script_and_that_it_may_be_queued_again(self) -> None:
        told = re.findall(r"^#SBATCH --(\S+)", SBATCH.read_text(), flags=re.M)
        assert {"requeue", "signal=B:TERM@120", "open-mode=append"} <= set(told)


class TestPrefect:
    """What needs no Prefect."""

    def test_it_runs_a_command_that_we_know(self) -> None:
        _, *words = on_prefect.command("weekly.toml", "/state")
        assert words[:2] == ["-m", "rrmsdk"]
        options = understood(shlex.join(words[1:]))
        assert (str(options["job"]), str(options["state"])) == ("weekly.toml", "/state")

    @pytest.mark.parametrize(
        ("code", "kind", "name"),
        [
            (0, "COMPLETED", "Completed"), (75, "FAILED", "Busy"), (76, "FAILED", "Blocked"),
            (77, "COMPLETED", "Awaiting"), (1, "FAILED", "Failed"), (64, "FAILED", "Failed"), (-9, "FAILED", "Failed"),
        ],
    )  # fmt: skip
    def test_an_exit_code_is_a_state(self, code: int, kind: str, name: str) -> None:
        assert on_prefect.ended(code)[:2] == (kind, name)
