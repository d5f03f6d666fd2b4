"""Small runs of the engine on a supervised task, for the tests beside it."""

import csv
from functools import partial

import torch
from torch import nn

from marl.callbacks.base import Callback
from marl.data import Sine
from marl.engine.trainer import Trainer
from marl.loggers.loggers import CSVLogger, TensorBoardLogger
from marl.networks import MLP
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised

LINEAR = ScheduleConfig([{"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": "total"}])


def make_task(epochs: int = 6, batch_size: int = 64, dropout: float = 0.0, objective=None) -> Supervised:
    torch.manual_seed(0)
    network = partial(MLP, hidden=[16], dropout=dropout)
    return Supervised(Sine(samples=200), network, objective or nn.MSELoss(), epochs, batch_size, seed=3)


def run(path, epochs=6, resume=None, callbacks=(), stop_after=None, task=None, optimizer=None, **settings):
    task = task or make_task(epochs, dropout=0.1)
    trainer = Trainer(**{"progress": "off", "evaluate_every": 2, "checkpoint_every": 1, **settings})
    if stop_after is not None:
        callbacks = [*callbacks, StopAfter(stop_after)]
    setup = dict(optimizer=optimizer or OptimizerConfig(lr=0.01), schedule=LINEAR)
    summary = trainer.fit(task, path, **setup, callbacks=list(callbacks), loggers=[CSVLogger(), TensorBoardLogger()],
                          seed=3, resume=resume)  # fmt: skip
    return summary, trainer


class StopAfter(Callback):
    """Breaks off as a killed process would: no final evaluation, no summary."""

    def __init__(self, iteration):
        self.iteration = iteration

    def on_start(self, trainer):
        self.save = trainer.save

    def on_iteration(self, trainer, record):
        if trainer.iteration == self.iteration:
            trainer.save("last")
            raise KeyboardInterrupt


def rows(path) -> list[dict]:
    with open(path / "metrics.csv", newline="") as file:
        timed = ("seconds", "per_second")
        return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in csv.DictReader(file)]
