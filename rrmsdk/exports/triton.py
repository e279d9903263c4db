"""A model repository for NVIDIA's Triton: a folder it serves as it is.

Layout and field names: triton-inference-server/server, docs/user_guide/model_repository.md and model_configuration.md.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rrmsdk import files
from rrmsdk.errors import FieldError, MismatchError, SaveError
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import Bundle

CONFIG, LABELS, GRAPH = "config.pbtxt", "labels.txt", "model.onnx"
_WORKSPACE = 1 << 30  # bytes that TensorRT may use while it builds
_PRECISION_MODE = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


def write_repository(
    bundle: Bundle,
    folder: Path,
    *,
    precision: str = "fp32",
    target: str = "cpu",
    input: str = "float",
    max_batch: int = 64,
) -> Path:
    """A graph of the bundle as the newest version of a model in the repository `folder`; gives back the model's folder.

    A version that is there already stays, so that Triton can go back to it; the same graph again makes no new one.
    `cpu` runs on the processor; `tensorrt` on a GPU, where TensorRT builds its engine when the model is loaded.

    Raises:
        MismatchError: the model there takes other images, or tells other classes.
        FieldError: max_batch is below 1.
        SaveError: it cannot be written.
    """
    if max_batch < 1:
        raise FieldError(f"max_batch = {max_batch}: 1 is the least")
    graph = bundle.path / bundles.exported(precision, target, input)[0]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.card.name)
    model = Path(folder) / name
    labels = "".join(f"{label}\n" for label in bundle.card.data.labels)
    config = _config(bundle, name, precision, target, input, max_batch)
    _same_ends(model, config, labels)
    try:
        files.write_text(model / LABELS, labels)
        files.write_text(model / CONFIG, config)
        _add_version(model, graph)
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"could not write to {model}: {exc.strerror or exc}") from exc
    return model


def _add_version(model: Path, graph: Path) -> None:
    model.mkdir(parents=True, exist_ok=True)
    there = sorted(int(one.name) for one in model.iterdir() if one.name.isdecimal() and one.is_dir())
    if there and files.sha256(model / str(there[-1]) / GRAPH) == files.sha256(graph):
        return
    # Triton may be looking: the version appears in one rename, whole.
    beside = model / ".next"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copyfile(graph, beside / GRAPH)
    beside.replace(model / str(there[-1] + 1 if there else 1))


def _same_ends(model: Path, config: str, labels: str) -> None:
    """All versions of a model share one config, so they must be asked and answer in the same way."""
    if not (model / CONFIG).is_file():
        return
    try:
        before = (model / CONFIG).read_text(), (model / LABELS).read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise SaveError(f"cannot read what is in {model}: {exc}. Choose another folder") from exc
    ends = re.compile(r"dims: \[[\d, ]*\]")
    for what, there, here in (
        ("sizes", ends.findall(before[0]), ends.findall(config)),
        ("classes", before[1].split("\n"), labels.split("\n")),
    ):
        if there != here:
            raise MismatchError(f"{what}: the model in {model} has {there}, this one {here}. Choose another folder")


def _config(bundle: Bundle, name: str, precision: str, target: str, input: str, max_batch: int) -> str:
    """The batch is no part of `dims`. Requests wait for no more than 100 microseconds to share a batch."""
    model = bundle.card.model
    size = model.input_size
    sizes, kind = (model.channels, size, size), "FP32"
    if input == "uint8":
        sizes, kind = (size, size, model.channels), "UINT8"
    image = ", ".join(map(str, sizes))
    warm = "".join(_warm_up(batch, image, kind) for batch in sorted({1, max_batch}))
    return f"""name: "{name}"
backend: "onnxruntime"
default_model_filename: "{GRAPH}"
max_batch_size: {max_batch}
input [ {{ name: "pixels" data_type: TYPE_{kind} dims: [ {image} ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ {model.classes} ] label_filename: "{LABELS}" }} ]
version_policy {{ latest {{ num_versions: 2 }} }}
dynamic_batching {{
  max_queue_delay_microseconds: 100
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: 1000000
    allow_timeout_override: true
    max_queue_size: {16 * max_batch}
  }}
}}
{_where(sizes, precision, target, max_batch)}{warm}"""


def _warm_up(batch: int, image: str, kind: str) -> str:
    return f"""model_warmup [ {{
  name: "batch of {batch}"
  batch_size: {batch}
  inputs {{ key: "pixels" value {{ data_type: TYPE_{kind} dims: [ {image} ] zero_data: true }} }}
}} ]
"""


def _where(sizes: tuple[int, ...], precision: str, target: str, max_batch: int) -> str:
    """No engine cache: Triton gives all versions one folder for it, and onnxruntime names an engine by the graph and
    not by its weights, so that one version could run another's. Profiles, or each new batch size would build anew.
    """
    if target == "cpu":
        return "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    shape = "".join(f"x{size}" for size in sizes)
    settings = {
        "precision_mode": _PRECISION_MODE[precision],
        "max_workspace_size_bytes": str(_WORKSPACE),
        "trt_profile_min_shapes": f"pixels:1{shape}",
        "trt_profile_opt_shapes": f"pixels:{max(1, max_batch // 2)}{shape}",
        "trt_profile_max_shapes": f"pixels:{max_batch}{shape}",
    }
    told = "".join(f'    parameters {{ key: "{key}" value: "{text}" }}\n' for key, text in settings.items())
    return f"""instance_group [ {{ kind: KIND_GPU count: 1 }} ]
optimization {{
  execution_accelerators {{ gpu_execution_accelerator [ {{
    name: "tensorrt"
{told}  }} ] }}
}}
"""
