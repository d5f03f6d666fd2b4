"""The price on saturated outputs of deterministic actors."""

import torch

from agents.algorithms.off_policy.ddpg import DDPG
from tests.agents.algorithms.test_replayed_losses import BOX, GAMMA, NETWORK, batch, spec


def test_squared_outputs_of_deterministic_actors_cost_what_is_said():
    """The penalty times the mean square of the actors' outputs before tanh, in the actors' loss and gradients alone."""
    torch.manual_seed(0)
    plain = DDPG(gamma=GAMMA, critic="concat").make_loss(spec(BOX), NETWORK)
    torch.manual_seed(0)
    priced = DDPG(gamma=GAMMA, critic="concat", output_penalty=0.5).make_loss(spec(BOX), NETWORK)
    rows = batch(BOX)
    without, with_it = plain(rows), priced(rows)
    square = priced.actors["team"](rows["team"]["observation"]).square().mean()
    torch.testing.assert_close(with_it["actor_loss"], without["actor_loss"] + 0.5 * square.detach())
    torch.testing.assert_close(with_it["critic_loss"], without["critic_loss"])
    torch.testing.assert_close(with_it["loss"], without["loss"] + 0.5 * square)
    bias = [name for name, _ in plain.actors["team"].named_parameters()][-1]
    gradients = [
        torch.autograd.grad(value, dict(loss.actors["team"].named_parameters())[bias], retain_graph=True)[0]
        for value, loss in ((without["loss"], plain), (with_it["loss"], priced), (0.5 * square, priced))
    ]
    torch.testing.assert_close(gradients[1], gradients[0] + gradients[2])
