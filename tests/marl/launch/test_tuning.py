"""Studies without training: what the configuration means, pruning, storages, trials left behind, verdicts."""

import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

optuna = pytest.importorskip("optuna", reason="needs pip install -e '.[tune]'")

from marl.config import conf_tree  # noqa: E402
from marl.core.errors import UserError  # noqa: E402
from marl.core.schema import check_arguments  # noqa: E402
from marl.launch import sweep, tuning  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("name", conf_tree.group_options("study"))
def test_the_studies_that_are_shipped_fit(name: str) -> None:
    node = yaml.safe_load((conf_tree.CONF / "study" / f"{name}.yaml").read_text())
    check_arguments(tuning.StudyConfig, node, "")
    config = tuning.StudyConfig(**node)
    assert config.space and not set(config.seeds) & set(config.fresh_seeds)
    for key, entry in config.space.items():
        check_arguments(tuning.Parameter, entry, f"space.{key}")
        tuning.Parameter(**entry).check(key)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({}, "space.x: needs either low and high, or choices"),
        ({"low": 1, "high": 2, "choices": [1]}, "needs either"),
        ({"choices": []}, "at least one value"),
        ({"low": 2, "high": 1}, "low=2 must not exceed high=1"),
        ({"low": 0, "high": 1, "log": True}, "log=true needs low above 0"),
        ({"low": 0, "high": 1.5, "step": 0}, "step=0: must be above 0"),
        ({"low": 0, "high": 9, "step": 0.5}, "step=0.5: must be above 0, and whole between whole numbers"),
    ],
)
def test_impossible_spaces_are_refused(entry: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tuning.Parameter(**entry).check("x")


def test_values_are_written_as_on_the_command_line() -> None:
    space = {"rate": {"low": 1e-4, "high": 1e-2, "log": True}, "size": {"low": 2, "high": 8, "step": 2}}
    space |= {"hidden": {"choices": [[8], [64, 64]]}, "mode": {"choices": ["a", None, True]}}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    drawn = {key: set() for key in space}
    for _ in range(40):
        trial = study.ask()
        for key, entry in space.items():
            drawn[key].add(tuning.Parameter(**entry).suggest(trial, key))
    assert drawn["size"] == {"2", "4", "6", "8"} and drawn["hidden"] == {"[8]", "[64, 64]"}
    assert drawn["mode"] == {"a", "null", "true"} and all(1e-4 <= float(rate) <= 1e-2 for rate in drawn["rate"])


def trainer(iteration: int, iterations: int = 10) -> SimpleNamespace:
    trainer = SimpleNamespace(iteration=iteration, iterations=iterations, monitor="episode_return", reason=None)
    trainer.stop = lambda reason: setattr(trainer, "reason", reason)
    return trainer


@pytest.mark.parametrize("pruner", ["median", "hyperband", "none"])
def test_trials_that_fall_behind_are_stopped(pruner: str) -> None:
    config = tuning.StudyConfig([], {}, pruner=pruner, pruner_trials=4, pruner_warmup=2, sampler="random")
    study = optuna.create_study(
        direction="maximize", pruner=config.make_pruner(10), sampler=config.make_sampler(0), study_name="s"
    )
    for _ in range(8):
        trial = study.ask()
        for step in range(1, 11):
            trial.report(float(step), step)
            assert not trial.should_prune()  # Hyperband's bookkeeping happens here
        study.tell(trial, 10.0)
    stopped = []
    for _ in range(6):  # Hyperband compares within brackets, and not every one has peers yet
        bad = tuning.Pruning(study.ask())
        for iteration in range(1, 10):
            at = trainer(iteration)
            bad.on_evaluation(at, {"episode_return": -5.0})
            if bad.pruned:
                stopped.append(iteration)
                assert at.reason.startswith("pruned: -5 at iteration")
                break
        assert bad.value == -5.0
    assert bool(stopped) == (pruner != "none") and all(2 <= iteration < 9 for iteration in stopped)
    last = tuning.Pruning(study.ask())
    last.on_evaluation(trainer(10), {"episode_return": -5.0})
    assert not last.pruned  # nothing is left to be saved


@pytest.mark.parametrize(("sampler", "kind"), [("tpe", "TPESampler"), ("cmaes", "CmaEsSampler")])
def test_samplers_search(sampler: str, kind: str) -> None:
    config = tuning.StudyConfig([], {}, sampler=sampler, startup_trials=5)
    study = optuna.create_study(sampler=config.make_sampler(0))
    study.optimize(lambda trial: (trial.suggest_float("x", -5, 5) - 2) ** 2 + trial.suggest_float("y", -1, 1) ** 2, 40)
    assert type(study.sampler).__name__ == kind and study.best_value < 0.5


@pytest.mark.parametrize("place", ["sqlite:///{}/deep/s.db", "{}/deep/journal.log"])
def test_storages_keep_a_study(place: str, tmp_path: Path) -> None:
    place = place.format(tmp_path)
    for trials in (1, 2):
        study = optuna.create_study(storage=tuning.open_storage(place), study_name="s", load_if_exists=True)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
        assert len(study.trials) == trials


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be a mapping of keys to values, base and space among them"),
        ("- base", "must be a mapping of keys"),
        ("base: [a\nspace: {", "cannot be read as YAML"),
        ("{base: [], space: {optimizer.lr: 3}}", "space.optimizer.lr=3: must be a mapping with low and high, or with"),
        ("{base: [], space: {x: {low: 1e-4, high: 1.0}}}", r"space.x.low=1e-4: .*takes it for text: write 1.0e-4\)"),
        ("{base: [], space: {}, fresh_seeds: []}", r"fresh_seeds=\[\]: must have at least 1 item"),
    ],
)
def test_studies_that_cannot_be_read_are_rejected_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "st.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        tuning.read_study(tmp_path / "st.yaml", {})
    assert "\n" not in str(error.value)


