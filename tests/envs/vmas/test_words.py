"""What agents say reaches VMAS as it was meant: behind all numbers that move them, as numbers or as a choice."""

import pytest
import torch
from vmas.simulator.core import Agent, World
from vmas.simulator.dynamics.forward import Forward
from vmas.simulator.dynamics.holonomic_with_rot import HolonomicWithRotation
from vmas.simulator.dynamics.static import Static
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

from envs.base import ActionError, EnvError
from envs.validation.reference import compare
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import find_scenario

WORDS = 4
HERE = "tests.envs.vmas.test_words.Talkers"


class Talkers(BaseScenario):
    """Agents that talk: one takes three numbers to move, one takes one, one none; and one that only listens."""

    def make_world(self, batch_dim, device, **kwargs):
        self.noise = kwargs.pop("c_noise", 0.0)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device, dim_c=WORDS)
        makers = {"turning": HolonomicWithRotation, "forward": Forward, "rooted": Static}
        for name, dynamics in makers.items():
            world.add_agent(Agent(name, silent=False, dynamics=dynamics(), rotatable=True, u_multiplier=0.5,
                                  c_noise=self.noise))
        world.add_agent(Agent("listener", u_range=2.0))
        return world

    def reset_world_at(self, env_index=None):
        shape = (1, 2) if env_index is not None else (self.world.batch_dim, 2)
        for agent in self.world.agents:
            agent.set_pos(torch.zeros(shape, device=self.world.device).uniform_(-1, 1), batch_index=env_index)

    def observation(self, agent):
        heard = [other.state.c for other in self.world.agents if not other.silent]
        return torch.cat([agent.state.pos, agent.state.rot, agent.state.vel, *heard], -1)

    def reward(self, agent):
        return sum(other.state.c[:, 1] for other in self.world.agents if not other.silent) - agent.state.pos[:, 0]


def make(fast: str = "off", **settings) -> VmasEnv:
    return VmasEnv(HERE, num_envs=3, max_steps=20, fast=fast, **settings)


def acted(env: VmasEnv, action: dict) -> dict[str, tuple[list, list | None]]:
    """{agent: (u, c)} in the first environment, as VMAS took them."""
    env.step(action)
    each = {agent.name: agent.action for agent in env.simulator.agents}
    return {name: (a.u[0].tolist(), None if a.c is None else a.c[0].tolist()) for name, a in each.items()}


def rows(*numbers: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype).expand(3, 1, len(numbers)).contiguous()


def test_vmas_itself_takes_the_rotation_for_a_word():
    raw = Environment(find_scenario(HERE)(), num_envs=3, terminated_truncated=True)
    action = [torch.zeros(3, n) for n in (3 + WORDS, 1 + WORDS, WORDS, 2)]
    action[0][:, 2] = -1.0  # turn
    with pytest.raises(AssertionError, match="Comm actions are out of range"):
        raw.step(action)


def test_continuous_words_come_after_all_that_moves_an_agent():
    taken = acted(make(), {
        "turning": rows(0.5, -0.25, -1.0, 0.1, 0.2, 0.3, 0.4), "forward": rows(-0.5, 0.5, 0.6, 0.7, 0.8),
        "rooted": rows(0.9, 0.0, 1.0, 0.25), "listener": rows(1.5, -2.0)})
    assert taken["turning"] == (pytest.approx([0.25, -0.125, -0.5]), pytest.approx([0.1, 0.2, 0.3, 0.4]))
    assert taken["forward"] == (pytest.approx([-0.25]), pytest.approx([0.5, 0.6, 0.7, 0.8]))
    assert taken["rooted"] == ([], pytest.approx([0.9, 0.0, 1.0, 0.25]))
    assert taken["listener"] == (pytest.approx([1.5, -2.0]), None)


def test_multi_discrete_words_come_after_all_that_moves_an_agent():
    env = make(continuous_actions=False, multi_discrete=True)
    assert {n: g.action.nvec for n, g in env.spec.groups.items()} == {
        "turning": (3, 3, 3, WORDS), "forward": (3, WORDS), "rooted": (WORDS,), "listener": (3, 3)}
    whole = {"dtype": torch.int64}
    taken = acted(env, {"turning": rows(1, 2, 0, 3, **whole), "forward": rows(2, 1, **whole),
                        "rooted": rows(2, **whole), "listener": rows(0, 1, **whole)})
    # of three choices 0 stays, 1 is the least, 2 the most
    assert taken["turning"] == (pytest.approx([-0.5, 0.5, 0.0]), [0, 0, 0, 1])
    assert taken["forward"] == (pytest.approx([0.5]), [0, 1, 0, 0])
    assert taken["rooted"] == ([], [0, 0, 1, 0]) and taken["listener"] == (pytest.approx([0.0, -2.0]), None)


