"""Where a run collects: environments, the buffer of their rollouts, what plays in them, and their statistics."""

from dataclasses import dataclass

from agents.collection.collector import Collector
from agents.collection.episode_statistics import EpisodeStatistics
from agents.collection.rollout_buffer import RolloutBuffer
from envs.base import Env


@dataclass(eq=False)
class Arena:
    """What belongs to one set of environments: sizes of teams and running episodes are its own."""

    env: Env
    rollout: RolloutBuffer
    collector: Collector
    statistics: EpisodeStatistics
