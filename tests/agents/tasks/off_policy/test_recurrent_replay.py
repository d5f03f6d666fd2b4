"""Memories and a replay buffer: losses on sequences are what a cell stepped by hand gives, and runs go on bitwise."""

from functools import partial

import pytest
import torch

from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from agents.models.replayed_sequences import Unrolled
from agents.tasks.off_policy import OffPolicy
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError
from marl.networks import GRU
from tests.agents.recurrent_task import NETWORKS, RECALL
from tests.agents.tasks.test_host_sync import no_waiting

VISIT = partial(
    VmasEnv, "tests.envs.vmas.ends_cases.Visit", num_envs=6, max_steps=17, continuous_actions=False, fast="off"
)
GAMMA = 0.9
SIZES = {
    "gamma": GAMMA, "rollout_steps": 12, "chunk_length": 4, "minibatch_size": 24, "buffer_frames": 36 * 6, "updates": 2
}  # fmt: skip


def make(kind=QLearning, env=RECALL, network="gru", critic_network="mlp", frames=12 * 6 * 8, **algo):
    torch.manual_seed(0)
    explore = {"explore": 0.5} if kind is QLearning else {}
    algo = kind(**SIZES | explore | algo)
    return OffPolicy(env, algo, NETWORKS[network], NETWORKS[critic_network], frames=frames, eval_episodes=4)


class Played:
    """All that was ever played, step by step, as the rollouts held it, in plain lists of steps [E, ...]."""

    def __init__(self, task, rollouts):
        self.task, self.group = task, next(iter(task.loss.actors))
        kept = ("observation", "alive", "action", "reward", "terminated", "truncated", "done", "forgets")
        self.steps = {name: [] for name in (*kept, "next", "next_mask", "next_alive", "state", "next_state")}
        self.over = []  # bool [E], whether everybody forgets
        for k in range(rollouts):
            task.collect(k)
            self.keep(task.rollout)

    def keep(self, rollout):
        group, ends = self.group, rollout.ends.get(self.group)
        masks = rollout.masks[group]
        self.over += rollout.starts[1:].clone().unbind()
        for t in range(rollout.steps):
            lives = masks.get("alive", torch.ones_like(rollout.observed[group][..., 0]).bool())
            alive = lives[t]
            own = {k: ends[k][t] if ends else getattr(rollout, k)[t] for k in ("terminated", "truncated")}
            if not ends:
                own = {k: flag.unsqueeze(-1).expand_as(alive) for k, flag in own.items()}
            step = {
                "observation": rollout.observed[group][t],
                "alive": alive,
                "next": rollout.next[group][t],
                "action": rollout.action[group][t, ..., 0],
                "reward": rollout.reward[group][t],
                **own,
                "done": rollout.done[t] | (own["terminated"] | own["truncated"]).any(-1),
                "forgets": own["terminated"] | own["truncated"] | (~alive if ends else False),
            }
            cut = own["truncated"]
            there = rollout.next_masks[group][t] if group in rollout.next_masks else True  # where it was cut off
            allowed = masks["action"][t + 1] if "action" in masks else torch.ones(*alive.shape, 1, dtype=torch.bool)
            allowed = torch.where(cut.unsqueeze(-1), there, allowed)
            ended = cut | rollout.truncated[t].unsqueeze(-1)  # who was dead stays so
            step |= {"next_mask": allowed, "next_alive": torch.where(ended, alive, lives[t + 1])}
            if rollout.states is not None:
                step |= {"state": rollout.states[t], "next_state": rollout.next_states[t]}
            for name, value in step.items():
                self.steps[name].append(value.clone())

    def through(self, actor, begin, end, memory=None):
        """What it gives, [A, K], at each step and, with the memory after it, for what followed; every step's memory
        before it. Lists by [e][n - begin]."""
        now, after, before = [], [], []
        step_by = cell_of(actor) if type(actor.network.networks[0]) is GRU and actor.network.shared else actor.remember
        for e in range(self.steps["observation"][0].shape[0]):
            h = torch.zeros(actor.memory_shape) if memory is None else memory[e]
            rows = [], [], []
            for n in range(begin, end):
                step = {k: v[n][e] for k, v in self.steps.items() if v}
                rows[2].append(h)
                params, h = step_by(step["observation"], h)
                rows[0].append(params)
                rows[1].append(step_by(step["next"], h)[0].masked_fill(~step["next_mask"], -1e9))
                h = torch.where(step["forgets"].unsqueeze(-1), 0.0, h)
            for whole, part in zip((now, after, before), rows, strict=True):
                whole.append(part)
        return now, after, before


