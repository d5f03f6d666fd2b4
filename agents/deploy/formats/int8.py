"""ONNX files with 8-bit weights: a policy that is smaller, at a price in exactness that has to be measured.

Only matrix products become 8-bit, and of these not the first of each group, which reads the observation. Features in
metres and in shares of a full circle would have to share 256 steps there: on balance the largest error is 12 % of an
action's range with it and 1 % without. Normalisation, activations, squashing and ranges stay float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from marl.core.errors import UserError

PRODUCTS = ["MatMul", "Gemm"]
KINDS = ("int8", "int8_static")

Feed = Mapping[str, np.ndarray]


def quantize(source: Path, target: Path, kind: str, feeds: Sequence[Feed] = ()) -> None:
    """Write the float32 ONNX file `source` with 8-bit matrix products to `target`, which may be the same file.

    Args:
        source, target: the files.
        kind: int8 = weights are 8-bit, what they are multiplied by gets its range from each call's own rows.
            int8_static = those ranges are fixed, from what `feeds` brought about.
        feeds: inputs by name, as the policy met them; int8_static only.

    Raises:
        UserError: onnxruntime or onnx is missing, or int8_static has no feeds.
    """
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        missing = error.name or "onnxruntime"
        raise UserError(f"quantize={kind}: {missing} is not installed; run pip install -e '.[export]'") from error
    if kind == "int8_static" and not feeds:
        raise UserError("quantize=int8_static: needs recorded observations (calibration=FOLDER), and there are none")
    # Weights are unsigned: with signed ones a processor without VNNI saturates in 16 bits, and would act otherwise.
    settings = {"weight_type": quantization.QuantType.QUInt8, "per_channel": True, "op_types_to_quantize": PRODUCTS}
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises what is done here anyway, through the root logger
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepared, done = Path(scratch) / "prepared.onnx", Path(scratch) / "done.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            settings["nodes_to_exclude"] = first_products(onnx.load(prepared))
            if kind == "int8":
                quantization.quantize_dynamic(str(prepared), str(done), **settings)
            else:
                ranges = quantization.QuantType.QUInt8
                quantization.quantize_static(
                    str(prepared), str(done), _reader(feeds), activation_type=ranges, **settings
                )
            target.write_bytes(done.read_bytes())
    finally:
        logging.root.setLevel(level)


def first_products(model: object) -> list[str]:
    """Names of an ONNX model's matrix products that read an observation with no other product before them."""
    raw = {value.name for value in model.graph.input if value.name.endswith("_observation")}
    first = []
    for node in model.graph.node:  # an ONNX graph lists them in the order in which they run
        if raw.isdisjoint(node.input):
            continue
        if node.op_type in PRODUCTS:
            first.append(node.name)
        else:
            raw.update(node.output)
    return first


def _reader(feeds: Sequence[Feed]) -> object:
    """The feeds as onnxruntime's calibration asks for them, one by one."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Hands out one feed per call, then None."""

        def __init__(self) -> None:
            self.left: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    return Reader()
