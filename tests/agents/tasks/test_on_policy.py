"""The on-policy task: minibatches, advantages, KL stop, evaluation, exact resume, and that it learns."""

from functools import partial

import numpy as np
import pytest
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate

from agents.algorithms.kl_adaptive import KLAdaptive
from agents.algorithms.ppo import PPO
from agents.collection.value_estimates import values_of
from agents.evaluation.episodes import statistics
from agents.tasks.on_policy import OnPolicy
from envs.vmas.env import VmasEnv
from marl.callbacks.base import Callback
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.networks import MLP
from marl.optim.optimizer_config import OptimizerConfig


def make(scenario="balance", num_envs=6, max_steps=8, frames=6 * 10 * 3, eval_episodes=5, seed=0, env=None, **algo):
    torch.manual_seed(0)
    algo = PPO(**{"rollout_steps": 10, "minibatch_size": 16, "epochs": 2, **algo})
    factory = partial(VmasEnv, scenario, num_envs=num_envs, max_steps=max_steps, **(env or {}))
    network = partial(MLP, hidden=[32])
    return OnPolicy(factory, algo, network, frames=frames, eval_episodes=eval_episodes, seed=seed)


def fit(task, path, **kwargs):
    trainer = Trainer(progress="off", evaluate_every=2, checkpoint_every=1)
    return trainer.fit(task, path, optimizer=OptimizerConfig(lr=1e-3), seed=0, **kwargs), trainer


def test_minibatches_hold_every_frame_once_per_epoch():
    task = make(minibatch_size=20, epochs=3)
    task.collect(0)
    log_probs = torch.cat([batch["agents", "log_prob"] for batch in task.batches(0)])
    rows = task.rollout.log_prob["agents"].flatten(0, 1)
    for epoch in log_probs.split(60):
        assert torch.equal(epoch.sort(0).values, rows.sort(0).values)
    assert not torch.equal(log_probs[:60], log_probs[60:120])
    assert task.steps_per_iteration == 9 and task.iterations == 3


def test_without_a_size_the_rollout_is_the_minibatch():
    task = make(minibatch_size=None, epochs=3)
    task.collect(0)
    log_probs = [batch["agents", "log_prob"] for batch in task.batches(0)]
    assert len(log_probs) == 3 == task.steps_per_iteration
    assert all(torch.equal(x, task.rollout.log_prob["agents"].flatten(0, 1)) for x in log_probs)
    assert log_probs[0].data_ptr() == task.rollout.log_prob["agents"].data_ptr()  # nothing is copied


