"""A policy's own environment: made from its file, in which nothing else is called."""

from pathlib import Path

import pytest

from agents.deploy.c_code import check
from agents.deploy.formats.comparison import recorded
from agents.evaluation.own_env import own_env
from agents.policies.policy import Policy
from marl.core.errors import UserError


def test_it_is_what_the_policy_was_trained_in() -> None:
    env = own_env(Policy.load("zoo/balance"), 3, seed=0)
    assert env.num_envs == 3 and env.scenario == "balance" and env.spec.max_steps == 100


@pytest.mark.parametrize(
    "use", [lambda p: own_env(p, 2, 0), lambda p: recorded(p, 10, 0), lambda p: check.recorded(p, 10)]
)
def test_what_a_file_names_besides_is_not_called(use, tmp_path: Path) -> None:
    policy, mark = Policy.load("zoo/balance"), tmp_path / "called"
    call = {"_target_": "torch.utils.collect_env.run", "command": f"touch {mark}"}
    policy.metadata["env"] = {**policy.metadata["env"], "scenario": call}
    policy.save(tmp_path / "policy.safetensors")
    with pytest.raises(UserError, match="env.scenario"):
        use(Policy.load(tmp_path / "policy.safetensors"))
    assert not mark.exists()


def test_a_policy_that_says_nothing_has_none() -> None:
    policy = Policy.load("zoo/balance")
    policy.metadata["env"] = None
    with pytest.raises(UserError, match="does not say which environment"):
        own_env(policy, 2, seed=0)
