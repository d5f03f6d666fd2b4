"""Searches for settings: python scripts/tune.py study=NAME [option=value …] [configuration key=value …]

  study=NAME           conf/study/NAME.yaml or a file of yours: the space, the sampler, the pruner (required)
  n_trials=null        complete and pruned trials of all workers together; null: as the study says
  workers=1            processes that work on the study here; more may join from other machines
  storage=null         null: OUT/study.db (sqlite) | a path: a journal file | a database URL, for many machines
  out=null             folder of trials, preset and study.md; null: outputs/tune/NAME
  sampler=null         null: as the study says | tpe | cmaes | random
  pruner=null          null: as the study says | median | hyperband | none
  confirm=true         at the end choose among the finalists and train the winner and the default on fresh seeds;
                       false: only work on trials
  seed=null            of the sampler; null: another one each time

Any other key=value is added to the configuration of every trial. The same command continues a study, n_trials and
workers may change; trials of killed processes are put back into the queue. The best is written as a preset:
  python scripts/train.py --config-dir OUT/conf experiment=NAME_best
Look at a study in the browser: pip install -e '.[dashboard]', optuna-dashboard sqlite:///OUT/study.db
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pydantic import Field
from train import train  # beside this file

from marl.config import compose, conf_tree
from marl.config.options import split
from marl.core.errors import Damaged, Stopped, UserError, closest
from marl.core.files import read_json, write_json
from marl.core.zoo import index as zoo
from marl.launch import build, cli, orphans, sweep, sweep_jobs
from marl.report.tables import Table

PARENT = "MARL_TUNE_PARENT"  # environment variable: the process that began this one as a helper


@dataclass
class Options:
    """The options above."""

    study: str
    n_trials: Annotated[int, Field(ge=1)] | None = None
    workers: Annotated[int, Field(ge=1)] = 1
    storage: str | None = None
    out: str | None = None
    sampler: Literal["tpe", "cmaes", "random"] | None = None
    pruner: Literal["median", "hyperband", "none"] | None = None
    confirm: bool = True
    seed: Annotated[int, Field(ge=0)] | None = None


class Tuning:
    """A study at work: its configuration, its folder, its storage."""

    def __init__(self, options: Options, overrides: list[str]):
        try:
            import optuna

            from marl.launch import tuning
        except ModuleNotFoundError as error:
            raise UserError(f"tune.py needs {error.name}: pip install -e '.[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # of failed trials its warnings hold tracebacks
        self.optuna, self.tuning = optuna, tuning
        path = conf_tree.CONF / "study" / f"{options.study}.yaml"
        path = Path(options.study) if options.study.endswith(".yaml") else path
        if not path.is_file():
            known = conf_tree.group_options("study")
            hint = closest(options.study, known)
            raise UserError(f"study={options.study}: no such study{hint} (there are {', '.join(known)}, and files)")
        changes = {key: getattr(options, key) for key in ("n_trials", "sampler", "pruner")}
        changes = {key: value for key, value in changes.items() if value is not None}
        self.config, self.space = tuning.read_study(path, changes)
        self.base = [*self.config.base, *overrides]
        self.name = path.stem
        self.out = Path(options.out or f"outputs/tune/{self.name}").resolve()
        config = compose.check(compose.compose([*self.base, *(f"{key}={self.any(key)}" for key in self.space)]))
        self.iterations = build.build_task(config).iterations * len(self.config.seeds)
        if not options.storage:
            self.out.mkdir(parents=True, exist_ok=True)
        self.study = tuning.open_study(
            options.storage or f"sqlite:///{self.out / 'study.db'}",
            self.out,
            tuning.identity(self.name, self.config, self.base, self.space),
            sampler=self.config.make_sampler(options.seed),
            pruner=self.config.make_pruner(self.iterations),
        )

    def any(self, key: str) -> str:
        """Some value of a parameter, to see that its key exists."""
        parameter = self.space[key]
        return self.tuning.text(parameter.choices[0] if parameter.choices is not None else parameter.low)

    # ---- trials ----------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Run trials until the study has enough."""
        states = self.optuna.trial.TrialState
        while True:
            self.reclaim()
            trials = self.study.get_trials(deepcopy=False)
            count = {state: sum(trial.state == state for trial in trials) for state in states}
            missing = self.config.n_trials - count[states.COMPLETE] - count[states.PRUNED]
            if missing <= 0:
                return
            if count[states.FAIL] > 2 * self.config.n_trials:
                why = [trial.user_attrs.get("reason") for trial in trials if trial.state == states.FAIL]
                raise UserError(f"study={self.name}: {len(why)} trials failed, the last with: {why[-1]}")
            if count[states.RUNNING] >= missing:  # others are at the last ones: wait, for they may fail
                time.sleep(1)
            else:
                self.study.optimize(self.trial, n_trials=1, catch=(TrialFailed,), callbacks=[self.tell])

    def reclaim(self) -> None:
        """Take over what killed workers left."""
        for number in self.tuning.reclaim(self.study, self.out / "trials"):
            print(f"trial {number} was interrupted; its settings are tried again", flush=True)

    def trial(self, trial: Any) -> float:
        """Train with a trial's settings on every seed; the mean of their last evaluations.

        A signal ends it, and its settings go back into the queue.
        """
        try:
            return self.mean(trial)
        except (Stopped, KeyboardInterrupt) as error:
            trial.set_user_attr("reason", getattr(error, "where", "interrupted"))
            self.study.enqueue_trial(trial.params, skip_if_exists=False)
            print(f"trial {trial.number} was interrupted; the same command tries its settings again", flush=True)
            raise

    def mean(self, trial: Any) -> float:
        """The mean over the seeds of a trial's last evaluations. Raises TrialPruned, TrialFailed."""
        overrides = [f"{key}={parameter.suggest(trial, key)}" for key, parameter in self.space.items()]
        folder, values = self.out / "trials" / str(trial.number), []
        for i, seed in enumerate(self.config.seeds):
            offset = i * self.iterations // len(self.config.seeds)
            watch = self.tuning.Pruning(trial, self.config.metric, offset)
            place = folder if len(self.config.seeds) == 1 else folder / str(seed)
            self.run([*overrides, f"seed={seed}"], place, watch, trial)
            if watch.pruned:
                raise self.optuna.TrialPruned()
            values.append(watch.value)
        return sum(values) / len(values)

    def run(self, overrides: list[str], folder: Path, watch: Any = None, trial: Any = None) -> Any:
        """Train once, with what is printed in a file. Raises TrialFailed with the reason where that failed."""

        def call() -> float | None:
            cfg = compose.compose([*self.base, *overrides, "trainer.progress=plain"])
            return train(cfg, folder, [watch] if watch else [])

        sweep.work(folder, overrides, call, mistakes=(UserError,))
        ended = sweep_jobs.read(folder)
        if ended.get("status") != "done":
            if trial is not None:
                trial.set_user_attr("reason", ended.get("reason") or ended.get("status", "its job.json is gone"))
            raise TrialFailed(f"{folder}: training failed with {ended.get('reason')}")
        return ended["value"]

    def tell(self, study: Any, trial: Any) -> None:
        """Print a trial's end."""
        number, state, score, reached, seconds, values, reason = self.tuning.describe(trial)
        why = f" ({reason})" if reason else f" at iteration {reached}" if state == "pruned" else ""
        print(f"trial {number} {state}{why}: score {score} after {seconds} s with {values}", flush=True)

    # ---- what was found --------------------------------------------------------------------------------------

    def choose(self) -> dict[int, list[float]]:
        """The finalists' scores on `final_seeds`, best first: {trial: scores}; the best of noisy scores is luck."""
        trials = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.COMPLETE,))
        sign = -1 if self.config.direction == "maximize" else 1
        trials = sorted(trials, key=lambda trial: sign * trial.value)[: self.config.finalists]
        if not trials:
            raise UserError(f"study={self.name}: no trial was completed, so there is no best one")
        scores = {}
        for trial in trials if len(trials) > 1 else []:
            seeds = self.config.final_seeds
            scores[trial.number] = [self.score(f"trial {trial.number}", self.settings(trial), seed) for seed in seeds]
        best = sorted(scores, key=lambda number: sign * sum(scores[number]))
        self.winner = self.study.trials[best[0]] if best else trials[0]
        return {number: scores[number] for number in best}

    def confirm(self) -> dict[str, list[float]]:
        """Scores of the default and of the winner's settings on the fresh seeds."""
        winner, seeds = f"trial {self.winner.number}", self.config.fresh_seeds
        return {
            "default": [self.score("default", [], seed) for seed in seeds],
            "best": [self.score(winner, self.settings(self.winner), seed) for seed in seeds],
        }

    def score(self, name: str, overrides: list[str], seed: int) -> float:
        """The last evaluation of a whole training; found, where it was done before."""
        folder = self.out / "finals" / name.replace(" ", "_") / str(seed)
        watch, seeded = self.tuning.Pruning(metric=self.config.metric), [*overrides, f"seed={seed}"]
        known, value = sweep_jobs.read(folder), None
        with suppress(FileNotFoundError, Damaged):
            value = read_json(folder / "score.json").get("score")
        if known.get("status") != "done" or known.get("overrides") != seeded or value is None:
            (folder / "job.json").unlink(missing_ok=True)
            self.run(seeded, folder, watch)
            value = watch.value
            write_json(folder / "score.json", {"score": value})
        print(f"{name}, seed {seed}: {value:.4g}", flush=True)
        return value

    def settings(self, trial: Any) -> list[str]:
        """A trial's settings as overrides."""
        return [f"{key}={self.tuning.text(value)}" for key, value in trial.params.items()]

    def write(self, finalists: dict[int, list[float]], fresh_scores: dict[str, list[float]]) -> None:
        """Write the preset and study.md, and print where they are."""
        best, name = self.winner, f"{self.name}_best"
        score = f"trial {best.number} of {len(self.study.trials)}, score {best.value:.4g} on seeds {self.config.seeds}"
        verdict = "Not yet trained on fresh seeds."
        if fresh_scores["best"]:
            verdict = self.tuning.verdict(fresh_scores["best"], fresh_scores["default"], self.config.direction)
        preset = self.out / "conf" / "experiment" / f"{name}.yaml"
        preset.parent.mkdir(parents=True, exist_ok=True)
        head = f"# @package _global_\n# Found by tune.py, study {self.name}: {score}.\n# {verdict}\n"
        preset.write_text(head + as_preset([*self.base, *self.settings(best)], name))
        trials = self.study.get_trials(deepcopy=False)
        table = Table("Trials.", self.tuning.COLUMNS, [self.tuning.describe(trial) for trial in trials])
        lines = [f"# Study {self.name}", "", f"Best: {score}.", "", verdict, "", table.markdown()]
        weights = self.tuning.importances(self.study)
        if weights:
            lines += ["Share of the variance of scores that a setting explains (fANOVA over complete trials):", ""]
            rows = [[key, f"{value:.2f}"] for key, value in weights.items()]
            lines.append(Table("", ["setting", "share"], rows).markdown())
        for title, seeds, scores in (
            ("finalists, seed", self.config.final_seeds, {f"trial {n}": values for n, values in finalists.items()}),
            ("fresh seed", self.config.fresh_seeds, fresh_scores),
        ):
            rows = [[key, *(f"{value:.4g}" for value in values)] for key, values in scores.items() if values]
            if rows:
                lines.append(Table("", [title, *map(str, seeds)], rows).markdown())
        (self.out / "study.md").write_text("\n".join(lines))
        print(f"{score}\n{verdict}\ntrials: {self.out / 'study.md'}")
        print(f"python scripts/train.py --config-dir {self.out / 'conf'} experiment={name}")


