"""Groups of agents with hybrid actions: padded, clamped, masked and handed out."""

from types import SimpleNamespace

import torch

from envs.grouping import Group, assign
from envs.spec import ActionSpec

WIDE = ActionSpec("hybrid", torch.tensor([[-1.0, -2.0]]), torch.tensor([[1.0, 2.0]]), (3,))
NARROW = ActionSpec("hybrid", torch.tensor([[0.0]]), torch.tensor([[5.0]]), (2, 4))
AGENTS = [SimpleNamespace(name="one"), SimpleNamespace(name="two")]


def padded() -> Group:
    members = assign(AGENTS, [3, 3], [WIDE, NARROW], "pad", {"team": ["one", "two"]})
    return Group("team", members["team"], AGENTS, [3, 3], [WIDE, NARROW], [{}, {}])


def test_unlike_ranges_are_split():
    assert assign(AGENTS, [3, 3], [WIDE, NARROW], "split", {"team": ["one", "two"]}) == {"team_0": [0], "team_1": [1]}
    more = ActionSpec("hybrid", WIDE.low, WIDE.high, (4,))
    assert len(assign(AGENTS, [3, 3], [WIDE, more], "split", {"team": ["one", "two"]})) == 2


def test_numbers_are_padded_before_choices():
    action = padded().spec.action
    assert (action.kind, action.n_continuous, action.nvec, action.size) == ("hybrid", 2, (3, 4), 4)
    assert action.low.tolist() == [[-1, -2], [0, -1]] and action.high.tolist() == [[1, 2], [5, 1]]
    assert action.mask.tolist() == [[True, True, True, False], [True, False, True, True]]


def test_each_agent_gets_its_own_numbers_then_its_own_choices():
    handed = [None, None]
    row = torch.tensor([[9.0, -9.0, 2.0, 1.0], [-3.0, 7.0, 2.0, 3.0]])
    padded().split_actions(row.expand(5, 2, 4), handed)
    assert handed[0][0].tolist() == [1.0, -2.0, 2.0]  # clamped to its range, the choice as it is
    assert handed[1][0].tolist() == [0.0, 0.0, 3.0]  # of the first two choices 2 wraps around to 0


def test_masks_are_of_the_choices_alone():
    first = torch.tensor([[True, False, True]])
    second = torch.tensor([[False, True, True, True, False, False]])
    mask = padded().mask([first, second])
    assert mask.shape == (1, 2, 7)
    assert mask[0, 0].tolist() == [True, False, True, True, True, True, True]
    assert mask[0, 1].tolist() == [False, True, False, True, True, False, False]