def test_advantages_equal_torchrl_with_true_final_values():
    task = make(critic="local", gamma=0.9, lam=0.8)
    task.collect(0)
    data, critic = task.rollout.data, task.loss.critics["agents"]
    with torch.no_grad():
        value = critic(data["agents", "observation"]).movedim(0, 1)
        next_value = critic(data["next", "agents", "observation"]).movedim(0, 1)
    ends = {k: data["next", k].movedim(0, 1).expand(-1, -1, 3) for k in ("done", "terminated")}
    reward = data["next", "agents", "reward"].squeeze(-1).movedim(0, 1)
    advantage, target = torch.stack([value, next_value]), []
    for agent in range(3):  # TorchRL's function wants [E, T, 1]
        pick = [x[..., agent : agent + 1] for x in (value, next_value, reward, ends["done"], ends["terminated"])]
        target.append(generalized_advantage_estimate(0.9, 0.8, *pick)[0])
    advantage = torch.cat(target, -1).movedim(0, 1)
    torch.testing.assert_close(task.rows["agents"]["advantage"], advantage, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value_norm", ["running", "popart"])
def test_normalised_values_leave_the_advantages_in_units_of_the_reward(value_norm):
    plain, task = make(value_clip=0.2), make(value_clip=0.2, value_norm=value_norm)
    for each in (plain, task):
        each.collect(0)
    a, b = plain.rows["agents"], task.rows["agents"]
    critic = task.loss.critics["agents"]
    assert torch.equal(a["advantage"], b["advantage"])  # the statistics come into play with the second rollout
    torch.testing.assert_close(critic.denormalize(b["return"]), a["return"])
    assert b["return"].mean().abs() < 1e-4 and (b["return"].std(correction=0) - 1).abs() < 1e-3
    with torch.no_grad():
        values = critic(task.rollout.observed["agents"][:-1])
    torch.testing.assert_close(b["value"], values, rtol=1e-4, atol=1e-5)


def test_rewards_are_scaled_for_the_critic_and_reported_as_they_are():
    plain, task = make(), make(reward_scale=0.5)
    for each in (plain, task):
        for _ in range(2):
            each.collect(0)
    nowhere, memories = torch.zeros(0, dtype=torch.int64), task.collector.memories["critic"]
    value = values_of(task.loss.critics["agents"], "agents", task.rollout, nowhere, memories)[0]
    step, end = task.rows["agents"]["return"] - value[:-1], task.rollout.done[-1:]
    last = step[-1:] + value[-2:-1] - 0.5 * task.rollout.reward["agents"][-1:]  # gamma V(next), nothing at an end
    torch.testing.assert_close(last[~end], (0.99 * value[-1:])[~end], atol=1e-5, rtol=1e-4)
    assert task.metrics()["episode_return"] == plain.metrics()["episode_return"]


def test_input_statistics_move_after_the_update_and_with_nothing_else():
    task = make(normalize_observation=True, minibatch_size=20)
    actor = task.loss.actors["agents"]
    for k in range(2):
        task.collect(k)
        frozen = actor.inputs.norm.count.item()
        for batch in task.batches(k):
            out = task.loss(batch)
            assert out["approx_kl"] < 1e-8 and actor.inputs.norm.count.item() == frozen == 180 * k
    task.evaluate()
    observed = task.rollout.observed["agents"][:-1].reshape(-1, task.rollout.observed["agents"].shape[-1])
    assert actor.inputs.norm.count.item() == 2 * len(observed)
    critic = task.loss.critics["agents"]
    assert torch.equal(critic.inputs.norm.mean, actor.inputs.norm.mean)


def test_kl_stop_ends_the_epochs():
    task = make(epochs=6, target_kl=1e-9)
    task.collect(0)
    count = 0
    for _ in task.batches(0):
        task.observe({"approx_kl": torch.tensor(0.1)})
        count += 1
    assert count == task.minibatches and task.metrics()["epochs"] == 1


def test_evaluation_repeats_itself_and_disturbs_nothing():
    task = make()
    task.collect(0)
    before, stream = task.env.snapshot(), torch.get_rng_state()
    first = task.evaluate()
    assert task.evaluate() == first
    assert torch.equal(stream, torch.get_rng_state())
    after = task.env.snapshot()
    assert all(torch.equal(value.nan_to_num(), after[key].nan_to_num()) for key, value in before.items())


class Break(Callback):
    """Stops after two iterations as a killed process would."""

    def on_iteration(self, trainer, record):
        if trainer.iteration == 2:
            trainer.save("last")
            raise KeyboardInterrupt


def test_a_learning_rate_that_follows_the_kl_is_resumed(tmp_path):
    algo = {"clip_schedule": "linear", "entropy_coef": 0.01, "entropy_schedule": "cosine", "minibatch_size": None}
    adaptive = {"target": 1.0}
    _, whole = fit(make(**algo), tmp_path / "a", callbacks=[KLAdaptive(**adaptive)])
    rates = [group["lr"] for group in whole.optimizer.param_groups]
    assert rates == pytest.approx([1e-3 * 1.5**3] * 2)  # three iterations far below the target
    with pytest.raises(KeyboardInterrupt):
        fit(make(**algo), tmp_path / "b", callbacks=[KLAdaptive(**adaptive), Break()])
    resume = tmp_path / "b" / "checkpoints" / "last.pt"
    _, resumed = fit(make(**algo), tmp_path / "b", resume=resume, callbacks=[KLAdaptive(**adaptive)])
    assert [group["lr"] for group in resumed.optimizer.param_groups] == rates
    assert resumed.evaluation == whole.evaluation


@pytest.mark.parametrize(
    "algo",
    [
        {"critic": "local"},
        {"critic": "concat"},
        {"value_norm": "popart", "value_clip": 0.2, "normalize_observation": True, "reward_norm": "std"},
    ],
    ids=str,
)
def test_resume_is_exact(tmp_path, algo):
    _, whole = fit(make(**algo), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fit(make(**algo), tmp_path / "b", callbacks=[Break()])
    resume = tmp_path / "b" / "checkpoints" / "last.pt"
    _, resumed = fit(make(**algo), tmp_path / "b", resume=resume)
    for (name, a), b in zip(whole.task.loss.state_dict().items(), resumed.task.loss.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.evaluation == resumed.evaluation


def test_evaluating_more_often_changes_nothing(tmp_path):
    weights = []
    for every in (1, 0):
        task = make()
        Trainer(progress="off", evaluate_every=every).fit(task, tmp_path, optimizer=OptimizerConfig(lr=1e-3))
        weights.append(torch.cat([p.flatten() for p in task.loss.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("scenario", "env", "algo"),
    [
        ("mpe/simple_tag", {"fast": "auto", "scenario_kwargs": {"num_adversaries": 2, "num_landmarks": 1}}, {}),
        ("mpe/simple_speaker_listener", {"heterogeneous": "pad"}, {}),
        ("balance", {"continuous_actions": False}, {"entropy_coef": 0.01}),
        ("balance", {"continuous_actions": False, "multi_discrete": True}, {"share_actor": "separate"}),
        ("balance", {"global_state": True}, {"critic": "state", "share_critic": "separate"}),
        ("navigation", {"global_state": True}, {"critic": "agent_state", "value_loss": "huber", "value_clip": 0.2}),
        ("mpe/simple_tag", {}, {"value_norm": "running", "reward_norm": "std", "agent_ids": True, "dual_clip": 3.0}),
        (
            "balance",
            {"global_state": True},
            {"critic": "agent_state", "normalize_observation": True, "agent_ids": True},
        ),
        (
            "balance",
            {"fast": "auto"},
            {"policy": "clipped_normal", "std": "independent", "normalize_advantage": "agent"},
        ),
    ],
)
def test_combinations_train_save_and_evaluate(tmp_path, scenario, env, algo):
    task = make(scenario, env={"fast": "off", **env}, **algo)
    summary, trainer = fit(task, tmp_path)
    assert np.isfinite(summary["final"]["episode_return"]["mean"])
    assert all(torch.isfinite(p).all() for p in task.loss.parameters())


def test_bad_sizes_are_one_sentence():
    with pytest.raises(UserError, match="algo.minibatch_size=61"):
        make(minibatch_size=61)
    with pytest.raises(UserError, match="frames=59"):
        make(frames=59)


def test_statistics_by_hand():
    block = statistics(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0]))
    assert block["mean"] == 15.125 and block["iqm"] == 3.5 and block["episodes"] == 8
    half = 2.3646242510102993 * block["std"] / np.sqrt(8)  # Student's t, 7 degrees of freedom, 97.5 %
    assert block["ci95"] == pytest.approx([15.125 - half, 15.125 + half])


def test_dropout_and_batch_norm_are_of_the_updates_only(tmp_path):
    task = make()
    factory = partial(VmasEnv, "balance", num_envs=6, max_steps=8)
    network = partial(MLP, hidden=[32], dropout=0.5, batch_norm=True)
    task = OnPolicy(factory, task.algo, network, frames=180, eval_episodes=5)
    modes = []
    task.loss.register_forward_pre_hook(lambda loss, _: modes.append(loss.training))
    summary, _ = fit(task, tmp_path)
    assert modes and all(modes) and not task.loss.training
    assert task.evaluate()["episode_return"] == task.evaluate()["episode_return"]
    assert task.evaluate()["episode_return"] == summary["final"]["episode_return"]["mean"]


def test_steps_of_several_turns_are_refused(tmp_path):
    task = make(update="sequential", share_actor="separate")
    trainer = Trainer(progress="off", accumulate=2)
    with pytest.raises(UserError, match="trainer.accumulate=2: only 1 is allowed with algo.update=sequential"):
        trainer.fit(task, tmp_path)
