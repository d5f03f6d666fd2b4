"""Actors and critics that read the team: equivariance, another number of agents, learning, export, refusals."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.deploy.export import export
from agents.models.actor_critic import build_networks
from agents.models.architecture import Architecture
from agents.policies.policy import Policy
from agents.tasks.on_policy import OnPolicy
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.networks import MLP, Attention, DeepSets, Graph
from marl.optim.optimizer_config import OptimizerConfig
from tests.agents.secrets_env import Secrets
from tests.fixtures.runs import make_run

NETWORKS = [
    partial(DeepSets, encoder=[16], hidden=[16]),
    partial(Attention, width=16, heads=2),
    partial(Graph, width=16),
]
IDS = ["deep_sets", "attention", "graph"]


def spec(agents: int) -> EnvSpec:
    low = -torch.ones(agents, 2)
    group = GroupSpec("agents", tuple(f"a_{i}" for i in range(agents)), 5, ActionSpec("continuous", low, -low))
    return EnvSpec({"agents": group}, 4, 10)


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
@pytest.mark.parametrize("kind", ["concat", "agent_state"])
def test_actors_and_critics_follow_the_agents_order_and_number(network, kind):
    torch.manual_seed(0)
    algo = Architecture(critic=kind, normalize_observation=True, value_norm="popart")
    (actor,), (critic,) = (networks.values() for networks in build_networks(algo, spec(4), network))
    more_actors, more_critics = build_networks(algo, spec(6), network)
    more_actors["agents"].load_state_dict(actor.state_dict())
    more_critics["agents"].load_state_dict(critic.state_dict())
    x, state = torch.randn(7, 4, 5), torch.randn(7, 4)
    assert critic(x, state).shape == (7, 4)
    order = torch.randperm(4)
    torch.testing.assert_close(actor(x[:, order]), actor(x)[:, order], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(critic(x[:, order], state), critic(x, state)[:, order], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(actor(x)[:, 0], actor(x + torch.eye(4)[1].view(4, 1))[:, 0])  # it hears the second
    assert more_actors["agents"](torch.randn(7, 6, 5)).shape == (7, 6, 4)
    assert more_critics["agents"](torch.randn(7, 6, 5), state).shape == (7, 6)


def test_ids_distinguish_the_agents_of_a_team():
    actors, critics = build_networks(Architecture(agent_ids=True), spec(3), NETWORKS[0])
    x = torch.randn(1, 1, 5).expand(1, 3, 5)
    for out in (actors["agents"](x), critics["agents"](x).unsqueeze(-1)):
        assert not torch.allclose(out[:, 0], out[:, 1])


@pytest.mark.parametrize("network", [*NETWORKS, partial(MLP, hidden=[16])], ids=[*IDS, "mlp"])
def test_they_learn_what_no_agent_knows_alone(network, tmp_path):
    torch.manual_seed(1)
    algo = PPO(rollout_steps=20, minibatch_size=160, epochs=4, gamma=0.0, normalize_advantage="batch")
    task = OnPolicy(partial(Secrets, num_envs=32), algo, network, frames=25_600, seed=1, eval_episodes=200)
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=0)
    trainer.fit(task, tmp_path, optimizer=OptimizerConfig(lr=5e-3))
    share = task.evaluate()["episode_return"] / 4
    assert share < 0.6 if network.func is MLP else share > 0.95


def test_onnx_runs_a_team(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run", "network=graph", "network.radius=0.7", "network@critic_network=attention")
    policy = Policy.load(run)
    session = onnxruntime.InferenceSession(export(policy, "onnx", tmp_path / "export"))
    x = torch.randn(5, 4, policy.spec.groups["agents"].observation_size)
    out = session.run(None, {"agents_observation": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(out), policy.act({"agents": x})["agents"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("algo", "sentence"),
    [
        ({"critic": "local"}, "algo.critic=local: its network sees one agent only, and this one reads the whole team"),
        ({"critic": "state"}, "algo.critic=state: its network sees the global state only"),
        ({"share_actor": "separate"}, "network=DeepSets: reads the whole team, one network for all agents"),
        ({"share_critic": "separate"}, "use algo.share_actor=shared and algo.share_critic=shared"),
    ],
)
def test_where_a_team_cannot_be_read(algo, sentence):
    with pytest.raises(UserError, match=sentence):
        build_networks(Architecture(**algo), spec(3), NETWORKS[0])
