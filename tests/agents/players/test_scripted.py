"""Scripted players: what one needs that is not there, and names that there are none of."""

import sys

import pytest
import torch

from agents.players import scripted
from envs import VmasEnv
from marl.core.errors import UserError


def test_vmas_own_policy_may_need_a_package(monkeypatch):
    """navigation's imports cvxpy when it first acts."""
    env = VmasEnv("navigation", num_envs=2, fast="off")
    player = scripted.make("heuristic", env, "agents")
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(UserError, match="heuristic: navigation's own policy needs cvxpy: install it"):
        player(env.reset(0)[0]["agents"], torch.Generator())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("randm", r"groups\.agents\.policy: no opponent 'randm' \(there are random, still, simple_tag, heuristic"),
        ("no.where", r"groups\.agents\.policy=no\.where: no module 'no'"),
        ("torch.nn.ReLU", r"groups\.agents\.policy=torch\.nn\.ReLU: must be a function or class of your own"),
    ],
)
def test_a_name_that_there_is_none_of_is_refused_by_its_key(name: str, words: str) -> None:
    env = VmasEnv("navigation", num_envs=2, fast="off")
    with pytest.raises(UserError, match=words):
        scripted.make(name, env, "agents", "groups.agents.policy")
