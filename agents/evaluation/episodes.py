"""Evaluation of policies: many episodes at once, in an environment of their own, and their statistics.

Shapes: E environments (one episode each), A agents in a group, F features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from agents.collection.episode_infos import FirstEpisodes, figure
from agents.evaluation.episode_loop import Moment, Players, episode_steps, require_time_limit
from agents.evaluation.game_outcomes import outcomes
from agents.players.perturbation import Disturbance
from agents.players.seats import Anyone
from envs.base import Env
from envs.infos import DEFAULT, InfoRules
from marl.report.statistics import iqm


@dataclass
class Episodes:
    """One episode per environment.

    Attributes:
        returns: {group: float64 [E, A]} undiscounted return of every agent.
        lengths: int64 [E] steps.
        agents: {group: agent names}.
        info: {group: {"NAME/KIND": float64 [E, A]}} the environment's own figures, reduced over the episode's steps
            (`envs.infos.InfoRules`); nan where nothing was told.
        counted: the groups whose return is the episode's; () = all.
        judged: {group: bool [E, A]}, which agents the policy played, of groups of which others played the rest.
        in_turns: whether the agents act in turn; what is won and lost is then reported.
    """

    returns: dict[str, np.ndarray]
    lengths: np.ndarray
    agents: dict[str, tuple[str, ...]]
    info: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    judged: dict[str, np.ndarray] = field(default_factory=dict)
    in_turns: bool = False

    def group_returns(self, name: str) -> np.ndarray:
        """[E]: mean over a group's agents, those that count."""
        if name not in self.judged:
            return self.returns[name].mean(-1)
        return np.average(self.returns[name], axis=-1, weights=self.judged[name])

    def episode_returns(self) -> np.ndarray:
        """[E]: mean over the agents of each group, then over the groups that count."""
        return np.mean([self.group_returns(name) for name in self.counted or self.returns], axis=0)


@torch.no_grad()
def evaluate(
    env: Env,
    actors: Mapping[str, Anyone],
    seed: int,
    deterministic: bool = True,
    random: bool = False,
    disturbance: Disturbance | None = None,
    counted: tuple[str, ...] = (),
    rules: InfoRules = InfoRules.of(DEFAULT),  # noqa: B008 - it is frozen
) -> Episodes:
    """Play one episode in every environment of `env`, from a reset with `seed`, so that equal arguments give
    equal numbers.

    Args:
        actors: who plays each group: trained actors, functions of observation [E, A, F] and generator, or one of
            them in one seat and another in the rest (`Seats`), whose agents then do not count.
        random: play uniformly random actions instead.
        disturbance: noise and frozen agents that the actors have to cope with.
        counted: the groups whose return is the episode's; () = all.
        rules: which of the environment's own figures are kept, and how they are reduced over an episode.

    Raises:
        UserError: the environment has no time limit, so that episodes need not end.
    """
    require_time_limit(env, "evaluation")
    generator = torch.Generator(env.device).manual_seed(seed)
    players = Players(actors, deterministic)
    players.begin(env.num_envs, env.device)
    disturbed = disturbance and disturbance.begin(env, seed)

    env.keep_infos(rules)
    info = FirstEpisodes(env, rules)

    def act(now: Moment) -> dict[str, Tensor]:
        info.before_step(now.masks)
        if random:
            actions = env.random_action(generator)
        else:
            observation = now.observation
            if disturbed:
                observation = {name: disturbed.observation(value) for name, value in observation.items()}
            actions = players.actions(observation, now.masks, generator)
        if disturbed:
            actions = {name: disturbed.action(name, action) for name, action in actions.items()}
        return actions

    lengths = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    returns: dict[str, Tensor] = {}
    for running, transition in episode_steps(env, act, seed):
        for name, reward in transition.reward.items():
            _accumulate(returns, name, reward, running)
        info.add(transition, running)
        lengths += running
        players.forget(transition)
    lengths = lengths.cpu().numpy()
    return Episodes(
        {name: value.cpu().double().numpy() for name, value in returns.items()},
        lengths,
        {name: group.agents for name, group in env.spec.groups.items()},
        info.reduced(),
        counted,
        {name: seats.own.cpu().numpy() for name, seats in players.seats.items()},
        any("turn" in group.masks for group in env.spec.groups.values()),
    )


