"""What pulling costs beside the client alone, what a resolution without the network costs, and `import rrmsdk`.

The Hub is the one of tests/, in a process of its own on 127.0.0.1. What is compared takes turns.

    OMP_NUM_THREADS=1 python benchmarks/hub.py --rounds 15 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from hub_process import ROOT, hub
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars

from rrmsdk import files
from rrmsdk.hub import fetch, index
from rrmsdk.schema.ref import Ref
from rrmsdk.stamps import FOLDER, SETTLED
from rrmsdk.verification.provenance import command_line, hardware, result_file, version, versions

sys.path.append(str(ROOT))  # the Hub and the bundles of the tests
from tests.bundles import make_large

REPO = "acme/large"
# A process of its own, timed from when it has imported what it needs.
FIRST = """import sys, time
from pathlib import Path
from rrmsdk.hub import fetch
from rrmsdk.schema.ref import Ref
wanted, wall, cpu = Ref.parse(sys.argv[1]), time.perf_counter(), time.process_time()
fetch(wanted, cache=Path(sys.argv[2]), offline=True)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
PULL_RATIO, WARM_MS, IMPORT_SECONDS = 1.3, 20.0, 0.3  # what was promised


@dataclass(frozen=True)
class Spent:
    """Seconds of one run. `cpu`: of this process, or of the one that was started."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Warm:
    """Resolutions of a reference that needs no network, and the sha256 alone of the files it leads to.

    again: in one process; noted: the first one of a process, after others; first: where nobody noted the hashes, so
    that every byte is read.
    """

    megabytes: float
    again: list[Spent]
    noted: list[Spent]
    first: list[Spent]
    hashed: list[Spent]


def main() -> None:
    args = _arguments()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ[FOLDER] = str(place / "stamps")
        bundle = make_large(place / "bundle", args.megabytes * 1_000_000)
        with hub(REPO, bundle.path) as (endpoint, commit):
            ours, plain = taking_turns(
                args.rounds, lambda: pull(endpoint, commit, place), lambda: plain_pull(endpoint, commit, place)
            )
            fetch(Ref.parse(f"hub:{REPO}"), endpoint=endpoint, cache=place / "warm")
        refs = {f"hub:{REPO}@{commit}": args.megabytes, f"hub:{REPO}": args.megabytes} | {
            f"hub:{known}": _megabytes(index.bundle_of(known)) for known in index.embedded()
        }
        warm = {ref: Warm(size, *resolutions(ref, place / "warm", args.repeats)) for ref, size in refs.items()}
        imports = taking_turns(args.rounds, lambda: importing("rrmsdk"), lambda: importing("pydantic, numpy"))
    path = result_file(args.out, "hub", torch.device("cpu"))
    text = report(args, ours, plain, warm, *imports)
    files.write_text(path, text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="pulls and imports of each kind")
    parser.add_argument("--repeats", type=int, default=21, help="warm resolutions of each reference")
    parser.add_argument("--megabytes", type=int, default=50, help="size of the bundle's weights")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


def taking_turns(rounds: int, *kinds: Callable[[], Spent]) -> list[list[Spent]]:
    """What each kind spent, one after another in every round, after a round that does not count."""
    found = [[kind() for kind in kinds] for _ in range(rounds + 1)]
    return [list(column) for column in zip(*found[1:], strict=True)]


@contextmanager
def fresh_cache(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place) as cache:
        yield Path(cache)


def pull(endpoint: str, commit: str, place: Path) -> Spent:
    with fresh_cache(place) as cache:
        return spent(lambda: fetch(Ref.parse(f"hub:{REPO}@{commit}"), endpoint=endpoint, cache=cache))


def plain_pull(endpoint: str, commit: str, place: Path) -> Spent:
    """What a careful user of the client would write: all files of the commit, and the sha256 of each."""

    def plain(cache: Path) -> list[str]:
        found = snapshot_download(REPO, revision=commit, endpoint=endpoint, token=False, cache_dir=cache)
        return [files.sha256(path) for path in Path(found).rglob("*") if path.is_file()]

    with fresh_cache(place) as cache:
        return spent(lambda: plain(cache))


def resolutions(ref: str, cache: Path, repeats: int) -> list[list[Spent]]:
    """From the reference to the bundle, verified, without the network; and the sha256 of its files."""
    wanted = Ref.parse(ref)
    bundle = fetch(wanted, cache=cache, offline=True).bundle
    time.sleep(SETTLED)  # what was written just now is read each time
    paths = [bundle.path / name for name in bundle.card.files]
    return taking_turns(
        repeats,
        lambda: spent(lambda: fetch(wanted, cache=cache, offline=True)),
        lambda: first(ref, cache, stamps=str(cache.parent / "stamps")),
        lambda: first(ref, cache, stamps=""),
        lambda: spent(lambda: [files.sha256(path) for path in paths]),
    )


def first(ref: str, cache: Path, stamps: str) -> Spent:
    """In a process of its own. stamps: the folder where processes note hashes; empty: they do not."""
    command, env = [sys.executable, "-c", FIRST, ref, str(cache)], os.environ | {FOLDER: stamps}
    said = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
    wall, cpu = map(float, said.split())
    return Spent(wall, cpu)


def importing(modules: str) -> Spent:
    """A fresh interpreter, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def spent(act: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def report(
    args: argparse.Namespace, ours: Sequence[Spent], plain: Sequence[Spent],
    warm: dict[str, Warm], rrmsdk: Sequence[Spent], base: Sequence[Spent],
) -> str:  # fmt: skip
    ratios = [one.wall / other.wall for one, other in zip(ours, plain, strict=True)]
    cpu_ratios = [one.cpu / other.cpu for one, other in zip(ours, plain, strict=True)]
    more = [one.wall - other.wall for one, other in zip(rrmsdk, base, strict=True)]
    more_cpu = [one.cpu - other.cpu for one, other in zip(rrmsdk, base, strict=True)]
    clients = f"huggingface_hub {version('huggingface_hub')}, pydantic {version('pydantic')}"
    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    resolved = "\n".join(
        f"| `{ref}` | {row.megabytes:.1f} | **{_ms(row.again, 'wall')}** | **{_ms(row.noted, 'wall')}** "
        f"| {_ms(row.first, 'wall')} | {_ms(row.hashed, 'wall')} |"
        for ref, row in warm.items()
    )
    return f"""# The Hub's cost, {datetime.now(UTC).date()}

{hardware(torch.device("cpu"))}; {known}, {clients}. {args.note}
Median (least to greatest). Wall: by the clock. CPU: seconds of the process itself, user and system.

## Pull of a {args.megabytes} MB bundle over loopback, {args.rounds} rounds, fresh cache each

The Hub runs in a process of its own. Plain: `snapshot_download` of the same commit, then the sha256 of every file.
Ratios are of the two pulls of one round. Promised: at most {PULL_RATIO}.

| | wall, s | CPU, s |
| --- | --- | --- |
| `rrmsdk.hub.fetch` | {_s(ours, "wall")} | {_s(ours, "cpu")} |
| plain | {_s(plain, "wall")} | {_s(plain, "cpu")} |
| **ratio** | **{_range(ratios)}** | {_range(cpu_ratios)} |

## Resolution without the network, {args.repeats} times each

From the reference to a bundle whose every file was compared with its hash; nothing is loaded. Bytes are read only when
something was written to a file since they were hashed (its inode, size or times changed). `again`: in a process that
has resolved it before; `next process`: of a process of its own, without its imports, after other processes; `nothing
noted`: the same with RRMSDK_STAMPS empty, so that every byte is read. Promised for a warm one: at most
{WARM_MS:.0f} ms.

| reference | MB | again, wall ms | next process, wall ms | nothing noted, wall ms | sha256 alone, wall ms |
| --- | --- | --- | --- | --- | --- |
{resolved}

## Import in a fresh interpreter, {args.rounds} rounds

From the interpreter's start to its end. Promised: at most {IMPORT_SECONDS} s more than `import pydantic, numpy`.

| | wall, s | CPU, s |
| --- | --- | --- |
| `import rrmsdk` | {_s(rrmsdk, "wall")} | {_s(rrmsdk, "cpu")} |
| `import pydantic, numpy` | {_s(base, "wall")} | {_s(base, "cpu")} |
| **difference** | **{_range(more)}** | {_range(more_cpu)} |

Command: `{command_line()}`
"""


def _s(rows: Sequence[Spent], clock: str) -> str:
    return _range([getattr(row, clock) for row in rows])


def _ms(rows: Sequence[Spent], clock: str) -> str:
    return _range([1000 * getattr(row, clock) for row in rows], digits=1)


def _range(values: Sequence[float], digits: int = 3) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
