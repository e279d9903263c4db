"""Where a number comes from: versions and hardware, never a host's name."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "pyautoattack", "rrmsdk")


def versions() -> dict[str, str]:
    """Python, and each package that a judgement depends on; `not installed` where it is run from a checkout."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def hardware(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type}, {_processor()}"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def result_file(folder: Path, theme: str, device: torch.device) -> Path:
    """Where a benchmark's result goes: THEME_HARDWARE_DATE.md."""
    name = re.sub(r"[^a-z0-9]+", "-", hardware(device).lower().replace("(r)", "")).strip("-")
    return folder / f"{theme}_{name}_{datetime.now(UTC).date()}.md"


def command_line() -> str:
    """What started this program, to be typed again in the same folder: `python -m benchmarks.curve --out results`."""
    module = sys.modules["__main__"].__spec__
    program = ["-m", module.name.removesuffix(".__main__")] if module else [os.path.relpath(sys.argv[0])]
    return shlex.join(["python", *program, *sys.argv[1:]])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        brand = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout
        if brand.strip():
            return brand.strip()
    return platform.processor() or platform.machine()
