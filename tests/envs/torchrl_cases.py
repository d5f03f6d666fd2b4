"""TorchRL environments for tests, named by dotted path: ours handed out, one with masks, one that is none."""

import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, MultiOneHot, Unbounded
from torchrl.envs import EnvBase

from envs.adapters.to_torchrl import TorchRLEnv
from envs.vmas.env import VmasEnv


def ours(num_envs: int, seed: int = 0) -> TorchRLEnv:
    """Simple_tag with a global state."""
    return TorchRLEnv(VmasEnv("mpe/simple_tag", num_envs, max_steps=9, fast="off", global_state=True, seed=seed))


class Masked(EnvBase):
    """Two agents who may choose what is open; the step checks it. The episode's reward is the team's, at the root."""

    def __init__(self) -> None:
        super().__init__(device="cpu", batch_size=[])
        self.observation_spec = Composite(
            duo=Composite(place=Unbounded((2, 3)), more=Unbounded((2,)), action_mask=Binary(4, (2, 4)), shape=(2,)),
            sight=Unbounded((5,)),
        )
        self.action_spec = Composite(duo=Composite(action=Categorical(4, (2,)), shape=(2,)))
        self.reward_spec = Composite(reward=Unbounded((1,)))
        self.time = 0

    def _seen(self) -> dict:
        self.open = torch.rand(2, 4, generator=self.draws) < 0.5
        self.open[:, 0] |= ~self.open.any(-1)
        place = torch.full((2, 3), float(self.time))
        duo = TensorDict({"place": place, "more": torch.ones(2), "action_mask": self.open.clone()}, [2])
        return {"duo": duo, "sight": torch.arange(5.0) + self.time}

    def _reset(self, tensordict=None):
        self.time = 0
        return TensorDict(self._seen(), [])

    def _step(self, tensordict):
        choice = tensordict["duo", "action"]
        assert self.open.gather(-1, choice.unsqueeze(-1)).all(), "a door that is not open"
        self.time += 1
        over = torch.tensor([self.time >= 5])
        rest = {"reward": choice.sum().float().reshape(1), "done": over, "terminated": over.clone()}
        return TensorDict({**self._seen(), **rest}, [])

    def _set_seed(self, seed):
        self.draws = torch.Generator().manual_seed(seed or 0)


class Counted(Masked):
    """The same where choice n % 4 alone is open at time n."""

    def _seen(self) -> dict:
        seen = super()._seen()
        self.open = torch.zeros(2, 4, dtype=torch.bool)
        self.open[:, self.time % 4] = True
        seen["duo"]["action_mask"] = self.open.clone()
        return seen


class Pairs(Masked):
    """The same with two choices at once, one-hot, and no masks."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.action_spec = MultiOneHot([2, 3])

    def _seen(self) -> dict:
        return {"observation": torch.tensor([float(self.time), 1.0])}

    def _step(self, tensordict):
        self.time += 1
        left, right = tensordict["action"].float().split([2, 3])
        assert left.sum() == right.sum() == 1
        over = torch.tensor([False])
        reward = (10 * left.argmax() + right.argmax()).float().reshape(1)
        return TensorDict({**self._seen(), "reward": reward, "done": over, "terminated": over.clone()}, [])


class Endless(Pairs):
    """Whole numbers without bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_spec = Unbounded((2,), dtype=torch.int64)


class Free(Pairs):
    """Actions without bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_spec = Unbounded((2,))


class Leavers(EnvBase):
    """Three agents with flags of their own and none at the root: two end after 2 and 5 steps, one is cut off after 3.

    Whoever is over goes on seeing and earning.
    """

    def __init__(self) -> None:
        super().__init__(device="cpu", batch_size=[])
        self.observation_spec = Composite(trio=Composite(observation=Unbounded((3, 1)), shape=(3,)))
        self.action_spec = Composite(trio=Composite(action=Categorical(2, (3,)), shape=(3,)))
        self.reward_spec = Composite(trio=Composite(reward=Unbounded((3, 1)), shape=(3,)))
        flags = {key: Binary(1, (3, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(trio=Composite(flags, shape=(3,)))

    def _seen(self) -> dict:
        ended, cut = (torch.tensor([self.time >= n for n in ends]).unsqueeze(-1) for ends in ((2, 9, 5), (9, 3, 9)))
        flags = {"done": ended | cut, "terminated": ended, "truncated": cut}
        return {"observation": torch.full((3, 1), 1.0 + self.time), **flags}

    def _reset(self, tensordict=None):
        self.time = 0
        return TensorDict({"trio": TensorDict(self._seen(), [3])}, [])

    def _step(self, tensordict):
        self.time += 1
        return TensorDict({"trio": TensorDict({**self._seen(), "reward": torch.ones(3, 1)}, [3])}, [])

    def _set_seed(self, seed):
        pass


def arrivals(num_envs: int) -> TorchRLEnv:
    """VMAS agents that end each on its own, handed out."""
    return TorchRLEnv(VmasEnv("tests.envs.vmas.ends_cases.Arrive", num_envs, max_steps=9, fast="off"))


def nothing() -> list:
    """No environment."""
    return []


def pretends() -> EnvBase:
    """None either, whatever it says."""
    return []
