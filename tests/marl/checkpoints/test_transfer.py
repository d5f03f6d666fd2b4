"""Transfer: all weights, or those that fit, with what became of each name."""

from functools import partial

import pytest
import torch
from torch import nn

from marl.checkpoints import checkpoint_file, transfer
from marl.core.errors import UserError
from marl.networks import MLP, PerAgent
from tests.marl.runs import make_task, run


class Agents(nn.Module):
    """Names as those of the agents' loss: an actor per group, with one network or several."""

    def __init__(self, in_shape=3, out=2, agents=2, shared=True, critic_in=6) -> None:
        super().__init__()
        network = partial(MLP, hidden=[5])
        self.actors = nn.ModuleDict({"agents": nn.Module()})
        self.actors["agents"].network = PerAgent(network, agents, in_shape, out, shared)
        self.critic = MLP(critic_in, 1, hidden=[5])


def state(module) -> dict:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_all_or_nothing_is_the_default(tmp_path):
    _, trainer = run(tmp_path)
    other = make_task()
    last = tmp_path / "checkpoints" / "last.pt"
    result = transfer.load_weights(other, last)
    saved = state(trainer.task.loss)
    assert all(torch.equal(value, saved[name]) for name, value in state(other.loss).items())
    assert set(result.loaded) == set(state(other.loss)) and not result.missing
    weights = transfer.load_weights(make_task(), last.with_suffix(".safetensors"))
    assert weights.loaded == result.loaded
    with pytest.raises(UserError, match="does not fit this task's networks: .*model.head.*strict=false"):
        wrong = make_task()
        wrong.loss.model = MLP(1, 2, hidden=[16])
        transfer.load_weights(wrong, last)


def test_what_fits_is_loaded_and_the_rest_is_listed():
    old, new = Agents(agents=2), Agents(agents=3, critic_in=9)
    saved, before = {**state(old), "gone": torch.zeros(1)}, state(new)
    new.extra = nn.Linear(2, 2)
    result = transfer.load_fitting(new, saved, "x.pt")
    after = state(new)
    actor = "actors.agents.network.networks.0.body.0.weight"
    assert torch.equal(after[actor], saved[actor]) and not torch.equal(after[actor], before[actor])
    assert result.mismatched == {"critic.body.0.weight": ([5, 6], [5, 9])}
    assert torch.equal(after["critic.body.0.weight"], before["critic.body.0.weight"])
    assert torch.equal(after["critic.head.weight"], saved["critic.head.weight"])
    assert result.skipped == ["gone"] and result.missing == ["extra.weight", "extra.bias"]
    text = "\n".join(result.lines())
    assert "loaded: actors.agents" in text and "critic.body.0.weight [5, 6] -> [5, 9]" in text
    assert "skipped (not in this task): gone" in text and "missing (keeps its initial values): extra.weight" in text


def test_a_network_per_agent_for_more_agents():
    for shared in (True, False):
        old, new = Agents(agents=2, shared=shared), Agents(agents=3, shared=False)
        saved = state(old)
        transfer.load_fitting(new, saved, "x.pt")
        after = state(new)
        for agent in range(3):
            source = agent if not shared and agent < 2 else 0
            key = "actors.agents.network.networks.{}.head.weight"
            assert torch.equal(after[key.format(agent)], saved[key.format(source)])


def test_a_supervised_model_becomes_an_actor_with_its_scaling():
    from marl.supervised.task import SupervisedLoss

    torch.manual_seed(0)

    class Data:
        kind, shift, scale = "regression", torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.1, 1.0])

    model = SupervisedLoss(MLP(3, 2, hidden=[5]), nn.MSELoss(), Data)
    agents = Agents(agents=2, shared=False)
    result = transfer.load_fitting(agents, state(model), "x.pt")
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(agents.actors["agents"].network(x), model.outputs(x))  # from raw observations
    assert not result.mismatched and {name.split(".")[0] for name in result.missing} == {"critic"}


def test_scaling_that_cannot_be_folded_is_refused():
    saved = {"model.0.weight": torch.zeros(4, 1, 3, 3), "model.0.bias": torch.zeros(4), "scale": torch.full((1,), 2.0)}
    with pytest.raises(UserError, match="first layer that is not linear"):
        transfer.load_fitting(Agents(), saved, "x.pt")
    saved = {"model.0.weight": torch.zeros(5, 3), "model.0.bias": torch.zeros(5), "scale": torch.full((2,), 2.0)}
    with pytest.raises(UserError, match="scales its inputs otherwise"):
        transfer.load_fitting(Agents(), saved, "x.pt")


def test_nothing_that_fits_is_an_error(tmp_path):
    with pytest.raises(UserError, match="x.pt: nothing of it fits.*skipped"):
        transfer.load_fitting(Agents(), {"other": torch.zeros(1)}, "x.pt")
    checkpoint_file.save(tmp_path / "empty.pt", {"iteration": 1})
    with pytest.raises(UserError, match="empty.pt holds no weights"):
        transfer.load_weights(make_task(), tmp_path / "empty.pt")
