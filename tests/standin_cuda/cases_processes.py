"""Several processes' updates as CUDA graphs: torch's fake process group, whose sums are of this process alone.

NCCL's place is taken by it: what is averaged, when and in which order is proven, what NCCL does is not.
"""

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from marl.capture import cuda_graph
from marl.capture.cuda_graph import GraphedWork, NotCaptured
from marl.config import compose
from marl.core import distributed
from marl.launch import build
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from tests.standin_cuda.runs import TINY, difference, strict, train
from tests.standin_cuda.standin import library

__all__ = ["strict"]
LONGER = ["trainer=ddp", "algo.epochs=3", "frames=128"]
RUNS = {
    "epochs": ["algo.normalize_observation=true"],
    "minibatches": ["trainer.average=ema"],
}


@pytest.fixture
def two_processes(monkeypatch) -> Iterator[None]:
    """This one is the first of two, and what they exchange can be captured."""
    monkeypatch.setattr(distributed, "CAPTURABLE", {"fake"})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_exchanges_are_captured(two_processes) -> None:
    x, graph = [torch.ones(3, device="cuda"), torch.full((2, 2), 4.0, device="cuda")], torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        distributed.average_(x)
        distributed.share_([*x, torch.ones(2, dtype=torch.int64, device="cuda")])
    assert x[0].tolist() == [1, 1, 1] and not library().standin_is_capturing()
    graph.replay()
    assert x[0].tolist() == [0.5, 0.5, 0.5] and x[1].tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("name", RUNS)
def test_captured_updates_are_the_plain_ones(tmp_path, strict, two_processes, monkeypatch, name) -> None:
    """With the same averages. That these are DistributedDataParallel's is tested between two real processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        trainer, _, _ = train(tmp_path / "graph", *RUNS[name], *LONGER)
    update = trainer.updater.device_update
    graphs = update.epochs.graphs if name == "epochs" else update.graphed.graphs
    assert update.together and max(graph.runs for graph in graphs.values()) >= 3
    monkeypatch.setattr(cuda_graph, "GRAPHS", 0)
    plain, _, _ = train(tmp_path / "plain", *RUNS[name], *LONGER)
    assert plain.updater.device_update.together and not plain.updater.device_update.epochs.graphs
    assert not difference(tmp_path / "graph", tmp_path / "plain")


@pytest.mark.parametrize(("carrier", "captured"), [("fake", True), ("nccl", False)])
def test_where_exchanges_are_the_host_s_nothing_is_captured(two_processes, monkeypatch, carrier, captured) -> None:
    monkeypatch.setattr(distributed, "CAPTURABLE", {carrier})
    config = compose.check(compose.compose([*TINY, *LONGER]))
    updater = build.build_trainer(config).build_updater(build.build_task(config), OptimizerConfig(), ScheduleConfig())
    assert (updater.device_update is not None) == updater.takes_epochs == captured


def test_none_gives_up_alone(two_processes, monkeypatch) -> None:
    """Another process that cannot capture, or whose replay differs, is believed."""
    for failing in (0, 1):  # at the capture, and when verdicts are read
        asked: list[int] = []
        monkeypatch.setattr(
            distributed,
            "largest",
            lambda value, asked=asked, failing=failing: (
                asked.append(value),
                max(value, int(len(asked) == 1 + 2 * failing)),
            )[1],
        )
        total = torch.zeros(2, device="cuda")
        graphed = GraphedWork(lambda x, total=total: [total.add_(x).clone()], "this work", together=True)
        with pytest.warns(NotCaptured, match="^this work: no CUDA graph"):
            for _ in range(5):
                graphed([torch.ones(2, device="cuda")], [total])
            graphed.settle()
        assert total.tolist() == [5, 5] and asked and not any(asked) and not graphed.graphs
