"""What computes a policy in a server: the parameters of one group's actions, by torch or by onnxruntime.

Shapes: R rows (observations of any requests, one after the other), A agents in a group, F features, M numbers of
memory, P parameters of the head.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from agents.models.actor import Actor
from agents.policies.policy import Policy
from marl.core.errors import UserError, one_line


class Parameters(nn.Module):
    """An actor up to its head: observation [R, A, F] (, memory [R, A, M]) (, mask) -> [R, A, P] (, memory after it).

    mask: bool [R, A, sum(nvec)], of groups whose actions are masked only.
    """

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor, self.masked = actor, "action" in actor.masks

    def forward(self, observation: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        mask = others[-1] if self.masked else None
        if self.actor.memory_shape is None:
            return (self.actor(observation, mask),)
        return self.actor.remember(observation, others[0], mask)


class OnnxParameters:
    """The same as a session of onnxruntime. Raises UserError where a package is missing or the export fails."""

    def __init__(self, actor: Actor, observation_size: int, choices: int) -> None:
        try:
            import onnx  # noqa: F401 - what torch's exporter needs
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"backend=onnx: {error.name} is not installed; run pip install -e '.[export]' onnxruntime"
            ) from error
        examples = [torch.zeros(2, actor.n_agents, observation_size)]
        self.names = ["observation"]
        if actor.memory_shape is not None:
            examples.append(torch.zeros(2, *actor.memory_shape))
            self.names.append("memory")
        if "action" in actor.masks:
            examples.append(torch.ones(2, actor.n_agents, choices, dtype=torch.bool))
            self.names.append("mask")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own: nothing a user could change
            rows = {0: torch.export.Dim("rows", min=1)}
            shapes: dict[str, object] = {"observation": rows}
            if len(examples) > 1:
                shapes["others"] = tuple(rows for _ in examples[1:])
            file = Path(folder) / "parameters.onnx"
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            try:
                traced = torch.export.export(Parameters(actor), tuple(examples), dynamic_shapes=shapes)
                program = torch.onnx.export(traced, input_names=self.names, dynamo=True, verbose=False)
                program.save(str(file), external_data=False)
                self.session = onnxruntime.InferenceSession(str(file), options)
            except Exception as error:  # the exporter has no common class of them
                raise UserError(
                    f"backend=onnx: this network can't be exported ({type(error).__name__}: {one_line(error)}); "
                    "use backend=torch"
                ) from error

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: value.numpy() for name, value in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in self.session.run(None, arrays))


class Networks:
    """All groups' parameters.

    Args:
        policy: on the CPU.
        backend: torch or onnx.

    Raises:
        UserError: as `OnnxParameters`.
    """

    def __init__(self, policy: Policy, backend: Literal["torch", "onnx"]) -> None:
        self.modules = {}
        for name, group in policy.spec.groups.items():
            actor = policy.actors[name]
            if backend == "torch":
                self.modules[name] = Parameters(actor)
            else:
                self.modules[name] = OnnxParameters(actor, group.observation_size, sum(group.action.nvec))

    def __call__(self, group: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Parameters [R, A, P] and, where the group remembers, its memory after the step [R, A, M].

        inputs: observation float32 [R, A, F], then memory and mask where the group has them.
        """
        return self.modules[group](*inputs)
