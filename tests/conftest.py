"""Settings that have to stand before anything is imported: no telemetry, no user's caches, few threads."""

import os
import tempfile

_home = tempfile.mkdtemp(prefix="rrmsdk-tests-")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["HF_HOME"] = os.path.join(_home, "hf")
os.environ["RRMSDK_CACHE"] = os.path.join(_home, "rrmsdk")
os.environ["RRMSDK_STAMPS"] = os.path.join(_home, "stamps")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def cifar10() -> str:
    """`path:DIR` of the real CIFAR-10 parquet files."""
    folder = os.environ.get("RRMSDK_CIFAR10")
    if not folder:
        pytest.skip("RRMSDK_CIFAR10 names no folder with CIFAR-10's train.parquet and test.parquet")
    return f"path:{folder}"
