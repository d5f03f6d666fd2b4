"""scripts/show.py as a person types it."""

import pytest


def test_a_schedule_is_a_table_and_a_picture(shell, tmp_path):
    done = shell(tmp_path, "show", "schedule", "experiment=digits", "scheduler=cosine", "epochs=20", "out=cosine.png")
    assert done.returncode == 0, done.stderr
    assert "lr of model" in done.stdout and "epochs" in done.stdout
    assert (tmp_path / "cosine.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_lists_actor_and_critic(shell, tmp_path):
    done = shell(tmp_path, "show", "model", "algo=mappo", "env.num_envs=4", "algo.minibatch_size=40", "env.fast=off")
    assert done.returncode == 0, done.stderr
    assert "actors.agents" in done.stdout and "critics.agents" in done.stdout and "actor:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["schedul"], "'schedul'; did you mean 'schedule'"),
        (["model", "algo=mapo"], "mapo"),
        (["model", "out=x.png"], "out=x.png"),
        (["schedule", "experiment=digits", "out=nowhere/x.png"], "nowhere/x.png"),
        (["schedule", "frames=1_000_000_000_000", "env.fast=off"], "takes too long to go through; at most 1,000,000"),
    ],
)
def test_mistakes_are_one_sentence(shell, arguments, sentence, tmp_path):
    done = shell(tmp_path, "show", *arguments)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
