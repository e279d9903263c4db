"""A bundle beyond attacks: accuracy under common corruptions, and what randomised smoothing certifies.

Two numbers of different kinds, of two different classifiers: the network, and its vote over Gaussian noise. Neither is
a robust accuracy under attack, and nothing here averages or compares them.

    python benchmarks/beyond.py hub:resnet14-linf --data cifar10 --corrupted 500 --certified 100 --n 1000 \
        --sigmas 0.12 0.25 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import rrmsdk
from rrmsdk import Certified, Corruptions


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = rrmsdk.pull(args.model, Path(scratch) / "bundle")
        corrupted = rrmsdk.corrupt(bundle, args.data, images=args.corrupted, seed=args.seed)
        asked = {"n0": args.n0, "n": args.n, "images": args.certified, "radii": args.radii, "seed": args.seed}
        certified = [rrmsdk.certify(bundle, args.data, sigma=sigma, **asked) for sigma in args.sigmas]
    text = _table(bundle.card.name, corrupted, certified)
    print(text)
    if args.out:
        from rrmsdk.verification.provenance import result_file

        path = result_file(args.out, "corruptions-certify", _device())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub:NAME, hub:org/name[@revision] or path:DIR")
    parser.add_argument("--data", help="as of `rrmsdk verify`")
    parser.add_argument("--corrupted", type=int, default=500, help="images that are corrupted")
    parser.add_argument("--certified", type=int, default=100, help="images that are certified")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25])
    parser.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5])
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _table(name: str, corrupted: Corruptions, certified: list[Certified]) -> str:
    from rrmsdk.verification.provenance import command_line, hardware

    threads = os.environ.get("OMP_NUM_THREADS")
    lines = [
        f"# {name} on {corrupted.data.name} beyond attacks, {datetime.now(UTC).date()}",
        "",
        *_corruptions(corrupted),
        *_smoothing(certified),
        f"One run, seed {corrupted.seed}. Data: {corrupted.data.name}, {corrupted.split} split, "
        f"fingerprint {corrupted.data.fingerprint}. Weights: sha256 {corrupted.weights_sha256}.",
        f"Hardware: {hardware(_device())}.",
        f"Versions: {', '.join(f'{package} {number}' for package, number in corrupted.versions.items())}.",
        f"Command: `{f'OMP_NUM_THREADS={threads} ' if threads else ''}{command_line()}`.",
        "",
    ]
    return "\n".join(lines)


def _corruptions(found: Corruptions) -> list[str]:
    spread = "" if found.error is None else f" +- {found.error:.3f} (standard error over the images)"
    lines = [
        "## Common corruptions",
        "",
        found.note,
        "",
        f"{found.images} images, clean {found.clean:.3f}; mean over {len(found.types)} types and 5 severities "
        f"{found.mean:.3f}{spread}; {found.seconds:.0f} s.",
        "",
        "| severity | 1 | 2 | 3 | 4 | 5 | mean |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found.types:
        lines.append(f"| {one.name} | {' | '.join(f'{share:.3f}' for share in (*one.accuracy, one.mean))} |")
    lines += ["", "What differs from the paper:", ""]
    return [*lines, *(f"- {what}: {how}." for what, how in found.differs.items()), ""]


def _smoothing(found: list[Certified]) -> list[str]:
    first = found[0]
    how = first.smoothing
    lines = [
        "## Randomised smoothing",
        "",
        first.note,
        "",
        f"{first.images} images, n0 {how.n0}, n {how.n}, alpha {how.alpha:g}. The network was not trained with noise. "
        "Certified accuracy with its 95 % Wilson interval over the images:",
        "",
        f"| sigma | right (PREDICT) | abstains | {' | '.join(f'L2 > {at.radius:g}' for at in first.radii)} | "
        f"at {first.threat} | largest radius possible | s |",
        "| --- " * (6 + len(first.radii)) + "|",
    ]
    for one in found:
        row = [f"{one.smoothing.sigma:g}", f"{one.smoothed:.2f}", f"{one.abstained:.2f}"]
        for at in (*one.radii, one.at_threat):
            row.append(f"{at.accuracy:.2f} [{at.interval[0]:.2f}, {at.interval[1]:.2f}]")
        lines.append(f"| {' | '.join([*row, f'{one.largest:.3f}', f'{one.seconds:.0f}'])} |")
    return [*lines, "", f"{first.threat}, {first.inside}.", ""]


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
