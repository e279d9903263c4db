"""The verb that attacks any classifier: a module, an ONNX file, or a model behind HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rrmsdk.errors import RefError
from rrmsdk.opening import as_value, needs_torch, threat_of, typed
from rrmsdk.schema import value
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Report
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from torch import nn

    from rrmsdk.data import Dataset


class Opened(NamedTuple):
    """Something that takes pixels and gives logits, what it is called, and what its report is about."""

    network: nn.Module
    name: str
    weights_sha256: str


@typed
def attack(
    model: nn.Module | str | Path,
    data: str | DataSpec | Mapping[str, Any] | Dataset,
    threat: str | ThreatModel,
    *,
    attack: str | None = None,
    replay: str | Path | None = None,
    images: int = 1000,
    batch: int = 256,
    seed: int = 0,
    save_adversarial: str | Path | None = None,
    journal: str | Path | None = None,
    token: str | None = None,
    timeout: float = 30.0,
    quiet: bool = False,
    **settings: Any,
) -> Report:
    """Attack a classifier that is no bundle on the test split; nothing is written but what you name.

    What gives no gradients (ONNX, HTTP) is its own judge and meets noise and Square alone, which find far less than
    AutoAttack would: replay what was found on the network that it was made from.

    Args:
        model: an `nn.Module` that takes pixels in [0, 1], where its weights lie; an `.onnx` file, its one input float
            [batch, C, H, W] in [0, 1], or uint8 [batch, H, W, C], to whose levels pixels are rounded, and its one
            output logits; or `http://HOST:PORT/v2/models/NAME`, which speaks the Open Inference Protocol v2 and takes
            FP32 or UINT8 tensors of the same shapes. For the last, `weights_sha256` of the report is one of name and
            version only.
        data: a name, path:DIR, a DataSpec or its fields, or a Dataset.
        attack: as in `verify`, or `square`, or `replay` alone. None: `autoattack` for a module, else `square`.
        replay: a file of `verify(save_adversarial=...)`: its images are tried first, as an attack of their own.
        images: of the test split, from its start; 0: all.
        journal: a folder where everything is kept as soon as it is found; the same call goes on from it.
        token: bearer token for the HTTP host; no other host ever sees it.
        timeout: seconds for each request.
        settings: further fields of VerifySpec: `queries` of Square (5000), `steps`, `restarts`, `at_least`, ...

    Raises:
        RefError, FieldError, DataError, MismatchError, IntegrityError, SaveError, EndpointError, MissingExtraError,
        ExportError
    """
    needs_torch("attack")
    from rrmsdk.data import Dataset, load
    from rrmsdk.training.log import progress
    from rrmsdk.verification import verify
    from rrmsdk.verification.replaying import replay as replayed

    ball = threat_of(threat)
    fields = {"images": images, "batch": batch, "seed": seed, **settings}
    with _opened(model, token, timeout) as opened:
        asked = attack or _strongest(opened.network)
        spec = value.parse(VerifySpec, {"attack": asked, **fields}, "attack")
        found = data if isinstance(data, Dataset) else load(as_value(DataSpec, data, "name").alone())
        first = None if replay is None else replayed(Path(replay), ball, found.info)
        with progress(f"attack {opened.name}", quiet) as bar:
            return verify(
                opened.network, found.test, ball, spec, info=found.info, weights_sha256=opened.weights_sha256,
                save_adversarial=None if save_adversarial is None else Path(save_adversarial),
                journal=None if journal is None else Path(journal), replay=first,
                progress=lambda name, done, of: bar(done, of, name),
            )  # fmt: skip


def weights_sha256(model: nn.Module) -> str:
    """sha256 over `state_dict()`: for each tensor, in the order of their names, name, dtype, shape and bytes.

    The bytes are those of the tensor on the CPU, row by row, in the machine's order (little-endian on all that torch
    runs on). Neither the device nor the layout in memory counts; buffers that are not saved do not, nor does the code.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):  # a module may save other things beside
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _opened(model: nn.Module | str | Path, token: str | None, timeout: float) -> Iterator[Opened]:
    from torch import nn

    if isinstance(model, nn.Module):
        yield Opened(model, type(model).__name__, weights_sha256(model))
    elif str(model).startswith(("http://", "https://")):
        from rrmsdk.runtime.endpoint import open_endpoint
        from rrmsdk.verification.blackbox import BlackBox

        with closing(open_endpoint(str(model), token=token, timeout=timeout)) as asked:
            told = f"{asked.name} {', '.join(asked.versions)} ({asked.platform or 'of no named platform'})"
            yield Opened(BlackBox(asked, {"endpoint": told}), asked.name, asked.identity)
    elif isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        yield _session(Path(model))
    else:
        raise RefError(
            f"'{model}' is no .onnx file and no http://HOST:PORT/v2/models/NAME. Bundles are attacked by "
            "rrmsdk verify, or as a module: rrmsdk.attack(rrmsdk.load(...), ...)"
        )


def _session(path: Path) -> Opened:
    import torch

    from rrmsdk import files
    from rrmsdk.runtime.rounding import in_unit
    from rrmsdk.runtime.session import open_session
    from rrmsdk.verification.blackbox import BlackBox
    from rrmsdk.verification.provenance import version

    session = open_session(path, threads=torch.get_num_threads(), foreign=True)
    return Opened(BlackBox(in_unit(session), {"onnxruntime": version("onnxruntime")}), path.name, files.sha256(path))


def _strongest(network: nn.Module) -> str:
    from rrmsdk.verification.blackbox import BlackBox

    return "square" if isinstance(network, BlackBox) else "autoattack"
