"""Chooses defaults on evidence: candidates by successive halving on eight scenarios, the choice judged on six others.

    python docs/scripts/defaults_protocol.py FOLDER [jobs=2] [plan=docs/scripts/protocol/on_policy.yaml] [key=value …]

FOLDER keeps every run; what is complete there is not trained again, what was interrupted begins again. jobs: processes
at a time, one thread each. plan: scenarios, rounds and candidates. Any other key=value belongs to every run: algo=ippo.

1. In each round every candidate that is left is trained on the scenarios of `choose`, and the best are kept.
2. The best of the last round is written to FOLDER/choice.json. From then on it stands.
3. Only now the scenarios of `judge` are trained on: by the default and the choice, with fresh seeds, at equal frames.
   Then by the choice with as many frames as take it the default's seconds.

A run's score is the mean return of its last evaluation, so normalised on its scenario that the random policy has 0 and
the best run seen there 1. Candidates are compared by the IQM over scenarios and seeds (Agarwal et al. 2021).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from marl.config import compose
from marl.core.errors import UserError
from marl.core.files import write_json
from marl.core.schema import check_arguments
from marl.launch import build, cli
from marl.report import statistics

ROOT = Path(__file__).resolve().parents[2]
ALONE = ["trainer.threads=1", "trainer.helpers=0", "trainer.progress=off", "trainer.evaluate_every=0"]
ALONE += ["trainer.checkpoint_every=0", "logger=csv"]


@dataclass
class Plan:
    """A plan's file; `protocol/on_policy.yaml` explains the keys.

    Raises:
        UserError: candidates or seeds that cannot be compared, or a scenario that is chosen on and judged on.
    """

    base: list[str]
    choose: dict[str, list[str]]
    judge: dict[str, list[str]]
    rounds: list[dict[str, Any]]
    judging: dict[str, Any]
    candidates: dict[str, list[str]]
    episodes: int = 200

    def __post_init__(self) -> None:
        if both := self.choose.keys() & self.judge.keys():
            raise UserError(f"judge: {min(both)} is among the scenarios of choose, and must not be seen before")
        used = {seed for each in self.rounds for seed in each["seeds"]} & {*self.judging["seeds"]}
        if used:
            raise UserError(f"judging.seeds: {min(used)} is a seed of a round; fresh ones are allowed")
        if len(self.candidates) < 2:
            raise UserError("candidates: needs at least two, the first of which is the default")
        if not self.rounds and len(self.candidates) > 2:
            raise UserError("rounds: is empty, so two candidates are allowed: the default and what was chosen before")


def read_plan(path: Path, more: Sequence[str]) -> Plan:
    """The plan of a file, `more` overrides being part of every run. Raises UserError for what is wrong with it."""
    try:
        node = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"plan={path}: cannot be read ({' '.join(str(error).split())})") from None
    check_arguments(Plan, node, "")
    return Plan(**node | {"base": [*node["base"], *more]})


@dataclass(frozen=True)
class Job:
    """One training: where it is kept, and what it is trained with."""

    folder: Path
    overrides: tuple[str, ...]

    def result(self) -> dict[str, Any] | None:
        """Its score and seconds, if it is complete. Raises UserError where the folder is of another training."""
        if not (self.folder / "result.json").is_file():
            return None
        known = json.loads((self.folder / "result.json").read_text())
        if known["overrides"] != list(self.overrides):
            changed = sorted({*known["overrides"]} ^ {*self.overrides})
            raise UserError(f"{self.folder}: was trained with other settings, {', '.join(changed)}; use another FOLDER")
        return known

    def run(self) -> dict[str, Any]:
        """Train, unless that is done; a run that failed has no score."""
        if (known := self.result()) is not None:
            return known
        shutil.rmtree(self.folder, ignore_errors=True)  # what was interrupted
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), *self.overrides, *ALONE]
        command += [f"hydra.run.dir={self.folder}"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result: dict[str, Any] = {"overrides": list(self.overrides), "score": None, "seconds": None}
        if done.returncode < 0 or done.returncode >= 128:
            raise UserError(f"{self.folder.name}: ended by a signal ({done.returncode}); the same command goes on")
        if done.returncode:
            self.folder.mkdir(parents=True, exist_ok=True)
            result["reason"] = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{self.folder}: {result['reason']}", file=sys.stderr, flush=True)
        else:
            summary = json.loads((self.folder / "summary.json").read_text())
            result["score"] = summary["final"]["episode_return"]["mean"]
            result["seconds"] = summary["seconds"]["collect"] + summary["seconds"]["update"]
        write_json(self.folder / "result.json", result)
        return result


class Protocol:
    """A plan at work in a folder."""

    def __init__(self, plan: Plan, folder: Path, jobs: int) -> None:
        self.plan, self.folder, self.jobs = plan, folder.resolve(), jobs
        self.default = next(iter(plan.candidates))
        self.results: dict[tuple, dict[str, Any]] = {}  # (stage, candidate, scenario, seed) -> result

    def train(
        self,
        stage: str,
        who: Iterable[str],
        where: Mapping[str, Sequence[str]],
        seeds: Sequence[int],
        frames: Mapping[str, int],
    ) -> None:
        """All trainings of a stage, `jobs` at a time; frames: of each candidate."""
        trainings = {}
        for seed in seeds:  # candidates side by side, so that a busy hour of the machine slows all of them
            for scenario, more in where.items():
                for name in who:
                    overrides = [*self.plan.base, f"env={scenario}", *more, *self.plan.candidates[name]]
                    place = self.folder / stage / name / f"{scenario.rpartition('/')[2]}_{seed}"
                    budget = (f"frames={frames[name]}", f"seed={seed}")
                    trainings[stage, name, scenario, seed] = Job(place, (*overrides, *budget))
        left = sum(job.result() is None for job in trainings.values())
        print(f"{stage}: {len(trainings)} trainings, {left} of them to do", flush=True)
        with ThreadPoolExecutor(self.jobs) as pool:
            self.results |= zip(trainings, pool.map(Job.run, trainings.values()), strict=True)

    def random(self, scenario: str, more: Sequence[str]) -> float:
        """The random policy's mean return on a scenario: measured once, then found."""
        path = self.folder / "random" / f"{scenario.replace('/', '_')}.json"
        if not path.is_file():
            sizes = [f"task.eval_episodes={self.plan.episodes}", "trainer.progress=off"]
            task = build.build_task(compose.check(compose.compose([*self.plan.base, f"env={scenario}", *more, *sizes])))
            played = task.run_episodes(self.plan.episodes, 0, True, True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"score": float(played.episode_returns().mean())})
        return json.loads(path.read_text())["score"]

    def scores(self, stage: str, where: Mapping[str, Sequence[str]]) -> dict[str, list[np.ndarray]]:
        """{candidate: normalised scores [seeds] of every scenario} of a stage; a run that failed has 0."""
        rows: dict[str, list[np.ndarray]] = {}
        for scenario, more in where.items():
            here = {key: number(r["score"]) for key, r in self.results.items() if key[2] == scenario}
            low, high = self.random(scenario, more), np.nanmax([*here.values(), -np.inf])
            of_stage = {key: score for key, score in here.items() if key[0] == stage}
            for name in dict.fromkeys(key[1] for key in of_stage):
                runs = np.array([score for key, score in of_stage.items() if key[1] == name])
                normal = statistics.normalise(runs, low, high) if high > low else np.zeros(len(runs))
                rows.setdefault(name, []).append(np.nan_to_num(normal, nan=0.0))
        return dict(sorted(rows.items(), key=lambda item: -float(statistics.iqm(item[1]))))

    def table(self, stage: str, where: Mapping[str, Sequence[str]]) -> list[str]:
        """Print a stage's table, best first; the candidates in that order."""
        scores = self.scores(stage, where)
        names = [scenario.rpartition("/")[2] for scenario in where]
        print(f"\n{stage}\n\n| candidate | IQM | {' | '.join(names)} | seconds |")
        print("|---" * (len(names) + 3) + "|")
        for name, strata in scores.items():
            low, high = statistics.interval(statistics.iqm, strata)
            cells = " | ".join(f"{runs.mean():.2f}" for runs in strata)
            interval = f" [{low:.3f}, {high:.3f}]" if len(strata[0]) > 1 else ""  # one seed has none
            print(f"| {name} | {statistics.iqm(strata):.3f}{interval} | {cells} | "
                  f"{self.seconds(stage, name):.0f} |", flush=True)  # fmt: skip
        return list(scores)

    def seconds(self, stage: str, name: str) -> float:
        """The mean seconds of a candidate's runs in a stage; nan where all failed."""
        values = [r["seconds"] for key, r in self.results.items() if key[:2] == (stage, name)]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else float("nan")

    def choose(self) -> str:
        """The rounds; the name of the choice, which is written down. Raises UserError where another one was."""
        left, plan = list(plan_names := self.plan.candidates), self.plan
        kept = left[-1:]  # without a round: what was chosen before
        for number, each in enumerate(plan.rounds, 1):
            stage = f"round_{number}"
            self.train(stage, left, plan.choose, each["seeds"], dict.fromkeys(left, each["frames"]))
            order = self.table(stage, plan.choose)
            kept = order[: each["keep"]]
            left = [name for name in plan_names if name in kept or name == self.default]
        choice, path = kept[0], self.folder / "choice.json"
        if path.is_file() and (known := json.loads(path.read_text())["choice"]) != choice:
            raise UserError(f"{path}: the choice was {known}, and would now be {choice}; take another FOLDER")
        write_json(path, {"choice": choice, "overrides": plan.candidates[choice]})
        print(f"\nchoice: {choice} ({' '.join(plan.candidates[choice]) or 'the default'})", flush=True)
        return choice

    def judge(self, choice: str) -> None:
        """The one comparison on scenarios that nothing was trained on before."""
        plan, (frames, seeds) = self.plan, (self.plan.judging["frames"], self.plan.judging["seeds"])
        if choice == self.default:
            print("the default is the best of the last round: there is nothing to judge")
            return
        self.train("judged", [self.default, choice], plan.judge, seeds, dict.fromkeys((self.default, choice), frames))
        ratio = self.seconds("judged", self.default) / self.seconds("judged", choice)
        self.train("judged_in_time", [choice], plan.judge, seeds, {choice: max(1, round(frames * ratio))})
        self.table("judged", plan.judge)
        default = self.scores("judged", plan.judge)[self.default]
        for stage, equal in (("judged", "frames"), ("judged_in_time", "seconds")):
            theirs = self.scores(stage, plan.judge)[choice]
            low, high = statistics.improvement_interval(theirs, default)
            chance = float(statistics.probability_of_improvement(theirs, default))
            verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "no difference shown"
            iqms = [float(statistics.iqm(strata)) for strata in (theirs, default)]
            print(f"\nat equal {equal}: {choice} {iqms[0]:.3f}, {self.default} {iqms[1]:.3f}; "
                  f"P(better) {chance:.2f} [{low:.2f}, {high:.2f}]: {verdict}", flush=True)  # fmt: skip


def number(value: float | None) -> float:
    """nan for what a run that failed has not."""
    return float("nan") if value is None else value


def main(arguments: Sequence[str]) -> None:
    """Choose, then judge. Raises UserError."""
    if not arguments or "=" in arguments[0]:
        raise UserError(f"the folder is missing: {__doc__.splitlines()[2].strip()}")
    folder, values = Path(arguments[0]), dict(each.split("=", 1) for each in arguments[1:] if "=" in each)
    plan = values.pop("plan", str(Path(__file__).parent / "protocol" / "on_policy.yaml"))
    jobs = values.pop("jobs", "2")
    if not jobs.isdecimal() or int(jobs) < 1:
        raise UserError(f"jobs={jobs}: must be at least 1")
    protocol = Protocol(read_plan(Path(plan), [f"{key}={value}" for key, value in values.items()]), folder, int(jobs))
    protocol.judge(protocol.choose())


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv[1:])
