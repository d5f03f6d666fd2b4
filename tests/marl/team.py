"""One process of several, for test_distributed.py: runs checks of its own and writes what they gave to a file."""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from agents.algorithms.advantages import normalize_advantage
from marl.core import distributed
from marl.core.errors import UserError
from marl.data import Digits, Loader
from marl.engine.trainer import Trainer
from marl.engine.updater import Updater
from marl.networks import MLP
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised
from tests.marl.runs import make_task


class NoSteps(Updater):
    """Gathers gradients only."""

    def step(self) -> None:
        pass


def gradients() -> list[float]:
    """The gradient of one fixed batch of 32 rows, of which every process has its part, before the optimiser's step."""
    task = make_task(epochs=1, batch_size=32)
    trainer = Trainer(progress="off", strategy="ddp")
    numbers = []
    updater = NoSteps(task, OptimizerConfig(), ScheduleConfig(), trainer.update_config)
    trainer.start(task, Path(sys.argv[1]) / "gradients", updater=updater)
    for batch in task.batches(0):
        trainer.update(batch)
        break
    for parameter in task.loss.parameters():
        numbers += parameter.grad.flatten().tolist()
    return numbers


def normalised() -> dict:
    """Outputs, gradients and running statistics of a network with BatchNorm, of one fixed batch of 32 rows."""
    torch.manual_seed(0)
    net = MLP(4, 1, hidden=[8], batch_norm=True)
    rows = torch.randn(32, 4)[distributed.rank() :: distributed.world()]
    wrapped = distributed.wrap(net)
    outputs = wrapped(rows)
    outputs.square().mean().backward()
    return {
        "outputs": outputs.flatten().tolist(),
        "gradients": torch.cat([p.grad.flatten() for p in net.parameters()]).tolist(),
        "statistics": torch.cat([net.body[1].running_mean, net.body[1].running_var]).tolist(),
    }


def averaged() -> dict:
    """Gradients of a network by DistributedDataParallel, and as a captured update averages them."""
    torch.manual_seed(0)
    net = MLP(4, 1, hidden=[8])
    rows = torch.randn(32, 4)[distributed.rank() :: distributed.world()]
    own = torch.autograd.grad(net(rows).square().mean(), list(net.parameters()))
    distributed.average_(own)
    wrapped = distributed.wrap(net)  # kept: it hears of the gradients
    wrapped(rows).square().mean().backward()
    shared = torch.full((2,), float(distributed.rank())), torch.full((2, 1), distributed.rank())
    distributed.share_(shared)
    equal = all(torch.equal(a, p.grad) for a, p in zip(own, net.parameters(), strict=True))
    return {"equal": equal, "shared": [value.tolist() for value in shared], "norm": float(own[0].norm())}


def thawed() -> list[float]:
    """The weights after three epochs, the body having joined after the first."""
    task = make_task(epochs=3, batch_size=32)
    config = OptimizerConfig(lr=0.01, unfreeze={"model.body": 1})
    Trainer(progress="off", strategy="ddp").fit(task, Path(sys.argv[1]) / "thawed", optimizer=config, seed=0)
    return torch.cat([p.flatten() for p in task.loss.parameters()]).tolist()


def statistics() -> dict:
    """Normalised advantages and reductions, of numbers that depend on the process."""
    everything = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))
    part = everything.chunk(distributed.world(), 1)[distributed.rank()]
    return {
        "batch": normalize_advantage(part, "batch").flatten().tolist(),
        "agent": normalize_advantage(part, "agent").flatten().tolist(),
        "total": distributed.total(torch.tensor(distributed.rank() + 1)).item(),
        "mean": distributed.mean(torch.tensor(float(distributed.rank()))).item(),
        "largest": distributed.largest(distributed.rank() * 5),
        "agreed": distributed.agree(f"said by {distributed.rank()}"),
        "gathered": distributed.gather(distributed.rank()),
        "stream": distributed.stream("policy"),
    }


def work() -> dict:
    """How work is split."""
    data = make_task().loader.rows
    loader = Loader(data, 60, seed=1)
    algo = {"_target_": "agents.algorithms.ppo.PPO", "minibatch_size": 4}
    config = {"env": {"num_envs": 6}, "algo": algo, "task": {"batch_size": 4}}
    results = {"rows": [row for batch in loader.epoch(0) for row in batch["x"].flatten().tolist()], "sizes": len(data)}
    results["share"] = distributed.share(config)
    try:
        distributed.share({"env": {"num_envs": 7}})
    except UserError as error:
        results["odd"] = str(error)
    return results


def learning() -> dict:
    """A classifier trained by everybody together."""
    torch.manual_seed(0)
    task = Supervised(Digits(), partial(MLP, hidden=[16]), nn.CrossEntropyLoss(), 8, 64, seed=0)
    folder = Path(sys.argv[1]) / f"learning_{distributed.world()}"  # one process and two train side by side
    trainer = Trainer(progress="off", strategy="ddp", evaluate_every=5, checkpoint_every=5)
    trainer.fit(task, folder, optimizer=OptimizerConfig(lr=0.02), seed=0)
    return {"figures": trainer.evaluation, "weights": torch.cat([p.flatten() for p in task.loss.parameters()]).tolist()}


def main() -> None:
    distributed.start()
    results = {"gradients": gradients(), "statistics": statistics(), "work": work(), "learning": learning()}
    results |= {"normalised": normalised(), "thawed": thawed(), "averaged": averaged()}
    path = Path(sys.argv[1]) / f"{distributed.world()}_{distributed.rank()}.json"
    path.write_text(json.dumps(results))
    distributed.stop()


if __name__ == "__main__":
    main()
