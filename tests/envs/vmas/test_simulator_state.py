"""The simulator's state is found whole: shared tensors once, constants apart, plain values and references too."""

from types import SimpleNamespace

import pytest
import torch

from envs.vmas.env import VmasEnv
from envs.vmas.simulator_state import StateMap, assignments, batch_axis, counts_environments, from_bytes, to_bytes


class Thing:
    """Anything of a user's own."""

    def __init__(self, **attributes) -> None:
        vars(self).update(attributes)


def test_paths_references_and_plain_values():
    shared = torch.zeros(3)
    friend = Thing(pos=torch.ones(3))
    root = Thing(
        a=shared,
        things=[Thing(b=shared, friend=friend), friend],
        table={"x": shared, 5: torch.eye(2)},
        pair=(torch.zeros(1), 2),
        number=3,
        words=["a", (1, 2.5)],
        nothing=None,
        skip=len,
        outside=SimpleNamespace(hidden=torch.zeros(3)),
    )
    state = StateMap(root)
    assert set(state.tensors) == {"a", "things.0.b", "things.1.pos", "table.x", "table.5", "pair.0"}
    assert state.tensors["table.x"].value is state.tensors["things.0.b"].value is shared
    assert state.host_values() == {
        "number": 3,
        "words": {"list": ["a", {"tuple": [1, 2.5]}]},
        "nothing": None,
        "things.0.friend": {"object": "things.1"},
    }


def test_writing_restores_plain_values_and_references():
    one, two = Thing(n=1), Thing(n=2)
    root = Thing(goal=one, world=Thing(_landmarks=[one], _agents=[two]), mass=1.5, order=[1, 2])
    state = StateMap(root)
    saved = from_bytes(to_bytes(state.host_values()))
    root.goal, root.mass, root.order = two, 0.1 + 0.2, [2, 1]
    changed = from_bytes(to_bytes(state.host_values()))
    state.write_host(saved)
    assert root.goal is one and root.mass == 1.5 and root.order == [1, 2]
    state.write_host(changed)
    assert root.goal is two and root.mass == 0.1 + 0.2 and root.order == [2, 1]


def test_assignments_are_noticed_even_of_equal_values():
    inner = Thing(x=1, y=2)
    root = Thing(inner=inner, z=3)
    with assignments(StateMap(root)) as assigned:
        inner.x = 1
        root.z = 4
    inner.y = 5
    assert assigned == {"inner.x", "z"} and type(inner) is Thing and root.z == 4


def test_environment_axis_by_two_sizes():
    assert batch_axis(torch.Size([5, 2]), torch.Size([65, 2]), 5, 65) == 0
    assert batch_axis(torch.Size([4, 5, 5]), torch.Size([4, 65, 5]), 5, 65) == 1
    assert batch_axis(torch.Size([5, 5]), torch.Size([5, 5]), 5, 65) is None
    for mine, other in (([10, 2], [130, 2]), ([5, 5], [65, 65]), ([5], [65, 1])):
        with pytest.raises(ValueError, match="differ"):
            batch_axis(torch.Size(mine), torch.Size(other), 5, 65)


def test_numbers_of_environments_are_distinguished_from_state():
    assert counts_environments(torch.arange(9)[:, None] * 4 + 1, 0)
    assert not counts_environments(torch.arange(9.0), 0)
    assert not counts_environments(torch.zeros(9, dtype=torch.int64), 0)
    assert not counts_environments(torch.tensor([0, 1, 2, 3, 5, 6]), 0)


@pytest.mark.parametrize("scenario, count", [("balance", 50), ("navigation", 85), ("sampling", 56)])
def test_no_tensor_escapes(scenario, count):
    """The numbers that a walk by hand found in VMAS 1.5.2; sampling's include those in torch.distributions."""
    kwargs = {"grid_spacing": 0.25} if scenario == "sampling" else {}
    env = VmasEnv(scenario, num_envs=3, pool_size=4, scenario_kwargs=kwargs, fast="off")
    assert len(env.world.pool.main.tensors) == count
    assert any("gaussians.0" in path for path in env.world.pool.main.tensors) == (scenario == "sampling")
