"""The off-policy task: known values are learnt, targets follow, buffers fill, mistakes are one sentence."""

from functools import partial

import pytest
import torch

from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from agents.tasks import off_policy
from agents.tasks.off_policy import OffPolicy, together
from envs.spec import ActionSpec, EnvSpec, GroupSpec, ObservationPart
from marl.core.errors import UserError
from marl.networks import MLP, Multi
from tests.agents import two_states
from tests.agents.two_states import BEST, BONUS, GAMMA, REWARD, A, K, TwoStates

SEEN = torch.eye(2).unsqueeze(1).expand(-1, A, -1)  # both states, as the team sees them
SMALL = {"gamma": GAMMA, "rollout_steps": 14, "updates": 40, "minibatch_size": 64, "buffer_frames": 4000, "tau": 0.2}
EXPLORING = {"explore": 1.0, "explore_final": 1.0}


def trained(algo, iterations, lr=0.05, network=None, critic_network=None, **env):
    task = OffPolicy(
        partial(TwoStates, **env), algo, network or partial(MLP, hidden=[]), critic_network, frames=14 * 8 * iterations
    )
    optimizer = torch.optim.Adam([p for p in task.loss.parameters() if p.requires_grad], lr)
    for iteration in range(iterations):
        for group in optimizer.param_groups:  # to nothing, so that what is left of the noise goes
            group["lr"] = lr * (1 - iteration / iterations)
        task.collect(iteration)
        for batch in task.batches(iteration):
            outputs = task.loss(batch)
            optimizer.zero_grad()
            outputs["loss"].backward()
            optimizer.step()
            task.observe(outputs)
    return task


