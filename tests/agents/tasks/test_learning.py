"""That it learns: the shipped defaults on balance, and memory where it takes one, past thresholds found over seeds."""

import pytest

from marl.config import compose
from marl.launch import build


def trained(folder, *overrides):
    """The mean return of the last evaluation."""
    config = compose.check(compose.compose([*overrides, "seed=0", "trainer.progress=off"]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    summary = trainer.fit(task, folder, **{**build.build_setup(config), "loggers": []})
    return summary["final"]["episode_return"]["mean"]


def test_mappo_learns_balance(tmp_path):
    """75,000 frames gave returns of 35.8, 35.0, 37.0 and 39.5 for seeds 0 to 3; random play gives -6."""
    assert trained(tmp_path, "algo=mappo", "frames=75000") > 25


def test_the_memory_task_is_learnt_with_a_memory_only(tmp_path):
    """36,000 frames gave the GRU returns of 1.00 for seeds 0 to 3, the best there is; chance is 0.25, +- 0.01 here."""
    size = [
        "experiment=memory",
        "env.min_delay=3",
        "env.max_delay=6",
        "trainer.evaluate_every=0",
        "task.eval_episodes=1000",
    ]
    assert trained(tmp_path / "gru", *size, "frames=36000") >= 0.95
    mlp = ["network=mlp", "network.hidden=[64,64]", "frames=20000"]
    assert trained(tmp_path / "mlp", *size, *mlp) == pytest.approx(0.25, abs=0.05)


RECALL = [
    *("env=memory", "env.min_delay=3", "env.max_delay=6", "network=gru", "network.hidden=32", "optimizer.lr=2e-3"),
    *("algo.rollout_steps=20", "algo.updates=30", "algo.minibatch_size=320", "algo.tau=0.05"),
    *("trainer.evaluate_every=0", "task.eval_episodes=1000"),
]


def test_qmix_learns_the_memory_task_from_replayed_sequences(tmp_path):
    """25,000 frames gave returns of 1.00 for seeds 0 to 2, the best there is; without a memory it is at most 0.25."""
    assert trained(tmp_path, *RECALL, "algo=qmix", "frames=25000") >= 0.9


def test_so_does_soft_actor_critic(tmp_path):
    """25,000 frames gave 1.00, 0.93 and 1.00 for seeds 0 to 2."""
    soft = ["algo=masac", "algo.temperature=0.05", "algo.learn_temperature=false", "algo.n_step=1"]
    assert trained(tmp_path, *RECALL, *soft, "frames=25000") >= 0.7


def test_what_only_a_picture_shows_is_learnt_by_a_network_that_reads_it(tmp_path):
    """25,000 frames gave 0.90, 0.90, 0.91 and 0.93 for seeds 0 to 3; without the picture 0.18 to 0.21, 0.2 at best."""
    size = [
        "experiment=picture_search",
        "env.size=4",
        "env.max_steps=8",
        "algo.rollout_steps=16",
        "frames=25000",
        "trainer.evaluate_every=0",
        "task.eval_episodes=1000",
    ]
    assert trained(tmp_path / "multi", *size) >= 0.7
    assert trained(tmp_path / "blind", *size, "env.picture=false") <= 0.3


def test_shac_learns_balance_in_few_frames(tmp_path):
    """24,000 frames gave returns of 49.1, 50.5, 49.1 and 42.1 for seeds 0 to 3; MAPPO's are below 12 by then."""
    size = ["env.num_envs=32", "trainer.evaluate_every=0", "frames=24000"]
    assert trained(tmp_path, "algo=shac", *size) > 30