class TrialFailed(UserError):
    """A training ended with an error, which `output.log` in its folder tells."""


def as_preset(overrides: list[str], name: str) -> str:
    """Overrides of the command line as the YAML of an experiment."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    chosen = [o for o in parsed if (conf_tree.CONF / o.key_or_group).is_dir()]
    if any(o.key_or_group == "experiment" for o in chosen):
        raise UserError("base: experiment=… cannot be part of a preset; write out what it chooses")
    tree = OmegaConf.create({"defaults": [{f"override /{o.key_or_group}": o.value()} for o in chosen], "name": name})
    for override in parsed:
        if override not in chosen:
            OmegaConf.update(tree, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_yaml(tree)


def main(arguments: list[str]) -> Tuning:
    """Work on a study, with helpers where asked for; then confirm and write what was found."""
    if zoo.chosen():  # taken off by now, and all trials of all helpers need it
        arguments = [*arguments, f"{zoo.KEY}={zoo.chosen()}"]
    values, overrides = split(Options, arguments)
    options = Options(**values)
    tuning = Tuning(options, overrides)
    done = tuning.tuning.finished(tuning.study.trials)
    if done:
        print(f"continuing {tuning.out}: {done} of {tuning.config.n_trials} trials are done", flush=True)
    helpers = []
    for i in range(1, options.workers):
        passed_on = [a for a in arguments if a.partition("=")[0] not in ("workers", "confirm", "seed")]
        with open(tuning.out / f"worker_{i}.log", "a") as log:
            command = [sys.executable, os.path.abspath(__file__), *passed_on, "confirm=false"]
            environment = {**os.environ, PARENT: str(os.getpid())}
            helpers.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        with orphans.at_work(int(os.environ.get(PARENT, "0"))):
            tuning.work()
    except (Stopped, KeyboardInterrupt):
        for helper in helpers:
            helper.terminate()  # the signal may have come to this process alone
        raise
    finally:
        codes = [helper.wait() for helper in helpers]
    for i, code in enumerate(codes, 1):
        if code:
            print(f"worker {i} ended with exit code {code}: see {tuning.out / f'worker_{i}.log'}", file=sys.stderr)
    if options.confirm:
        tuning.write(tuning.choose(), tuning.confirm())
    return tuning


if __name__ == "__main__":
    cli.main(__doc__, main, again=cli.SAME_COMMAND)
