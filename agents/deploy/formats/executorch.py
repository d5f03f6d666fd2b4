"""ExecuTorch programs (.pte): a policy for phones and embedded Linux, its products and activations by XNNPACK."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

from torch.export import ExportedProgram

from marl.core.errors import UserError


def save(program: ExportedProgram, path: Path) -> None:
    """Lower a program whose sizes are all fixed, and write it. Raises UserError where executorch is missing."""
    quiet = io.StringIO()  # its modules print what they register
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise UserError(
            f"format=executorch: {error.name} is not installed; run pip install -e '.[executorch]'"
        ) from error
    level = logging.root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of torch: nothing a user could change
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    finally:
        logging.root.setLevel(level)  # which its passes change
    path.write_bytes(lowered.buffer)