def test_iql_learns_the_optimal_values():
    task = trained(QLearning(**SMALL, **EXPLORING), 40)
    q = task.loss.actors["team"](SEEN)
    torch.testing.assert_close(q, two_states.choice_values().unsqueeze(1).expand(2, A, K), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("mixer", ["sum", "monotonic"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_vdn_and_qmix_learn_the_teams_optimal_values(mixer, n_step):
    """Of the best actions: with more steps a random policy's rewards would be summed, so the noise goes to nothing."""
    exploring = {"explore": 1.0, "explore_schedule": "linear", "explore_until": 0.3}
    exploring = EXPLORING if n_step == 1 else exploring
    small = SMALL | {"buffer_frames": 2000}
    algo = QLearning(**small, **exploring, mixer=mixer, mixer_state="state", n_step=n_step)
    task = trained(algo, 60)
    actor = task.loss.actors["team"]
    best = actor(SEEN).amax(-1)
    team = task.loss.mixers["team"](best, torch.eye(2))
    torch.testing.assert_close(team, two_states.values(REWARD.amax(1)), rtol=0.01, atol=0.01)
    assert torch.equal(actor(SEEN).argmax(-1), REWARD.argmax(1, keepdim=True).expand(2, A))


KINDS = [("local", False), ("concat", True), ("state", True), ("agent_state", False)]


@pytest.mark.parametrize(("critic", "twin"), KINDS)
def test_ddpg_and_td3_learn_the_optimal_values(critic, twin):
    kind = {"critic": critic, "twin": twin, "policy_every": 2 if twin else 1, "smoothing": 0.1 if twin else 0.0}
    algo = DDPG(**SMALL, **kind, explore=0.5, explore_final=0.5)
    task = trained(algo, 60, 0.005, continuous=True, critic_network=partial(MLP, hidden=[64]))
    action = task.loss.actors["team"](SEEN).tanh()
    torch.testing.assert_close(action.squeeze(-1), BEST.unsqueeze(-1).expand(2, A), rtol=0.0, atol=0.1)
    value = task.loss.q_critics["team"](SEEN, action, torch.eye(2))[0]
    torch.testing.assert_close(value, two_states.values(BONUS).unsqueeze(-1).expand(2, A), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("critic", ["local", "concat"])
def test_discrete_sac_learns_the_soft_optimal_values(critic):
    algo = SAC(**SMALL, critic=critic, temperature=0.5, learn_temperature=False)
    task = trained(algo, 60)
    q = task.loss.q_critics["team"](SEEN)[0]
    expected = two_states.soft_choice_values(0.5)
    torch.testing.assert_close(q, expected.unsqueeze(1).expand(2, A, K), rtol=0.01, atol=0.02)
    p = task.loss.actors["team"](SEEN).softmax(-1)
    soft = (expected / 0.5).softmax(-1).unsqueeze(1).expand(2, A, K)
    torch.testing.assert_close(p, soft, rtol=0.05, atol=0.02)


def test_continuous_sac_brings_the_entropy_to_its_target():
    algo = SAC(**SMALL, critic="concat", temperature=0.5, target_entropy=-0.5)
    task = trained(algo, 60, 0.005, continuous=True, network=partial(MLP, hidden=[32]))
    batch = next(iter(task.batches(0)))
    outputs = task.loss(batch)
    assert outputs["entropy"].item() == pytest.approx(-0.5, abs=0.15)
    action = task.loss.actors["team"].head.mode(task.loss.actors["team"](SEEN)).tanh()
    torch.testing.assert_close(action.squeeze(-1), BEST.unsqueeze(-1).expand(2, A), rtol=0.0, atol=0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill": 10_000}, "algo.prefill=10000: must be less than frames=1120, or nothing is learned"),
        ({"buffer_frames": 200}, "algo.buffer_frames=200: must be at least two rollouts, 224 frames"),
    ],
)
def test_what_would_train_nothing_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OffPolicy(TwoStates, QLearning(**SMALL | settings), partial(MLP, hidden=[4]), frames=1120)


@pytest.mark.parametrize("prefill", [223, 224])
def test_a_buffer_may_be_filled_whole_before_the_first_update(prefill):
    """A full ring of 28 steps holds 27 that have a next one, of 8 environments: 216 frames, of 224 collected."""
    algo = QLearning(**SMALL | {"buffer_frames": 224, "prefill": prefill, "updates": 1})
    task, trained = OffPolicy(TwoStates, algo, partial(MLP, hidden=[4]), frames=1120), []
    for iteration in range(3):
        task.collect(iteration)
        trained.append(len(list(task.batches(iteration))))
    assert trained == [0, 1, 1]


def test_a_critic_of_actions_reads_the_parts_of_what_is_seen():
    """A picture reaches it scaled, and the action is a part of its own."""
    parts = (ObservationPart("camera", (1, 4, 4), "picture", 255.0), ObservationPart("place", (2,)))
    box = ActionSpec("continuous", -torch.ones(A, 1), torch.ones(A, 1))
    spec = EnvSpec({"team": GroupSpec("team", ("a", "b"), 18, box, parts=parts)}, None, 5)
    loss = SAC(critic="concat").make_loss(spec, Multi)
    seen = []
    for critic in loss.q_critics["team"].critics:
        first = next(m for m in critic.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].max().item()))
    bright = torch.cat([torch.full((3, A, 16), 255.0), torch.zeros(3, A, 2)], -1)
    loss.q_critics["team"](bright, torch.zeros(3, A, 1))
    assert seen and max(seen) == pytest.approx(1.0)


def bytes_of(batch):
    return sum(bytes_of(value) if isinstance(value, dict) else value.nbytes for value in batch.values())


@pytest.mark.parametrize(
    ("minibatches", "pieces"), [(0.5, [1] * 40), (3.9, [3] * 13 + [1]), (32, [32, 8]), (99, [32, 8])]
)
def test_minibatches_are_drawn_at_once_while_their_bytes_are_few(monkeypatch, minibatches, pieces):
    task = OffPolicy(TwoStates, QLearning(**SMALL), partial(MLP, hidden=[]), frames=14 * 8)
    task.collect(0)
    size = bytes_of(task.buffer.sample(64, task.minibatch_generator))
    monkeypatch.setattr(off_policy, "TOGETHER_BYTES", int(minibatches * size))
    found = []
    for epoch in task.whole_epochs(0):
        found.append(epoch.count)
        assert bytes_of(epoch.rows) == found[-1] * size
        task.loss.count_from(task.loss.updates + found[-1])
    assert found == pieces


def test_a_key_says_whether_targets_follow_the_next_minibatch():
    loss = OffPolicy(TwoStates, QLearning(**SMALL, target_every=3), partial(MLP, hidden=[]), frames=112).loss
    keys, moved = [], []
    for _ in range(6):
        with torch.no_grad():
            for parameter in loss.actors.parameters():
                parameter += 1.0
        before = [p.clone() for p in loss.target_actors.parameters()]
        keys.append(loss.follow_key())
        loss.follow()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, loss.target_actors.parameters(), strict=True)))
    assert moved == [False, False, True] * 2
    assert keys == [(follows,) for follows in moved]  # there is one target network, of the actors


@pytest.mark.parametrize(
    ("updates", "period", "pieces"),
    [
        (0, 1, [32, 32, 6]),
        (70, 2, [32, 32, 6]),
        (71, 2, [1, 32, 32, 5]),  # one that was begun ends first
        (0, 3, [30, 30, 10]),
        (170, 200, [30, 32, 8]),  # the 200th is the last of its piece
        (0, 200, [32, 32, 6]),
    ],
)
def test_minibatches_of_an_iteration_are_pieces_that_are_alike(updates, period, pieces):
    left, found = 70, []
    while left:
        found.append(min(left, together(updates, period, 32)))
        updates, left = updates + found[-1], left - found[-1]
    assert found == pieces
