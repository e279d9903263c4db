"""Checkpoints whose bytes somebody has pinned by hash, opened without running what a pickle may hold."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from rrmsdk.errors import IntegrityError

Kind = Literal["safetensors", "zip", "pickle", "page", "pointer", "empty", "unknown"]

_NOT_WEIGHTS = {
    "empty": "is empty. Fetch it again",
    "page": "is a web page, not weights. Fetch it again and look at what the server says",
    "pointer": "is a pointer of Git LFS, not the weights it stands for. Fetch it again with `git lfs pull`",
}


def sniff(start: bytes) -> Kind:
    """What a file is by its first 32 bytes."""
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        return "safetensors"
    if not start:
        return "empty"
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    if start.lstrip().startswith(b"<"):
        return "page"
    return "pointer" if start.startswith(b"version https://git-lfs") else "unknown"


def not_weights(kind: Kind) -> str:
    """What to say of a file that holds no weights at all; "" if it may."""
    return _NOT_WEIGHTS.get(kind, "")


def opened(path: Path, sha256: str) -> Any:
    """What torch.save or safetensors wrote, on the CPU: tensors, and the plain containers they are in.

    Raises:
        IntegrityError: no such file, the bytes have another hash, or hold anything beyond plain tensors and containers.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    content = path.read_bytes()
    digest, kind = hashlib.sha256(content).hexdigest(), sniff(content[:32])
    if digest != sha256.lower():
        hint = f". It {not_weights(kind)}" if not_weights(kind) else ""
        raise IntegrityError(f"{path} has sha256 {digest}, not the pinned {sha256}. It was not opened{hint}")
    if not_weights(kind):
        raise IntegrityError(f"{path} {not_weights(kind)}")
    try:
        # The bytes that were hashed, not the path again: the file could have changed in between.
        if kind == "safetensors":
            return safetensors.torch.load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as exc:  # bytes of others make the readers raise anything
        raise IntegrityError(f"{path} is no checkpoint of plain tensors: {_why(content, exc)}") from exc


def read_pinned(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose bytes have this hash, under their dotted names: safetensors, or a pickle.

    Raises:
        IntegrityError: no such file, the bytes have another hash, or hold anything beyond plain tensors and containers.
    """
    return dict(_tensors(opened(path, sha256)))


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def _why(content: bytes, exc: Exception) -> str:
    strange = [name for name in globals_named(content) if not _PLAIN.fullmatch(name)]
    if strange:
        shown = ", ".join(strange[:6]) + (", ..." if len(strange) > 6 else "")
        return (
            f"it names {shown}, {_meaning(strange)}. Opening it would run what it names, so it was refused and nothing "
            "ran. Ask for a file of the state dict alone, or make one where you trust this one"
        )
    # torch first advises to open the file without its guard; what stopped it comes after.
    said = str(exc).partition("WeightsUnpickler error: ")[2] or str(exc)
    return (said.strip().splitlines() or [type(exc).__name__])[0]


# What a state dict of plain tensors needs. A name beyond these is only reported: torch decides what is refused.
_PLAIN = re.compile(
    r"collections\.OrderedDict|torch\.(\w+Storage|Size|device|float\d+|bfloat16|u?int\d+|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter|torch\.storage\._load_from_bytes"
)


def _meaning(names: list[str]) -> str:
    if any(name.startswith(("dill.", "cloudpickle.")) for name in names):
        return "a function that dill keeps as code"
    if all(name.startswith(("argparse.", "numpy.", "_codecs.")) for name in names):
        return "options of a training script or numbers of numpy beside the tensors"
    return "which is code, not tensors"


def globals_named(content: bytes) -> list[str]:
    """What a checkpoint's pickles would import, as `module.name`, in order, nothing opened.

    For a report only: a pickle can hide a name from this reader, which follows strings and not the whole stack.
    """
    found: list[str] = []
    # Damaged, or made to confuse: what was found so far.
    with contextlib.suppress(Exception):
        for stream in _pickles(content):
            for name in _globals(stream):
                found.append(name)
    return list(dict.fromkeys(found))


def _pickles(content: bytes) -> Iterator[io.BytesIO]:
    if sniff(content[:32]) == "zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield io.BytesIO(archive.read(name))
        return
    # Before torch 1.6: a number, a version, the system, the object and the storages' keys, pickled one after the other.
    stream = io.BytesIO(content)
    for _ in range(5):
        yield stream


def _globals(stream: io.BytesIO) -> Iterator[str]:
    strings: list[str] = []
    memo: dict[int, str] = {}
    last = ""  # the string on top of the stack, if one is
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            # The second protocol writes Python 2's name of the module.
            yield argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif "PUT" in opcode.name:
            memo[int(argument)] = last
        else:
            last = memo.get(int(argument), "") if "GET" in opcode.name else ""
            last = argument if "UNICODE" in opcode.name else last
            strings += [last] if last else []
