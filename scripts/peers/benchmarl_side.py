"""BenchMARL's side of scripts/benchmark.py, in its own virtual environment; algorithm and networks are its defaults.

Algorithms with a replay buffer make --updates gradient steps of --minibatch frames after every batch.

collect  each command: one batch from its collector; seconds
train    each command {"times": n}: n iterations of its loop; seconds of all
learn    no commands: a line per iteration, until the mean return of a batch's episodes reaches --until
"""

import argparse
import tempfile
import time

import torch
from benchmarl.algorithms import algorithm_config_registry
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from line import Line


class Finished(Exception):
    """Ends BenchMARL's loop from within a callback."""


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def mean_return(batch) -> float:
    """Mean return of the episodes that end in a batch, over agents; nan where none does."""
    done = batch.get(("next", "done"))
    for key in batch.keys(True, True):
        if isinstance(key, tuple) and key[0] == "next" and key[-1] == "episode_reward":
            reward = batch.get(key)
            ended = reward[done.unsqueeze(-2).expand_as(reward)] if done.dim() < reward.dim() else reward[done]
            return float(ended.mean()) if ended.numel() else float("nan")
    return float("nan")


class Quiet(Callback):
    """BenchMARL pickles its callbacks into the run's folder; ours hold a pipe and have nothing to keep."""

    def __getstate__(self) -> dict:
        return {}


class Pause(Quiet):
    """After the iterations that were asked for: answers how long they took, and waits for the next command."""

    def __init__(self, line: Line):
        self.line, self.commands, self.left = line, line.commands(), 0

    def on_setup(self) -> None:
        self.line.send(ready="train")
        self.wait()

    def wait(self) -> None:
        command = next(self.commands, None)
        if command is None:
            raise Finished
        self.left = self.times = command["times"]
        self.collect = 0.0
        synchronize()
        self.began = self.mark = time.perf_counter()

    def on_batch_collected(self, batch) -> None:
        synchronize()
        self.collect += time.perf_counter() - self.mark
        self.mean_return = mean_return(batch)

    def on_train_end(self, training_td, group) -> None:
        synchronize()
        self.mark = time.perf_counter()
        self.left -= 1
        if self.left == 0:
            total = (self.mark - self.began) / self.times
            collect = self.collect / self.times
            self.line.send(iteration_s=total, collect_s=collect, update_s=total - collect,
                           episode_return=self.mean_return)  # fmt: skip
            self.wait()


class Learn(Quiet):
    """Says after every iteration how far it has come."""

    def __init__(self, line: Line, until: float):
        self.line, self.until, self.frames = line, until, 0

    def on_setup(self) -> None:
        self.line.send(ready="learn")
        self.began = time.perf_counter()

    def on_batch_collected(self, batch) -> None:
        self.frames += batch.numel()
        value = mean_return(batch)
        reached = value >= self.until
        self.line.send(frames=self.frames, elapsed_s=time.perf_counter() - self.began, episode_return=value,
                       reached=reached)  # fmt: skip
        if reached:
            raise Finished


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "train", "learn"])
    parser.add_argument("--task", default="balance", help="VMAS task, as BenchMARL spells it in lower case")
    parser.add_argument("--algorithm", default="mappo", choices=["mappo", "ippo", "maddpg", "masac", "qmix"])
    parser.add_argument("--envs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100, help="per environment and batch")
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--minibatch", type=int, default=400)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--discrete", action="store_true", help="discrete actions")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--gamma", type=float, default=0.9)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def make(args: argparse.Namespace, folder: str, callbacks: list[Callback]) -> Experiment:
    config = ExperimentConfig.get_from_yaml()
    config.max_n_iters, config.max_n_frames = 100_000, None
    config.evaluation = config.render = config.create_json = False
    config.loggers = []
    config.save_folder = folder
    config.lr, config.gamma = args.lr, args.gamma
    config.on_policy_collected_frames_per_batch = args.envs * args.steps
    config.on_policy_n_envs_per_worker = args.envs
    config.on_policy_n_minibatch_iters = args.epochs
    config.on_policy_minibatch_size = args.minibatch
    config.off_policy_collected_frames_per_batch = args.envs * args.steps
    config.off_policy_n_envs_per_worker = args.envs
    config.off_policy_n_optimizer_steps = args.updates
    config.off_policy_train_batch_size = args.minibatch
    config.off_policy_init_random_frames = 0
    config.prefer_continuous_actions = not args.discrete
    config.sampling_device = config.train_device = config.buffer_device = args.device
    return Experiment(
        task=getattr(VmasTask, args.task.upper()).get_from_yaml(),
        algorithm_config=algorithm_config_registry[args.algorithm].get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=args.seed,
        config=config,
        callbacks=callbacks,
    )


def collect(experiment: Experiment, line: Line) -> None:
    """Asks its collector for batches, as its loop does."""
    batches = iter(experiment.collector)
    line.send(ready="collect")
    for _ in line.commands():
        synchronize()
        began = time.perf_counter()
        next(batches)
        synchronize()
        line.send(collect_s=time.perf_counter() - began)


def main() -> None:
    line, args = Line(), options()
    callbacks = {"collect": [], "train": [Pause(line)], "learn": [Learn(line, args.until)]}[args.what]
    with tempfile.TemporaryDirectory() as folder:
        try:
            experiment = make(args, folder, callbacks)
            if args.what == "collect":
                collect(experiment, line)
            else:
                experiment.run()
        except Finished:
            pass


if __name__ == "__main__":
    main()
