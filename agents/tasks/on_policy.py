"""The on-policy task: what makes IPPO and MAPPO a learning problem for the engine.

Data flows one way: environment -> rollout -> values and advantages -> shuffled minibatches -> PPO loss.
Shapes: T time, E environments, A agents in a group, F features, N ends of episodes, B minibatch rows.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from agents.algorithms.advantages import bootstrap, explained_variance, gae, normalize_advantage
from agents.algorithms.happo import SequentialUpdate
from agents.algorithms.on_policy import OnPolicyAlgorithm
from agents.algorithms.turn_advantages import turn_gae
from agents.collection.sequences import Sequences
from agents.collection.value_estimates import values_of
from agents.models.normalization import reward_norms
from agents.tasks.rl_task import RLTask
from envs.base import Env
from envs.infos import DEFAULT, Rules
from marl.config.described import remembers_arguments
from marl.core import distributed
from marl.core.errors import UserError
from marl.data.epoch import Epoch


class OnPolicy(RLTask):
    """Collects a rollout per iteration and yields its minibatches, epoch by epoch. See `agents.tasks.rl_task.RLTask`.

    Args:
        env, frames, seed, device, eval_episodes, eval_deterministic, groups, info, curriculum: see `RLTask`.
        algo: settings of IPPO, MAPPO or PQN.
        network: factory of the actors' networks (and of the critics', unless `critic_network` is given).
        critic_network: factory of the critics' networks.

    Where networks have a memory, minibatches are of whole sequences (`agents.collection.sequences`), `minibatch_size`
    rounded down. Frames beyond the last full minibatch of an epoch are left out of it. Every epoch shuffles again, so
    all are used in turn.

    Raises:
        UserError: as `RLTask`; a minibatch larger than the rollout, or past versions in a sequential update.
    """

    name = "on_policy"

    @remembers_arguments
    def __init__(
        self,
        env: Callable[..., Env],
        algo: OnPolicyAlgorithm,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        frames: Annotated[int, Field(ge=1)] = 600_000,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | torch.device = "cpu",
        eval_episodes: Annotated[int, Field(ge=1)] = 200,
        eval_deterministic: bool = True,
        groups: dict[str, Any] | None = None,
        info: Rules | None = DEFAULT,
        curriculum: dict[str, Any] | None = None,
    ):
        steps, played = algo.rollout_steps, (eval_episodes, eval_deterministic, groups, info, curriculum)
        super().__init__(env, algo, steps, frames, seed, device, *played)
        self.minibatch_size = algo.minibatch_size or self.batch_frames  # one process's part, as `num_envs` is
        if self.minibatch_size > self.batch_frames:
            raise UserError(
                f"algo.minibatch_size={algo.minibatch_size}: larger than the rollout of algo.rollout_steps * "
                f"env.num_envs = {self.batch_frames} frames; at most {self.batch_frames} is allowed"
            )
        if algo.update == "sequential" and self.lineup.partly:
            raise UserError(f"groups.{min(self.lineup.partly)}.past: needs algo.update=joint")
        self.build_loss(network, critic_network)
        networks = [*self.loss.actors.values(), *self.loss.critics.values()]
        self.sequences = Sequences.of(networks, steps, algo.chunk_length, algo.burn_in, algo.minibatch_size)
        self.build_collector(steps, self.sequences and self.sequences.marks)
        per_row = self.sequences.length if self.sequences else 1  # frames: a row is a frame, or a whole sequence
        self.rows_per_iteration = self.batch_frames // per_row
        self.minibatch_rows = self.minibatch_size // per_row
        self.minibatches = self.rows_per_iteration // self.minibatch_rows
        sequential = algo.update == "sequential"
        self.sequential_update = SequentialUpdate(self.loss) if sequential else None
        self.accumulates = not sequential
        turns = self.sequential_update.count if self.sequential_update else 1
        self.steps_per_iteration = algo.epochs * self.minibatches * turns
        self.reward_norm = reward_norms(self.env.num_envs, self.n_agents, self.lineup.algos).to(self.device)
        self.rows: dict = {}
        self.kl: list[Tensor] = []

    def parts(self) -> dict[str, nn.Module]:
        """As the loss names them."""
        return self.loss.parts()

    def collect(self, iteration: int) -> None:
        """A rollout under the current policy, its values, advantages and returns."""
        scheduled = self.loss.advance(min(iteration / max(self.iterations - 1, 1), 1.0))  # exploration too
        self.gather(iteration)
        self.figures |= scheduled
        truncated = self.rollout.cut_frames()  # one wait for the device per iteration
        self.rows, explained = {}, []
        for name in self.lineup.algos:
            self.rows[name], variance = self._rows(name, truncated)
            explained.append(variance)
            if len(self.loss.groups) > 1:
                self.figures[f"{name}/explained_variance"] = variance
        self.figures["explained_variance"] = torch.stack(explained).mean()

    def _rows(self, name: str, truncated: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the loss reads of a group, {name: [T, E, A, ...]}, and how much of the returns' variance is explained.

        truncated: int64 [N], t * E + e, frames in which some episode was cut off.
        """
        rollout, critic, algo = self.rollout, self.loss.critics[name], self.lineup.algos[name]
        reward = self._scaled(name)
        value, final_value = values_of(critic, name, rollout, truncated, self.collector.memories["critic"])
        next_value = bootstrap(value, final_value, truncated, rollout.cut(name))
        masks = {kind: mask[:-1] for kind, mask in rollout.masks[name].items()}
        turn = masks.pop("turn", None)
        seen = reward, value[:-1], next_value, *(() if turn is None else (turn,)), *rollout.over(name)
        advantage, returns = (gae if turn is None else turn_gae)(*seen, algo.gamma, algo.lam)
        learnt = rollout.counts(name)
        explained = explained_variance(value[:-1], returns, learnt)
        target, old_value = critic.learn_scale(returns, value[:-1], learnt)
        own = self.lineup.own(name, advantage)
        counts = masks.get("alive") if own is None else own & masks.get("alive", own)
        if turn is not None:
            counts = masks["counts"] = turn if counts is None else turn & counts
        rows = {
            "observation": rollout.observed[name][:-1],
            "action": rollout.action[name],
            "log_prob": rollout.log_prob[name],
            "advantage": normalize_advantage(advantage, algo.normalize_advantage, alive=counts),
            "return": target,
        }
        rows |= {"mask" if kind == "action" else kind: mask for kind, mask in masks.items()}
        if algo.value_clip is not None:
            rows["value"] = old_value
        if own is not None:
            rows["own"] = own
        return rows, explained

    def _scaled(self, name: str) -> Tensor:
        """The rollout's rewards as the critic learns them: [T, E, A], of a team [T, E, 1]."""
        rollout, reward = self.rollout, self.rollout.reward[name]
        if self.lineup.algos[name].of_the_team:
            reward = reward.mean(-1, keepdim=True)
        scale = self.lineup.algos[name].reward_scale
        reward = reward if scale == 1 else scale * reward
        if name not in self.reward_norm:
            return reward
        alive = rollout.masks[name]["alive"][:-1] if name in rollout.ends else None
        turn = rollout.masks[name].get("turn")
        return self.reward_norm[name](reward, rollout.over(name)[1], alive, turn)

    def abandon_episodes(self) -> None:
        """The running discounted returns, of which the rewards' deviation is, begin again."""
        for norm in self.reward_norm.values():
            norm.restart()

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """Shuffled minibatches of `minibatch_size` frames, `epochs` times over; fewer where the KL stop says so.

        With `minibatch_size` null the rollout is the one minibatch of an epoch, as it lies: no shuffle, no copy.
        """
        for epoch in self.whole_epochs(iteration):
            yield from epoch

    def whole_epochs(self, iteration: int) -> Iterator[Epoch]:
        """As `batches`, epoch by epoch."""
        if self.sequences:
            rows = self.sequences.rows(self.rows, self.rollout)
        else:
            rows = {n: {k: v.flatten(0, 1) for k, v in tensors.items()} for n, tensors in self.rows.items()}
        if self.loss.uses_state:
            states = self.rollout.states[:-1]
            rows["state"] = self.sequences.cut_before(states) if self.sequences else states.flatten(0, 1)
        self.loss.train()  # dropout and BatchNorm: what acts and is judged is the policy as it will be evaluated
        update = self.sequential_update
        for _ in (None,) if update is None else update.turns(rows, self.minibatch_generator):
            yield from self._epochs(rows)
        self.loss.eval()
        self._learn_inputs()

    def _learn_inputs(self) -> None:
        """For the next rollout, since this one is done. What is seen first by the next rollout is left to that one."""
        rollout = self.rollout
        observations = {name: observed[:-1] for name, observed in rollout.observed.items()}
        alive = {name: kinds["alive"][:-1] for name, kinds in rollout.masks.items() if "alive" in kinds}
        for name, kinds in rollout.masks.items():
            if "turn" in kinds:  # what is seen while others act is learnt nothing from
                alive[name] = kinds["turn"][:-1] & alive.get(name, kinds["turn"][:-1])
        self.loss.learn_inputs(observations, None if rollout.states is None else rollout.states[:-1], alive)

    def _epochs(self, rows: dict) -> Iterator[Epoch]:
        B, count = self.minibatch_rows, self.rows_per_iteration
        for epoch in range(self.algo.epochs):
            self.kl = []
            if self.algo.minibatch_size is None:
                yield Epoch(rows, None, count)
            else:
                order = torch.randperm(count, generator=self.minibatch_generator, device=self.device)
                yield Epoch(rows, order[: self.minibatches * B], B)
            self.figures["epochs"] = float(epoch + 1)
            if self.algo.target_kl is not None and self._is_far():
                break

    def _is_far(self) -> bool:
        """Whether the epoch's mean KL divergence is above `target_kl`: one wait for the device per epoch."""
        return bool(distributed.mean(torch.stack(self.kl).mean()) > self.algo.target_kl)

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """Keep the epoch's KL divergences where a KL stop is asked for."""
        if self.algo.target_kl is not None:
            self.kl.append(outputs["approx_kl"])

    def state_dict(self) -> dict:
        """As `RLTask`, with what the rewards are divided by."""
        state = super().state_dict()
        return state | {"reward_norm": self.reward_norm.state_dict()} if state else state

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        super().load_state_dict(state)
        if state:
            self.reward_norm.load_state_dict(state.get("reward_norm", {}))

    def rejoin(self, iteration: int, saved: dict) -> None:
        """As `RLTask`. What the rewards are divided by goes on: their deviation so far, which is all processes' own."""
        for name, norm in self.reward_norm.items():
            prefix = f"{name}.moments."
            saved_norm = saved.get("reward_norm", {})
            moments = {key.removeprefix(prefix): v for key, v in saved_norm.items() if key.startswith(prefix)}
            if moments:
                norm.moments.load_state_dict(moments)
        super().rejoin(iteration, saved)
