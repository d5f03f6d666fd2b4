"""What of an observation an agent's action depends on.

Shapes: N observations, A agents in a group, F features, D action dimensions.
"""

import torch
from torch import Tensor

from agents.evaluation.episode_loop import Moment, Players, episode_steps
from agents.models.actor import Actor
from agents.tasks.rl_task import RLTask
from envs.observation_parts import feature_names
from envs.spec import GroupSpec, ObservationPart
from marl.core.errors import UserError
from marl.inspection.integrated_gradients import integrated_gradients

STEPS = 20  # of each episode that is looked at


@torch.no_grad()
def observations(task: RLTask, rows: int, seed: int, group: str) -> Tensor:
    """What the agents of a group see on the way: about `rows` observations [N, A, F] of episodes of the policy's mode.

    Raises UserError for a group that does not exist, and for agents with a memory.
    """
    if group not in task.loss.actors:
        raise UserError(f"group={group}: there are {', '.join(task.loss.actors)}")
    if any(actor.memory_shape for actor in task.loss.actors.values()):
        raise UserError(f"group={group}: its agents have a memory, and act on all they have seen; others are explained")
    env = task.make_env(seed=seed, device=task.device, num_envs=max(1, rows // STEPS))
    players = Players(task.loss.actors, deterministic=True)
    players.begin(env.num_envs, env.device)
    observed = []

    def act(now: Moment) -> dict[str, Tensor]:
        observed.append(now.observation[group].clone())
        return players.actions(now.observation, now.masks, None)

    for _ in episode_steps(env, act, seed, STEPS):
        pass  # `act` keeps what is wanted
    return torch.cat(observed)


def by_name(table: Tensor, group: GroupSpec) -> tuple[list[str], Tensor]:
    """Names for the columns [outputs, F] of a group's table, its features'; a picture's are summed into one column."""
    names, columns, begin = [], [], 0
    features = feature_names(group)
    for part in group.parts or (ObservationPart("", (group.observation_size,)),):
        mine = table[:, begin : begin + part.size]
        whole = part.kind == "picture"
        names += [part.name] if whole else features[begin : begin + part.size]
        columns.append(mine.sum(1, keepdim=True) if whole else mine)
        begin += part.size
    return names, torch.cat(columns, 1)


def attribute(actor: Actor, observed: Tensor, agent: int, steps: int = 64) -> tuple[list[str], Tensor, float]:
    """Shares of each feature of an agent's own observation in what it does, against the mean observation.

    Continuous actions: of each dimension of the policy's mode, in the environment's units. Discrete ones: of the
    log-probability of the choices that the policy takes, or of their value where it chooses by values. Hybrid ones: of
    both. Other agents' observations, where the network sees them, are one more feature at the end: the sum of their
    shares.

    Args:
        observed: float32 [N, A, F].
        steps: points of the integral.

    Returns:
        Names of the outputs, mean |share| float32 [outputs, F or F + 1], the largest error of a sum of shares.
    """
    baseline = observed.mean(0, keepdim=True)
    raw, head = actor.act(observed, True)[0].detach(), actor.head
    names = [f"action {d}" for d in range(head.n_continuous)]
    names += [head.choice_meaning] if head.n_continuous < head.raw_size else []
    rows, worst = [], 0.0
    for d in range(len(names)):

        def output(observation: Tensor, d: int = d) -> Tensor:
            params = actor(observation)
            if d < head.n_continuous:
                return head.to_env(head.mode(params))[:, agent, d]
            taken = raw.repeat(len(observation) // len(raw), 1, 1)  # all rows at one point, then at the next
            return head.choice_preference(params, taken)[:, agent]

        shares, error = integrated_gradients(output, observed, baseline, steps)
        own_share = shares[:, agent].abs().mean(0)
        others = torch.cat([shares[:, :agent], shares[:, agent + 1 :]], 1).sum((1, 2)).abs().mean()  # exactly 0 unseen
        rows.append(torch.cat([own_share, others.reshape(1)]))
        worst = max(worst, error)
    table = torch.stack(rows)
    return names, table if table[:, -1].any() else table[:, :-1], worst
