"""Compares every scenario with the unmodified simulator: `python -m envs.validation.reference > docs/scenarios.md`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.environment import Environment

from envs.grouping import flatten_info
from envs.vmas.agent_masks import masks_in, veil
from envs.vmas.env import VmasEnv
from envs.vmas.patches import decide_collisions_per_environment, decide_scenarios_per_environment, keep_words_apart
from envs.vmas.simulator import find_scenario, scenario_names
from envs.vmas.simulator_state import StateMap

# Scenarios in which VMAS lets environments influence each other, and we do not: see the end of docs/scenarios.md. What
# turning agents say is repaired too, but none of VMAS's scenarios has some.
REPAIRED = ("football", "give_way", "joint_passage", "joint_passage_size", "navigation")
EPISODE = 20  # time limit in the comparison, steps
NOTES = {
    "debug/asym_joint": "Noise on observations, drawn again: restart differs by noise.",
    "football": "VMAS's scripted team plans by the first environment's positions (below).",
    "give_way": "VMAS asks for collisions in the whole batch (below).",
    "joint_passage": "VMAS ends only where all are at the goal (below).",
    "joint_passage_size": "VMAS ends only where all are at the goal (below).",
    "navigation": "VMAS asks for collisions in the whole batch (below).",
    "road_traffic": "Noise on observations: restart differs by it. Histories with one pointer for the batch (below).",
    "sampling": "Its Gaussians are torch.distributions made again by every reset; a reset takes about 0.7 s.",
}


@dataclass
class Difference:
    """Greatest absolute differences from VMAS over a run; 0.0: bitwise identical. ended: episodes that ended.

    restart: of the observation after an auto-reset from the one that VMAS makes of the state after it.
    """

    scenario: str
    observation: float = 0.0
    reward: float = 0.0
    info: float = 0.0
    restart: float = 0.0
    done: int = 0  # flags that differ
    ended: int = 0
    steps: int = 0
    groups: str = ""
    tensors: int = 0
    per_environment: int = 0
    shared_draws: int = 0

    @property
    def worst(self) -> float:
        return max(self.observation, self.reward, self.info, float(self.done))


def compare(
    scenario: str, num_envs: int = 7, steps: int = 50, repaired: bool = False, seed: int = 0, **settings: Any
) -> Difference:
    """Step VmasEnv and vmas.Environment from one state with the same actions and random numbers.

    The two run on their own. Only where an episode ends in ours, which restarts it, VMAS's simulator is given our
    state again. repaired: make in VMAS's simulator, too, the changes that keep environments apart in ours.
    VMAS's class-level random state is put back afterwards.
    """
    shared = Environment.vmas_random_state
    saved = list(shared)
    try:
        return _compare(scenario, num_envs, steps, repaired, seed, settings)
    finally:
        shared[:] = saved


def _compare(
    scenario: str, num_envs: int, steps: int, repaired: bool, seed: int, settings: dict[str, Any]
) -> Difference:
    ours = VmasEnv(
        scenario, num_envs=num_envs, max_steps=EPISODE, pool_size=num_envs + 2, seed=seed, fast="off", **settings
    )
    raw = Environment(
        find_scenario(scenario)(),
        num_envs=num_envs,
        seed=seed,
        terminated_truncated=True,
        continuous_actions=settings.get("continuous_actions", True),
        max_steps=EPISODE,
        multidiscrete_actions=settings.get("multi_discrete", False),
        **settings.get("scenario_kwargs", {}),
    )
    if repaired:
        decide_collisions_per_environment(raw.world)
        decide_scenarios_per_environment(raw.scenario)
        keep_words_apart(raw)
    raw.step(raw.get_random_actions())  # makes the tensors that only a step makes
    pool = ours.world.pool
    result = Difference(
        scenario,
        steps=steps,
        tensors=len(pool.main.tensors),
        shared_draws=len(pool.drawn),
        per_environment=sum(axis is not None for axis in pool.axes.values()),
        groups=", ".join(
            f"{name} ({g.n_agents}×{g.observation_size}→{g.action.size})" for name, g in ours.spec.groups.items()
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    ours.reset(seed)
    if not pool.drawn:  # episodes end at different times, unless all are to start again together
        ours.simulator.steps += torch.arange(num_envs) * 3 % EPISODE
    copy_state(ours, raw)
    for _ in range(steps):
        action = ours.random_action(generator)
        handed = [a.clone() for a in ours.world.split_actions(action)]
        before = ours.masks()
        moved = ours.step(action)
        observations, rewards, terminated, truncated, infos = raw.step(handed)
        if terminated.dim() == 2:  # agents that end each on its own
            terminated, truncated = terminated.all(-1), truncated.reshape(num_envs, -1).any(-1)
        observed = ours.world.observe(raw, observations)
        led = masks_in(observed, ours.world.groups)
        for name, group in ours.world.groups.items():
            gained = group.reward(rewards)
            if "alive" in group.spec.masks:
                was, now = before[name]["alive"], led[name]["alive"]
                gained = gained.masked_fill(~was, 0.0)
                shown = was | now if group.spec.ends else now
                observed[name].masked_fill_(~shown.unsqueeze(-1), 0.0)
            result.observation = max(result.observation, gap(moved.next_observation[name], observed[name]))
            result.reward = max(result.reward, gap(moved.reward[name], gained))
            flat = [flatten_info(infos[i]) for i in group.members]
            for key, value in moved.info[name].items():
                result.info = max(result.info, gap(value, torch.stack([f[key] for f in flat], 1)))
        result.done += int((moved.terminated != terminated).sum())
        result.done += int((moved.truncated != (truncated & ~terminated)).sum())
        ended = int(moved.done.sum())
        result.ended += ended
        if ended:
            copy_state(ours, raw)
            again = ours.world.observe(raw, raw.get_from_scenario(True, False, False, False)[0])
            veil(again, masks_in(again, ours.world.groups))
            both = [(moved.observation[name], again[name]) for name in ours.world.groups]
            result.restart = max(result.restart, *(gap(a, b) for a, b in both))
            copy_state(ours, raw)
    return result


def copy_state(ours: VmasEnv, raw: Environment) -> None:
    """Give VMAS's simulator the state of ours, shared identities and the random stream included."""
    source, target = StateMap(ours.simulator), StateMap(raw)
    copies: dict[int, Tensor] = {}
    for path, slot in source.tensors.items():
        if path in target.tensors:
            target.tensors[path].write(copies.setdefault(id(slot.value), slot.value.clone()))
    target.write_host(source.host_values())
    stream = ours.world.pool.stream
    Environment.vmas_random_state[:] = stream.generator_states()


