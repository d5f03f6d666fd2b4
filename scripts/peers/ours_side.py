"""Our side of scripts/benchmark.py: collects rollouts, trains, or starts, in a process of its own.

python scripts/peers/ours_side.py collect|train|start OVERRIDE…

collect  each command {"times": n}: n calls of the task's rollout; seconds of each call
train    each command {"times": n}: n iterations of the engine as scripts/train.py runs them; seconds of all
start    no command: builds the environment, makes one step, says how long that took
The overrides are those of scripts/train.py.
"""

import sys
import time

import torch
from line import Line

from agents.tasks.on_policy import OnPolicy
from marl.callbacks.base import Callback
from marl.config import compose
from marl.engine.run_view import RunView
from marl.launch import build

QUIET = ["trainer.evaluate_every=0", "trainer.checkpoint_every=0", "trainer.progress=off", "frames=1_000_000_000"]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pause(Callback):
    """After the iterations that were asked for: answers how long they took, and waits for the next command."""

    def __init__(self, line: Line):
        self.line, self.commands, self.left = line, line.commands(), 0

    def wait(self) -> None:
        command = next(self.commands, None)
        if command is None:
            raise SystemExit
        self.left = self.times = command["times"]
        self.collect = self.update = 0.0
        synchronize()
        self.began = time.perf_counter()

    def on_start(self, trainer: RunView) -> None:
        path = getattr(trainer.task.env, "path", None)
        self.line.send(ready="train", path=path, frames=trainer.task.units_per_iteration)
        self.wait()

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        self.left -= 1
        self.collect += record["collect_seconds"]
        self.update += record["update_seconds"]
        if self.left == 0:
            synchronize()
            seconds = time.perf_counter() - self.began
            self.line.send(iteration_s=seconds / self.times, collect_s=self.collect / self.times,
                           update_s=self.update / self.times, episode_return=record.get("episode_return"))  # fmt: skip
            self.wait()


def train(config: dict, line: Line) -> None:
    trainer = build.build_trainer(config)
    task = build.build_task(config)
    setup = build.build_setup(config)
    trainer.fit(task, "run", **{**setup, "loggers": [], "callbacks": [Pause(line)]})


def collect(config: dict, line: Line) -> None:
    build.build_trainer(config)  # for its number of threads
    task: OnPolicy = build.build_task(config)
    task.collector.reset(0)
    line.send(ready="collect", path=getattr(task.env, "path", None), frames=task.units_per_iteration)
    for command in line.commands():
        seconds = []
        for _ in range(command["times"]):
            synchronize()
            began = time.perf_counter()
            task.collector.collect(task.policy_generator)
            synchronize()
            seconds.append(time.perf_counter() - began)
        line.send(collect_s=sum(seconds) / len(seconds), seconds=seconds)


def start(config: dict, line: Line) -> None:
    """The first step of an environment: with an empty cache its kernel is built."""
    began = time.perf_counter()
    env = build.part(config["env"])(seed=0, device="cpu")
    env.reset(0)
    env.step(env.random_action())
    line.send(ready="start", path=env.path, build_s=time.perf_counter() - began)


def main(what: str, *overrides: str) -> None:
    line = Line()
    config = compose.check(compose.compose([*QUIET, *overrides]))
    {"collect": collect, "train": train, "start": start}[what](config, line)


if __name__ == "__main__":
    main(*sys.argv[1:])
