"""The on-policy task: what makes IPPO and MAPPO a learning problem for the engine.

Data flows one way: environment -> rollout -> values and advantages -> shuffled minibatches -> PPO loss.
Shapes: T time, E environments, A agents in a group, F features, N ends of episodes, B minibatch rows.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from agents import native
from agents.actor import Actor
from agents.advantage import bootstrap, explained_variance, gae, normalize_advantage
from agents.cast import Cast
from agents.chunks import Sequences
from agents.collector import Collector
from agents.episode_statistics import EpisodeStatistics
from agents.evaluate import Player
from agents.normalize import reward_norms
from agents.playing import Plays
from agents.policy import describe
from agents.ppo import PPO
from agents.pruning import find_repeated
from agents.rollout import RolloutBuffer, take
from agents.sequential import Turns
from agents.values import values_of
from envs.base import ActionError, Env
from marl import distributed
from marl.distributed import stream
from marl.errors import NonFinite, UserError
from marl.seeding import derive, generator


class OnPolicy(Plays):
    """Collects a rollout per iteration and yields its minibatches, epoch by epoch. See `marl.task.Task`.

    Args:
        env: factory of environments; called with `seed` and `device`, for evaluation also with `num_envs`.
        algo: settings of IPPO or MAPPO.
        network: factory of the actors' networks (and of the critics', unless `critic_network` is given).
        frames: budget in environment frames (one step of one environment), rounded up to whole iterations.
        seed: every random stream (environment, policy, minibatches, evaluation) is derived from it.
        device: where everything lives.
        eval_episodes: episodes per evaluation, played at once.
        eval_deterministic: evaluate the policy's mode instead of samples.
        groups: {group: who plays it, by which settings} (`agents.groups.GroupSettings`); None: all learn by `algo`.

    Where networks have a memory, minibatches are of whole sequences (`agents.chunks`), `minibatch_size` rounded down.
    Frames beyond the last full minibatch of an epoch are left out of it. Every epoch shuffles again, so all are used in
    turn.

    Raises:
        UserError: a minibatch larger than the rollout, or a budget smaller than one iteration, or no time limit.
    """

    name, unit = "on_policy", "frames"

    def __init__(
        self,
        env: Callable[..., Env],
        algo: PPO,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        frames: Annotated[int, Field(ge=1)] = 600_000,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | torch.device = "cpu",
        eval_episodes: Annotated[int, Field(ge=1)] = 200,
        eval_deterministic: bool = True,
        groups: dict[str, Any] | None = None,
    ):
        self.algo, self.seed, self.device = algo, seed, torch.device(device)
        self.plays(env, eval_episodes, eval_deterministic)
        began = time.perf_counter()
        if self.device.type == "cpu":
            native.begin()
        self.env = env(seed=derive(seed, stream("environment")), device=device)
        self.spec = self.env.spec
        self.compile_seconds = time.perf_counter() - began  # nearly all of it a kernel, unless it was kept from before
        if self.env.spec.max_steps is None:
            raise UserError("env.max_steps=null: evaluation needs a time limit, a number of steps of at least 1")
        batch = algo.rollout_steps * self.env.num_envs
        self.units_per_iteration = batch * distributed.world()  # `num_envs` and `minibatch_size` are one process's part
        self.minibatch_size = algo.minibatch_size or batch
        if self.minibatch_size > batch:
            raise UserError(
                f"algo.minibatch_size={algo.minibatch_size}: larger than the rollout of algo.rollout_steps * "
                f"env.num_envs = {batch} frames; at most {batch} is allowed"
            )
        whole = self.units_per_iteration
        if frames < whole:
            raise UserError(f"frames={frames}: smaller than one iteration of {whole}; at least {whole} is allowed")
        self.iterations = -(-frames // whole)
        self.cast = Cast(self.env, algo, groups, seed)
        if algo.update == "sequential" and self.cast.partly:
            raise UserError(f"groups.{min(self.cast.partly)}.past: needs algo.update=joint")
        if self.spec.state_size is not None and any(each.prune_state for each in self.cast.algos.values()):
            probe = derive(seed, "probe")
            self.spec = find_repeated(env(seed=probe, device=device, num_envs=8), probe)
        loss = algo.make_loss(self.spec, network, critic_network, self.cast.algos, partly=self.cast.partly)
        self.loss = loss.to(self.device).eval()
        self.callbacks = self.cast.begin(self.loss.actors)
        networks = [*self.loss.actors.values(), *self.loss.critics.values()]
        settings = algo.rollout_steps, algo.chunk_length, algo.burn_in, algo.minibatch_size
        self.sequences = Sequences.of(networks, *settings)
        per_row = self.sequences.length if self.sequences else 1  # frames: a row is a frame, or a whole sequence
        self.rows_per_iteration, self.minibatch_rows = batch // per_row, self.minibatch_size // per_row
        self.minibatches = self.rows_per_iteration // self.minibatch_rows
        marks = self.sequences and self.sequences.marks
        others = None if self.cast.simple else self.cast.act
        place = self.env.spec, self.env.num_envs, self.env.device
        self.rollout = RolloutBuffer(*place, algo.rollout_steps, self.loss.actors, self.loss.critics, marks)
        self.collector = Collector(self.env, self.loss.actors, self.rollout, self.loss.critics, others)
        self.policy_generator = generator(seed, stream("policy"), self.device)
        self.minibatch_generator = generator(seed, stream("minibatches"), self.device)
        self.turns = Turns(self.loss, self.minibatch_generator) if algo.update == "sequential" else None
        self.accumulates = self.turns is None
        self.steps_per_iteration = algo.epochs * self.minibatches * (self.turns.count if self.turns else 1)
        agents = {n: g.n_agents for n, g in self.env.spec.groups.items()}
        self.statistics = EpisodeStatistics(self.env.num_envs, agents, self.cast.algos, self.device)
        self.reward_norm = reward_norms(self.env.num_envs, agents, self.cast.algos).to(self.device)
        self.started = False
        self.figures: dict[str, Tensor] = {}
        self.rows: dict = {}
        self.kl: list[Tensor] = []

    def parts(self) -> dict[str, nn.Module]:
        """The actors and the critics of all groups."""
        return {"actor": self.loss.actors, "critic": self.loss.critics}

    def collect(self, iteration: int) -> None:
        """A rollout under the current policy, its values, advantages and returns."""
        if not self.started:
            self.collector.reset(derive(self.seed, stream("environment")))
            self.started = True
        self.cast.draw(iteration)
        try:
            self.collector.collect(self.policy_generator)
        except ActionError:
            if (bad := self.rollout.not_finite()) is not None:
                raise NonFinite(bad) from None
            raise
        self.figures = self.statistics.figures(self.rollout) | {f"env/{k}": v for k, v in self.env.figures().items()}
        self.figures |= self.loss.advance(min(iteration / max(self.iterations - 1, 1), 1.0))
        self.rows = {}
        truncated = self.rollout.truncated.flatten().nonzero().squeeze(-1)  # one wait for the device per iteration
        explained = []
        for name, algo in self.cast.algos.items():
            reward = self._scaled(name)
            value, final_value = values_of(
                self.loss.critics[name], name, self.rollout, truncated, self.collector.memories["critic"]
            )
            next_value = bootstrap(value, final_value, truncated)
            advantage, returns = gae(
                reward,
                value[:-1],
                next_value,
                self.rollout.terminated,
                self.rollout.done,
                algo.gamma,
                algo.lam,
            )
            explained.append(explained_variance(value[:-1], returns))
            target, old_value = self.loss.critics[name].learn_scale(returns, value[:-1])
            kept = {kind: mask[:-1] for kind, mask in self.rollout.masks[name].items()}
            own = self.cast.own(name, advantage)
            counts = kept.get("alive") if own is None else own & kept.get("alive", own)
            self.rows[name] = {
                "observation": self.rollout.observed[name][:-1],
                "action": self.rollout.action[name],
                "log_prob": self.rollout.log_prob[name],
                "advantage": normalize_advantage(advantage, algo.normalize_advantage, alive=counts),
                "return": target,
            }
            self.rows[name] |= {"mask" if kind == "action" else kind: mask for kind, mask in kept.items()}
            if algo.value_clip is not None:
                self.rows[name]["value"] = old_value
            if own is not None:
                self.rows[name]["own"] = own
            if len(self.loss.groups) > 1:
                self.figures[f"{name}/explained_variance"] = explained[-1]
        self.figures["explained_variance"] = torch.stack(explained).mean()

    def _scaled(self, name: str) -> Tensor:
        """The rollout's rewards [T, E, A] as the critic learns them."""
        reward = self.rollout.reward[name]
        scale = self.cast.algos[name].reward_scale
        reward = reward if scale == 1 else scale * reward
        return self.reward_norm[name](reward, self.rollout.done) if name in self.reward_norm else reward

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """Shuffled minibatches of `minibatch_size` frames, `epochs` times over; fewer where the KL stop says so.

        With `minibatch_size` null the rollout is the one minibatch of an epoch, as it lies: no shuffle, no copy.
        """
        if self.sequences:
            rows = self.sequences.rows(self.rows, self.rollout)
        else:
            rows = {n: {k: v.flatten(0, 1) for k, v in tensors.items()} for n, tensors in self.rows.items()}
        if self.loss.uses_state:
            states = self.rollout.states[:-1]
            rows["state"] = self.sequences.cut_before(states) if self.sequences else states.flatten(0, 1)
        self.loss.train()  # dropout and BatchNorm: what acts and is judged is the policy as it will be evaluated
        for _ in (None,) if self.turns is None else self.turns.take(rows):
            yield from self._epochs(rows)
        self.loss.eval()
        self._learn_inputs()

    def _learn_inputs(self) -> None:
        """For the next rollout, since this one is done. What is seen first by the next rollout is left to that one."""
        rollout = self.rollout
        observations = {name: observed[:-1] for name, observed in rollout.observed.items()}
        alive = {name: kinds["alive"][:-1] for name, kinds in rollout.masks.items() if "alive" in kinds}
        self.loss.learn_inputs(observations, None if rollout.states is None else rollout.states[:-1], alive)

    def _epochs(self, rows: dict) -> Iterator[TensorDict]:
        B, count = self.minibatch_rows, self.rows_per_iteration
        for epoch in range(self.algo.epochs):
            self.kl = []
            if self.algo.minibatch_size is None:
                yield TensorDict(rows, batch_size=[count])
            else:
                order = torch.randperm(count, generator=self.minibatch_generator, device=self.device)
                for index in order[: self.minibatches * B].split(B):
                    yield TensorDict(take(rows, index), batch_size=[len(index)])
            self.figures["epochs"] = float(epoch + 1)
            if self.algo.target_kl is not None and self._mean_kl() > self.algo.target_kl:
                break

    def _mean_kl(self) -> Tensor:
        return distributed.mean(torch.stack(self.kl).mean())

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """Keep the epoch's KL divergences where a KL stop is asked for."""
        if self.algo.target_kl is not None:
            self.kl.append(outputs["approx_kl"])

    def metrics(self) -> dict[str, Tensor | float]:
        """Episode figures, explained variance and epochs done of this iteration."""
        return self.figures

    def diagnose(self) -> str | None:
        """The first number of the rollout that is not finite: what it is, whose, in which environment and step."""
        return self.rollout.not_finite()

    def players(self, env: Env, random: bool) -> tuple[Mapping[str, Actor | Player], bool, tuple[str, ...]]:
        """As `Plays.players`; groups that do not learn are played by whom the run's cast says."""
        # Where others play too, "random" stands for those who learn only: uniform actions are then a player's.
        return self.cast.evaluation(env, random), random and self.cast.simple, self.cast.counted()

    def state_dict(self) -> dict:
        """Spec, environment, first observation of the next rollout, running returns and random streams."""
        if not self.started:
            return {}
        return {
            "spec": describe(self.spec),  # what a saved policy needs to know without a simulator
            "rollout": self.collector.state_dict(),
            **self.statistics.state_dict(),
            "policy": self.policy_generator.get_state(),
            "minibatches": self.minibatch_generator.get_state(),
            "reward_norm": self.reward_norm.state_dict(),
            "players": self.cast.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, to the same bits."""
        if not state:
            return
        self.collector.load_state_dict(state["rollout"])
        self.statistics.load_state_dict(state)
        self.policy_generator.set_state(state["policy"].cpu())
        self.minibatch_generator.set_state(state["minibatches"].cpu())
        self.reward_norm.load_state_dict(state.get("reward_norm", {}))
        if "players" in state:
            self.cast.generator.set_state(state["players"].cpu())
        self.started = True

    def rejoin(self, iteration: int, saved: dict) -> None:
        """Begin new episodes, from streams not used before: this run was another number of processes' until now.

        What the rewards are divided by goes on: their deviation so far, which is all processes' own.
        """
        for name, norm in self.reward_norm.items():
            prefix = f"{name}.moments."
            held = {k.removeprefix(prefix): v for k, v in saved.get("reward_norm", {}).items() if k.startswith(prefix)}
            if held:
                norm.moments.load_state_dict(held)
        where = f"after iteration {iteration}, {distributed.world()} processes"
        self.policy_generator = generator(self.seed, stream(f"policy {where}"), self.device)
        self.minibatch_generator = generator(self.seed, stream(f"minibatches {where}"), self.device)
        self.collector.reset(derive(self.seed, stream(f"environment {where}")))
        self.started = True
