"""What scheduled retraining promises, measured. One part at a time; each writes a result file of its own.

OMP_NUM_THREADS=1 python benchmarks/retrain.py promotions --out benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from retrain_engine import idle, journal, takeover, ticks
from retrain_promotions import promotions

from rrmsdk import files
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "promotions": promotions, "takeover": takeover, "ticks": ticks, "idle": idle, "journal": journal,
}  # fmt: skip


def main() -> None:
    args = _arguments()
    began = time.perf_counter()
    text = PARTS[args.part](args)
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    text += (
        f"\n{hardware(torch.device('cpu'))}; {known}. Seed {args.seed}. {args.note}{' ' if args.note else ''}"
        f"{time.perf_counter() - began:.0f} s. Command: `{command_line()}`\n"
    )
    files.write_text(result_file(args.out, f"retrain-{args.part}", torch.device("cpu")), text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--weeks", type=int, default=10_000, help="of promotions: challengers of each kind")
    parser.add_argument("--images", type=int, default=10_000, help="of promotions: that the gate of the weeks looks at")
    parser.add_argument(
        "--edge-images",
        type=int,
        nargs="+",
        default=[1000, 3000, 10_000],
        help="of promotions: at the edge of a margin",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the other parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
