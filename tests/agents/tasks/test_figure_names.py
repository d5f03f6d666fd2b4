"""Names of evaluations' figures that are known before training: every figure has one, and a slip has none."""

import pytest

from marl.callbacks.base import expect
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from tests.fixtures.runs import TINY

ENVS = [["env=vmas/balance"], ["env=vmas/mpe/simple_tag"], ["env=vmas/mpe/simple"]]


@pytest.mark.parametrize("env", ENVS)
def test_every_figure_of_an_evaluation_may_be_monitored(env):
    task = build.build_task(compose.check(compose.compose([*env, *TINY])))
    names = task.figure_names()
    figures = task.evaluate()
    assert any("info/" in figure for figure in figures) or "env=vmas/balance" not in env
    for figure in figures:
        expect(names, figure, "trainer.monitor")
    with pytest.raises(UserError, match="trainer.monitor='episode_retrun': .*did you mean 'episode_return'"):
        expect(names, "episode_retrun", "trainer.monitor")


def test_the_spread_of_one_episode_is_no_figure_to_monitor():
    task = build.build_task(compose.check(compose.compose([*TINY, "task.eval_episodes=1"])))
    with pytest.raises(UserError, match="trainer.monitor='episode_return/std': evaluation has"):
        expect(task.figure_names(), "episode_return/std", "trainer.monitor")


def test_nothing_is_refused_where_names_are_unknown():
    expect(None, "anything", "trainer.monitor")
