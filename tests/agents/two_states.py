"""A team in two states that alternate, whose optimal values are known in closed form.

Shapes: E environments, A agents, K choices.
"""

import torch
from torch import Tensor

from envs.base import Env, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec

GAMMA = 0.9
A, K = 2, 3
REWARD = torch.tensor([[0.0, 1.0, 0.4], [2.0, -1.0, 0.5]])  # of a choice in each state
BEST = torch.tensor([0.5, -0.25])  # the best continuous action in each state, of range [-2, 2], in units of half of it
BONUS = torch.tensor([1.0, 3.0])  # what it earns


class TwoStates(Env):
    """State s is followed by 1 - s, whatever is done. Every agent sees s (one-hot) and earns by its own action.

    continuous: the reward is BONUS[s] - (a / 2 - BEST[s])^2, else REWARD[s, a]. ends: steps of an episode, which is cut
    off then (truncated), so that values are those of a task that never ends.
    """

    def __init__(self, num_envs=8, continuous=False, ends=7, seed=0, device="cpu"):
        self.num_envs, self.device, self.continuous, self.ends = num_envs, torch.device(device), continuous, ends
        box = ActionSpec("continuous", torch.full((A, 1), -2.0), torch.full((A, 1), 2.0))
        action = box if continuous else ActionSpec("discrete", nvec=(K,))
        self.spec = EnvSpec({"team": GroupSpec("team", ("a", "b"), 2, action)}, 2, ends)
        self.reset(seed)

    def _seen(self) -> tuple[dict[str, Tensor], Tensor]:
        one_hot = torch.eye(2)[self.at]
        return {"team": one_hot.unsqueeze(1).expand(-1, A, -1).clone()}, one_hot

    def reset(self, seed=None):
        self.at = torch.arange(self.num_envs) % 2
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64)
        return self._seen()

    def step(self, action):
        a = action["team"].squeeze(-1)
        at = self.at.unsqueeze(-1)
        reward = BONUS[at] - (a / 2 - BEST[at]).square() if self.continuous else REWARD[at, a]
        self.at, self.steps = 1 - self.at, self.steps + 1
        final, final_state = self._seen()
        over = self.steps >= self.ends
        self.steps[over] = 0
        self.at = torch.where(over, torch.arange(self.num_envs) % 2, self.at)
        after, state = self._seen()
        return Transition(after, final, {"team": reward.float()}, torch.zeros_like(over), over, state, final_state)

    def snapshot(self):
        return {"at": self.at.clone(), "steps": self.steps.clone()}

    def restore(self, snapshot):
        self.at, self.steps = snapshot["at"].clone(), snapshot["steps"].clone()


def values(best: Tensor) -> Tensor:
    """V*(s) = (best_s + gamma best_(1 - s)) / (1 - gamma^2), for what the best action earns in each state [2]."""
    return (best + GAMMA * best.flip(0)) / (1 - GAMMA**2)


def choice_values() -> Tensor:
    """Q*(s, a) = r(s, a) + gamma V*(1 - s), [2, K]."""
    return REWARD + GAMMA * values(REWARD.amax(1)).flip(0).unsqueeze(1)


def soft_choice_values(temperature: float) -> Tensor:
    """The fixed point of soft value iteration (Haarnoja et al. 2017, equation 3), [2, K]."""
    q = torch.zeros(2, K, dtype=torch.float64)
    for _ in range(2000):
        v = temperature * (q / temperature).logsumexp(1)
        q = REWARD.double() + GAMMA * v.flip(0).unsqueeze(1)
    return q.float()