def cell_of(actor):
    """A shared GRU without any of the code that unrolls it."""
    network = actor.network.networks[0]

    def step(observation, memory):
        memory = network.body.cells[0](network.encoder(observation), memory)
        return network.head(memory), memory

    return step


def moved(task):
    """Online and target networks that differ from each other and from what played."""
    for k, module in enumerate((task.loss, getattr(task.loss, "target_actors", None) or task.loss.target_critics)):
        draw = torch.Generator().manual_seed(k)
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)


CASES = {
    "stored": {},
    "burn-in": {"burn_in": 3},
    "longer than a chunk": {"burn_in": 6},
    "n-step": {"n_step": 3, "burn_in": 2},
    "zeros": {"memory": "zeros", "burn_in": 2},
    "chunks that do not divide": {"chunk_length": 5},
    "longer than a rollout": {"chunk_length": 14, "minibatch_size": 28},
    "steps": {"chunk_length": 1, "minibatch_size": 7},
    "single": {"double": False},
    "ends": {"env": VISIT, "burn_in": 2, "n_step": 2},
    "ends, team": {"env": VISIT, "mixer": "sum"},
    "team": {"mixer": "sum", "n_step": 2},
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_loss_of_sequences_is_what_a_cell_stepped_by_hand_gives(case):
    task = make(**CASES[case])
    played = Played(task, 5)  # more than the buffer holds
    actor, steps, algo, buffer = task.loss.actors[played.group], played.steps, task.algo, task.buffer
    b, L, T = algo.burn_in, algo.chunk_length, 12
    stored = played.through(actor, 0, buffer.added)[2]
    moved(task)
    starts = list(buffer.starts())
    marks = [t for r in range(5) for t in range(r * T, r * T + T, L)] if algo.memory == "stored" else range(5 * T)
    assert [marks[i] for i in starts] == [t for t in marks if t >= buffer.added - 35 and t + b + L <= buffer.added]
    for number in starts:
        begin, E = marks[number], 6
        batch = buffer.take_sequences(torch.full((E,), number), torch.arange(E), algo.n_step, GAMMA)
        first = [stored[e][begin] if algo.memory == "stored" else torch.zeros_like(stored[e][0]) for e in range(E)]
        until = min(begin + b + L + algo.n_step - 1, buffer.added)
        online = played.through(actor, begin, until, first)
        target = played.through(task.loss.target_actors[played.group].network, begin, until, first)
        errors, alive = [], []
        for e in range(E):
            for n in range(begin + b, begin + b + L):
                total, discount, last = 0.0, 1.0, n
                for k in range(algo.n_step):
                    last = n + k
                    total = total + discount * steps["reward"][last][e]
                    discount *= GAMMA
                    if steps["done"][last][e] or last + 1 == buffer.added:
                        break
                there = last - begin
                best = (online if algo.double else target)[1][e][there].argmax(-1, keepdim=True)
                value = target[1][e][there].gather(-1, best).squeeze(-1)
                q = online[0][e][n - begin].gather(-1, steps["action"][n][e].unsqueeze(-1)).squeeze(-1)
                over, lives = steps["terminated"][last][e], steps["alive"][n][e]
                if algo.mixer == "sum":
                    value = (value * steps["next_alive"][last][e]).masked_fill(over, 0.0).sum()
                    errors.append((q * lives).sum() - total.mean() - discount * value)
                    alive.append(torch.tensor(1.0))
                else:
                    errors.append(q - (total + discount * value.masked_fill(over, 0.0)))
                    alive.append(lives.float())
        error, alive = torch.stack(errors), torch.stack(alive)
        expected = (error.square() * alive).sum() / alive.sum()
        torch.testing.assert_close(task.loss(batch)["td_loss"], expected, rtol=1e-4, atol=1e-5)
    flags = torch.stack(steps["truncated"])[buffer.added - 35 :].any(-1), torch.stack(steps["terminated"]).any(-1)
    assert all(flag.any() for flag in flags)


KINDS = {
    "lstm": {"network": "lstm"},
    "separate": {"share_actor": "separate"},
    "a class of one's own": {"network": "elman", "memory": "zeros"},
    "soft actor-critic": {"kind": SAC, "critic": "state"},
    "ends": {"kind": SAC, "env": VISIT, "network": "lstm", "share_actor": "separate", "n_step": 2, "critic": "local"},
}


@pytest.mark.parametrize("case", KINDS)
@torch.no_grad()
def test_every_kind_unrolls_to_what_stepping_gives(case):
    task = make(**KINDS[case], burn_in=2)
    played = Played(task, 4)
    actor, algo, buffer = task.loss.actors[played.group], task.algo, task.buffer
    stored = played.through(actor, 0, buffer.added)[2]
    moved(task)
    number = buffer.starts()[-3]
    begin, E, L = number if algo.memory == "zeros" else number * 4, 6, algo.chunk_length
    batch = buffer.take_sequences(torch.full((E,), number), torch.arange(E), algo.n_step, GAMMA)
    assert torch.isfinite(task.loss(batch)["loss"])
    first = None if algo.memory == "zeros" else [memories[begin] for memories in stored]
    now, after, _ = played.through(actor, begin, begin + 2 + L, first)
    unrolled = Unrolled(actor, batch[played.group], 2)
    masks = [batch[played.group].get(kind) for kind in ("mask", "next_mask")]
    expected = torch.stack([torch.stack(steps[2:]) for steps in now], 1).flatten(0, 1)
    torch.testing.assert_close(unrolled.now(None), expected, rtol=1e-4, atol=1e-5)
    if algo.n_step == 1:
        expected = torch.stack([torch.stack(steps[2:]) for steps in after], 1).flatten(0, 1)
        going = ~batch["terminated"]  # what follows is read of those only
        torch.testing.assert_close(unrolled.after(masks[1])[going], expected[going], rtol=1e-4, atol=1e-5)
    assert masks[0] is None or (unrolled.now(masks[0])[~masks[0]] < -1e8).all()


@pytest.mark.parametrize("kind", [QLearning, SAC])
def test_gradients_go_through_a_sequence_and_stop_at_its_burn_in(kind):
    task = make(kind, partial(RECALL, min_delay=3, max_delay=9, max_steps=11), burn_in=2, critic="state")
    for k in range(2):
        task.collect(k)
    batch = task.buffer.sample(24, task.minibatch_generator)
    seen = batch["agents"]["sequence"]["observation"].requires_grad_()
    values = Unrolled(task.loss.actors["agents"], batch["agents"], 2).now(None).unflatten(0, (4, 6))
    going = ~batch["agents"]["sequence"]["start"][3:].any(0)  # no episode begins within
    assert going.any()
    (slope,) = torch.autograd.grad(values[-1, going].sum(), [seen])
    assert (slope[:2] == 0).all() and (slope[2:, going].abs().sum((-1, -2)) > 0).all() and (slope[:, ~going] == 0).all()
    for batch in task.batches(0):
        task.loss(batch)["loss"].backward()
        assert all(p.grad is not None for p in task.loss.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", ["ends", "zeros"])
def test_nothing_is_read_back_from_the_device(case):
    task = make(**CASES[case])
    for k in range(2):
        task.collect(k)
    with no_waiting():
        for batch in task.batches(1):
            task.loss(batch)["loss"].backward()
            task.observe({})


def test_no_update_before_a_sequence_is_held():
    task = make(chunk_length=20, burn_in=4, minibatch_size=20, buffer_frames=72 * 3)
    counts = []
    for k in range(3):
        task.collect(k)
        counts.append((len(task.buffer.starts()), sum(1 for _ in task.batches(k))))
    assert counts == [(0, 0), (1, 2), (1, 2)]  # 12, 24 and 36 steps of 6 environments; a full buffer holds 35


def test_a_minibatch_is_whole_sequences():
    task = make(minibatch_size=23)
    task.collect(0)
    (batch, _) = task.batches(0)
    assert batch["agents", "observation"].shape == (20, 3, 4)  # 5 sequences of 4 steps
    assert batch["agents", "sequence", "observation"].shape == (4, 5, 3, 4)
    assert batch["agents", "sequence", "actor_memory"].shape == (5, 3, 8)


class Forgetful(QLearning):
    """As an algorithm of one's own that does not know of sequences."""

    recurrent = False


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": "mlp", "chunk_length": 4}, r"algo\.chunk_length=4: needs a network with a memory"),
        ({"network": "mlp", "chunk_length": 10, "burn_in": 1}, r"algo\.burn_in=1: needs a network with a memory"),
        ({"network": "mlp", "chunk_length": 10, "memory": "zeros"}, r"algo\.memory=zeros: needs a network with"),
        ({"minibatch_size": 3}, r"algo\.minibatch_size=3: smaller than one sequence of algo\.chunk_length=4 steps"),
        ({"burn_in": 21}, r"algo\.buffer_frames=216: must hold .* = 25 steps of every environment, 288 frames"),
        ({"kind": Forgetful}, "network: has a memory, which Forgetful's loss does not train"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make(**settings)
    assert "\n" not in str(error.value)