def gap(a: Tensor, b: Tensor) -> float:
    """Greatest absolute difference; inf where shapes or the places of nan and inf differ, 0.0 only where equal."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    return float((a - b).nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0


PREAMBLE = """# VMAS scenarios

Which scenarios are there, and do they behave here as in VMAS? The table has every scenario of VMAS {version}.
`env=vmas/NAME` trains on one of them.

Written by `python -m envs.validation.reference > docs/scenarios.md`. It steps each scenario {steps} times with random
actions in {num_envs} environments, by `envs.vmas.env.VmasEnv` and by the unmodified `vmas.Environment`. Both start from
the same state and get the same actions and random numbers (torch {torch}, CPU). The two run on their own. When episodes
end, VMAS's simulator is given the state after our auto-reset.

- **groups**: name (agents × observation size → action size), continuous actions.
- **state**: tensors found in the simulator, and how many of them have an environment axis. The latter are swapped by
  `where(done, fresh, state)` when an episode ends. All of them travel in snapshots.
- **ended**: episodes that ended in the run, each restarted from the pool. The time limit was {episode} steps. The
  environments started at different times (together where something is drawn).
- **drawn**: plain values and tensors that a reset draws once for the whole batch (below).
- **observation**, **reward**, **info**: the greatest absolute difference over all steps, environments and agents. 0
  means bitwise identical.
- **restart**: the same difference between our observation after an auto-reset and the one that VMAS makes of the state
  after it. It shows that the state is complete and belongs together.
- **done**: flags that differ.

