"""Evaluation of policies: many episodes at once, in an environment of their own, and their statistics.

Shapes: E environments (one episode each), A agents in a group, F features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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
from marl.core.seeding import derive
from marl.report.statistics import iqm

RESETS = 10  # of an evaluation whose environments share what a reset draws (`Env.shared_draws`)


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
        resets: int64 [E], the reset that each episode began from; None where that was one for all.
    """

    returns: dict[str, np.ndarray]
    lengths: np.ndarray
    agents: dict[str, tuple[str, ...]]
    info: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    judged: dict[str, np.ndarray] = field(default_factory=dict)
    in_turns: bool = False
    resets: np.ndarray | None = None

    def group_returns(self, name: str) -> np.ndarray:
        """[E]: mean over a group's agents, those that count."""
        if name not in self.judged:
            return self.returns[name].mean(-1)
        return np.average(self.returns[name], axis=-1, weights=self.judged[name])

    def episode_returns(self) -> np.ndarray:
        """[E]: mean over the agents of each group, then over the groups that count."""
        return np.mean([self.group_returns(name) for name in self.counted or self.returns], axis=0)


def env_for(make: Callable[..., Env], episodes: int) -> Env:
    """An environment for `evaluate(…, episodes=…)`; `make` builds one and is called with `num_envs`.

    All episodes are played at once, but where they would share what a reset draws: there a tenth of them.
    """
    env = make(num_envs=episodes)
    return make(num_envs=math.ceil(episodes / RESETS)) if env.shared_draws and episodes > 1 else env


def evaluate(
    env: Env,
    actors: Mapping[str, Anyone],
    seed: int,
    deterministic: bool = True,
    random: bool = False,
    disturbance: Disturbance | None = None,
    counted: tuple[str, ...] = (),
    rules: InfoRules = InfoRules.of(DEFAULT),  # noqa: B008 - it is frozen
    episodes: int | None = None,
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
        episodes: how many; None = one in every environment. More are played after further resets, by seeds that
            follow from `seed`.

    Raises:
        UserError: the environment has no time limit, so that episodes need not end.
    """
    require_time_limit(env, "evaluation")
    how = (deterministic, random, disturbance, counted, rules)
    parts = [_played(env, actors, seed, 0, *how)]
    count = env.num_envs if episodes is None else episodes
    for i in range(1, math.ceil(count / env.num_envs)):
        parts.append(_played(env, actors, derive(seed, f"reset {i}"), i * env.num_envs, *how))
    return parts[0] if count == env.num_envs else joined(parts, count)


@torch.no_grad()
def _played(
    env: Env,
    actors: Mapping[str, Anyone],
    seed: int,
    first: int,
    deterministic: bool,
    random: bool,
    disturbance: Disturbance | None,
    counted: tuple[str, ...],
    rules: InfoRules,
) -> Episodes:
    """The episodes of one reset, from number `first` on; arguments as those of `evaluate`."""
    generator = torch.Generator(env.device).manual_seed(seed)
    players = Players(actors, deterministic)
    players.begin(env.num_envs, env.device)
    for seats in players.seats.values():
        seats.sit(first)
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


def joined(parts: Sequence[Episodes], count: int) -> Episodes:
    """The first `count` episodes of several resets, in their order."""
    first = parts[0]

    def row(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(values)[:count]

    def info(name: str, key: str) -> np.ndarray:
        nothing = [np.full_like(part.returns[name], np.nan) for part in parts]
        return row([part.info.get(name, {}).get(key, blank) for part, blank in zip(parts, nothing, strict=True)])

    keys = {name: dict.fromkeys(key for part in parts for key in part.info.get(name, {})) for name in first.returns}
    return Episodes(
        {name: row([part.returns[name] for part in parts]) for name in first.returns},
        row([part.lengths for part in parts]),
        first.agents,
        {name: {key: info(name, key) for key in keys[name]} for name in keys if keys[name]},
        first.counted,
        {name: row([part.judged[name] for part in parts]) for name in first.judged},
        first.in_turns,
        row([np.full(len(part.lengths), i) for i, part in enumerate(parts)]),
    )


def _accumulate(sums: dict[str, Tensor], key: str, value: Tensor, running: Tensor) -> None:
    masked = torch.where(running.view(-1, *[1] * (value.dim() - 1)), value.float(), 0.0)
    sums[key] = sums[key] + masked if key in sums else masked


def statistics(values: np.ndarray, resets: np.ndarray | None = None) -> dict:
    """Mean, interquartile mean (Agarwal et al. 2021), standard deviation and the 95 % interval of the mean.

    Args:
        values: float [E], one figure per episode.
        resets: int64 [E], the reset of each. Episodes of one have drawn something in common, so that the interval is
            of resets instead of episodes (cluster-robust, Cameron and Miller 2015).

    Returns:
        {"mean", "iqm", "std", "ci95": [low, high], "episodes"}; the interval is Student's t.
    """
    n, half = len(values), math.nan
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else math.nan
    if resets is not None and (k := len(np.unique(resets))) > 1:
        sums = np.bincount(resets, values - mean)
        half = float(stdtrit(k - 1, 0.975)) * math.sqrt(k / (k - 1) * float(sums @ sums)) / n
    elif n > 1:
        half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return {"mean": mean, "iqm": float(iqm([values])), "std": std, "ci95": [mean - half, mean + half], "episodes": n}


def _mean(values: np.ndarray) -> float:
    """Of what was told."""
    told = values[~np.isnan(values)]
    return float(told.mean()) if len(told) else math.nan


def report(episodes: Episodes) -> dict:
    """The block of `summary.json` and `evaluation.json`: statistics of the episode return over all, per group
    and per agent, of the length, and the means of the environment's own figures."""
    groups, resets = {}, episodes.resets
    games = outcomes(episodes.returns, episodes.judged, episodes.agents) if episodes.in_turns else {}
    for name, values in episodes.returns.items():
        # An agent's figures are of the episodes in which the policy played it.
        played = episodes.judged.get(name, np.ones(values.shape, bool)).T
        agents = {
            agent: (value[own], None if resets is None else resets[own])
            for agent, value, own in zip(episodes.agents[name], values.T, played, strict=True)
            if own.any()
        }
        groups[name] = {
            "episode_return": statistics(episodes.group_returns(name), resets),
            "agents": {agent: statistics(*figures) for agent, figures in agents.items()},
            "info": {key: _mean(value) for key, value in episodes.info.get(name, {}).items()},
        }
        groups[name]["info"] |= games.get(name, {})
    return {
        "episode_return": statistics(episodes.episode_returns(), resets),
        "episode_length": statistics(episodes.lengths.astype(float), resets),
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
