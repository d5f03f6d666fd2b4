"""Which infos are kept, how each is reduced, and the room that a rollout has for them."""

import pytest
import torch

from envs.infos import DEFAULT, InfoBuffers, InfoRules
from marl.core.errors import UserError


def test_the_first_pattern_decides_and_the_star_is_asked_last():
    rules = InfoRules.of({"*": ["mean", "end"], "success*": ["end"], "reward.*": [], "reward.all": ["sum"]})
    assert rules.kinds("success_rate") == ("end",) and rules.kinds("height") == ("mean", "end")
    assert rules.kinds("reward.all") == () and not rules.wants("reward.x") and rules
    assert InfoRules.of(DEFAULT).kinds("anything") == ("mean", "end")


def test_nothing_may_be_kept():
    for rules in (None, {}, {"*": []}):
        assert not InfoRules.of(rules) and not InfoRules.of(rules).wants("x")


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match="task.info: 'x' asks for 'median'; mean, end, sum, min, max are allowed"):
        InfoRules.of({"x": ["median"]})


def test_what_was_not_told_is_nan_and_what_nobody_wants_is_left_out():
    info = InfoBuffers(InfoRules.of({"a*": ["end"]}), 3, 2, {"agents": 2}, "cpu")
    info.write(0, {"agents": {"b": torch.ones(2, 2)}})
    assert info.tensors == {"agents": {}}
    whole = torch.tensor([[1, 2], [3, 4]])
    info.write(1, {"agents": {"a": whole, "ab": whole.bool(), "alone": torch.ones(3)}})
    info.write(2, {"agents": {"ab": torch.stack([whole, whole + 2], -1)}})
    assert set(info.tensors["agents"]) == {"a", "ab"}
    assert torch.equal(info.value("agents", "a")[1], whole.float()) and info.value("agents", "a")[[0, 2]].isnan().all()
    assert torch.equal(info.value("agents", "ab")[1:], torch.stack([torch.ones(2, 2), whole + 1.0]))
    info.write(1, {})
    assert info.value("agents", "a").isnan().all()


def test_further_dimensions_are_averaged():
    info = InfoBuffers(InfoRules.of(DEFAULT), 2, 2, {"agents": 1}, "cpu")
    info.buffer("agents", "pair", (2,)).copy_(torch.tensor([[[[1.0, 3]], [[5, torch.nan]]], [[[0, 0]], [[2, 4]]]]))
    assert torch.equal(info.value("agents", "pair"), torch.tensor([[[2.0], [5]], [[0], [3]]]))