def _accumulate(sums: dict[str, Tensor], key: str, value: Tensor, running: Tensor) -> None:
    masked = torch.where(running.view(-1, *[1] * (value.dim() - 1)), value.float(), 0.0)
    sums[key] = sums[key] + masked if key in sums else masked


def statistics(values: np.ndarray) -> dict:
    """Mean, interquartile mean (Agarwal et al. 2021), standard deviation and the 95 % interval of the mean.

    Args:
        values: float [E], one figure per episode.

    Returns:
        {"mean", "iqm", "std", "ci95": [low, high], "episodes"}; the interval is Student's t.
    """
    n = len(values)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else math.nan
    return {"mean": mean, "iqm": float(iqm([values])), "std": std, "ci95": [mean - half, mean + half], "episodes": n}


def _mean(values: np.ndarray) -> float:
    """Of what was told."""
    told = values[~np.isnan(values)]
    return float(told.mean()) if len(told) else math.nan


def report(episodes: Episodes) -> dict:
    """The block of `summary.json` and `evaluation.json`: statistics of the episode return over all, per group
    and per agent, of the length, and the means of the environment's own figures."""
    groups = {}
    games = outcomes(episodes.returns, episodes.judged, episodes.agents) if episodes.in_turns else {}
    for name, values in episodes.returns.items():
        agents = dict(zip(episodes.agents[name], values.T, strict=True))
        if name in episodes.judged:  # an agent's figures are of the episodes in which the policy played it
            played = zip(agents, values.T, episodes.judged[name].T, strict=True)
            agents = {agent: value[own] for agent, value, own in played if own.any()}
        groups[name] = {
            "episode_return": statistics(episodes.group_returns(name)),
            "agents": {agent: statistics(value) for agent, value in agents.items()},
            "info": {key: _mean(value) for key, value in episodes.info.get(name, {}).items()},
        }
        groups[name]["info"] |= games.get(name, {})
    return {
        "episode_return": statistics(episodes.episode_returns()),
        "episode_length": statistics(episodes.lengths.astype(float)),
        "groups": groups,
    }


def flat(block: Mapping) -> dict[str, float]:
    """`report`'s block as the flat figures that are logged; groups by themselves where there are several."""
    figures = {"episode_return": block["episode_return"]["mean"], "episode_length": block["episode_length"]["mean"]}
    figures |= {f"episode_return/{key}": block["episode_return"][key] for key in ("iqm", "std")}
    figures["episode_return/ci95_low"], figures["episode_return/ci95_high"] = block["episode_return"]["ci95"]
    figures["episodes"] = float(block["episode_return"]["episodes"])
    for name, group in block["groups"].items():
        if len(block["groups"]) > 1:
            figures[f"{name}/episode_return"] = group["episode_return"]["mean"]
        if len(group["agents"]) > 1:
            figures |= {f"{name}/{a}/episode_return": values["mean"] for a, values in group["agents"].items()}
        figures |= {figure(name, key, block["groups"]): value for key, value in group["info"].items()}
    return figures


def nested(metrics: Mapping[str, float]) -> dict:
    """`flat`'s figures as the block of `summary.json`."""
    prefix = "episode_return"
    block = {
        "mean": metrics[prefix],
        "iqm": metrics[f"{prefix}/iqm"],
        "std": metrics[f"{prefix}/std"],
        "ci95": [metrics[f"{prefix}/ci95_low"], metrics[f"{prefix}/ci95_high"]],
        "episodes": int(metrics["episodes"]),
    }
    rest = {k: v for k, v in metrics.items() if not k.startswith(prefix) and k != "episodes"}
    return {prefix: block, **rest}
