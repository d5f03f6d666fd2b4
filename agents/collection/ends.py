"""Where episodes end in a rollout, and sums and maxima over the steps of each.

Shapes: T time, E environments, N columns, R rows, of one step of one environment each.
"""

import torch
from torch import Tensor


def for_targets(terminated: Tensor, truncated: Tensor, bootstraps: bool) -> tuple[Tensor, Tensor]:
    """Ends as targets take them (Pardo et al. 2018): the one place where it is decided what a time limit means.

    Args:
        terminated, truncated: as the environment tells them, bool of any one shape.
        bootstraps: True: an episode that was cut off goes on in the targets, which stay as given (`algo.time_limit=
            bootstrap`). False: it has ended there, and nothing follows (`algo.time_limit=end`).

    Returns:
        terminated, truncated: bool of the same shape.
    """
    return (terminated, truncated) if bootstraps else (terminated | truncated, torch.zeros_like(truncated))


class Ends:
    """What sums over episodes look up, found once for all of them; no loop over time.

    Attributes:
        done: bool [T, E].
        rows: int64 [R], t * E + e of every step that ended an episode. On a GPU, where finding them would wait for the
            device, of every step.
        ended: bool [R], which of the rows did.

    Args:
        find: whether to find the rows on a GPU, too.
    """

    def __init__(self, done: Tensor, find: bool = False) -> None:
        self.done, (T, E) = done, done.shape
        device, flat = done.device, done.flatten()
        found = find or device.type == "cpu"
        self.rows = flat.nonzero().squeeze(-1) if found else torch.arange(T * E, device=device)
        self.ended = flat[self.rows]
        time = torch.arange(T, device=device).unsqueeze(-1)
        ended = torch.where(done, time, -1).cummax(0).values  # latest end up to and including t
        before = torch.cat([torch.full_like(ended[:1], -1), ended])  # [T + 1, E]: and before t
        self._any = (before >= 0).view(-1, 1)
        self._before = (before.clamp_(min=0) * E + torch.arange(E, device=device)).flatten()
        self._running = slice(T * E, None)  # of what `_before` holds: of the steps that come next

    def totals(self, values: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of an episode up to and including each step, and of what still runs at the end.

        A running sum less its value at the previous end.

        Args:
            values: float32 [T, E, N].
            carry: float32 [E, N], what the running episodes had before.

        Returns:
            float32 [T, E, N] and [E, N].
        """
        total = (values.cumsum(0) + carry).flatten(0, 1)
        before = self._at(total, slice(None))
        rest = total[-len(carry) :] - before[self._running]
        return (total - before[: len(total)]).view_as(values), rest

    def last_totals(self, values: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """The same of `rows` only: float32 [R, N] and [E, N]."""
        total = (values.cumsum(0) + carry).flatten(0, 1)
        rest = total[-len(carry) :] - self._at(total, self._running)
        return total.index_select(0, self.rows) - self._at(total, self.rows), rest

    def _at(self, total: Tensor, rows: Tensor | slice) -> Tensor:
        """The running sum at the end before each of the rows, 0 where there is none."""
        return total.index_select(0, self._before[rows]).mul_(self._any[rows])

    def last_maxima(self, values: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """As `last_totals`, of the largest value of an episode; rows where none ended hold any number."""
        (T, E), done = self.done.shape, self.done
        number = done.cumsum(0) - done.long()  # [T, E]: how many episodes ended before
        largest = torch.full((T + 1, *values.shape[1:]), -torch.inf, device=values.device)  # by that number
        largest[0] = carry
        largest.scatter_reduce_(0, number.unsqueeze(-1).expand_as(values), values, "amax")
        environment, flat = torch.arange(E, device=values.device), largest.flatten(0, 1)
        at = (number * E + environment).flatten().index_select(0, self.rows)
        return flat.index_select(0, at), flat.index_select(0, done.sum(0) * E + environment)