| scenario | groups | state | ended | drawn | observation | reward | info | restart | done | note |
|---|---|---|---|---|---|---|---|---|---|---|
"""
AFTERWORD = """
## Where do we differ on purpose?

**Collisions per environment.** `World.collides(a, b)` answers whether a and b are close in *any* environment of the
batch. Inside the physics this is a shortcut only. `navigation` and `give_way`, however, ask it before they compare
distances per environment. So in VMAS a near miss is penalised only if a pair touches somewhere in the batch, and an
environment's reward depends on its neighbours. `VmasEnv` answers "close" to calls from outside of the physics. The
scenario's own comparison then decides for each environment. If a scenario of your own rewards the whole batch on
`world.collides` alone, without a comparison per environment, it should compare distances itself.

**Indexing slips.** The scripted team of `football` picks positions among those sampled for the first environment.
`joint_passage` and `joint_passage_size` end only when the joint is at the goal in all environments.
`envs/vmas/patches.py` lets every environment decide for itself.

**Words behind the wrong number.** With continuous actions VMAS looks for what an agent says behind the first two
numbers of its action. An agent that turns as well (`HolonomicWithRotation`) takes three, and its rotation was read as a
word and refused. Here words are read from behind all numbers that move an agent. No scenario of VMAS's own has such a
talker; yours may.

With the same changes made to VMAS (`repaired=True` in `envs.validation.reference.compare`), these scenarios are bitwise
identical.

**Time limits truncate.** `max_steps` sets `truncated`, never `terminated`. The transition carries the true final
observation (`next_observation`), so that a value function can be bootstrapped there.

**Restarting.** VMAS restarts one environment at a time (`reset_at`). Here all that ended are restarted at once from a
pool of freshly reset states. The pool itself is reset every `pool_every` steps.

**What the whole batch shares.** Some scenarios draw one value for all environments at reset:

- the goal of `mpe/simple_adversary`, `simple_push`, `simple_reference` and `simple_speaker_listener`,
- the masses of `debug/het_mass`,
- the order of passages in `ball_passage`.

VMAS's `reset_at` draws it again (or never: the mpe scenarios) whenever one environment restarts. Here it is drawn with
every new pool. For these scenarios a new pool comes every `max_steps` steps, when all environments start a new episode
together. `VmasEnv.shared_draws` lists what is drawn. An evaluation in one batch would judge a single goal. So its
episodes are played after ten resets, a tenth of them each, and the interval of their mean is that of resets.

**Histories in `road_traffic`.** Past observations lie in ring buffers with one pointer for the whole batch. With
`n_observed_steps` above 1 the first steps after a restart see a history whose order is the pool's.
"""


def row(d: Difference) -> str:
    """One line of the table."""
    numbers = (f"{v:.1e}" if v else "0" for v in (d.observation, d.reward, d.info, d.restart))
    return (
        f"| {d.scenario} | {d.groups} | {d.tensors}, {d.per_environment} | {d.ended} | {d.shared_draws or ''} | "
        f"{' | '.join(numbers)} | {d.done} | {NOTES.get(d.scenario, '')} |"
    )


def main() -> None:
    """Write the document to standard output, and progress to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("scenarios", nargs="*", default=scenario_names(), help="default: all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from importlib.metadata import version

    print(
        PREAMBLE.format(
            version=version("vmas"), steps=args.steps, num_envs=args.num_envs, episode=EPISODE, torch=torch.__version__
        ),
        end="",
    )
    exact, results = 0, []
    for name in args.scenarios:
        began = time.perf_counter()
        result = compare(name, args.num_envs, args.steps)
        results.append(result)
        print(row(result), flush=True)
        print(f"{name}: {result.worst:g} in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        exact += result.worst == 0
    apart = [compare(name, args.num_envs, args.steps, repaired=True) for name in args.scenarios if name in REPAIRED]
    print(
        f"\n{exact} of {len(results)} scenarios are bitwise identical. Greatest difference once environments are "
        "kept apart in VMAS as well: " + ", ".join(f"{d.scenario} {d.worst:g}" for d in apart) + "."
    )
    print(AFTERWORD, end="")


if __name__ == "__main__":
    main()
