"""Algorithms by the names that follow `algo=`: each function gives the settings of its file in `conf/algo`.

Every key of that file can be given another value, as on the command line: `MAPPO(gamma=0.9)` is `algo=mappo
algo.gamma=0.9`. Unknown keys and values out of range raise `marl.UserError`, in one sentence.
"""

from typing import Any

from agents.algorithms import pqn, shac
from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from agents.algorithms.ppo import PPO
from marl.config.presets import preset


def MAPPO(**settings: Any) -> PPO:
    """PPO with a centralised critic (Yu et al. 2022); keys: `conf/algo/mappo.yaml`."""
    return preset("algo/mappo", **settings)


def IPPO(**settings: Any) -> PPO:
    """PPO, each agent's value from its own observation (de Witt et al. 2020); keys: `conf/algo/ippo.yaml`."""
    return preset("algo/ippo", **settings)


def IQL(**settings: Any) -> QLearning:
    """Q-learning, every agent by itself (Tan 1993); keys: `conf/algo/iql.yaml`."""
    return preset("algo/iql", **settings)


def VDN(**settings: Any) -> QLearning:
    """Q-learning, a team's value the sum of its agents' (Sunehag et al. 2018); keys: `conf/algo/vdn.yaml`."""
    return preset("algo/vdn", **settings)


def QMIX(**settings: Any) -> QLearning:
    """Q-learning, a team's value a monotone network of its agents' (Rashid et al. 2018).

    Keys: `conf/algo/qmix.yaml`.
    """
    return preset("algo/qmix", **settings)


def IDDPG(**settings: Any) -> DDPG:
    """Deterministic policy gradients, every agent by itself (Lillicrap et al. 2016); keys: `conf/algo/iddpg.yaml`."""
    return preset("algo/iddpg", **settings)


def MADDPG(**settings: Any) -> DDPG:
    """Deterministic policy gradients with centralised critics (Lowe et al. 2017); keys: `conf/algo/maddpg.yaml`."""
    return preset("algo/maddpg", **settings)


def MATD3(**settings: Any) -> DDPG:
    """MADDPG with twin critics, delayed actors and smoothed targets (Fujimoto et al. 2018).

    Keys: `conf/algo/matd3.yaml`.
    """
    return preset("algo/matd3", **settings)


def ISAC(**settings: Any) -> SAC:
    """Soft actor-critic, every agent by itself (Haarnoja et al. 2018); keys: `conf/algo/isac.yaml`."""
    return preset("algo/isac", **settings)


def MASAC(**settings: Any) -> SAC:
    """Soft actor-critic with centralised critics (Haarnoja et al. 2018); keys: `conf/algo/masac.yaml`."""
    return preset("algo/masac", **settings)


def PQN(**settings: Any) -> pqn.PQN:
    """Q-learning from rollouts, every agent by itself (Gallici et al. 2025); keys: `conf/algo/pqn.yaml`."""
    return preset("algo/pqn", **settings)


def PQN_VDN(**settings: Any) -> pqn.PQN:
    """Q-learning from rollouts, a team's value the sum of its agents'; keys: `conf/algo/pqn_vdn.yaml`."""
    return preset("algo/pqn_vdn", **settings)


def SHAC(**settings: Any) -> shac.SHAC:
    """Gradients through the simulator with a critic at the window's end (Xu et al. 2022).

    Keys: `conf/algo/shac.yaml`.
    """
    return preset("algo/shac", **settings)


def APG(**settings: Any) -> shac.SHAC:
    """Gradients through the simulator without a critic (Freeman et al. 2021); keys: `conf/algo/apg.yaml`."""
    return preset("algo/apg", **settings)
