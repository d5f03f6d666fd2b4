"""Small tasks whose networks have a memory, in environments whose episodes end within rollouts, in two ways."""

from functools import partial

import torch

from agents.on_policy import OnPolicy
from agents.ppo import PPO
from envs.memory import MemoryEnv
from marl.networks import GRU, LSTM, MLP

# Delays of 1 to 5 and a limit of 5 steps: some episodes are terminated, others truncated, at different times.
RECALL = partial(MemoryEnv, n_agents=3, n_cues=3, min_delay=1, max_delay=5, max_steps=5, num_envs=6, global_state=True)
NETWORKS = {
    "gru": partial(GRU, hidden=8, encoder=[7]),
    "lstm": partial(LSTM, hidden=5, layers=2),
    "mlp": partial(MLP, hidden=[8]),
}


def make(network="gru", critic_network=None, env=RECALL, frames=4 * 72, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 12, "chunk_length": 4, "minibatch_size": 24, "epochs": 2, **algo})
    critic = critic_network and NETWORKS[critic_network]
    return OnPolicy(env, algo, NETWORKS[network], critic, frames=frames, eval_episodes=10)
