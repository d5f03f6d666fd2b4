"""Groups with settings of their own: one algorithm for each within a family, two families never."""

import pytest
import torch

from agents.policies.policy import Policy
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from tests.fixtures.runs import TINY, make_run

TAG = ["env=vmas/mpe/simple_tag", *TINY, "algo.buffer_frames=200", "algo.updates=3"]
DISCRETE = "env.continuous_actions=false"


def test_qmix_plays_against_iql(tmp_path):
    run = make_run(tmp_path / "run", "algo=qmix", *TAG, DISCRETE, "groups.agent.algo.mixer=none")
    weights = checkpoint_file.load(run / "checkpoints" / "last.pt")["loss"]
    assert {key.split(".")[1] for key in weights if key.startswith("mixers.")} == {"adversary"}
    policy = Policy.load(run)
    seen = {name: torch.zeros(2, g.n_agents, g.observation_size) for name, g in policy.spec.groups.items()}
    assert {name: tuple(action.shape) for name, action in policy.act(seen).items()} == {
        "adversary": (2, 3, 1),
        "agent": (2, 1, 1),
    }


def test_maddpg_plays_against_iddpg_and_both_learn(tmp_path):
    task = build.build_task(compose.check(compose.compose(["algo=maddpg", *TAG, "groups.adversary.algo.critic=local"])))
    sizes = {name: critic.critics[0].network for name, critic in task.loss.q_critics.items()}
    group = task.spec.groups["adversary"]
    first = next(m for m in sizes["adversary"].modules() if isinstance(m, torch.nn.Linear))
    assert first.in_features == group.observation_size + group.action.size  # its own alone
    task.collect(0)
    task.loss(next(iter(task.batches(0))))["loss"].backward()
    for module in (*task.loss.actors.values(), *task.loss.q_critics.values()):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("groups.agent.algo=ippo", "groups.agent.algo=ippo: all groups learn by one algorithm"),
        ("groups.agent.algo.clip=0.1", "unknown key 'groups.agent.algo.clip'"),
        ("groups.agent.algo.updates=3", "groups.agent.algo.updates: all groups share one loop"),
        ("groups.agent.algo.error=huber", "groups.agent.algo.error: all groups share one loop"),
    ],
)
def test_two_families_are_refused_in_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        build.build_task(compose.check(compose.compose(["algo=masac", *TAG, change])))
