"""Memories in training: the loss computes on chunks what the rollout did step by step, and they end with episodes."""

from functools import partial

import pytest
import torch

from agents.analysis.attribution import observations
from agents.collection.sequences import Sequences
from agents.collection.value_estimates import values_of
from agents.models.forward import policy_params, values
from agents.models.hidden_state import Memories, forget
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.inspection import model_summary
from marl.launch import build
from marl.optim.optimizer_config import OptimizerConfig
from tests.agents.masked_env import Doors
from tests.agents.recurrent_task import RECALL, make
from tests.agents.tasks.test_host_sync import no_waiting

CASES = {
    "gru": {},
    "lstm": {"network": "lstm", "critic": "local"},
    "gru actor, mlp critic": {"critic_network": "mlp", "critic": "state"},
    "mlp actor, lstm critic": {"network": "mlp", "critic_network": "lstm", "critic": "agent_state"},
    "separate": {"share_actor": "separate", "share_critic": "separate", "critic": "concat"},
    "burn-in": {"burn_in": 3},
    "burn-in as long as a chunk": {"burn_in": 4, "network": "lstm", "critic": "agent_state"},
    "normalised": {"normalize_observation": True, "agent_ids": True, "value_norm": "popart", "critic": "local"},
    "one sequence": {"chunk_length": None, "minibatch_size": 36},
    "a class of one's own": {"network": "elman", "share_actor": "separate"},
    "masks": {"env": partial(Doors, num_envs=6), "share_actor": "separate"},
}


