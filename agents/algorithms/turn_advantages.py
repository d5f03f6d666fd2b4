"""Advantages where agents act in turn: each agent's own turns are its steps, what lies between belongs to the earlier.

Shapes: T time, E environments, A agents in a group.
"""

import torch
from torch import Tensor


@torch.no_grad()
def turn_gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    turn: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimate (Schulman et al. 2016, equation 16) over the own turns of every agent.

    With t an own turn of the agent and t' the next one of the same episode:

        delta_t = (r_t + ... + r_{t'-1}) + gamma V(s_t') - V(s_t)        A_t = delta_t + gamma lam A_{t'}

    so gamma and lambda count own turns, not the others' steps. Where the agent's episode ends before t', the rewards up
    to its end count and nothing follows: V is 0 if it was terminated, and that of the true final observation if it was
    cut off. Where the rollout ends before t', the value of what the agent then sees stands in, on any agent's turn.

    Args:
        reward: float32 [T, E, A].
        value: V(s_t), float32 [T, E, A].
        next_value: V(s'_t) of the true next observation, as for `agents.algorithms.advantages.gae`: float32 [T, E, A].
        turn: bool [T, E, A], who acts at t.
        terminated, done: bool [T, E], or [T, E, A] where agents' episodes end each on its own.
        gamma, lam: discount and GAE lambda per own turn, in [0, 1].

    Returns:
        advantage [T, E, A], returns [T, E, A] (advantage + value), both float32; at steps that are no own turn the
        advantage is 0 and the return is the value, so that nothing is learnt from them. Where it is always everyone's
        turn, these are `gae`'s.
    """
    terminated, done = (x if x.dim() == reward.dim() else x.unsqueeze(-1).expand_as(reward) for x in (terminated, done))
    bootstrap = next_value.masked_fill(terminated, 0.0)
    advantage = torch.zeros_like(reward)
    following = torch.zeros_like(reward[0])  # the advantage of the next own turn
    later, ahead = torch.zeros_like(reward[0]), torch.zeros_like(reward[0])  # rewards until then, and V at it
    waits = torch.zeros_like(turn[0])  # whether the next step is one in which the agent waits
    for t in range(len(reward) - 1, -1, -1):
        waits = waits & ~done[t]  # an episode's end is no wait for a turn
        gained = torch.where(waits, later + reward[t], reward[t])
        ahead = torch.where(waits, ahead, bootstrap[t])
        following = following.masked_fill(done[t], 0.0)
        own = torch.add(ahead * gamma + gained - value[t], following, alpha=gamma * lam)
        advantage[t] = own.masked_fill(~turn[t], 0.0)
        following, later, waits = torch.where(turn[t], own, following), gained, ~turn[t]
    return advantage, advantage + value
