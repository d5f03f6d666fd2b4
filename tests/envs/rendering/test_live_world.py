"""The step as JavaScript against the simulator: from the same states, with the same actions and random numbers."""

import re

import numpy as np
import pytest
import torch

from envs.base import EnvError
from envs.kernel.backends.cpu_runtime import _draw
from envs.kernel.backends.javascript import PRELUDE
from envs.kernel.tracing.trace import TRACED
from envs.kernel.verification.verify import eager_step
from envs.rendering.live_world import LiveProgram, program, single, world

STEPS = 8  # of TRACED = 127 environments: 1,016 states


def compare(javascript, live: LiveProgram, steps: int = STEPS) -> float:
    """The greatest difference, relative to numbers above 1, of all outputs and the next state; dones must be equal."""
    template, noise = live.template, live.lowered.noise
    starts, actions, noises, expected, tables = [], [], [], [], []
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        if i % 3 == 1:  # squeeze together, so that bodies touch
            for agent in template.simulator.world.agents:
                agent.state.pos.mul_(0.3)
        starts.append(live.fields())
        tables.append([t.clone() for t in live.tables(template)])
        action = template.random_action(generator)
        actions.append(torch.cat([action[name].flatten(1) for name in template.spec.groups], 1).float())
        with template.pool.stream:
            before = torch.get_rng_state()
            drawn = [_draw(*draw, TRACED, "cpu", None).reshape(TRACED, -1).float() for draw in noise]
            torch.set_rng_state(before)
            eager = eager_step(template, action, live.lowered.unrolled)
        noises.append(torch.cat(drawn, 1) if drawn else torch.zeros(TRACED, 1))
        outputs = [eager[key].float() for key, _ in live.places.outputs]
        dones = [eager[key].float()[:, None] for key in (("terminated",), ("truncated",))]
        expected.append(torch.cat([*outputs, *dones, live.fields()], 1))
    starts, actions, noises, expected = (torch.cat(x).numpy() for x in (starts, actions, noises, expected))
    sizes = [[name, group.n_agents * group.action.size] for name, group in template.spec.groups.items()]
    flat = {f"table{i}": torch.cat([t[i] for t in tables]).numpy() for i in range(len(live.places.tables))}
    ours = np.array(
        javascript(
            f"""
        const program = {live.source};
        const sizes = {sizes}, given_tables = [{", ".join(flat)}], out = [];
        const S = program.fields, Z = {noises.shape[1]}, A = {actions.shape[1]}, o = new Float32Array(program.rows);
        for (let i = 0; i * S < starts.length; i++) {{
          const s = starts.slice(i * S, i * S + S), a = {{}};
          let k = i * A;
          for (const [group, n] of sizes) {{ a[program.actions[group].key] = actions.slice(k, k + n); k += n; }}
          const T = program.tables.map(([n], j) => given_tables[j].slice(i * n, i * n + n));
          program.step(s, a, noises.slice(i * Z, i * Z + Z), T, o);
          out.push([...o, ...s].map(String));
        }}
        return out;""",
            starts=starts,
            actions=actions,
            noises=noises,
            **flat,
        )
    ).astype(np.float64)
    assert ours.shape == expected.shape and len(ours) >= 1000
    done = slice(ours.shape[1] - starts.shape[1] - 2, ours.shape[1] - starts.shape[1])
    assert (ours[:, done] == expected[:, done]).all()
    return float((np.abs(ours - expected) / np.maximum(1.0, np.abs(expected))).max())


@pytest.mark.parametrize("scenario", ["balance", "navigation", "simple_spread", "flocking"])
def test_the_javascript_step_equals_the_simulators(javascript, scenario: str) -> None:
    live = program({"scenario": scenario, "max_steps": 20})
    assert compare(javascript, live) <= 1e-4


def test_discrete_actions(javascript) -> None:
    live = program({"scenario": "simple_spread", "max_steps": 20, "continuous_actions": False})
    assert compare(javascript, live) <= 1e-4


def test_hybrid_actions(javascript) -> None:
    live = program({"scenario": "tests.envs.vmas.test_words.Talkers", "max_steps": 20, "words": "discrete"})
    assert compare(javascript, live) <= 1e-4


def test_functions_of_the_prelude_are_torchs(javascript) -> None:
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4, -2.6], np.float32)
    helpers = re.sub('"use strict";', "", PRELUDE)
    results = javascript(
        f"{helpers}\nreturn [Array.from(halves, round_), min_(NaN, 1), max_(1, NaN), min_(2, 1)]", halves=halves
    )
    assert results[0] == torch.from_numpy(halves).round().tolist()
    assert results[1:] == [None, None, 1]  # JSON has no nan


def test_starts_are_the_simulators_own_resets() -> None:
    settings = {"scenario": "navigation", "max_steps": 20}
    data = world(program(settings), settings, 3)
    env = single(settings, num_envs=1, pool_size=2)
    observation, state = env.reset(2)
    assert data["starts"][2]["o"]["agents"] == pytest.approx(observation["agents"][0].flatten().tolist(), abs=1e-7)
    assert data["starts"][2]["state"] == pytest.approx(state[0].tolist(), abs=1e-7)
    assert len(data["entities"]) == 8 and all(e["look"] and None not in e["pos"] for e in data["entities"])


def test_random_draws_are_inputs(javascript) -> None:
    live = program({"scenario": "debug/asym_joint", "max_steps": 20})  # noise on observations; stiff joints
    assert live.places.noise > 0
    assert compare(javascript, live) <= 5e-4


def test_scenarios_without_a_program_say_why() -> None:
    with pytest.raises(EnvError, match="once for the whole batch; serve=true") as error:
        program({"scenario": "simple_push", "max_steps": 20})
    assert "\n" not in str(error.value)
