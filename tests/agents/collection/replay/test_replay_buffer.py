"""The replay buffer against a plain list of steps: rings, n-step sums, cut-off episodes, masks and states."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from agents.collection.replay.buffer import ReplayBuffer
from agents.collection.rollout_buffer import RolloutBuffer
from envs.spec import ActionSpec, EnvSpec, GroupSpec

T, E, A, F = 4, 3, 2, 1
GAMMA = 0.5


def spec(masks=()):
    action = ActionSpec("discrete", nvec=(3,))
    return EnvSpec({"team": GroupSpec("team", ("a", "b"), F, action, masks)}, 1, 5)


def actor():
    return SimpleNamespace(head=SimpleNamespace(n_features=3, raw_size=1, raw_dtype=torch.int64), memory_shape=None)


class Plain:
    """Every step ever made, in a list: step n of environment e shows n + e / 10, and earns n + 1."""

    def __init__(self, ends, rollouts, frames, masks=(), final_masks=()):
        self.rollout = RolloutBuffer(spec(masks), E, "cpu", T, {"team": actor()}, final_masks=final_masks)
        self.buffer = ReplayBuffer(self.rollout, frames)
        self.ends = ends  # {(n, e): "terminated" | "truncated"}
        for k in range(rollouts):
            self.fill(k)
            truncated = self.rollout.truncated.flatten().nonzero().squeeze(-1)
            self.buffer.add(self.rollout, truncated)

    def seen(self, n, e):
        return n + e / 10

    def fill(self, k):
        r = self.rollout
        for kind in ("terminated", "truncated"):
            getattr(r, kind).zero_()
        for t in range(T + 1):
            n = k * T + t
            for e in range(E):
                r.observed["team"][t, e] = self.seen(n, e)
                r.states[t, e] = -self.seen(n, e)
                for mask in r.masks["team"].values():
                    mask[t, e] = torch.rand(mask.shape[2:], generator=torch.Generator().manual_seed(n * E + e)) < 0.5
                if t < T:
                    r.action["team"][t, e] = n % 3
                    r.reward["team"][t, e] = n + 1
                    r.next["team"][t, e] = 1000 + self.seen(n, e)  # where the step really led
                    r.next_states[t, e] = -1000 - self.seen(n, e)
                    for name in r.next_masks:
                        r.next_masks[name][t, e] = self.allowed_after(n, e)
                    if (n, e) in self.ends:
                        getattr(r, self.ends[n, e])[t, e] = True
        r.finish()

    def allowed_after(self, n, e):
        return torch.tensor([(n + k * (1 + e)) % 3 != 0 for k in range(3)])

    def expected(self, n, e, n_step):
        """(reward, discount, terminated, what follows) by the definition."""
        total, discount, last = 0.0, 1.0, n
        for k in range(n_step):
            if n + k >= self.buffer.added:
                break
            total += discount * (n + k + 1)
            discount *= GAMMA
            last = n + k
            if (last, e) in self.ends:
                break
        end = self.ends.get((last, e))
        follows = 1000 + self.seen(last, e) if end == "truncated" else self.seen(last + 1, e)
        return total, discount, end == "terminated", follows


ENDS = {(2, 0): "truncated", (3, 1): "terminated", (5, 2): "truncated", (7, 0): "truncated", (9, 1): "truncated"}
ENDS |= {(n, 2): "truncated" for n in range(10, 40, 3)} | {(n, 0): "terminated" for n in range(11, 40, 5)}


@pytest.mark.parametrize("n_step", [1, 2, 3])
@pytest.mark.parametrize("rollouts", [1, 2, 3, 4, 9])
def test_every_step_held_is_what_was_played(rollouts, n_step):
    plain = Plain(ENDS, rollouts, frames=3 * T * E)
    buffer = plain.buffer
    assert buffer.capacity == 3 * T and buffer.added == rollouts * T
    numbers = range(buffer.added - buffer.steps, buffer.added)
    assert buffer.steps == min(rollouts * T, 3 * T - 1)
    for n in numbers:
        for e in range(E):
            batch = buffer.take(torch.tensor([n]), torch.tensor([e]), n_step, GAMMA)
            reward, discount, terminated, follows = plain.expected(n, e, n_step)
            rows = batch["team"]
            assert rows["observation"].flatten().tolist() == pytest.approx([plain.seen(n, e)] * A)
            assert rows["action"].flatten().tolist() == [n % 3] * A
            assert rows["reward"].flatten().tolist() == pytest.approx([reward] * A), (n, e)
            assert batch["discount"].tolist() == [discount]
            assert batch["terminated"].tolist() == [terminated]
            assert batch["state"].item() == pytest.approx(-plain.seen(n, e))
            if not terminated:
                assert rows["next_observation"].flatten().tolist() == pytest.approx([follows] * A), (n, e)
                assert batch["next_state"].item() == pytest.approx(-follows)


def test_masks_are_those_of_their_steps():
    plain = Plain({(3, 1): "truncated"}, 2, frames=2 * T * E, masks=("action", "alive"))
    batch = plain.buffer.take(torch.tensor([1, 6]), torch.tensor([0, 2]))
    for row, (n, e) in enumerate([(1, 0), (6, 2)]):
        for key, at in (("mask", n), ("next_mask", n + 1)):
            drawn = torch.rand(A, 3, generator=torch.Generator().manual_seed(at * E + e)) < 0.5
            assert torch.equal(batch["team"][key][row], drawn), (key, n, e)
        for key, at in (("alive", n), ("next_alive", n + 1)):
            drawn = torch.rand(A, generator=torch.Generator().manual_seed(at * E + e)) < 0.5
            assert torch.equal(batch["team"][key][row], drawn)


def test_a_draw_is_uniform_over_what_is_held():
    plain = Plain(ENDS, 5, frames=3 * T * E)
    batch = plain.buffer.sample(60_000, torch.Generator().manual_seed(0))
    shown, counts = batch["team"]["observation"][:, 0, 0].unique(return_counts=True)
    assert len(shown) == plain.buffer.steps * E and shown.min() == 20 - plain.buffer.steps
    expected = 60_000 / len(counts)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize("n_step", [1, 3])
def test_minibatches_drawn_at_once_are_those_drawn_one_by_one(n_step):
    buffer, generators = Plain(ENDS, 5, 3 * T * E).buffer, [torch.Generator().manual_seed(4) for _ in range(2)]
    whole = buffer.sample(6, generators[0], n_step, GAMMA, minibatches=3)
    for k in range(3):
        one, rows = buffer.sample(6, generators[1], n_step, GAMMA), slice(6 * k, 6 * k + 6)
        assert whole.keys() == one.keys() and whole["team"].keys() == one["team"].keys()
        for key in one.keys() - {"team"}:
            assert torch.equal(whole[key][rows], one[key]), key
        for key, value in one["team"].items():
            assert torch.equal(whole["team"][key][rows], value), key
    assert torch.equal(*[generator.get_state() for generator in generators])


def test_where_an_episode_was_cut_off_all_is_allowed_and_live_who_lived():
    plain = Plain({(n, 1): "truncated" for n in range(8)}, 2, frames=2 * T * E, masks=("action", "alive"))
    rows = plain.buffer.take(torch.arange(8), torch.ones(8, dtype=torch.int64))["team"]
    assert rows["next_mask"].all() and torch.equal(rows["next_alive"], rows["alive"])
    assert not rows["mask"].all() and not rows["alive"].all()


@pytest.mark.parametrize("n_step", [1, 3])
def test_what_is_allowed_where_an_episode_was_cut_off_is_known_where_the_environment_tells(n_step):
    ends = {(n, e): "truncated" for n in range(3, 32, 4) for e in range(E)} | {(5, 0): "terminated"}
    plain = Plain(ends, 8, frames=3 * T * E, masks=("action",), final_masks=("team",))
    for n in range(plain.buffer.added - plain.buffer.steps, plain.buffer.added):
        for e in range(E):
            mask = plain.buffer.take(torch.tensor([n]), torch.tensor([e]), n_step, GAMMA)["team"]["next_mask"][0]
            last = min(n + n_step - 1, n | 3)
            if last % 4 == 3:
                assert torch.equal(mask, plain.allowed_after(last, e).expand(A, 3))
            else:
                drawn = torch.rand(A, 3, generator=torch.Generator().manual_seed((last + 1) * E + e)) < 0.5
                assert torch.equal(mask, drawn)


def test_agents_that_end_each_on_its_own_have_their_own_flags():
    """Agent a is terminated alone by step 1, b cut off alone by step 2; the sum over steps stops where anyone ends."""
    lone = replace(spec(("action", "alive")).groups["team"], ends=True)
    rollout = RolloutBuffer(EnvSpec({"team": lone}, None, 5), E, "cpu", T, {"team": actor()})
    buffer = ReplayBuffer(rollout, 2 * T * E)
    rollout.reward["team"][:] = torch.arange(1.0, T + 1).view(T, 1, 1)
    rollout.next["team"][:] = 1000.0
    rollout.masks["team"]["alive"][:] = True
    rollout.masks["team"]["alive"][2:, 0, 0] = False
    rollout.ends["team"]["terminated"][1, 0, 0] = True
    rollout.ends["team"]["truncated"][2, 0, 1] = True
    rollout.finish()
    buffer.add(rollout, rollout.cut_frames())
    batch = buffer.take(torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64), 3, GAMMA)
    assert batch["team"]["terminated"].tolist() == [[True, False], [True, False], [False, False]]
    assert batch["team"]["reward"][:, 0].tolist() == [1 + GAMMA * 2, 2, 3]
    assert batch["discount"].tolist() == [GAMMA**2, GAMMA, GAMMA] and not batch["terminated"].any()
    assert batch["team"]["next_observation"][2].tolist() == [[1000.0], [1000.0]]
    assert batch["team"]["next_alive"].tolist() == [[False, True], [False, True], [False, True]]
    allowed = [False] * 3, [True] * 3  # of who was cut off everything; else what the next observation's mask says
    assert batch["team"]["next_mask"].tolist() == [[allowed[0]] * 2, [allowed[0]] * 2, [allowed[0], allowed[1]]]
    for n_step in (1, 3):
        drawn = buffer.sample(5, torch.Generator(), n_step, GAMMA)
        sizes = [value.nbytes for part in (drawn.pop("team"), drawn) for value in part.values()]
        # observations 8, masks 6, who is alive 2, each of before and after; actions 16, rewards 8, the agents' ends 2.
        assert buffer.row_bytes == 2 * (8 + 6 + 2) + 16 + 8 + 2 + 1 + 4  # the end, the discount
        assert sum(sizes) == 5 * buffer.row_bytes
