"""Ways to ask a tensor something whose answer changes late in an episode."""

import torch

from tests.envs.kernel.zoo.base import flat
from tests.envs.kernel.zoo.code.late import Aged


class LateTernary(Aged):
    """`5 * bool(late.any())`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 0.0) + 5.0 * bool(self.late().any())


class LateIndex(Aged):
    """A tensor as a list's index."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, [1.0, 2.0][self.late().any()])


class LateFormat(Aged):
    """A condition in a text."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0 if "True" in f"{self.late().any()}" else 0.0)


class LateRepr(Aged):
    """A condition in a tensor's `repr`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0 if "True" in repr(self.late()) else 0.0)


class LateMaxKey(Aged):
    """Python's max() of tensors by their sums."""

    EXPECT = "eager"

    def reward(self, agent):
        return max(self.age - 15, flat(agent, 0.5), key=lambda t: t.sum())


class LateIn(Aged):
    """`20.0 in age`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0 if 20.0 in self.age else 0.0)


class LateIs(Aged):
    """`late.any() == True`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0 if (self.late().any() == True) else 0.0)  # noqa: E712 - people write this


class LateMatch(Aged):
    """`match bool(late.any())`."""

    EXPECT = "eager"

    def reward(self, agent):
        match bool(self.late().any()):
            case True:
                return flat(agent, 1.0)
            case _:
                return flat(agent, 0.0)


@torch.jit.script
def scripted(x: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
    if bool((age > 15).any()):
        return x + 1
    return x


class LateScript(Aged):
    """A branch within `torch.jit.script`."""

    EXPECT = "eager"

    def reward(self, agent):
        return scripted(flat(agent, 0.0), self.age)


class LateTryItem(Aged):
    """`.item()` within a try."""

    EXPECT = "eager"

    def reward(self, agent):
        try:
            return flat(agent, self.age.max().item())
        except RuntimeError:
            return flat(agent, 0.0)
