"""The off-policy task: agents that learn from replayed steps, made by any policy.

Data flows one way: environment -> rollout -> replay buffer -> sampled minibatches -> loss -> targets that follow.
Shapes: T time, E environments, N ends of episodes, B minibatch rows.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from agents.algorithms.off_policy.replayed import Replayed
from agents.collection.replay_buffer import ReplayBuffer
from agents.collection.replay_segments import ReplaySegments
from agents.fused_ops import gather, replay_terms
from agents.tasks.rl_task import RLTask
from envs.base import Env
from envs.infos import DEFAULT, Rules
from marl.checkpoints.attachments import Attachments
from marl.core import distributed
from marl.core.errors import NonFinite, UserError


class OffPolicy(RLTask):
    """Collects steps into a replay buffer and yields minibatches of it. See `agents.tasks.rl_task.RLTask`.

    Args:
        env, frames, seed, device, eval_episodes, eval_deterministic, groups, info: see `RLTask`.
        algo: settings of IQL, VDN, QMIX, DDPG, TD3 or SAC.
        network: factory of the actors' networks (and of the critics', unless `critic_network` is given).
        critic_network: factory of the critics' networks.

    Raises:
        UserError: as `RLTask`; networks with a memory, past versions, agents that act in turn, a curriculum, or more
            prefill than the buffer holds.
    """

    name = "off_policy"
    accumulates = False  # targets follow step by step

    def __init__(
        self,
        env: Callable[..., Env],
        algo: Replayed,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        frames: Annotated[int, Field(ge=1)] = 600_000,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | Any = "cpu",
        eval_episodes: Annotated[int, Field(ge=1)] = 200,
        eval_deterministic: bool = True,
        groups: dict[str, Any] | None = None,
        info: Rules | None = DEFAULT,
        curriculum: dict[str, Any] | None = None,
    ):
        if curriculum and curriculum.get("env"):
            raise UserError("curriculum.env: needs algo=mappo, ippo or pqn, whose steps are all of the present stage")
        if torch.device(device).type == "cpu":
            for library in (gather.functions, replay_terms.functions):  # while the environment's kernel is made
                library.begin()
        steps, played = algo.rollout_steps, (eval_episodes, eval_deterministic, groups, info)
        super().__init__(env, algo, steps, frames, seed, device, *played)
        if self.lineup.partly:
            raise UserError(f"groups.{min(self.lineup.partly)}.past: needs an algorithm without a replay buffer")
        self.build_loss(network, critic_network)
        if any(module.memory_shape for module in self.loss.actors.values()):
            raise UserError("network: has a memory, which replayed steps do not train; use one without, network=mlp")
        for name in self.loss.groups:
            if "turn" in self.spec.groups[name].masks:
                raise UserError(f"algo: group {name!r} acts in turn, from which algo=mappo, ippo and pqn learn")
        self.build_collector(steps)
        self.buffer = ReplayBuffer(self.rollout, algo.buffer_frames)
        self.attachments = Attachments("replay")
        self.segments = ReplaySegments(self.buffer, self.attachments)
        if algo.buffer_frames < (least := 2 * self.batch_frames):  # both of one process's part, as `prefill` is
            raise UserError(f"algo.buffer_frames={algo.buffer_frames}: must be at least two rollouts, {least} frames")
        if algo.prefill * distributed.world() >= frames:
            raise UserError(f"algo.prefill={algo.prefill}: must be less than frames={frames}, or nothing is learned")
        if algo.prefill > (most := self.buffer.capacity * self.env.num_envs):
            raise UserError(f"algo.prefill={algo.prefill}: the buffer holds {most} frames (algo.buffer_frames)")
        self.steps_per_iteration = algo.updates

    def parts(self) -> dict[str, nn.Module]:
        """As the loss names them."""
        return self.loss.parts()

    def collect(self, iteration: int) -> None:
        """Steps under the current policies, with their exploration, into the buffer.

        Raises:
            NonFinite: the rollout holds a number that is not finite, which would stay in the buffer for long.
        """
        self.figures_of_schedules = self.loss.advance(min(iteration / max(self.iterations - 1, 1), 1.0))
        self.gather(iteration)
        if not self._finite():
            raise NonFinite(self.rollout.not_finite() or "a state or a final observation of the rollout is not finite")
        self.buffer.add(self.rollout, self.rollout.cut_frames())  # one wait for the device per iteration
        self.figures |= self.figures_of_schedules | {"buffer_frames": float(self.buffer.frames * distributed.world())}

    def _finite(self) -> bool:
        rollout, kinds = (
            self.rollout,
            (self.rollout.observed, self.rollout.next, self.rollout.action, self.rollout.reward),
        )
        values = [kind[name] for kind in kinds for name in rollout.action]
        values += [] if rollout.states is None else [rollout.states, rollout.next_states]
        return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """`updates` minibatches, each drawn when it is asked for; none before the buffer is filled (`prefill`)."""
        algo = self.algo
        if self.buffer.frames < algo.prefill:
            return
        self.loss.train()
        for _ in range(algo.updates):
            rows = self.buffer.sample(algo.minibatch_size, self.minibatch_generator, algo.n_step, algo.gamma)
            yield TensorDict(rows, batch_size=[algo.minibatch_size])
        self.loss.eval()

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """A minibatch was trained on: the targets follow."""
        self.loss.follow()

    def state_dict(self) -> dict:
        """As `RLTask`, with the count of updates, and the replay buffer as files of rollouts (`attachments`)."""
        state = super().state_dict()
        return state | {"updates": self.loss.updates, **self.segments.state_dict()} if state else state

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        super().load_state_dict(state)
        if state:
            self.loss.count_from(state["updates"])
            self.segments.load_state_dict(state)

    def rejoin(self, iteration: int, saved: dict) -> None:
        """As `RLTask`, with an empty replay buffer: what each process held was of its own environments."""
        super().rejoin(iteration, saved)
        self.loss.count_from(saved["updates"])
        self.buffer.clear()
        if distributed.main():
            first = f"; no update before it holds {self.algo.prefill} (algo.prefill)" if self.algo.prefill else ""
            print(f"another number of processes: the replay buffer begins empty{first}", flush=True)
