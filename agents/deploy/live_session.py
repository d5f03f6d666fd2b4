"""One person's world in Python: a policy in its environment, changed by the words that the live page speaks."""

import math
from typing import Any

import torch
from torch import Tensor

from agents.policies.policy import Policy
from envs.base import STATE
from envs.rendering.live_world import camera, groups, single
from envs.rendering.scene import scene
from envs.rendering.web_frames import shape_row
from envs.vmas.agent_masks import masks_in, veil
from marl.core.errors import UserError

SEEDS = 1_000_000
FAR = 1e4  # metres: from there on the simulator's float32 arithmetic loses what moves


class Session:
    """The same engine as the page's own (envs/rendering/web/engine.js), for any scenario and any network.

    Words: {"do": "reset", "seed"}, {"do": "play" | "again", "on"}, {"do": "step"}, {"do": "speed", "value"},
    {"do": "freeze", "name", "on"}, {"do": "drag", "name", "x", "y"}, {"do": "drop", "name"}, {"do": "act", "name",
    "action"} (null: the policy acts again). Numbers are JSON's own and finite.
    """

    def __init__(self, policy: Policy, settings: dict[str, Any]) -> None:
        policy.everyone()  # or a sentence
        self.policy, self.env = policy, single(settings, num_envs=1, pool_size=2)
        self.simulator = self.env.world.simulator
        self.entities = {e.name: e for e in self.simulator.world.entities}
        self.where = {a: (g, i) for g, spec in self.env.spec.groups.items() for i, a in enumerate(spec.agents)}
        self.playing, self.again, self.speed = True, True, 1.0
        self.frozen: set[str] = set()
        self.held: dict[str, tuple[float, float]] = {}
        self.taken: dict[str, list[float]] = {}
        self.reset(0)

    def hello(self) -> dict[str, Any]:
        """What the page must know beforehand."""
        return {
            "scenario": self.env.scenario,
            "dt": self.simulator.world.dt,
            "max_steps": self.env.spec.max_steps,
            "camera": camera(self.simulator),
            "groups": groups(self.env.world),
            "seeds": SEEDS,
            "left_out": 0,
        }

    def reset(self, seed: int) -> None:
        """A new episode."""
        self.seed, self.steps, self.returns, self.done = seed % SEEDS, 0, 0.0, False
        self.observation = self.env.world.reset(self.seed)
        self.reward = {g: torch.zeros(1, spec.n_agents) for g, spec in self.env.spec.groups.items()}
        self.held.clear()
        self.memories = self.policy.memory(1), self.policy.critic_memory(1)  # before this step, whatever is dragged now
        self._think()

    def _think(self) -> None:
        acting, judging = self.memories
        self.masks = masks_in(self.observation, self.env.spec.groups)
        self.wanted, acted = self.policy.act(self.observation, masks=self.masks, memory=acting)
        self.values, judged = self.policy.values(self.observation, self.observation[STATE], judging, self.masks)
        self.after = acted, judged

    @torch.no_grad()
    def step(self) -> None:
        """One step; after the end of an episode the next one begins, if that is wanted."""
        if self.done:
            if self.again:
                self.reset(self.seed + 1)
            return
        action = {g: value.clone() for g, value in self.wanted.items()}
        for agent, values in self.taken.items():
            group, i = self.where[agent]
            action[group][0, i] = torch.tensor(values).to(action[group].dtype)
        frozen_poses = [
            (n, *(v.clone() for v in (self.entities[n].state.pos, self.entities[n].state.rot))) for n in self.frozen
        ]
        with self.env.world.pool.stream:
            observations, rewards, terminated, over, _ = self.simulator.step(self.env.world.split_actions(action))
        rewarded = {g: self.env.world.groups[g].reward(rewards) for g in self.env.spec.groups}
        self.reward = {g: r * self.masks[g]["alive"] if "alive" in self.masks[g] else r for g, r in rewarded.items()}
        self.done = bool(terminated | over)
        self.returns += sum(float(r.mean()) for r in self.reward.values()) / len(self.reward)
        self.steps += 1
        for name, position, rotation in frozen_poses:
            self._put(name, position, rotation)
        for name, spot in self.held.items():
            self._put(name, torch.tensor([spot]))
        if frozen_poses or self.held:
            self._look()
        else:
            self._see(observations)
        self.memories = self.after
        self._think()

    def _put(self, name: str, position: Tensor, rotation: Tensor | None = None) -> None:
        entity = self.entities[name]
        entity.set_pos(position, batch_index=None)
        entity.set_vel(torch.zeros_like(position), batch_index=None)
        entity.set_ang_vel(torch.zeros(1, 1), batch_index=None)
        if rotation is not None:
            entity.set_rot(rotation, batch_index=None)

    @torch.no_grad()
    def _look(self) -> None:
        """The observation of the state as it is now."""
        with self.env.world.pool.stream:
            observations = [self.simulator.scenario.observation(agent) for agent in self.simulator.agents]
        self._see(observations)

    def _see(self, observations: list[Any]) -> None:
        """What agents see, zeros where they are dead."""
        self.observation = self.env.world.observe(self.simulator, observations)
        veil(self.observation, masks_in(self.observation, self.env.spec.groups))

    def command(self, request: Any) -> None:
        """Do what a person asks. Raises UserError for words that mean nothing here."""
        try:
            do = request["do"]
            if do == "reset":
                self.reset(int(_number(request["seed"])))
            elif do in ("play", "again"):
                setattr(self, {"play": "playing"}.get(do, do), bool(request["on"]))
            elif do == "step":
                self.step()
            elif do == "speed":
                self.speed = min(max(_number(request["value"]), 0.01), 100.0)
            elif do == "freeze":
                (self.frozen.add if request["on"] else self.frozen.discard)(self._known(request["name"]))
            elif do == "drag":
                spot = (_number(request["x"]), _number(request["y"]))
                if max(map(abs, spot)) > FAR:
                    raise ValueError("no place")
                self.held[self._known(request["name"])] = spot
                self._put(request["name"], torch.tensor([spot]))
                self._look()
                self._think()
            elif do == "drop":
                self.held.pop(request["name"], None)
            elif do == "act":
                self._take(request["name"], request["action"])
            else:
                raise ValueError(do)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise UserError(f"command {str(request)[:80]}: not understood ({type(error).__name__})") from error

    def _known(self, name: str) -> str:
        return self.entities[name].name

    def _take(self, name: str, action: list[float] | None) -> None:
        group, _ = self.where[name]
        if action is None:
            self.taken.pop(name, None)
            return
        values, a = [_number(v) for v in action], self.env.spec.groups[group].action
        if len(values) != a.size:
            raise ValueError("no action")
        C = a.n_continuous
        if a.low is not None:
            low, high = (bound[self.where[name][1]].tolist() for bound in (a.low, a.high))
            values[:C] = [min(max(v, least), most) for v, least, most in zip(values[:C], low, high, strict=True)]
        if not all(0 <= v < n and v == int(v) for v, n in zip(values[C:], a.nvec, strict=True)):
            raise ValueError("no choice")
        self.taken[name] = values

    def frame(self) -> dict[str, Any]:
        """What the page draws and tells."""
        drawn = scene(self.simulator)
        places = [
            {
                "name": n,
                "x": float(e.state.pos[0, 0]),
                "y": float(e.state.pos[0, 1]),
                "drags": True,
                "radius": float(e.shape.circumscribed_radius()),
            }
            for n, e in self.entities.items()
        ]
        about = {}
        for agent, (group, i) in self.where.items():
            action = self.taken.get(agent) or self.wanted[group][0, i].tolist()
            about[agent] = {
                "observation": self.observation[group][0, i].tolist(),
                "action": action,
                "value": float(self.values[group][0, i]) if group in self.values else None,
                "reward": float(self.reward[group][0, i]),
            }
        return {
            "seed": self.seed,
            "steps": self.steps,
            "done": self.done,
            "returns": self.returns,
            "about": about,
            "playing": self.playing,
            "frozen": sorted(self.frozen),
            "bounds": drawn.bounds,
            "places": places,
            "shapes": [shape_row(s) for s in drawn.shapes],
        }


def _number(value: Any) -> float:
    """A finite number. Raises ValueError: Python's JSON reads NaN and 1e999, and `float` would read text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("no finite number")
    return float(value)
