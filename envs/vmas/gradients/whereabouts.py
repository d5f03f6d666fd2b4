"""Whether a window still stands where its environment does: asked at once on a CPU, known later on a GPU."""

import torch
from torch import Tensor

from envs.base import EnvError
from envs.kernel.backends.cuda.driver import Arrived, cuda_driver


class Whereabouts:
    """Compares the state that a window came to with the environment's, bit by bit.

    On a GPU the host waits for no answer: what differed is raised in a later window, as soon as it is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._apart = torch.zeros(1, dtype=torch.int32, device=device) if device.type == "cuda" else None
        self._arrived: Arrived | None = None

    def check(self, here: Tensor, there: Tensor) -> None:
        """The environment's state and the window's, float32 [S, padded E]. Raises EnvError where they differ."""
        here, there = here.view(torch.int32), there.view(torch.int32)
        if self._apart is not None:
            self._apart |= (here != there).any()
        elif not torch.equal(here, there):
            raise EnvError(_moved("the window's"))

    def begin(self) -> None:
        """A window begins. Raises EnvError where an earlier one was astray, as far as is known by now."""
        if self._apart is None:
            return
        if self._arrived is not None:
            flags = self._arrived()
            if flags is None:
                return
            self._arrived = None
            if bool(flags[0]):
                raise EnvError(_moved("an earlier window's"))
        self._arrived = cuda_driver().fetch(self._apart)
        self._apart.zero_()


def _moved(window: str) -> str:
    return f"the environment was reset, restored or stepped by others since {window} last step: call begin() first."
