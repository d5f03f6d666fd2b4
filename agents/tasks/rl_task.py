"""What every reinforcement-learning task has: environments, line-up, collection, statistics, random streams.

On-policy and off-policy tasks derive from `RLTask` and add how they learn from what was collected.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents.algorithms.base import AgentsLoss, Algorithm
from agents.collection.arena import Arena
from agents.collection.collector import Collector
from agents.collection.episode_statistics import EpisodeStatistics
from agents.collection.rollout_buffer import RolloutBuffer
from agents.curriculum.build_ahead import BuildAhead
from agents.curriculum.checks import check_stages, of_any_size, require_any_size
from agents.curriculum.course import Course
from agents.curriculum.curriculum import Curriculum
from agents.evaluation.episode_loop import require_time_limit
from agents.evaluation.redundant_features import find_repeated
from agents.fused_ops import native
from agents.models.critic import Critic
from agents.models.parts import check_saved, warn_of_pictures
from agents.players.lineup import Lineup
from agents.players.seats import Anyone
from agents.policies.group_settings import everyone
from agents.tasks.episode_evaluation import EpisodeEvaluation
from envs.base import ActionError, Env
from envs.infos import DEFAULT, Rules
from envs.spec import describe
from marl.core import distributed
from marl.core.distributed import stream
from marl.core.errors import NonFinite, UserError
from marl.core.seeding import derive, generator, restore
from marl.engine.spans import span
from marl.networks import fused_mlp
from marl.optim import fused_adam


class RLTask(EpisodeEvaluation):
    """Environments in which groups of agents learn, and what is counted there. See `marl.task.Task`.

    A subclass calls, in its constructor and in this order, `__init__`, `build_loss` and `build_collector`. In `collect`
    it calls `gather`, and in `state_dict`, `load_state_dict` and `rejoin` it adds what is its own.

    Args:
        env: factory of environments; called with `seed` and `device`, for evaluation also with `num_envs`.
        algo: settings of the algorithm.
        steps: steps of every environment in an iteration.
        frames: budget in environment frames (one step of one environment), rounded up to whole iterations.
        seed: every random stream (environment, policy, minibatches, evaluation) is derived from it.
        device: where everything lives.
        eval_episodes: episodes per evaluation, played at once.
        eval_deterministic: evaluate the policy's mode instead of samples.
        groups: {group: who plays it, by which settings} (`agents.policies.group_settings.GroupSettings`); None: all
            learn by `algo`.
        info: {pattern of names: kinds}: how the environment's own figures are reduced over an episode
            (`envs.infos.InfoRules`), in training and in evaluations; None: none is kept.
        curriculum: what of the environment changes meanwhile (`agents.curriculum.curriculum.Curriculum`); None:
            nothing.

    Attributes:
        env, spec: the environments trained in, and their spec as the networks see it.
        lineup: who acts for each group.
        loss: actors, critics and what trains them.
        rollout, collector: what was collected, and what collects it.
        statistics: of the episodes that end in training.
        policy_generator, minibatch_generator: random streams of the actions and of the minibatches.
        figures: metrics of the iteration.
        collector_class: what collects, built as `Collector` is.

    Raises:
        UserError: no time limit, a budget smaller than one iteration, or groups that do not fit.
    """

    loss: AgentsLoss
    unit = "frames"
    rereadable = False  # minibatches are drawn, and inputs' statistics learned
    collector_class: type[Collector] = Collector
    _graphs = False  # rollouts are captured

    def __init__(
        self,
        env: Callable[..., Env],
        algo: Algorithm,
        steps: int,
        frames: int,
        seed: int,
        device: str | torch.device,
        eval_episodes: int,
        eval_deterministic: bool,
        groups: Mapping[str, Any] | None,
        info: Rules | None = DEFAULT,
        curriculum: Mapping[str, Any] | None = None,
    ) -> None:
        self.algo, self.seed, self.device = algo, seed, torch.device(device)
        self.curriculum, full = Curriculum.of(curriculum, env, seed), None
        if self.curriculum:
            full, env = check_stages(self.curriculum, device), self.curriculum.judged()
            longest = full[0].max_steps
            assert longest is not None  # or the stages would not have passed
            self.curriculum.average_over(-(-2 * longest // steps))  # iterations in which all episodes end
        self.setup_evaluation(env, eval_episodes, eval_deterministic, info)
        start_time = time.perf_counter()
        if self.device.type == "cpu":
            # while the environment's kernel is made
            for library in (fused_mlp.kernel, native.functions, fused_adam.functions):
                library.begin()
        if self.curriculum:
            env = self.curriculum.factory(self.curriculum.place)
        self.env = env(seed=derive(seed, stream("environment")), device=device)
        self.spec, self.teams_vary = full or (self.env.spec, False)
        self.compile_seconds = time.perf_counter() - start_time  # nearly all of it a kernel, unless one was cached
        require_time_limit(self.env, "evaluation")
        self.batch_frames = steps * self.env.num_envs  # `num_envs` is one process's part
        self.units_per_iteration = self.batch_frames * distributed.world()
        if frames < self.units_per_iteration:
            least = self.units_per_iteration
            raise UserError(f"frames={frames}: smaller than one iteration of {least}; at least {least} is allowed")
        self.iterations = -(-frames // self.units_per_iteration)
        self.lineup = Lineup(self.env, algo, groups, seed)
        self.policy_generator = generator(seed, stream("policy"), self.device)
        self.minibatch_generator = generator(seed, stream("minibatches"), self.device)
        self.started = False
        self.figures: dict[str, Tensor | float] = {}

    def build_loss(
        self, network: Callable[..., nn.Module], critic_network: Callable[..., nn.Module] | None = None
    ) -> None:
        """Build the networks of the groups that learn and the loss that trains them, and hand them to the line-up."""
        if self.spec.state_size is not None and any(algo.prune_state for algo in self.lineup.algos.values()):
            probe = derive(self.seed, "probe")
            self.spec = find_repeated(self.make_env(seed=probe, device=self.device, num_envs=8), probe)
        warn_of_pictures(self.spec, network)
        lineup = self.lineup
        spec = of_any_size(self.spec) if self.teams_vary else self.spec
        loss = self.algo.make_loss(spec, network, critic_network, lineup.algos, partly=lineup.partly)
        self.loss = loss.to(self.device).eval()
        if self.teams_vary:
            require_any_size(self.loss, lineup.algos, lineup.all_learn)
        self.callbacks = lineup.assign(self.loss.actors)
        if not self.teams_vary:  # else a saved policy may be of the sizes that are judged, not of those here
            lineup.check_evaluation()

    def build_collector(self, steps: int, marks: Mapping[int, list[int]] | None = None) -> None:
        """Build what collects `steps` steps of every environment; `marks` as for `RolloutBuffer`."""
        self.n_agents = {name: group.n_agents for name, group in self.env.spec.groups.items()}
        self._steps, self._marks = steps, marks
        first = self._arena(self.env)
        self._play_in(first)
        if self.curriculum:
            self.curriculum.check_figures(self.figure_names())
            self.course = Course(self.curriculum, self._arena, first, self.seed, self.device)
            self.callbacks = [*self.callbacks, BuildAhead(self.curriculum, self.course.seed_of)]

    def _arena(self, env: Env) -> Arena:
        actors, critics, rules = self.loss.actors, self.remembering_critics(), self.info_rules
        more = self._marks, rules, tuple(env.final_masks()), self.algo.time_limit == "bootstrap"
        rollout = RolloutBuffer(env.spec, env.num_envs, env.device, self._steps, actors, critics, *more)
        others = None if self.lineup.all_learn else self.lineup.act
        collector = self.collector_class(env, actors, rollout, critics, others)
        n_agents = {name: group.n_agents for name, group in env.spec.groups.items()}
        statistics = EpisodeStatistics(env.num_envs, n_agents, self.lineup.algos, self.device, rules)
        return Arena(env, rollout, collector, statistics)

    def remembering_critics(self) -> Mapping[str, Critic]:
        """By group, those that may remember something from step to step."""
        return self.loss.critics

    def use_graphs(self, enabled: bool) -> None:
        """Rollouts, where steps of the environment are work of the GPU alone."""
        self._graphs = enabled
        self.collector.use_graph(enabled)

    def _play_in(self, arena: Arena) -> None:
        self.env, self.rollout = arena.env, arena.rollout
        self.collector, self.statistics = arena.collector, arena.statistics
        self.collector.use_graph(self._graphs)

    def _follow(self, iteration: int) -> None:
        """Tell the environment how far the run is, and go where the curriculum plays this iteration."""
        progress = min(iteration / max(self.iterations - 1, 1), 1.0)
        if not self.curriculum:
            self.env.set_progress(progress)
        elif self.course.advance(progress, iteration, self.started):
            self.abandon_episodes()
        self._go_on()

    def _go_on(self) -> None:
        """Play, and judge, where the curriculum is now."""
        if not self.curriculum or self.course.arena.env is self.env:
            return
        self._play_in(self.course.arena)
        self.lineup.play_in(self.env)
        if self.curriculum.evaluates_current:
            self.make_env, self.eval_env = self.curriculum.judged(), None

    def abandon_episodes(self) -> None:
        """The running episodes end nowhere: what a subclass sums along them begins again."""

    def parts(self) -> dict[str, nn.Module]:
        """The actors and the critics of all groups."""
        return {"actor": self.loss.actors, "critic": self.loss.critics}

    def gather(self, iteration: int) -> None:
        """Play on under the current policies into `rollout`; its episodes' figures are the iteration's `figures`.

        Raises:
            NonFinite: the environment refused actions, and the rollout holds a number that is not finite.
            ActionError: the environment refused actions that are all finite.
        """
        self._follow(iteration)
        if not self.started:
            self.start_episodes(stream("environment"))
        self.lineup.draw_versions(iteration)
        self.collector.settle()  # the last rollout has long been waited for
        try:
            with span("rollout"):
                self.collector.collect(self.policy_generator)
        except ActionError:
            if (place := self.rollout.not_finite()) is not None:
                raise NonFinite(place) from None
            raise
        self.figures = self.statistics.figures(self.rollout) | {f"env/{k}": v for k, v in self.env.figures().items()}
        if self.curriculum:
            self.curriculum.note(self.figures)
            self.figures |= self.curriculum.figures()

    def start_episodes(self, stream_name: str) -> None:
        """Reset all environments by a seed of this stream."""
        self.collector.reset(derive(self.seed, stream_name))
        self.started = True

    def metrics(self) -> dict[str, Tensor | float]:
        """Figures of this iteration: of the episodes that ended, of the environment, and the subclass's own."""
        return self.figures

    def diagnose(self) -> str | None:
        """The first number of the rollout that is not finite: what it is, whose, in which environment and step."""
        return self.rollout.not_finite()

    def evaluate(self) -> dict[str, float]:
        """As `EpisodeEvaluation.evaluate`; a curriculum may wait for what comes of it."""
        figures = super().evaluate()
        if self.curriculum:
            self.curriculum.note(figures, evaluated=True)
        return figures

    def eval_players(self, env: Env, random: bool) -> tuple[Mapping[str, Anyone], bool, tuple[str, ...]]:
        """As `EpisodeEvaluation.eval_players`; groups that do not learn are played by whom the line-up says."""
        # Where others play too, "random" stands for those who learn only: uniform actions are then a player's.
        return self.lineup.evaluation(env, random), random and self.lineup.all_learn, self.lineup.counted()

    def playing(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `EpisodeEvaluation.playing`; raises UserError for players that are no networks."""
        return everyone(self.lineup.settings, self.loss.actors, self.loss.critics)

    def told_in_training(self) -> set[str]:
        """As `EpisodeEvaluation.told_in_training`."""
        return self.statistics.told()

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
            "players": self.lineup.generator.get_state(),
            "saved_players": self.lineup.digests(),
            **({"curriculum": self.course.state_dict()} if self.curriculum else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        if not state:
            return
        if "spec" in state:
            check_saved(state["spec"], self.spec)
        self.lineup.check_digests(state.get("saved_players", {}))  # none in a file of before they were kept
        if self.curriculum and "curriculum" in state:
            self.course.load_state_dict(state["curriculum"])
            self._go_on()
        self.collector.load_state_dict(state["rollout"])
        self.statistics.load_state_dict(state)
        restore(self.policy_generator, state["policy"])
        restore(self.minibatch_generator, state["minibatches"])
        if "players" in state:
            restore(self.lineup.generator, state["players"])
        self.started = True

    def rejoin(self, iteration: int, saved: dict) -> None:
        """Begin new episodes, from streams not used before: this run was another number of processes' until now."""
        self.lineup.check_digests(saved.get("saved_players", {}))
        if self.curriculum and "curriculum" in saved:
            self.course.load_state_dict(saved["curriculum"], with_others=False)
            self._go_on()
        where = f"after iteration {iteration}, {distributed.world()} processes"
        self.policy_generator = generator(self.seed, stream(f"policy {where}"), self.device)
        self.minibatch_generator = generator(self.seed, stream(f"minibatches {where}"), self.device)
        self.start_episodes(stream(f"environment {where}"))
