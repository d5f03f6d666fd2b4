"""Tasks whose agents are judged by playing episodes, however they learn."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from agents.collection.episode_infos import figure
from agents.evaluation.episodes import Episodes, env_for, evaluate, flat, nested, report
from agents.players.perturbation import Disturbance
from agents.players.seats import Anyone
from envs.base import Env
from envs.infos import DEFAULT, InfoRules, Rules
from envs.spec import EnvSpec
from marl.core.seeding import derive
from marl.task import Task


class EpisodeEvaluation(Task):
    """A task with actors, `loss.actors`, whose evaluation plays episodes in environments of their own.

    Attributes:
        spec: the groups of agents it has actors for.
        eval_episodes, eval_deterministic: how many, and whether the policy's mode acts or samples of it.
        info_rules: how the environment's own figures are reduced over an episode.
    """

    monitor = ("episode_return", "max")
    loss: nn.Module
    spec: EnvSpec
    seed: int
    device: torch.device

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """All but how the policy is judged and what is told of it, which changes no number of training."""
        return key not in ("eval_episodes", "eval_deterministic", "info")

    def setup_evaluation(
        self, env: Callable[..., Env], eval_episodes: int, eval_deterministic: bool, info: Rules | None = DEFAULT
    ) -> None:
        """Remember how to evaluate; `env` is called with `seed`, `device` and `num_envs`. info: see `InfoRules`."""
        self.make_env, self.eval_episodes, self.eval_deterministic = env, eval_episodes, eval_deterministic
        self.info_rules = InfoRules.of(info)
        self.eval_env: Env | None = None
        self._eval_env_is_for = 0  # episodes
        self.told: set[str] = set()  # names of the infos' figures that any evaluation had

    def run_episodes(
        self,
        episodes: int | None = None,
        seed: int | None = None,
        deterministic: bool | None = None,
        random: bool = False,
        disturbance: Disturbance | None = None,
    ) -> Episodes:
        """Episodes of the current policy in the evaluation environment; defaults are those of training."""
        episodes = episodes or self.eval_episodes
        env = self.env_for_evaluation(episodes)
        seed = derive(self.seed if seed is None else seed, "evaluation")
        deterministic = self.eval_deterministic if deterministic is None else deterministic
        players, random, counted = self.eval_players(env, random)
        how = (deterministic, random, disturbance, counted, self.info_rules)
        return evaluate(env, players, seed, *how, episodes=episodes)

    def env_for_evaluation(self, episodes: int) -> Env:
        """The evaluation environment, made where there is none for so many episodes."""
        if self.eval_env is None or self._eval_env_is_for != episodes:
            make = partial(self.make_env, seed=derive(self.seed, "evaluation"), device=self.device)
            self.eval_env, self._eval_env_is_for = env_for(make, episodes), episodes
        return self.eval_env

    def eval_players(self, env: Env, random: bool) -> tuple[Mapping[str, Anyone], bool, tuple[str, ...]]:
        """Who plays each group of an evaluation, whether all act at random, and which groups' return counts."""
        return self.loss.actors, random, ()

    def playing(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The actors that play each group, and the critics: here every group learns."""
        loss: Any = self.loss
        return dict(loss.actors), dict(loss.critics)

    def evaluate(self) -> dict[str, float]:
        """Play `eval_episodes` episodes, the same starts every time; flat statistics of their returns and infos."""
        return self.played()

    def played(self) -> dict[str, float]:
        """Flat figures of episodes; nan for an info that was told of before, and of none of these."""
        episodes = self.run_episodes()
        self.told |= {figure(group, key, episodes.returns) for group, keys in episodes.info.items() for key in keys}
        figures = flat(report(episodes))
        return figures | {name: math.nan for name in sorted(self.told | self.told_in_training()) if name not in figures}

    def figure_names(self) -> set[str]:
        """As `Task.figure_names`; which infos there are an environment says while it is played."""
        spread = ("std", "ci95_low", "ci95_high") if self.eval_episodes > 1 else ()  # one episode has none: nan
        statistics = {f"episode_return/{key}" for key in ("iqm", *spread)}
        names = {"episode_return", "episode_length", "episodes", *statistics}
        for name, group in self.spec.groups.items():
            several = len(self.spec.groups) > 1
            names |= {f"{name}/info/", f"{name}/episode_return"} if several else {"info/"}
            names |= {f"{name}/{agent}/episode_return" for agent in group.agents if group.n_agents > 1}
        return names

    def told_in_training(self) -> set[str]:
        """Names of the infos' figures that training had so far."""
        return set()

    def summary(self, metrics: dict[str, float]) -> dict:
        """`summary.json`'s block: {"episode_return": {"mean", "iqm", "std", "ci95", "episodes"}, …}."""
        return nested(metrics) if metrics else {}
