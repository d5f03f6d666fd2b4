"""What the engine asks of a task: data, batches, a loss and an evaluation; nothing else sets tasks apart."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

from tensordict import TensorDict
from torch import Tensor, nn

from marl.callbacks.base import Callback
from marl.checkpoints.attachments import Attachments
from marl.data.epoch import Epoch


class Task(ABC):
    """A learning problem, supervised or reinforcement learning, on its device.

    Abstract methods are what every task must say. The others have a default, which most tasks keep.

    Attributes:
        name: kind of task, for logs and `summary.json`.
        unit: what the budget counts, "frames" (environment frames), "epochs" or "batches".
        iterations: the whole budget in iterations of the engine's loop.
        units_per_iteration: frames collected per iteration, 1 epoch, or batches.
        steps_per_iteration: minibatches per iteration at most; sizes the learning-rate schedule.
        loss: module that maps a batch to a dict of device scalars; "loss" is minimised, the rest is logged.
        kind: of the data of a supervised task, such as "classification"; "" where there are none.
        monitor: (metric of `evaluate`, "max" or "min") that decides which checkpoint is best.
        compile_seconds: seconds that building took, compilation included.
        accumulates: False where an optimiser step may not be of several minibatches.
        repeatable: False where the loss of a minibatch can be computed once only.
        rereadable: False where asking for an iteration's `batches` again changes what the task does next.
        callbacks: callbacks of the task's own, called between the run's and the progress bar.
        attachments: files of the task's own beside the checkpoints, to which its state refers; None: it has none.
    """

    name: str
    unit: str
    iterations: int
    units_per_iteration: int
    steps_per_iteration: int
    loss: nn.Module
    monitor: tuple[str, str]
    kind: str = ""
    compile_seconds: float = 0.0
    accumulates: bool = True
    repeatable: bool = True
    rereadable: bool = True
    callbacks: Sequence[Callback] = ()
    attachments: Attachments | None = None

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """Whether a resumed run must keep the setting `key` of `task`; by default all of them."""
        return True

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model ("actor", "critic" or "model"): own learning rate, freezing, gradient norm."""

    def collect(self, iteration: int) -> None:
        """Gather this iteration's data: a rollout and its advantages; nothing where the data set is given."""
        return

    @abstractmethod
    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """Minibatches of this iteration, shuffled by the task's own stream."""

    def whole_epochs(self, iteration: int) -> Iterator[Epoch] | None:
        """The same minibatches epoch by epoch, for updates that train on all of one at once; None: it has none such.

        `observe` is called for all minibatches of an epoch before the next one is asked for. A loss with targets
        (`marl.engine.device_update.Followed`) has had them follow after each.
        """
        return None

    def use_graphs(self, enabled: bool) -> None:
        """Whether work of the task's own on a GPU may be captured as CUDA graphs (`trainer.capture`)."""
        return

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """See the loss module's outputs of the batch just trained on (for example for a KL stop)."""
        return

    def metrics(self) -> dict[str, Tensor | float]:
        """Figures of this iteration's data, left on the device."""
        return {}

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures of the model as it stands; leaves every stream that training uses untouched."""

    def figure_names(self) -> Collection[str] | None:
        """Names of the figures that `evaluate` may give, known before training; None: they are not.

        A name that ends with "/" stands for all that begin with it.
        """
        return None

    @abstractmethod
    def summary(self, metrics: dict[str, float]) -> dict:
        """The block of `summary.json` made from what `evaluate` returned."""

    @abstractmethod
    def state_dict(self) -> dict:
        """What decides the next data: environment, loader position, random streams; tensors and plain Python.

        With `attachments`, "files" are those it refers to, {path: SHA-256}; they are on the disk when this returns.
        """

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identical."""

    def rejoin(self, iteration: int, saved: dict) -> None:
        """Continue after `iteration` where the checkpoint is of another number of processes: from new streams.

        saved: the `state_dict` of one of those processes.
        """
        return

    def diagnose(self) -> str | None:
        """The first number of this iteration's data that is not finite, and where; None where all are."""
        return None
