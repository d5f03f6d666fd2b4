"""tune.py on trials of a second: pruning, presets, several workers, continuing, what goes wrong."""

import re
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs pip install -e '.[tune]'")

from marl.config import compose  # noqa: E402
from marl.core.errors import Stopped, UserError  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "scripts"))  # where tune.py finds train.py

STUDY = """\
base: [task=supervised, data=threshold, objective=binary_cross_entropy, env=null, algo=null, frames=null,
       network=linear, epochs=3, trainer.evaluate_every=1, logger=csv,
       task.batch_size=8]
n_trials: 4
metric: accuracy
seeds: [0]
finalists: 2
final_seeds: [20]
fresh_seeds: [10, 11]
startup_trials: 2
pruner_trials: 2
space:
  optimizer.lr: {low: 1.0e-5, high: 1.0e-1, log: true}
  task.batch_size: {choices: [8, 16]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text(STUDY)
    return path


def test_two_workers_share_a_study_and_the_best_becomes_a_preset(shell, study: Path, tmp_path: Path) -> None:
    journal = tmp_path / "out" / "journal.log"
    done = shell(tmp_path, "tune", f"study={study}", "out=out", "workers=2", f"storage={journal}", "n_trials=6")
    assert done.returncode == 0, done.stderr
    helper = (tmp_path / "out" / "worker_1.log").read_text()
    both = re.findall(r"trial (\d+) (?:complete|pruned)", done.stdout + helper)
    assert sorted(map(int, both)) == list(range(6)) and len(re.findall("trial", helper)) >= 1
    page = (tmp_path / "out" / "study.md").read_text()
    assert "finalists, seed | 20" in page and "fresh seed | 10 | 11" in page
    assert page.count("| complete |") + page.count("| pruned |") == 6
    assert re.search("(Better than|Worse than|Not told apart from) the default: IQM", page)
    preset = (tmp_path / "out" / "conf" / "experiment" / "quick_best.yaml").read_text()
    assert preset.startswith("# @package _global_\n# Found by tune.py, study quick: trial ") and "score" in preset
    used = shell(tmp_path, "train", "--config-dir", "out/conf", "experiment=quick_best", "hydra.run.dir=run")
    assert used.returncode == 0, used.stderr
    best = re.search(r"trial (\d+) of 6", page)[1]
    assert re.search(rf"finalists, seed \| 20 \|\n\| --- \| --- \|\n\| trial {best} \|", page)  # the first wins
    for folder in (tmp_path / "run", tmp_path / "out" / "trials" / best):
        config = compose.saved(folder)
        assert f"lr: {config.optimizer.lr}" in preset and f"batch_size: {config.task.batch_size}" in preset


def test_a_study_is_continued(script, study: Path, tmp_path: Path, capsys) -> None:
    tune = script("tune")
    for n in (2, 3):
        tuned = tune.main([f"study={study}", f"out={tmp_path}/o", f"n_trials={n}", "confirm=false", "seed=1"])
        assert tuned.tuning.finished(tuned.study.trials) == n
    assert "continuing" in capsys.readouterr().out


def test_trials_that_fail_are_reported_and_do_not_count(script, study: Path, tmp_path: Path, capsys) -> None:
    study.write_text(STUDY.replace("[8, 16]", "[16, 100000]"))  # more than there are rows
    tuned = script("tune").main([f"study={study}", f"out={tmp_path}/o", "n_trials=2", "confirm=false", "seed=3"])
    states = [trial.state.name for trial in tuned.study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 2
    if "FAIL" in states:
        assert "task.batch_size=100000" in capsys.readouterr().out


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM, 3), KeyboardInterrupt()])
def test_a_signal_ends_the_study_and_its_trial_is_tried_again(error, script, study, tmp_path, capsys, monkeypatch):
    tune, command = script("tune"), [f"study={study}", f"out={tmp_path}/o", "n_trials=1", "confirm=false"]

    def stopped(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(tune, "train", stopped)
        tune.main(command)
    printed = capsys.readouterr()
    assert "trial 0 was interrupted" in printed.out and "Traceback" not in printed.err and "trial 1" not in printed.out
    trials = tune.main(command).study.trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"] and trials[0].params == trials[1].params
    (tmp_path / "o" / "study.json").unlink()  # what the storage holds is compared, too
    with pytest.raises(UserError, match=r'base=\["epochs=4"\]: sqlite.* was begun with \[\]'):
        tune.main([*command, "epochs=4"])


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (("", ""), ["study=balance_pp"], "study=balance_pp: no such study; did you mean 'balance_ppo'"),
        (("", ""), ["n_trials=0"], "n_trials=0: must be at least 1"),
        (("", ""), ["sampler=best"], "sampler=best: must be 'tpe', 'cmaes' or 'random'"),
        (("optimizer.lr", "optimizer.rl"), [], "unknown key 'optimizer.rl'"),
        (("[10, 11]", "[0]"), [], r"fresh_seeds=\[0\]: must have none of seeds and final_seeds \[0, 20\]"),
        (("low: 1.0e-5", "lo: 1.0e-5"), [], "unknown key 'space.optimizer.lr.lo'; did you mean 'low'"),
        (("n_trials: 4", "n_trial: 4"), [], "unknown key 'n_trial'; did you mean 'n_trials'"),
    ],
)
def test_mistakes_are_rejected_before_anything_starts(change, arguments, sentence, script, study, tmp_path) -> None:
    study.write_text(STUDY.replace(*change))
    full = arguments if any(a.startswith("study=") for a in arguments) else [f"study={study}", *arguments]
    with pytest.raises(UserError, match=sentence):
        script("tune").main([*full, f"out={tmp_path}/o"])
    assert not (tmp_path / "o").exists()


def test_a_figure_of_the_environments_own_can_be_the_objective(script, study: Path, tmp_path: Path) -> None:
    goal = "env=gymnasium, 'env.id=tests.envs.info_cases:InfoGoal-v0', env.num_envs=4, env.max_steps=9"
    study.write_text(f"""\
base: [{goal}, algo=ippo, frames=64, algo.rollout_steps=8, algo.minibatch_size=8, task.eval_episodes=4, logger=csv,
       'network.hidden=[4]', env.kwargs.success=half]
metric: info/success/end
seeds: [0]
space:
  optimizer.lr: {{low: 1.0e-5, high: 1.0e-1, log: true}}
""")
    tuned = script("tune").main([f"study={study}", f"out={tmp_path}/o", "n_trials=1", "confirm=false"])
    assert [trial.value for trial in tuned.study.trials] == [0.5]
