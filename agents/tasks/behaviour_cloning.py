"""Behaviour cloning: actors learn a teacher's actions from recorded episodes, as a supervised task (Pomerleau 1991).

Shapes: S steps in the data, B minibatch rows, A agents in a group, F features, D action dimensions.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn

from agents.algorithms.base import Algorithm
from agents.algorithms.cloning_loss import CloneLoss, discounted
from agents.collection.ends import for_targets
from agents.evaluation.dataset_recording import record, to_raw
from agents.evaluation.episode_loop import Players
from agents.evaluation.episodes import nested
from agents.models.actor_critic import build_networks
from agents.models.parts import same_agents, warn_of_pictures
from agents.policies.policy import Policy
from agents.tasks.episode_evaluation import EpisodeEvaluation
from envs.base import Env
from envs.infos import DEFAULT, Rules
from envs.spec import describe, spec_of
from marl.core import distributed
from marl.core.errors import UserError
from marl.core.seeding import derive
from marl.data import Episodes, Loader
from marl.data.episodes import Flat
from marl.data.episodes import nested as steps_of
from marl.supervised.epochs import EVALUATION_ROWS, Epochs

Part = Annotated[float, Field(ge=0, le=1)]


class Clone(EpisodeEvaluation, Epochs):
    """Actors that imitate recorded episodes; an iteration of the engine is an epoch. See `marl.task.Task`.

    `evaluate` gives the likelihood of the held-out episodes' actions ("validation_loss", …) and plays episodes.

    With `dagger_every` the learner acts from time to time, the teacher says what it would have done, and both are added
    to the data (DAgger, Ross et al. 2011). Round i plays `dagger_episodes` episodes. In them the teacher moves the
    agents with probability `dagger_beta` ** i at every step.

    Args:
        data: the recorded episodes.
        env: factory of environments, for evaluation and DAgger; its agents must be those of the data.
        algo: the settings of which the networks depend (`agents.models.architecture`); the rest is for PPO.
        network, critic_network: as for `agents.tasks.on_policy.OnPolicy`.
        epochs: passes over the training episodes.
        batch_size: steps of an environment (all agents together) per minibatch.
        eval_episodes, eval_deterministic, info: see `agents.tasks.episode_evaluation.EpisodeEvaluation`.
        critic_coef: weight of the critics' loss, so that PPO can go on from the clone with critics that know its worth.
            Their target is the discounted return (`algo.gamma`) of the episode from there on. Where an episode was cut
            off, the value of where it ended stands for its rest (`algo.time_limit`). 0: only actors learn.
        dagger_every: epochs between rounds; None: no DAgger.
        dagger_teacher: run directory or checkpoint of the teacher; None: the one that the data name.
        dagger_labels: the teacher's "samples", as its recorded actions are, or its "mode".

    Raises:
        UserError: data of other agents, a network with a memory, a minibatch larger than the data, or critics that are
            to learn from DAgger's episodes, in which the learner acts.
    """

    name = "clone"

    def __init__(
        self,
        data: Episodes,
        env: Callable[..., Env],
        algo: Algorithm,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        epochs: Annotated[int, Field(ge=1)] = 30,
        batch_size: Annotated[int, Field(ge=1)] = 256,
        seed: Annotated[int, Field(ge=0)] = 0,
        device: str | torch.device = "cpu",
        eval_episodes: Annotated[int, Field(ge=1)] = 200,
        eval_deterministic: bool = True,
        critic_coef: Annotated[float, Field(ge=0)] = 0.0,
        dagger_every: Annotated[int, Field(ge=1)] | None = None,
        dagger_episodes: Annotated[int, Field(ge=1)] = 20,
        dagger_beta: Part = 0.0,
        dagger_teacher: str | None = None,
        dagger_labels: Literal["samples", "mode"] = "samples",
        info: Rules | None = DEFAULT,
    ) -> None:
        self.data, self.seed, self.device = data, seed, torch.device(device)
        self.spec = spec_of(data.manifest["spec"])
        self.setup_evaluation(self._checked(env), eval_episodes, eval_deterministic, info)
        # At once, so that an environment of other agents is refused before anything is learned.
        self.env_for_evaluation(eval_episodes)
        warn_of_pictures(self.spec, network)
        actors, critics = build_networks(algo, self.spec, network, critic_network)
        if any(getattr(actor, "memory_shape", None) for actor in actors.values()):
            raise UserError("network: has a memory, which cloning does not train; use one without, such as network=mlp")
        if critic_coef and dagger_every:
            raise UserError(f"task.critic_coef={critic_coef}: not with task.dagger_every, where the learner acts")
        self.loss, self.algo = CloneLoss(actors, critics, critic_coef).to(self.device), algo
        self.heads = data.manifest.get("policy", {}).get("heads", {})
        rows = self._rows(data.steps, self.heads, returns=critic_coef > 0)
        if batch_size > len(data.train):
            raise UserError(f"task.batch_size={batch_size}: must be at most {len(data.train)}, the steps to learn from")
        self.loader = Loader(rows, batch_size, seed, among=data.train, device=self.device)
        for name in self.loss.actors:  # where observations are normalised: by the training split alone
            observation = rows[name, "observation"][data.train].to(self.device)
            ends = self.loss.actors[name].ends
            alive = rows[name, "alive"][data.train].to(self.device) if ends else None
            self.loss.actors[name].inputs.learn(observation, alive)
            states = rows["state"][data.train] if "state" in rows.keys() else None
            self.loss.critics[name].learn_inputs(observation, states, alive)
        self.budget(epochs)
        self.dagger_every, self.dagger_episodes, self.dagger_beta = dagger_every, dagger_episodes, dagger_beta
        self.dagger_labels, self.teacher, self.rounds = dagger_labels, None, 0
        self.gathered: dict[str, Tensor] = {}
        if dagger_every:
            self._prepare_dagger(dagger_teacher, epochs, batch_size)

    def _checked(self, env: Callable[..., Env]) -> Callable[..., Env]:
        """`env`, whose agents are made sure to be those of the data whenever one is built."""

        def build(**settings) -> Env:
            built = env(**settings)
            if not same_agents(built.spec, self.spec):
                node = self.data.manifest.get("env") or {}
                source = {key: node[key] for key in ("scenario", "id", "scenario_kwargs") if key in node}
                raise UserError(f"env: its agents are not those of {self.data.folder}, recorded in {source}")
            return built

        return build

    def _rows(self, steps: TensorDict, heads: Mapping[str, str], returns: bool = False) -> TensorDict:
        """Steps as recorded → what the loss reads; views, copied only where raw actions have to be found.

        heads: {group: class of the policy head whose raw actions were recorded}.
        returns: with room for the critics' targets.
        """
        rows = {}
        for name, actor in self.loss.actors.items():
            recorded = steps[name]
            same = "raw" in recorded.keys() and heads.get(name) == actor.head.name
            raw = recorded["raw"] if same else to_raw(actor.head.cpu(), recorded["action"])
            actor.head.to(self.device)
            names = {"observation": "observation", "action_mask": "mask", "alive": "alive"}
            rows[name] = {column: recorded[key] for key, column in names.items() if key in recorded.keys()}
            rows[name]["raw"] = raw
            if returns:
                rows[name]["return"] = torch.zeros(len(steps), actor.n_agents)
        uses = any(critic.uses_state for critic in self.loss.critics.values()) and "state" in steps.keys()
        return TensorDict(rows | ({"state": steps["state"]} if uses else {}), batch_size=[len(steps)])

    def parts(self) -> dict[str, nn.Module]:
        """The actors of all groups, and the critics where they learn."""
        critics = {"critic": self.loss.critics} if self.loss.critic_coef else {}
        return {"actor": self.loss.actors, **critics}

    # ---- what the critics learn --------------------------------------------------------------------------------

    @torch.no_grad()
    def _learn_returns(self) -> None:
        """Write into the rows what the critics are to say of every recorded step, as they stand."""
        rows, final, length = self.loader.rows, self.data.final, self.data.final["length"]
        for name, critic in self.loss.critics.items():
            observation, state = final[f"{name}/final_observation"].to(self.device), final.get("final_state")
            end = critic.denormalize(critic(observation, None if state is None else state.to(self.device))).cpu()
            following = self.data.steps["next"]
            reward = self.algo.reward_scale * following[name, "reward"]
            ends = self._ends(name, following, length) if self.loss.actors[name].ends else None
            terminated, _ = for_targets(following["terminated"], following["truncated"], self._bootstraps)
            returns = discounted(reward, terminated, end, length, self.algo.gamma, ends)
            value, alive = self._values(name), rows[name, "alive"].to(self.device) if ends else None
            rows[name, "return"].copy_(critic.learn_scale(returns.to(self.device), value, alive)[0])

    def _ends(self, name: str, following: TensorDict, length: Tensor) -> tuple[Tensor, Tensor]:
        """Where agents' own episodes ended, bool [S, A], and what stands for their rest, float32 [S, A].

        following: ("next", …) of all steps. length: int64 [N], of the environments' episodes.
        """
        flags = following[name, "terminated"], following[name, "truncated"]
        terminated, truncated = for_targets(*flags, self._bootstraps)
        rest, at = torch.zeros(terminated.shape), truncated.any(-1).nonzero().squeeze(-1)
        critic, state = self.loss.critics[name], None
        if critic.uses_state:  # the next step's, and where the environment's episode ended its own
            states = self.data.steps["state"].roll(-1, 0)
            states[length.cumsum(0) - 1] = self.data.final["final_state"]
            state = states[at].to(self.device)
        value = critic.denormalize(critic(following[name, "observation"][at].to(self.device), state)).cpu()
        rest[at] = torch.where(truncated[at], value, 0.0)
        return terminated | truncated, rest

    @property
    def _bootstraps(self) -> bool:
        return self.algo.time_limit == "bootstrap"

    def _values(self, name: str) -> Tensor:
        """The critic's values of all recorded steps, in units of the return: [S, A]."""
        critic, rows = self.loss.critics[name], self.loader.rows
        parts = []
        for index in torch.arange(len(rows)).split(EVALUATION_ROWS):
            part = rows[index].to(self.device)
            parts.append(critic.denormalize(critic(part[name, "observation"], part.get("state", None))))
        return torch.cat(parts)

    # ---- DAgger ----------------------------------------------------------------------------------------------

    def _prepare_dagger(self, teacher: str | None, epochs: int, batch_size: int) -> None:
        if distributed.world() > 1:
            raise UserError("task.dagger_every: DAgger runs in one process; start it without torchrun")
        if self.dagger_every >= epochs:
            message = f"no round would come; it must be less than epochs={epochs}"
            raise UserError(f"task.dagger_every={self.dagger_every}: {message}")
        source = teacher or self.data.manifest.get("policy", {}).get("ckpt")
        if not source:
            raise UserError("task.dagger_teacher=null: the data don't name their teacher; give its run directory")
        self.teacher = Policy.load(source, device=self.device)
        if not same_agents(self.teacher.spec, self.spec):
            raise UserError(f"task.dagger_teacher={source}: acts for other agents than those of {self.data.folder}")
        most = len(self.loader.order.draw(torch.Generator())) + (epochs - 1) // self.dagger_every * (
            self.dagger_episodes * (self.spec.max_steps or 0)
        )
        self.steps_per_iteration = -(-most // batch_size)

    def collect(self, iteration: int) -> None:
        """The critics' targets, and a round of DAgger where it is due: its episodes join the data."""
        if self.loss.critic_coef:
            self._learn_returns()
        if not (self.dagger_every and iteration and iteration % self.dagger_every == 0):
            return
        self.rounds += 1
        seed = derive(self.seed, f"dagger/{self.rounds}")
        env = self.make_env(seed=seed, device=self.device, num_envs=self.dagger_episodes)
        teacher = Players(self.teacher.actors, deterministic=self.dagger_labels == "mode")
        with self.evaluating():
            learner = Players(self.loss.actors)
            episodes = record(env, teacher, seed, learner, self.dagger_beta**self.rounds)
        old = self.gathered
        self.gathered = {key: torch.cat([old[key], value]) if old else value for key, value in episodes.items()}
        self._add_gathered()

    def _add_gathered(self) -> None:
        teacher_heads = {name: actor.head.name for name, actor in self.teacher.actors.items()}
        added = self._rows(steps_of(self.gathered), teacher_heads)
        first = self._rows(self.data.steps[self.data.train], self.heads)
        self.loader.rows = torch.cat([first, added.select(*first.keys())])

    def metrics(self) -> dict[str, Tensor | float]:
        """With DAgger: how many steps there are to learn from."""
        return {"steps": float(len(self.loader.rows))} if self.gathered else {}

    # ---- judging ---------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Figures of the held-out episodes, then of episodes played by the actors as they are."""
        held_out = self.means(self._rows(self.data.steps[self.data.validation], self.heads).to(self.device))
        played = self.played()
        return {**played, **{f"validation_{name}": value for name, value in held_out.items()}}

    def figure_names(self) -> set[str]:
        """As `Task.figure_names`; those of the held-out episodes are the loss's, of which one step has them all."""
        rows = self._rows(self.data.steps[self.data.validation[:1]], self.heads).to(self.device)
        return {*super().figure_names(), *(f"validation_{name}" for name in self.means(rows))}

    def summary(self, metrics: dict[str, float]) -> dict:
        """As for the agents' tasks, with the figures of the held-out episodes."""
        return nested(metrics) if metrics else {}

    def diagnose(self) -> str | None:
        """The first group whose recorded observations or actions are not finite."""
        for name in self.loss.actors:
            for key in ("observation", "raw"):
                if not torch.isfinite(self.loader.rows[name, key]).all():
                    return f"{key} of {name} in the recorded episodes has a value that is not finite"
        return None

    def state_dict(self) -> dict:
        """Spec, place in the data, and what DAgger gathered."""
        gathered: Flat = self.gathered
        return {**super().state_dict(), "spec": describe(self.spec), "rounds": self.rounds, "gathered": dict(gathered)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, bitwise identically."""
        super().load_state_dict(state)
        self.rounds, self.gathered = state["rounds"], {key: value.cpu() for key, value in state["gathered"].items()}
        if self.gathered:
            self._add_gathered()
