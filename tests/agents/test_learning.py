"""That it learns: the shipped defaults on balance, past a threshold found over several seeds."""

from marl import compose


def test_mappo_learns_balance(tmp_path):
    """75,000 frames gave returns of 35.8, 35.0, 37.0 and 39.5 for seeds 0 to 3; random play gives -6."""
    config = compose.check(compose.compose(["algo=mappo", "frames=75000", "seed=0", "trainer.progress=off"]))
    trainer, task = compose.build_trainer(config), compose.build_task(config)
    summary = trainer.fit(task, tmp_path, **{**compose.build_setup(config), "loggers": []})
    assert summary["final"]["episode_return"]["mean"] > 25
