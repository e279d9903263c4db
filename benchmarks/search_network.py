"""What folding batch norm, channels_last and torch.compile bring to the network that attacks search with.

Forward, and forward with the gradient of the pixels, of the same images in several interleaved rounds; each as a ratio
to the network as it was loaded in the same round (CPU time, so that other jobs count little). The limit is the
arithmetic: GFLOP/s are given, to be held against the processor's peak.

    OMP_NUM_THREADS=1 python -m benchmarks.search_network --model hub:resnet14-linf --rounds 7
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import rrmsdk
from rrmsdk import files
from rrmsdk.attacks.searching import searched
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    rows = [row for ref in args.model for row in _measured(ref, args.batch, args.rounds)]
    out = result_file(args.out, "search-network", torch.device("cpu"))
    files.write_text(out, _table(rows, args))
    print(out.read_text())


def _measured(ref: str, batch: int, rounds: int) -> list[str]:
    plain = rrmsdk.load(ref).requires_grad_(False)
    config = plain.config
    x = torch.rand(batch, config.channels, config.input_size, config.input_size)
    networks = _networks(plain, x)
    with FlopCounterMode(display=False) as counter:
        plain(x)
    forward = _ratios({name: lambda n=network: _logits(n, x) for name, network in networks.items()}, rounds)
    both = {name: lambda n=network: _gradient(n, x) for name, network in networks.items() if "frozen" not in name}
    gradient = _ratios(both, rounds)
    gflops = counter.get_total_flops() / 1e9 / statistics.median(forward["plain"][1])
    return [
        f"| {ref} | {name} | {_said(forward[name][0])} | {_said(gradient[name][0]) if name in gradient else '-'} | "
        f"{gflops if name == 'plain' else gflops * statistics.median(forward[name][0]):.0f} |"
        for name in networks
    ]


def _networks(plain: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    used = searched(plain, x[:2]).network
    assert used is not plain
    folded = copy.deepcopy(used).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    compiled = torch.compile(copy.deepcopy(used))
    frozen = torch.compile(copy.deepcopy(used), options={"freezing": True})
    return {
        "plain": plain, "folded": folded, "folded, channels_last (used)": used, "and compiled": compiled,
        "and compiled, frozen": frozen,
    }  # type: ignore[dict-item]  # fmt: skip


def _logits(network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        network(x)


def _gradient(network: nn.Module, x: Tensor) -> None:
    at = x.detach().requires_grad_()
    torch.autograd.grad(network(at).logsumexp(1).sum(), at)


def _ratios(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """For each: the plain network's time over its own, and its own, round by round; the first round warms up."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for number in range(rounds + 1):
        taken = {}
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(3):
                call()
            taken[name] = (time.process_time() - began) / 3
        for name, seconds in taken.items():
            if number:
                found[name][0].append(taken["plain"] / seconds)
                found[name][1].append(seconds)
    return found


def _said(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _table(rows: list[str], args: argparse.Namespace) -> str:
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([
        "# The network that attacks search with, against the one that was loaded", "",
        f"Times faster than the plain network: median and range of {args.rounds} interleaved rounds, CPU time, batch "
        f"{args.batch}. GFLOP/s of the forward pass, of the plain network and of the others by their ratio.", "",
        "| model | network | forward | forward and gradient | GFLOP/s |", "| --- | --- | --- | --- | --- |", *rows, "",
        f"Hardware: {hardware(torch.device('cpu'))}. Versions: {told}.", "",
        f"Command: `{command_line()}`", "",
    ])  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
