"""Saved policies whose agents come and go: what they remember, and what a served world shows."""

import torch

from agents.deploy.export import export
from agents.deploy.live_session import Session
from agents.policies.policy import Policy, forget
from envs.spec import describe
from envs.vmas.env import VmasEnv

G = "agents"
SETTINGS = {"scenario": "tests.envs.vmas.ends_cases.Visit", "max_steps": 17, "continuous_actions": False}


def policy():
    """An untrained policy with a memory, and how its environment is built."""
    env = VmasEnv(**SETTINGS, num_envs=2, fast="off")
    torch.manual_seed(0)
    return Policy({
        "spec": describe(env.spec) | {"state_size": 36},
        "algo": {"critic": "local"},
        "network": {"_target_": "marl.networks.GRU", "hidden": 5},
        "env": {"_target_": "envs.vmas.env.VmasEnv", **SETTINGS},
    })  # fmt: skip


def test_a_served_world_knows_who_is_there():
    """Slot 0 is away from step 3 to 5 and comes back without a memory; what is forbidden is never wanted."""
    session = Session(policy(), SETTINGS)
    scenario = session.simulator.scenario
    for t in range(12):
        alive = session.masks[G]["alive"][0].tolist()
        assert alive[0] == (t % 6 < 3) or scenario.done()[0, 0]
        mask = torch.stack([scenario.action_mask(agent) for agent in session.simulator.agents], 1)
        assert torch.equal(session.masks[G]["action"], mask)
        assert mask.gather(-1, session.wanted[G])[0, alive].all()
        dead = [i for i in range(3) if not alive[i]]
        assert not session.observation[G][0, dead].any() and not session.after[0][G][0, dead].any()
        assert not session.after[1][G][0, dead].any() and session.after[0][G][0, alive].any(-1).all()
        session.step()
        assert not session.reward[G][0, dead].any() and session.reward[G][0, alive].all()


def test_a_policy_remembers_nothing_of_the_dead(tmp_path):
    policy().save(tmp_path / "policy.safetensors")
    saved = Policy.load(tmp_path / "policy.safetensors")
    assert saved.spec.groups[G].ends and saved.actors[G].ends
    seen, masks = torch.randn(4, 3, 4), {G: {"alive": torch.tensor([[True, False, True]]).expand(4, 3)}}
    _, after = saved.act({G: seen}, masks=masks, memory=saved.memory(4))
    assert not after[G][:, 1].any() and after[G][:, ::2].any(-1).all()
    ended = torch.zeros(4, 3, dtype=torch.bool)
    ended[2, 0] = True
    after = forget(after, {G: ended})
    assert not after[G][2, 0].any() and after[G][1, 0].any()


def test_exported_policies_take_masks_and_keep_to_them(tmp_path):
    saved = policy()
    file = export(saved, "torch_export", tmp_path)
    program = torch.export.load(file).module()
    seen, memory = torch.randn(6, 3, 4), torch.randn(6, 3, 5)
    mask = torch.rand(6, 3, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[..., 0] |= ~mask.any(-1)
    action, after = program(seen, memory, mask)
    expected, remembered = saved.act({G: seen}, masks={G: {"action": mask}}, memory={G: memory})
    assert torch.equal(action, expected[G]) and mask.gather(-1, action).all()
    torch.testing.assert_close(after, remembered[G])
    card = (tmp_path / "README.md").read_text()
    assert "| `agents_action_mask` | bool [B, 3, 9] |" in card and "while it is dead" in card