def test_discrete_words_come_after_all_that_moves_an_agent():
    env = make(continuous_actions=False)
    assert [g.action.nvec for g in env.spec.groups.values()] == [(27 * WORDS,), (3 * WORDS,), (WORDS,), (9,)]
    whole = {"dtype": torch.int64}
    # turning: choices (1, 2, 0) and word 3: ((1 * 3 + 2) * 3 + 0) * 4 + 3 = 63
    taken = acted(env, {"turning": rows(63, **whole), "forward": rows(2 * WORDS + 1, **whole),
                        "rooted": rows(2, **whole), "listener": rows(1, **whole)})
    assert taken["turning"] == (pytest.approx([-0.5, 0.5, 0.0]), [0, 0, 0, 1])
    assert taken["forward"] == (pytest.approx([0.5]), [0, 1, 0, 0]) and taken["rooted"] == ([], [0, 0, 1, 0])


def test_a_chosen_word_is_heard_as_one_hot():
    env = make(words="discrete")
    kinds = {n: (g.action.kind, g.action.n_continuous, g.action.nvec) for n, g in env.spec.groups.items()}
    assert kinds == {"turning": ("hybrid", 3, (WORDS,)), "forward": ("hybrid", 1, (WORDS,)),
                     "rooted": ("discrete", 0, (WORDS,)), "listener": ("continuous", 2, ())}
    taken = acted(env, {"turning": rows(0.5, -0.25, -7.0, 3), "forward": rows(-0.5, 0),
                        "rooted": rows(2, dtype=torch.int64), "listener": rows(1.5, -2.0)})
    assert taken["turning"] == (pytest.approx([0.25, -0.125, -0.5]), [0, 0, 0, 1])  # -7 is clamped to -1
    assert taken["forward"] == (pytest.approx([-0.25]), [1, 0, 0, 0])
    assert taken["rooted"] == ([], [0, 0, 1, 0]) and taken["listener"] == (pytest.approx([1.5, -2.0]), None)


@pytest.mark.parametrize("fast", ["off", "kernel"])
@pytest.mark.parametrize("word", [float(WORDS), -1.0, 1.5, float("nan")])
def test_what_is_no_word_is_refused(word: float, fast: str):
    env = make(fast, words="discrete")
    action = env.random_action(torch.Generator().manual_seed(0))
    action["turning"][1, 0, 3] = word
    with pytest.raises(ActionError, match="the simulator refused the action"):
        env.step(action)


@pytest.mark.parametrize("settings", [{}, {"words": "discrete"}, {"continuous_actions": False},
                                      {"continuous_actions": False, "multi_discrete": True}])
def test_the_kernel_gives_what_the_simulator_gives(settings: dict):
    kernel, eager = make("kernel", **settings), make("off", **settings)
    assert kernel.path == "kernel"
    for name, value in kernel.reset(1)[0].items():
        assert torch.equal(value, eager.reset(1)[0][name])
    kernel.reset(1), eager.reset(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(45):
        action = kernel.random_action(generator)
        ours, theirs = kernel.step(action), eager.step(action)
        for name in ours.reward:
            torch.testing.assert_close(ours.observation[name], theirs.observation[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours.reward[name], theirs.reward[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.done, theirs.done)


def test_with_the_same_repair_vmas_is_bitwise_the_same():
    assert compare(HERE, repaired=True).worst == 0.0


def test_noise_on_words_is_kept():
    env = make(words="discrete", scenario_kwargs={"c_noise": 0.1})
    off = []
    for _ in range(15):  # fewer than an episode has, after which what was said is forgotten
        action = env.random_action()
        said = torch.eye(WORDS)[int(action["turning"][0, 0, 3])]
        off.append(torch.tensor(acted(env, action)["turning"][1]) - said)
    assert 0.07 < torch.stack(off).std() < 0.13


@pytest.mark.parametrize(("scenario", "settings", "sentence"), [
    ("balance", {}, "env.words=discrete: no agent of env.scenario='balance' talks; write env.words=continuous."),
    ("simple_reference", {"continuous_actions": False}, "env.words=discrete needs env.continuous_actions=true"),
    ("simple_speaker_listener", {"heterogeneous": "pad", "groups": {"team": ["speaker", "listener"]}},
     "actions of group 'team' are of unlike kinds .hybrid of speaker_0 and continuous of listener_0."),
])
def test_what_does_not_fit_is_said(scenario: str, settings: dict, sentence: str):
    with pytest.raises(EnvError, match=sentence):
        VmasEnv(scenario, num_envs=2, words="discrete", fast="off", **settings)


def test_the_words_are_kept_on_resume():
    assert VmasEnv.keeps_on_resume("words")
