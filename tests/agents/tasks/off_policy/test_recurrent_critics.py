"""Critics of actions with a memory: on sequences they say what they say step by step, and soft actor-critic learns."""

from functools import partial

import pytest
import torch

from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.sac import SAC
from agents.models.replayed_sequences import UnrolledCritic
from marl.networks import GRU
from tests.agents.recurrent_task import RECALL
from tests.agents.tasks.off_policy.test_recurrent_replay import GAMMA, VISIT, Played, make, moved
from tests.agents.two_states import TwoStates

STATES = partial(TwoStates, continuous=True, ends=5, num_envs=6)
CASES = {
    "local": {"kind": DDPG, "env": STATES, "critic": "local", "burn_in": 2},
    "twin": {"kind": SAC, "env": STATES, "critic": "local", "burn_in": 3},
    "zeros": {"kind": DDPG, "env": STATES, "critic": "local", "burn_in": 2, "memory": "zeros"},
    "lstm": {"kind": SAC, "env": STATES, "critic": "concat", "critic_network": "lstm"},
    "state": {"kind": SAC, "env": STATES, "critic": "state", "network": "mlp", "burn_in": 5},
    "separate": {"kind": DDPG, "env": STATES, "critic": "agent_state", "share_critic": "separate", "twin": True},
    "choices": {"kind": SAC, "env": RECALL, "critic": "local", "burn_in": 1},
    "choices, state": {"kind": SAC, "env": RECALL, "critic": "agent_state", "network": "mlp"},
    "choices, together": {"kind": SAC, "env": RECALL, "critic": "concat", "n_step": 3},
    "ends": {"kind": SAC, "env": VISIT, "critic": "local", "burn_in": 2},
    "ends, together": {"kind": SAC, "env": VISIT, "critic": "concat", "burn_in": 2},
}


def cells_of(critic):
    """Critics of one agent each, by their shared cells and without any of the code that unrolls them."""
    networks = [each.network.networks[0] for each in critic.critics]

    def step(observation, action, state, memory):
        seen = observation if action is None else torch.cat([observation, action], -1)
        pairs = zip(networks, memory.chunk(len(networks), -1), strict=True)
        after = [network.body.cells[0](network.encoder(seen), part) for network, part in pairs]
        values = [network.head(part) for network, part in zip(networks, after, strict=True)]
        return torch.stack([v if action is None else v.squeeze(-1) for v in values]), torch.cat(after, -1)

    return step


def stepped(critic):
    def step(observation, action, state, memory):
        seen = [None if x is None else x[None, None] for x in (observation, action, state)]
        value, memory = critic.unroll(*seen, memory[None])
        return value[:, 0, 0], memory[0, 0]

    return step


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_critics_say_along_sequences_what_they_say_step_by_step(case):
    settings = {"critic_network": "gru", **CASES[case]}
    task = make(**settings)
    played = Played(task, 4)
    name, algo, buffer, steps = played.group, task.algo, task.buffer, played.steps
    critic, choices, E = task.loss.q_critics[name], settings["env"] is not STATES, 6
    local = algo.critic == "local" and algo.share_critic == "shared"
    assert not local or type(critic.critics[0].network.networks[0]) is GRU

    def through(critic, begin, end, memory, others):
        """Values of what was done, of `others`, and of those after the step; memories before it."""
        step_by, lists = (cells_of if local else stepped)(critic), ([], [], [], [])
        for n in range(begin, end):
            done = None if choices else task.loss.unit(steps["action"][n].unsqueeze(-1))
            told, after = [], []
            for e in range(E):
                names = ("observation", "state", "next", "next_state")
                at = [steps[key][n][e] if steps[key] else None for key in names]
                other = None if choices else others[e]
                value, now = step_by(at[0], None if choices else done[e], at[1], memory[e])
                of = value if choices else step_by(at[0], other, at[1], memory[e])[0]
                told.append((value, of, step_by(at[2], other, at[3], now)[0]))
                forgets = steps["forgets"][n][e] if critic.per_agent else played.over[n][e]
                after.append(torch.where(forgets.unsqueeze(-1), 0.0, now))
            lists[3].append(memory)
            memory = torch.stack(after)
            for values, column in zip(lists, zip(*told, strict=True), strict=False):
                values.append(torch.stack(column, 1))
        return [torch.stack(values, 1) for values in lists[:3]], lists[3]

    others = torch.rand(E, len(steps["reward"][0][0]), 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    nothing = torch.zeros(E, *critic.memory_shape)
    before = through(critic, 0, buffer.added, nothing, others)[1]
    moved(task)
    for which in (critic, task.loss.target_critics[name].network):
        for number in list(buffer.starts())[-3:]:
            begin = number if algo.memory == "zeros" else number * 4
            batch = buffer.take_sequences(torch.full((E,), number), torch.arange(E), 1, GAMMA)
            first = nothing if algo.memory == "zeros" else before[begin]
            span = begin, begin + algo.burn_in + 4
            (now, of, after), _ = through(which, *span, first, others)
            seen = (batch[name], (batch.get("state"), batch.get("next_state")), algo.burn_in)
            values = UnrolledCritic(which, *seen, None if choices else task.loss.unit)
            rows = [x[:, algo.burn_in :].flatten(1, 2) for x in (now, of, after)]
            torch.testing.assert_close(values.now(), rows[0], rtol=1e-4, atol=1e-5)
            other = None if choices else others.repeat(4, 1, 1)
            going = ~batch["terminated"] if choices else slice(None)
            if "terminated" in batch[name]:
                going = going & ~batch[name]["terminated"].any(-1)
            torch.testing.assert_close(values.after(other)[:, going], rows[2][:, going], rtol=1e-4, atol=1e-5)
            if not choices:
                torch.testing.assert_close(values.of(other), rows[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_each_trains(case):
    task = make(**{"critic_network": "gru", **CASES[case]})
    for k in range(3):
        task.collect(k)
        for batch in task.batches(k):
            out = task.loss(batch)
            out["loss"].backward()
            assert torch.isfinite(out["loss"]) and out["critic_loss"] > 0
    missing = [name for name, p in task.loss.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
