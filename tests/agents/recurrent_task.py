"""Small tasks whose networks have a memory, in environments whose episodes end within rollouts, in two ways."""

from functools import partial

import torch
from torch import nn

from agents.algorithms.ppo import PPO
from agents.tasks.on_policy import OnPolicy
from envs.toy.cue_memory import MemoryEnv
from marl.networks import GRU, LSTM, MLP

# Delays of 1 to 5 and a limit of 5 steps: some episodes are terminated, others truncated, at different times.
RECALL = partial(MemoryEnv, n_agents=3, n_cues=3, min_delay=1, max_delay=5, max_steps=5, num_envs=6, global_state=True)


class Elman(nn.Module):
    """The least that has a memory: h = tanh(W [x, h]), as a user might write it."""

    def __init__(self, in_shape, out_features):
        super().__init__()
        self.memory_size = 6
        self.cell, self.head = nn.Linear(in_shape + 6, 6), nn.Linear(6, out_features)

    def forward(self, x, memory, start=None):
        after = []
        for t in range(len(x)):
            if start is not None:
                fresh = start[t].view(*start[t].shape, *[1] * (memory.dim() - start[t].dim()))
                memory = torch.where(fresh, 0.0, memory)
            memory = torch.tanh(self.cell(torch.cat([x[t], memory], -1)))
            after.append(memory)
        memories = torch.stack(after)
        return self.head(memories), memories


NETWORKS = {
    "elman": Elman,
    "gru": partial(GRU, hidden=8, encoder=[7]),
    "lstm": partial(LSTM, hidden=5, layers=2),
    "mlp": partial(MLP, hidden=[8]),
}


def make(network="gru", critic_network=None, env=RECALL, frames=4 * 72, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 12, "chunk_length": 4, "minibatch_size": 24, "epochs": 2, **algo})
    critic = critic_network and NETWORKS[critic_network]
    return OnPolicy(env, algo, NETWORKS[network], critic, frames=frames, eval_episodes=10)
