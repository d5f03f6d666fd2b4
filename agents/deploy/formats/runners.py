"""Running an exported file of any format by what reads it: to compare it with the policy, and to time it.

Inputs and outputs go by the names of `agents.deploy.export.input_names` and `output_names`.
"""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.deploy import export
from agents.deploy.c_code.library import Library, Prepared
from agents.deploy.formats import int8
from agents.policies.policy import Policy
from marl.core.errors import UserError


class Runner(ABC):
    """A policy's file, loaded by its own runtime on one thread.

    path: the file. inputs, outputs: names in the file's order.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.load(path)

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the file. Raises UserError where the runtime is not installed."""

    @abstractmethod
    def prepare(self, feed: Mapping[str, np.ndarray]) -> Any:
        """Inputs [B, …] as the runtime takes them."""

    @abstractmethod
    def step(self, prepared: Any) -> Sequence[Any]:
        """The runtime's call, and nothing else: outputs in their order."""

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs by name, [B, …] -> outputs by name."""
        outputs = self.step(self.prepare(feed))
        return {name: np.asarray(value) for name, value in zip(self.outputs, outputs, strict=True)}


class Onnx(Runner):
    """onnxruntime on one core, float32 and 8-bit files."""

    def load(self, path: Path) -> None:
        onnxruntime = _package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def prepare(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: feed[name] for name in self.inputs}

    def step(self, prepared: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(self.outputs, prepared)


class TorchExport(Runner):
    """torch alone, the program's operators one by one."""

    def load(self, path: Path) -> None:
        self.module = torch.export.load(path).module()

    def prepare(self, feed: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(feed[name]) for name in self.inputs)

    @torch.no_grad()
    def step(self, prepared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.module(*prepared)


class TorchScript(TorchExport):
    """torch's C++ interpreter, here called from Python."""

    def load(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.module = torch.jit.load(str(path)).eval()


class ExecuTorch(Runner):
    """ExecuTorch's runtime, one observation at a time."""

    def load(self, path: Path) -> None:
        runtime = _package("executorch.runtime")
        self.program = runtime.Runtime.get().load_program(path)  # the method reads from it as long as it lives
        self.method = self.program.load_method("forward")

    def prepare(self, feed: Mapping[str, np.ndarray]) -> list[list[Tensor]]:
        tensors = [torch.from_numpy(feed[name]) for name in self.inputs]
        return [[value[row : row + 1] for value in tensors] for row in range(len(tensors[0]))]

    def step(self, prepared: list[list[Tensor]]) -> list[Tensor]:
        if len(prepared) == 1:
            return self.method.execute(prepared[0])
        rows = [[value.clone() for value in self.method.execute(row)] for row in prepared]  # its outputs are reused
        return [torch.cat(values) for values in zip(*rows, strict=True)]


class CCode(Runner):
    """The C file, compiled by this machine's C compiler: a call for every observation and agent."""

    def load(self, path: Path) -> None:
        self.library = Library(path)

    def prepare(self, feed: Mapping[str, np.ndarray]) -> Prepared:
        return self.library.prepare({name: feed[name] for name in self.inputs})

    def step(self, prepared: Prepared) -> list[np.ndarray]:
        return self.library.step(prepared)


class Safetensors(Runner):
    """`Policy.act` of the file; compiled: whether MLPs run by their kernel (False: torch's layers one by one)."""

    compiled = True

    def load(self, path: Path) -> None:
        self.policy = Policy.load(path)
        for module in self.policy.modules():
            if not self.compiled and getattr(module, "plain", False):
                module.plain = False

    def prepare(self, feed: Mapping[str, np.ndarray]) -> tuple[dict, dict, dict]:
        groups = self.policy.spec.groups
        observation = {name: torch.from_numpy(feed[f"{name}_observation"]) for name in groups}
        memory = {name: torch.from_numpy(feed[f"{name}_memory"]) for name in self.policy.memory()}
        masks = {n: {"action": torch.from_numpy(feed[f"{n}_action_mask"])} for n in export.masked(self.policy)}
        return observation, masks, memory

    def step(self, prepared: tuple[dict, dict, dict]) -> list[Tensor]:
        observation, masks, memory = prepared
        actions, after = self.policy.act(observation, masks=masks, memory=memory)
        return [*actions.values(), *after.values()]


class Eager(Safetensors):
    """The same by torch's layers, one by one."""

    compiled = False


# {kind: (format, quantize, what runs it)}: everything that this package can write and run. A new format adds its line.
KINDS: dict[str, tuple[str, str, type[Runner]]] = {
    "torch": ("safetensors", "none", Eager),
    "compiled": ("safetensors", "none", Safetensors),
    "torch_export": ("torch_export", "none", TorchExport),
    "torchscript": ("torchscript", "none", TorchScript),
    "onnx": ("onnx", "none", Onnx),
    "int8": ("onnx", "int8", Onnx),
    "int8_static": ("onnx", "int8_static", Onnx),
    "executorch": ("executorch", "none", ExecuTorch),
    "c": ("c", "none", CCode),
    "c_int8": ("c", "int8", CCode),
}


def runner(policy: Policy, kind: str, folder: Path, feeds: Sequence[Mapping[str, np.ndarray]] = ()) -> Runner:
    """Write `policy` into `folder` as a key of `KINDS` says, unless that file is there already, and load it.

    feeds: recorded observations, for int8_static. Raises UserError where a package or a C compiler is missing.
    """
    format, quantize, reader = KINDS[kind]
    if format == "c":
        folder = folder / kind  # its files have the same names in 8 bits
    path, plain = folder / export.file_name(format, quantize), folder / export.file_name(format)
    if not plain.is_file():
        export.export(policy, format, folder, quantize if path == plain else "none")
    if not path.is_file():
        int8.quantize(plain, path, quantize, feeds)
    return reader(path, export.input_names(policy), export.output_names(policy))


def _package(name: str) -> Any:
    """An optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed; run pip install {name.partition('.')[0]}") from error