def by_hand(task):
    """Log-probabilities and values of a rollout, environment by environment and step by step, without any of the code
    that carries memories: {"log_prob", "value"} [T, E, A], and V of the true final observations [T, E, A]."""
    actor, critic, roll = task.loss.actors["agents"], task.loss.critics["agents"], task.rollout
    T, E = roll.done.shape
    log_prob, value = torch.zeros_like(roll.log_prob["agents"]), torch.zeros_like(roll.log_prob["agents"])
    final = torch.zeros_like(value)
    for e in range(E):
        memory = {k: torch.zeros(1, *m.memory_shape) for k, m in (("a", actor), ("c", critic)) if m.memory_shape}
        for t in range(T):
            observed, masks = roll.observed["agents"][t, e : e + 1], roll.masks["agents"]
            state, after = (None if x is None else x[t, e : e + 1] for x in (roll.states, roll.next_states))
            mask = masks["action"][t, e : e + 1] if "action" in masks else None
            if "a" in memory:
                params, memory["a"] = actor.remember(observed, memory["a"], mask)
            else:
                params = actor(observed, mask)
            log_prob[t, e] = actor.head.log_prob(params, roll.action["agents"][t, e : e + 1])[0]
            end = roll.next["agents"][t, e : e + 1]
            if "c" in memory:
                v, m = critic.unroll(observed[None], None if state is None else state[None], memory["c"])
                memory["c"] = m[0]
                w, _ = critic.unroll(end[None], None if after is None else after[None], memory["c"])
                value[t, e], final[t, e] = v[0, 0], w[0, 0]
            else:
                value[t, e], final[t, e] = critic(observed, state)[0], critic(end, after)[0]
            if roll.done[t, e]:
                memory = {k: torch.zeros_like(m) for k, m in memory.items()}
    return log_prob, critic.denormalize(value), critic.denormalize(final)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_chunks_give_what_the_rollout_gave_step_by_step(case):
    task = make(**CASES[case])
    task.collector.reset(3)
    task.started = True
    task.collect(0)
    actor, critic, roll = task.loss.actors["agents"], task.loss.critics["agents"], task.rollout
    log_prob, value, final = by_hand(task)
    ends = roll.done.nonzero()[:, 0] + 1
    assert (ends % 4 != 0).any() and roll.truncated[:-1].any()  # episodes begin in the middle of chunks
    torch.testing.assert_close(roll.log_prob["agents"], log_prob, rtol=0, atol=1e-5)

    where = roll.truncated.flatten().nonzero().squeeze(-1)
    task.collector.memories["critic"].clear()
    if task.algo.value_norm != "popart":  # popart has moved the critic since the values were told
        estimated, estimated_final = values_of(critic, "agents", roll, where, task.collector.memories["critic"])
        torch.testing.assert_close(estimated[:-1], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(estimated_final, final.flatten(0, 1)[where], rtol=0, atol=1e-5)

    rows = task.sequences.rows(task.rows, roll)["agents"]
    state = None if roll.states is None else task.sequences.cut_before(roll.states[:-1])
    again = actor.head.log_prob(policy_params(actor, rows), rows["action"].flatten(0, 1))
    torch.testing.assert_close(again, rows["log_prob"].flatten(0, 1), rtol=0, atol=1e-5)
    expected = task.sequences.cut(value).flatten(0, 1)
    torch.testing.assert_close(critic.denormalize(values(critic, rows, state)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_trains_and_its_first_ratios_are_one(case):
    task = make(**CASES[case], entropy_coef=0.01, value_clip=0.5)
    optimizer = OptimizerConfig(lr=1e-3).build(task.parts())
    for k in range(2):
        task.collect(k)
        for i, batch in enumerate(task.batches(k)):
            out = task.loss(batch)
            assert i or out["approx_kl"] < 1e-9
            out["loss"].backward()
            missing = [name for name, p in task.loss.named_parameters() if p.grad is None]
            assert not missing and torch.isfinite(out["loss"])
            optimizer.step()
            optimizer.zero_grad()
        assert i + 1 == task.steps_per_iteration


def test_memories_go_on_from_rollout_to_rollout():
    """Two rollouts of 6 steps are one of 12, as long as the networks stay as they are."""
    long, short = make(chunk_length=6), make(rollout_steps=6, chunk_length=3)
    for task in (long, short):
        task.collector.reset(1)
        task.started = True
    noise = long.loss.actors["agents"].head.noise((12, 6, 3), "cpu", torch.Generator().manual_seed(0))
    parts = iter([noise, noise[:6], noise[6:]])
    for task in (long, short):
        task.loss.actors["agents"].head.noise = lambda *_: next(parts)
    long.collect(0)
    for k in range(2):
        short.collect(k)
    assert torch.equal(long.rollout.action["agents"][6:], short.rollout.action["agents"])
    torch.testing.assert_close(long.rollout.log_prob["agents"][6:], short.rollout.log_prob["agents"])
    for kind in ("actor", "critic"):
        mine, other = (task.collector.memories[kind].now["agents"] for task in (long, short))
        torch.testing.assert_close(mine, other)
        second, first = (task.rollout.memories_at_marks[kind]["agents"] for task in (long, short))
        torch.testing.assert_close(second[1], first[0])
    where = short.rollout.truncated.flatten().nonzero().squeeze(-1)
    assert len(where)  # bootstrapped from the same memories, too
    torch.testing.assert_close(long.rows["agents"]["return"][6:], short.rows["agents"]["return"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [6, 30, 72])
def test_values_do_not_depend_on_the_size_of_the_critics_calls(rows, monkeypatch):
    task = make("lstm", critic="local", burn_in=1)
    task.collect(0)
    critic, roll = task.loss.critics["agents"], task.rollout
    memories = task.collector.memories["critic"]
    where, results = roll.truncated.flatten().nonzero().squeeze(-1), []
    for size in (1 << 15, rows):  # all 13 times at once; 1, 5 and 12 at a time
        monkeypatch.setattr("agents.collection.value_estimates.VALUE_ROWS", size)
        memories.clear()
        roll.memories_at_marks["critic"]["agents"].zero_()
        values_and_ends = values_of(critic, "agents", roll, where, memories)
        memories_kept = roll.memories_at_marks["critic"]["agents"].clone(), memories.now["agents"]
        results.append((*values_and_ends, *memories_kept))
    assert len(where) and results[0][2][1:].any()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_each_environment_is_forgotten_by_itself():
    memory, done = torch.randn(5, 3, 8), torch.tensor([True, False, False, True, False])
    left = forget(memory, done)
    assert (left[done] == 0).all() and torch.equal(left[~done], memory[~done])
    memory[0] = torch.nan  # an episode that went wrong leaves nothing behind
    assert torch.isfinite(forget(memory, done)).all()
    task, some = make(), 0
    for k in range(4):
        task.collect(k)
        done = task.rollout.done[-1]
        some += 0 < done.sum() < 6
        for kind in ("actor", "critic"):
            now = task.collector.memories[kind].now["agents"].flatten(1)
            assert torch.equal((now == 0).all(-1), done)
    assert some
    memories = Memories(task.loss.actors, 2, torch.device("cpu"))
    memories.act("agents", task.loss.actors["agents"], torch.randn(2, 3, 4), True, None)
    memories.forget(torch.tensor([False, True]))
    assert (memories.now["agents"][0] != 0).any() and (memories.now["agents"][1] == 0).all()


def test_burn_in_refreshes_what_stale_weights_remembered():
    """After the weights have moved, a burnt-in chunk is nearer to a fresh pass over the rollout, and the gradient is
    the chunk's own."""
    errors = {}
    for burn_in in (0, 4):
        task = make(burn_in=burn_in, rollout_steps=12)
        task.collect(0)
        actor, roll = task.loss.actors["agents"], task.rollout
        rows = task.sequences.rows(task.rows, roll)["agents"]
        with torch.no_grad():
            for parameter in actor.network.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
            fresh, _ = actor.unroll(roll.observed["agents"][:-1], torch.zeros(6, 3, 8), roll.starts[:-1])
            new_params = policy_params(actor, rows)
        error = (new_params - task.sequences.cut(fresh).flatten(0, 1)).abs().unflatten(0, (3, -1)).mean((1, 2, 3))
        errors[burn_in] = error
        assert error[0] < 1e-6  # the first chunk of the first rollout begins with nothing at all
    assert (errors[0][1:] > 1e-3).all() and (errors[4][1:] < 0.5 * errors[0][1:]).all(), errors
    assert errors[4][1] < 1e-6  # and the burn-in of the second with the first's first step
    before = task.rows["agents"]["observation"].clone().requires_grad_()
    rows = task.sequences.rows({"agents": {**task.rows["agents"], "observation": before}}, roll)["agents"]
    policy_params(actor, {k: v[12:] for k, v in rows.items()}).sum().backward()  # the last chunks alone
    assert (before.grad[:8] == 0).all() and (before.grad[8:] != 0).any()


def test_sequential_updates_take_the_ratios_of_whole_sequences():
    task = make(update="sequential", share_actor="separate", minibatch_size=None, epochs=1)
    task.collect(0)
    actor, rows = task.loss.actors["agents"], task.sequences.rows(task.rows, task.rollout)["agents"]
    optimizer, order, plain = OptimizerConfig(lr=1e-2).build(task.parts()), [], rows["advantage"]
    for batch in task.batches(0):
        agent = task.loss.selected_agents["agents"]
        with torch.no_grad():
            new = actor.head.log_prob(policy_params(actor, rows), rows["action"].flatten(0, 1))
        ratio = (new.unflatten(0, (18, 4)) - rows["log_prob"]).exp()
        expected = plain * ratio[..., order].prod(-1, keepdim=True)
        torch.testing.assert_close(batch["agents", "advantage"], expected, rtol=1e-4, atol=1e-6)
        order.append(agent)
        out = task.loss(batch)
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sorted(order) == [0, 1, 2] and not torch.allclose(expected, plain)


def test_resuming_gives_the_same_bits(tmp_path):
    build.configure_process(threads=1)

    def fit(name, resume=None, **settings):
        trainer = Trainer(progress="off", evaluate_every=2, **settings)
        task = make(network="lstm", burn_in=2)
        summary = trainer.fit(task, tmp_path / name, optimizer=OptimizerConfig(lr=1e-2), resume=resume)
        return task, summary

    whole, summary = fit("whole")
    fit("half", max_iterations=2)
    half = tmp_path / "half" / "checkpoints" / "last.pt"
    memory = torch.load(half, weights_only=True)["processes"][0]["task"]["rollout"]["memory"]
    assert (memory["actor"]["agents"] != 0).any() and (memory["critic"]["agents"] != 0).any()
    resumed, other = fit("resumed", half)
    assert other["final"] == summary["final"]
    for key, value in whole.loss.state_dict().items():
        assert torch.equal(value, resumed.loss.state_dict()[key]), key
    for kind in ("actor", "critic"):
        one, two = (task.collector.memories[kind].now["agents"] for task in (whole, resumed))
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": "mlp"}, r"algo\.chunk_length=4: needs a network with a memory, such as network=gru"),
        ({"network": "mlp", "chunk_length": None, "rollout_steps": 12, "minibatch_size": 3}, None),
        ({"chunk_length": 5}, r"algo\.chunk_length=5: must divide algo\.rollout_steps=12"),
        ({"burn_in": 5}, r"algo\.burn_in=5: at most algo\.chunk_length"),
        ({"burn_in": 1, "chunk_length": None}, r"algo\.burn_in=1: .*below algo\.rollout_steps=12"),
        ({"minibatch_size": 3}, r"algo\.minibatch_size=3: smaller than one sequence of 4 steps"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(settings, sentence):
    if sentence is None:
        assert make(**settings).sequences is None
        return
    with pytest.raises(UserError, match=sentence) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_networks_are_measured_and_single_observations_explain_nothing():
    task = make("lstm")
    layers = model_summary.networks(task.loss)["actors.agents.network.networks.0"]
    assert [layer.kind for layer in layers] == ["Sequential", "LSTMCell", "LSTMCell", "Linear"]
    assert layers[1].flops == 2 * 4 * 5 * (4 + 5) and layers[1].parameters == 4 * 5 * (4 + 5 + 2)
    with pytest.raises(UserError, match="its agents have a memory, and act on all they have seen"):
        observations(task, 20, 0, "agents")


def test_sequences_are_where_they_belong():
    sequences = Sequences(6, 3, 2)
    x = torch.arange(6).unsqueeze(-1) * 10 + torch.arange(2)  # [T, E]
    assert sequences.cut(x).tolist() == [[0, 10, 20], [1, 11, 21], [30, 40, 50], [31, 41, 51]]
    assert sequences.cut_before(x).tolist()[2:] == [[10, 20, 30, 40, 50], [11, 21, 31, 41, 51]]
    assert sequences.marks == {0: [0], 1: [1]} and RECALL().spec.max_steps == 5


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_playing_the_memory_task_reads_nothing_back(network):
    task = make(network)
    task.collector.reset(0)
    with no_waiting():
        task.collector.collect(torch.Generator().manual_seed(0))
    assert task.rollout.done.any()
