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
from agents.collection.replay.buffer import ReplayBuffer
from agents.collection.replay.memory import MappedMemory
from agents.collection.replay.prioritised import PrioritisedReplay
from agents.collection.replay.segments import ReplaySegments
from agents.collection.replay.sequences import SequenceBuffer, Sequences, recall
from agents.fused_ops import gather, replay_terms
from agents.tasks.rl_task import RLTask
from envs.base import Env
from envs.infos import DEFAULT, Rules
from marl.checkpoints.attachments import Attachments
from marl.config.described import remembers_arguments
from marl.core import distributed
from marl.core.errors import NonFinite, UserError
from marl.data.epoch import Epoch
from marl.optim import fused_lerp

TOGETHER = 32  # minibatches that are drawn and trained on at once, where updates take several
# Bytes of these: a draw holds so much, and each of the kinds that are graphs as much again. Minibatches above the 32nd
# part, 8 MiB, keep a GPU busy for longer than a launch takes, so that fewer at once cost no time.
TOGETHER_BYTES = 2**28


class OffPolicy(RLTask):
    """Collects steps into a replay buffer and yields minibatches of it. See `agents.tasks.rl_task.RLTask`.

    Args:
        env, frames, seed, device, eval_episodes, eval_deterministic, groups, info: see `RLTask`.
        algo: settings of IQL, VDN, QMIX, DDPG, TD3 or SAC.
        network: factory of the actors' networks (and of the critics', unless `critic_network` is given).
        critic_network: factory of the critics' networks.

    Where networks have a memory, minibatches are of whole sequences (`agents.collection.replay.sequences`),
    `minibatch_size` rounded down.

    Raises:
        UserError: as `RLTask` and `Sequences.of`; past versions, agents that act in turn, a curriculum, or more prefill
            than the buffer holds.
    """

    name = "off_policy"
    accumulates = False  # targets follow step by step

    @remembers_arguments
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
            for module in (gather, replay_terms, fused_lerp):  # while the environment's kernel is made
                module.functions.begin()
        steps, played = algo.rollout_steps, (eval_episodes, eval_deterministic, groups, info)
        super().__init__(env, algo, steps, frames, seed, device, *played)
        if self.lineup.partly:
            raise UserError(f"groups.{min(self.lineup.partly)}.past: needs an algorithm without a replay buffer")
        self.build_loss(network, critic_network)
        self.sequences = Sequences.of(self.loss, algo)
        for name in self.loss.groups:
            if "turn" in self.spec.groups[name].masks:
                raise UserError(f"algo: group {name!r} acts in turn, from which algo=mappo, ippo and pqn learn")
        self.build_collector(steps, self.sequences and self.sequences.marks(steps))
        self.attachments = Attachments("replay")
        memory = MappedMemory(lambda: self.attachments.path(".")) if algo.buffer_on == "disk" else None
        if self.sequences is None:
            self.buffer = ReplayBuffer(self.rollout, algo.buffer_frames, memory)
        else:
            self.buffer = SequenceBuffer(self.rollout, algo.buffer_frames, self.sequences, memory)
        self.prioritised: PrioritisedReplay | None = None
        if algo.priority:
            betas = algo.priority_beta, algo.priority_beta_final
            self.prioritised = PrioritisedReplay(self.buffer, algo.priority, *betas, algo.priority_floor)
        self.segments = ReplaySegments(self.buffer, self.attachments)
        if algo.buffer_frames < (least := 2 * self.batch_frames):  # both of one process's part, as `prefill` is
            raise UserError(f"algo.buffer_frames={algo.buffer_frames}: must be at least two rollouts, {least} frames")
        if algo.prefill * distributed.world() >= frames:
            raise UserError(f"algo.prefill={algo.prefill}: must be less than frames={frames}, or nothing is learned")
        if algo.prefill > (most := self.buffer.capacity * self.env.num_envs):
            raise UserError(f"algo.prefill={algo.prefill}: the buffer holds {most} frames (algo.buffer_frames)")
        self.steps_per_iteration = algo.updates
        self.followed = False  # the update itself has the targets follow

    def remembering_critics(self) -> dict[str, nn.Module]:
        """The critics of actions that have a memory."""
        critics = getattr(self.loss, "q_critics", {})
        return {name: critic for name, critic in critics.items() if critic.memory_shape}

    def parts(self) -> dict[str, nn.Module]:
        """As the loss names them."""
        return self.loss.parts()

    def collect(self, iteration: int) -> None:
        """Steps under the current policies, with their exploration, into the buffer.

        Raises:
            NonFinite: the rollout holds a number that is not finite, which would stay in the buffer for long.
            UserError: the disk has no room for the buffer (`algo.buffer_on=disk`).
        """
        self.buffer.allocate()
        progress = min(iteration / max(self.iterations - 1, 1), 1.0)
        self.figures_of_schedules = self.loss.advance(progress)
        self.gather(iteration)
        if self.sequences:
            recall(self.remembering_critics(), self.rollout, self.collector.memories["critic"], self.loss.unit)
        if not self._finite():
            other = "a state, a final observation or a memory of the rollout is not finite"
            raise NonFinite(self.rollout.not_finite() or other)
        self.buffer.add(self.rollout, self.rollout.cut_frames())  # one wait for the device per iteration
        if self.prioritised:
            self.prioritised.added()
            self.prioritised.advance(progress)
            self.figures_of_schedules |= {"priority_beta": self.prioritised.beta}
        self.figures |= self.figures_of_schedules | {"buffer_frames": float(self.buffer.frames * distributed.world())}

    def _finite(self) -> bool:
        rollout, kinds = (
            self.rollout,
            (self.rollout.observed, self.rollout.next, self.rollout.action, self.rollout.reward),
        )
        values = [kind[name] for kind in kinds for name in rollout.action]
        values += [] if rollout.states is None else [rollout.states, rollout.next_states]
        values += [memory for memories in rollout.memories_at_marks.values() for memory in memories.values()]
        return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """`updates` minibatches, each drawn when it is asked for.

        None before the buffer is filled (`prefill`), and holds a whole sequence where such are drawn.
        """
        algo, self.followed = self.algo, False
        if not self._has_enough:
            return
        shape = torch.Size([] if self.sequences else [algo.minibatch_size])  # sequences lie time first
        self.loss.train()
        source = self.prioritised or self.buffer
        for _ in range(algo.updates):
            rows = source.sample(algo.minibatch_size, self.minibatch_generator, algo.n_step, algo.gamma)
            yield TensorDict._new_unsafe(rows, batch_size=shape)  # unchecked: checks take longer than the draw
        self.loss.eval()

    @property
    def _has_enough(self) -> bool:
        # What was added: a full ring holds a step less than its capacity, which `prefill` may be.
        return self.buffer.added * self.buffer.n_envs >= self.algo.prefill and self.buffer.can_be_drawn

    def whole_epochs(self, iteration: int) -> Iterator[Epoch] | None:
        """The same minibatches, some drawn at once: their rows are selected by as many operations as those of one.

        None where what is drawn depends on what was trained on before (priorities), and for sequences.
        """
        return None if self.prioritised or self.sequences else self._epochs()

    def _epochs(self) -> Iterator[Epoch]:
        algo, self.followed, left = self.algo, True, self.algo.updates if self._has_enough else 0
        most = min(TOGETHER, max(1, TOGETHER_BYTES // (algo.minibatch_size * self.buffer.row_bytes)))
        self.loss.train()
        while left:
            count = min(left, together(self.loss.updates, self.loss.period, most))
            rows = self.buffer.sample(algo.minibatch_size, self.minibatch_generator, algo.n_step, algo.gamma, count)
            order = torch.arange(count * algo.minibatch_size, device=self.device)
            yield Epoch(rows, order, algo.minibatch_size)
            left -= count
        self.loss.eval()

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """A minibatch was trained on: the targets follow, and so do the priorities of its rows.

        Raises:
            UserError: a prioritised draw, of which the loss gives no "td_error".
        """
        if not self.followed:
            self.loss.follow()
        if self.prioritised:
            if "td_error" not in outputs:
                kind = type(self.loss).__name__
                raise UserError(f"algo.priority={self.algo.priority}: {kind} gives no td_error [B]; only 0 is allowed")
            self.prioritised.correct(outputs["td_error"])

    def state_dict(self) -> dict:
        """As `RLTask`, with the count of updates, and the replay buffer as files of rollouts (`attachments`)."""
        state = super().state_dict()
        if state:
            state |= {"updates": self.loss.updates, **self.segments.state_dict()}
            state |= {"priorities": self.prioritised.state_dict()} if self.prioritised else {}
        return state

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        super().load_state_dict(state)
        if state:
            self.loss.count_from(state["updates"])
            self.segments.load_state_dict(state)
            if self.prioritised:
                self.prioritised.load_state_dict(state["priorities"])

    def rejoin(self, iteration: int, saved: dict) -> None:
        """As `RLTask`, with an empty replay buffer: what each process held was of its own environments."""
        super().rejoin(iteration, saved)
        self.loss.count_from(saved["updates"])
        self.buffer.clear()
        if self.prioritised:
            self.prioritised.clear()
        if distributed.main():
            first = f"; no update before it holds {self.algo.prefill} (algo.prefill)" if self.algo.prefill else ""
            print(f"another number of processes: the replay buffer begins empty{first}", flush=True)


def together(updates: int, period: int, most: int) -> int:
    """How many of the next minibatches are one piece, after so many: pieces repeat, and so the same graph.

    Where a period of minibatches has been begun its rest is a piece, else as many periods as fit into `most`.
    """
    begun = updates % period
    return min(period - begun, most) if begun else max(most // period * period, min(most, period))