def given(base=("frames=6000", "seed=1"), high=1.0, name="s", **settings) -> dict:
    config = tuning.StudyConfig(list(base), {}, **settings)
    return tuning.identity(name, config, config.base, {"lr": tuning.Parameter(0.1, high)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"base": ["seed=1", "frames=2000"]}, r'base=\["frames=2000"\]: .* was begun with \["frames=6000"\]; give'),
        ({"high": 2.0}, 'space={"lr": {"low": 0.1, "high": 2.0'),
        ({"metric": "accuracy"}, "metric=accuracy: .* was begun with null"),
        ({"direction": "minimize"}, "direction=minimize: .* was begun with maximize"),
        ({"seeds": [0, 1]}, r"seeds=\[0, 1\]: .* was begun with \[0\]"),
        ({"name": "t"}, "study=t: .* was begun with s"),
    ],
)
def test_a_study_is_continued_only_with_what_it_was_begun_with(change: dict, sentence: str, tmp_path: Path) -> None:
    place = f"{tmp_path}/journal.log"
    tuning.open_study(place, tmp_path / "a", given())
    same = given(base=("seed=1", "frames=6000"), n_trials=7, sampler="random", fresh_seeds=[7])
    assert tuning.open_study(place, tmp_path / "b", same).study_name == "s"  # from another machine, say
    with pytest.raises(UserError, match=sentence):
        tuning.open_study(f"{tmp_path}/other.log", tmp_path / "a", given(**change))
    if "name" not in change:  # a storage may hold several studies
        with pytest.raises(UserError, match=sentence):
            tuning.open_study(place, tmp_path / "c", given(**change))
        assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("foo://x", "storage=foo://x: Can't load plugin"),
        ("mysql://me:secret@host/db", r"storage=mysql://me:\*\*\*@host/db: needs the package MySQLdb, .*\[mysql\]"),
        ("{}/folder", "Is a directory"),
        ("{}/text", "the file is no study's journal"),
        ("sqlite:///{}/text", "file is not a database"),
    ],
)
def test_storages_that_cannot_be_used_are_rejected_in_a_sentence(place: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("something else\n" * 100)
    with pytest.raises(UserError, match=sentence) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuning.open_study(place.format(tmp_path), tmp_path / "out", given())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def hold(place: str, folder: str) -> None:
    study = optuna.load_study(study_name="s", storage=tuning.open_storage(place))

    def call() -> None:
        trial.suggest_float("x", 0, 1)
        (Path(folder) / "ready").touch()
        time.sleep(60)

    trial = study.ask()
    sweep.work(Path(folder) / str(trial.number), [], call)


def test_trials_of_killed_processes_are_tried_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "ABANDONED_AFTER", 0.0)
    place = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=tuning.open_storage(place), study_name="s")
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(place, str(tmp_path)))
    process.start()
    end = time.monotonic() + 100
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert tuning.reclaim(study, tmp_path) == []  # another process is at it
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert tuning.reclaim(study, tmp_path) == [0] and tuning.reclaim(study, tmp_path) == []
    assert study.trials[0].state.name == "FAIL"
    retried = study.ask()
    assert retried.suggest_float("x", 0, 1) == study.trials[0].params["x"]


def test_a_verdict_says_better_only_where_the_interval_does() -> None:
    assert tuning.verdict([5, 6, 7], [1, 2, 3], "maximize").startswith("Better than the default: IQM 6 against 2 on 3")
    assert tuning.verdict([5, 6, 7], [1, 2, 3], "minimize").startswith("Worse than")
    assert tuning.verdict([1, 5, 6], [2, 4, 7], "maximize").startswith("Not told apart from")
    alone = "Not told apart from the default (one seed): -6.642 against -7.948."
    assert tuning.verdict([-6.642], [-7.948], "maximize") == alone  # no interval, so no verdict
    assert "P(better) 1.00 [1.00, 1.00]" in tuning.verdict([5, 6], [1, 2], "maximize")


def test_importances_need_enough_trials() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    assert tuning.importances(study) == {}
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + 0 * trial.suggest_float("y", 0, 1), 20)
    shares = tuning.importances(study)
    assert shares["x"] > 0.9 and np.isclose(sum(shares.values()), 1)


@pytest.mark.parametrize("content", [b"", bytes(40), b"[1]", b"{"], ids=range(4))
def test_a_damaged_study_file_is_set_aside_for_the_storage_knows_it(content, tmp_path, capsys) -> None:
    place = f"sqlite:///{tmp_path}/study.db"
    tuning.open_study(place, tmp_path / "a", given())
    file = tmp_path / "a" / "study.json"
    before = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(UserError, match="was begun with"):
        tuning.open_study(place, tmp_path / "a", given(metric="other"))
    assert "study.json.damaged" in capsys.readouterr().err
    tuning.open_study(place, tmp_path / "a", given())
    assert file.read_bytes() == before


def test_a_study_that_knows_more_than_this_one() -> None:
    """Of a later version: what is compared key by key may be missing here."""
    for was in ({"lr": [1]}, ["env=vmas/balance"]):
        key = "space" if isinstance(was, dict) else "base"
        with pytest.raises(UserError, match=f"{key}=null: runs was begun with"):
            tuning.refuse_other({key: was}, {}, "runs")
