"""The policy in JavaScript gives the actions and values that torch gives, for every head, critic and activation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.deploy.web_weights import plain
from agents.policies.policy import Policy
from envs.rendering.html_page import web
from envs.spec import ActionSpec, EnvSpec, GroupSpec, describe
from marl.core.errors import UserError
from marl.networks import ACTIVATIONS

ALGO = {
    "critic": "concat",
    "share_actor": "shared",
    "share_critic": "shared",
    "policy": "auto",
    "std": "state",
    "init_std": 1.0,
    "min_std": 0.01,
}
BOUNDS = torch.tensor([[-1.0, -2.0], [-0.5, -1.0]]), torch.tensor([[1.0, 2.0], [0.5, 3.0]])
CONTINUOUS = ActionSpec("continuous", *BOUNDS)
CASES = [({}, {"activation": name}, CONTINUOUS) for name in ACTIVATIONS] + [
    ({"critic": "local", "share_actor": "separate", "share_critic": "separate"}, {"layer_norm": True}, CONTINUOUS),
    ({"critic": "agent_state", "policy": "clipped_normal", "std": "independent"}, {"hidden": []}, CONTINUOUS),
    ({"critic": "state"}, {"dropout": 0.5}, ActionSpec("discrete", nvec=(9,))),
    ({"critic": "concat", "share_critic": "separate"}, {}, ActionSpec("multi_discrete", nvec=(3, 3, 4))),
    ({"critic": "concat", "value_norm": "running", "normalize_observation": True}, {}, CONTINUOUS),
    ({"critic": "local", "agent_ids": True, "normalize_observation": True}, {}, CONTINUOUS),
    ({"critic": "agent_state", "agent_ids": True, "value_norm": "popart"}, {}, CONTINUOUS),
    ({"critic": "agent_state", "normalize_observation": True}, {}, CONTINUOUS),
    ({"critic": "state", "normalize_observation": True}, {}, CONTINUOUS),
    ({}, {}, ActionSpec("hybrid", *BOUNDS, nvec=(3, 5))),
    ({"policy": "clipped_normal", "std": "independent"}, {}, ActionSpec("hybrid", *BOUNDS, nvec=(4,))),
    ({}, {}, ActionSpec("continuous", BOUNDS[0], torch.full((2, 2), torch.inf))),
]


EXPLORING = [("epsilon_greedy", ActionSpec("discrete", nvec=(9,))), ("deterministic", CONTINUOUS)]


def make(algo: dict, network: dict, action: ActionSpec, critics: bool = True) -> Policy:
    spec = EnvSpec({"agents": GroupSpec("agents", ("a", "b"), 5, action)}, state_size=4, max_steps=10)
    torch.manual_seed(0)
    policy = Policy(
        {
            "spec": describe(spec),
            "algo": {**ALGO, **algo},
            "critics": critics,
            "env": None,
            "run": None,
            "network": {"_target_": "marl.networks.MLP", "hidden": [16, 8], **network},
        }
    )
    x = 3 * torch.randn(100, 2, 5) + torch.arange(5.0)
    policy.actors["agents"].inputs.learn(x)  # statistics, where there are any, that are not those of the beginning
    if not critics:
        return policy
    policy.critics["agents"].learn_inputs(x, torch.randn(100, 4) - 1)
    policy.critics["agents"].learn_scale(5 * torch.randn(100, 2) + 3, torch.zeros(100, 2))
    return policy


@pytest.mark.parametrize(("algo", "network", "action"), CASES)
def test_actions_and_values_are_torchs(javascript, algo: dict, network: dict, action: ActionSpec) -> None:
    policy = make(algo, network, action)
    observation, state = 2 * torch.randn(1000, 2, 5), torch.randn(1000, 4)
    ours = javascript(
        f"""{web("policy.js")}
        const policy = makePolicy({json.dumps(plain(policy))}), out = [];
        for (let i = 0; i < 1000; i++) {{
          const seen = {{ agents: observation.subarray(10 * i, 10 * i + 10) }};
          const actions = policy.act(seen), values = policy.value(seen, state.subarray(4 * i, 4 * i + 4));
          out.push([[...actions.agents], [...values.agents]]);
        }}
        return out;""",
        observation=observation.numpy(),
        state=state.numpy(),
    )
    actions = np.array([row[0] for row in ours]).reshape(1000, 2, -1)
    values = np.array([row[1] for row in ours])
    expected = policy.act({"agents": observation})["agents"].numpy()
    assert np.abs(actions - expected).max() <= 1e-5
    assert np.abs(values - policy.values({"agents": observation}, state)["agents"].numpy()).max() <= 1e-5


@pytest.mark.parametrize(("head", "action"), EXPLORING)
def test_policies_without_a_critic_act_and_value_nothing(javascript, head: str, action: ActionSpec) -> None:
    policy = make({"policy": head, "normalize_observation": True}, {}, action, critics=False)
    observation = 2 * torch.randn(100, 2, 5)
    ours = javascript(
        f"""{web("policy.js")}
        const policy = makePolicy({json.dumps(plain(policy))}), out = [];
        for (let i = 0; i < 100; i++) {{
          const seen = {{ agents: observation.subarray(10 * i, 10 * i + 10) }};
          out.push([[...policy.act(seen).agents], Object.keys(policy.value(seen, null))]);
        }}
        return out;""",
        observation=observation.numpy(),
    )
    actions = torch.tensor([row[0] for row in ours], dtype=torch.float32).view(100, 2, -1)
    torch.testing.assert_close(actions, policy.act({"agents": observation})["agents"].float(), rtol=0, atol=1e-5)
    assert all(row[1] == [] for row in ours)


def test_networks_that_a_page_cannot_run_are_named() -> None:
    policy = make({}, {}, CONTINUOUS)
    policy.actors["agents"].network.networks[0] = torch.nn.Bilinear(1, 1, 1)
    with pytest.raises(UserError, match="Bilinear can't run in a page; .*serve=true"):
        plain(policy)


def test_the_files_of_the_pages_say_what_they_are_for() -> None:
    for path in (Path(__file__).resolve().parents[3] / "envs" / "rendering" / "web").iterdir():
        first = path.read_text().splitlines()[0]
        assert first.startswith(("// ", "/* ", "<!doctype")), path
