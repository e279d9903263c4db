"""Other graphs of the same network: half precision, 8-bit integers, and bytes for pixels."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rrmsdk.errors import ExportError, FieldError, MissingExtraError, ParityError, near
from rrmsdk.exports.onnx import nodes
from rrmsdk.runtime.session import no_telemetry

Target = Literal["cpu", "tensorrt"]
PRECISIONS, TARGETS, INPUTS = ("fp32", "fp16", "int8"), ("cpu", "tensorrt"), ("float", "uint8")
FP16_MAX = 65504

_CALIBRATED_AT_ONCE = 32  # images; the ranges of all activations are asked for, so a batch costs more than to predict


def check(precision: str, target: str, input: str) -> None:
    """Raises FieldError: no such precision, target or input."""
    for what, given, known in (
        ("precision", precision, PRECISIONS),
        ("target", target, TARGETS),
        ("input", input, INPUTS),
    ):
        if given not in known:
            raise FieldError(f"{what} = '{given}' is unknown.{near(given, known)} Known: {', '.join(known)}")


def to_fp16(proto: Any) -> Any:
    """A copy in half precision, each tensor of an explicit type; the two ends and what has no fp16 stay fp32.

    The graph is typed and nothing is left to the runtime, so that TensorRT builds it as it was judged.
    """
    import onnx
    import onnx_ir as ir

    no_telemetry()
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as exc:
        raise MissingExtraError("ort", "export in fp16") from exc
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a word on each weight below 6e-8; whether that matters is judged afterwards
        half = convert_float_to_float16(_copy(onnx, proto), keep_io_types=True)
    typed = ir.from_proto(half)
    typed.graph.sort()  # the casts of the ends were appended, and ONNX wants each node after those it reads
    return ir.to_proto(typed)


def fits_fp16(proto: Any, pixels: np.ndarray) -> None:
    """Raise ParityError if anything that the fp32 graph computes of the pixels is too large for half precision.

    On a CPU onnxruntime computes an fp16 graph in fp32, so that there an overflow would not show.
    """
    import onnx

    no_telemetry()
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise MissingExtraError("ort", "export in fp16") from exc
    told = _copy(onnx, proto)
    known = {one.name for one in told.graph.output}
    floats = [
        one for one in onnx.shape_inference.infer_shapes(told).graph.value_info
        if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and one.name not in known
    ]  # fmt: skip
    told.graph.output.extend(floats)
    engine = ort.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
    largest: dict[str, float] = {}
    for one in np.split(pixels, len(pixels)):  # one by one: every activation of an image is in memory at once
        for end, value in zip(engine.get_outputs(), engine.run(None, {"pixels": one}), strict=True):
            largest[end.name] = max(largest.get(end.name, 0.0), float(np.abs(np.asarray(value)).max(initial=0.0)))
    name, most = max(largest.items(), key=lambda item: item[1])
    if not most <= FP16_MAX:
        raise ParityError(
            f"the activation '{name}' comes to {most:.4g} on the images of the comparison, and fp16 ends at "
            f"{FP16_MAX}. The bundle is as it was. Export in fp32 or int8"
        )


def to_int8(proto: Any, calibration: np.ndarray, target: str) -> Any:
    """A copy whose convolutions and matrix products are of 8-bit integers (static QDQ, weights per channel).

    `cpu`: activations unsigned, weights signed, which onnxruntime's kernels are made for. `tensorrt`: both signed and
    symmetric, biases in fp32; TensorRT reads no zero points and no 32-bit biases. The outputs of Gemm stay
    fp32: logits that are rounded to 256 levels tie, and on `resnet14-linf` were off by 1.03 instead of 0.06.

    Args:
        calibration: float32 pixels [N, C, H, W] in [0, 1], which decide the ranges of activations.
    """
    no_telemetry()
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as exc:
        raise MissingExtraError("ort", "export in int8") from exc
    import onnx

    class Reader(CalibrationDataReader):
        """Onnxruntime asks for a reader of its own class."""

        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(
                calibration[start : start + _CALIBRATED_AT_ONCE]
                for start in range(0, len(calibration), _CALIBRATED_AT_ONCE)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    signed = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    options = {"OpTypesToExcludeOutputQuantization": ["Gemm"]} | (signed if target == "tensorrt" else {})
    try:
        with tempfile.TemporaryDirectory(prefix="rrmsdk-int8-") as place:
            given, shaped, made = (Path(place) / name for name in ("given.onnx", "shaped.onnx", "made.onnx"))
            given.write_bytes(proto.SerializeToString(deterministic=True))
            # Not optimised: torch has folded what can be folded, and onnxruntime would write operators of its own.
            quant_pre_process(str(given), str(shaped), skip_optimization=True)
            quantize_static(
                str(shaped), str(made), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8 if target == "tensorrt" else QuantType.QUInt8,
                weight_type=QuantType.QInt8, extra_options=options,
            )  # fmt: skip
            return onnx.load(made)
    except Exception as exc:  # the tools share no base class
        raise ExportError(f"onnxruntime cannot quantise the graph: {type(exc).__name__}: {exc}") from exc


def to_uint8(proto: Any) -> Any:
    """A copy that takes uint8 pixels [batch, H, W, C], as an image is decoded, and divides them by 255 itself.

    What follows is the graph that was given, node by node, so bytes get the logits of the same pixels in [0, 1].
    """
    import onnx
    from onnx import TensorProto, helper

    made = _copy(onnx, proto)
    (given,) = made.graph.input
    batch, channels, height, width = given.type.tensor_type.shape.dim
    before = [
        helper.make_node("Cast", [given.name], ["bytes_as_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes_as_float"], ["bytes_as_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["bytes_as_planes", "byte_levels"], ["unit_pixels"]),
    ]
    for node in nodes(made.graph):
        node.input[:] = ["unit_pixels" if name == given.name else name for name in node.input]
    after = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*before, *after])
    made.graph.initializer.append(helper.make_tensor("byte_levels", TensorProto.FLOAT, [], [255.0]))
    sizes = [batch.dim_param, height.dim_value, width.dim_value, channels.dim_value]
    given.CopyFrom(helper.make_tensor_value_info(given.name, TensorProto.UINT8, sizes))
    return made


def _copy(onnx: Any, proto: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy
