"""Updates and rollouts as CUDA graphs: bitwise what is computed without, and given up where that is not so."""

import shutil
import warnings

import pytest
import torch

from agents.models.action_values.target_networks import TargetNetwork
from agents.tasks import off_policy
from marl.capture import cuda_graph
from marl.capture.cuda_graph import GraphedWork, NotCaptured
from marl.engine.device_update import DeviceUpdate
from marl.engine.updater import Updater
from tests.standin_cuda.runs import REPLAYED, TINY, cut_back, difference, resume, strict, train
from tests.standin_cuda.standin import watched

__all__ = ["strict"]
CHOICES = ["env.continuous_actions=false"]
FOREIGN = [size for size in TINY if size not in ("env.fast=off", "env.max_steps=5")]
MEMORY = ["env=memory", "env.max_delay=2", "env.min_delay=1", "frames=128", "algo.epochs=2"]
LONGER = ["algo.epochs=3", "frames=64"]
UPDATES = {  # minibatch by minibatch
    "ippo, bf16": ["algo=ippo", "trainer.precision=bf16", "trainer.average=ema", *LONGER],
    "masac": ["algo=masac", *REPLAYED, "algo.updates=6", "algo.priority=0.6"],
}


EPOCHS = {
    "mappo": ["algo=mappo", "algo.clip_schedule=linear", "algo.entropy_coef=0.01"],
    "rates that change from step to step": ["scheduler=cosine", "scheduler.interval=step"],
    "pqn": ["algo=pqn", *CHOICES],
    "whole rollouts, swa": ["algo.minibatch_size=null", "trainer.average=swa"],
    "ippo, tf32, kl stop": [
        "algo=ippo",
        "trainer.precision=tf32",
        "algo.target_kl=0.0003",
        "optimizer.lr=0.003",
        "frames=128",
    ],
    "gru": ["network=gru", "network.hidden=8", "algo.chunk_length=2"],
    "one after the other": ["algo.update=sequential", "algo.share_actor=separate"],
}


@pytest.mark.parametrize("name", EPOCHS)
def test_captured_epochs_are_the_plain_ones(tmp_path, strict, name) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        trainer, task, _ = train(tmp_path / "graph", *LONGER, *EPOCHS[name])
    update = trainer.updater.device_update
    alone = bool(update.graphed.counts)  # minibatches of more kinds of epochs than there are graphs
    assert trainer.updater.takes_epochs and alone == (name == "one after the other")
    assert max(graph.runs for graph in update.epochs.graphs.values()) >= 3
    plain, other, _ = train(tmp_path / "plain", *LONGER, *EPOCHS[name], "trainer.capture=false")
    assert plain.updater.device_update is None and not plain.updater.takes_epochs
    assert not difference(tmp_path / "graph", tmp_path / "plain")
    one, two = ((tmp_path / kind / "metrics.csv").read_text().splitlines() for kind in ("graph", "plain"))
    assert [untimed(line, one[0]) for line in one] == [untimed(line, two[0]) for line in two]
    if "kl stop" in name:
        column = one[0].split(",").index("epochs")
        assert min(float(line.split(",")[column]) for line in one[1:]) < 3  # it has stopped


def untimed(line: str, names: str) -> list[str]:
    """A line of metrics.csv without what the clock says."""
    pairs = zip(names.split(","), line.split(","), strict=True)
    return [value for name, value in pairs if not any(word in name for word in ("seconds", "per_second", "memory"))]


PIECES = {  # settings, minibatches that are trained on at once
    "masac": (["algo=masac", "algo.updates=6"], 2),
    "qmix": (["algo=qmix", *CHOICES, "algo.updates=7", "algo.target_every=3", "algo.tau=1"], 2),  # several kinds
    "matd3": (["algo=matd3", "algo.updates=8", "algo.n_step=2", "scheduler=cosine", "scheduler.interval=step"], 4),
    "maddpg, on disk": (["algo=maddpg", "algo.updates=6", "algo.buffer_on=disk"], 3),
}


@pytest.mark.parametrize("name", PIECES)
def test_captured_pieces_of_replayed_minibatches_are_the_plain_ones(tmp_path, monkeypatch, request, name) -> None:
    """There is one graph of each: pieces of other kinds are trained on minibatch by minibatch."""
    overrides, most = PIECES[name]
    if "on disk" not in name:
        request.getfixturevalue("strict")
    monkeypatch.setattr(off_policy, "TOGETHER", most)
    monkeypatch.setattr(cuda_graph, "GRAPHS", 1)
    overrides = [overrides[0], *REPLAYED, *overrides[1:], "frames=96"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        trainer, task, _ = train(tmp_path / "graph", *overrides)
    update = trainer.updater.device_update
    assert task.followed and task.loss.updates == 6 * task.algo.updates
    (graph,) = update.epochs.graphs.values()
    (alone,) = update.graphed.graphs.values()  # until the piece's kind was captured
    assert graph.runs >= 3 and (alone.runs >= 20) == (name == "qmix")
    plain, other, _ = train(tmp_path / "plain", *overrides, "trainer.capture=false")
    assert plain.updater.device_update is None and not other.followed
    assert not difference(tmp_path / "graph", tmp_path / "plain")
    one, two = ((tmp_path / kind / "metrics.csv").read_text().splitlines() for kind in ("graph", "plain"))
    assert [untimed(line, one[0]) for line in one] == [untimed(line, two[0]) for line in two]


@pytest.mark.parametrize("every", [2000, 5])
def test_a_piece_is_the_same_graph_wherever_it_lies_in_a_long_period(tmp_path, monkeypatch, strict, every) -> None:
    monkeypatch.setattr(off_policy, "TOGETHER", 2)
    plainly, one = [], DeviceUpdate._train
    monkeypatch.setattr(DeviceUpdate, "_train", lambda *given: plainly.append(1) or one(*given))
    targets = [f"algo.target_every={every}", "algo.tau=1"]
    long = ["algo=qmix", *REPLAYED, *CHOICES, "algo.updates=6", *targets, "frames=192"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        trainer, task, _ = train(tmp_path / "graph", *long)
    update = trainer.updater.device_update
    pieces = sorted(graph.runs for graph in update.epochs.graphs.values())
    assert task.loss.updates == 72
    if every == 2000:
        # Of 36 pieces the first is trained on before there are moments, 2 more one by one, the 4th is captured. Of 6
        # minibatches one by one the 4th is captured, and both replays of it are compared. Of those of the piece are the
        # 1st, 2nd, 3rd, 5th, 9th and 17th.
        assert pieces == [32] and [graph.runs for graph in update.graphed.graphs.values()] == [2]
        assert len(plainly) == (4 + 1 + 2) + (2 + 2 + 2 * 6)
    else:
        # In 5 iterations there are 10 pieces of two without a step of the targets, 2 where it ends two, 4 where it
        # follows one, and 2 of one without: in 12 iterations 24, 5, 9 and 5, of which each 3 come before the graph.
        assert pieces == [5 - 3, 5 - 3, 9 - 3, 24 - 1 - 3]  # 1 before there are moments
    train(tmp_path / "plain", *long, "trainer.capture=false")
    assert not difference(tmp_path / "graph", tmp_path / "plain")


def memory_runs_out(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Where a graph is captured a method raises at this of its calls."""
    method, calls = getattr(owner, name), [0]

    def limited(*arguments: object) -> object:
        calls[0] = calls[0] + 1 if torch.cuda.is_current_stream_capturing() else 0
        if calls[0] == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return method(*arguments)

    monkeypatch.setattr(owner, name, limited)


@pytest.mark.parametrize(
    ("algo", "owner", "name", "call"),
    [("mappo", Updater, "_clip", 2), ("masac", Updater, "_clip", 2), ("masac", TargetNetwork, "follow", 1)],
)
def test_an_epoch_whose_capture_fails_midway_goes_on_without(tmp_path, monkeypatch, algo, owner, name, call) -> None:
    settings = [f"algo={algo}", *(REPLAYED if algo == "masac" else LONGER), "frames=112"]
    with (
        monkeypatch.context() as patch,
        pytest.warns(NotCaptured, match="^an epoch of .*: no CUDA graph, CUDA out of memory") as said,
    ):
        memory_runs_out(patch, owner, name, call)
        trainer, _, _ = train(tmp_path / "graph", *settings)
    update = trainer.updater.device_update
    assert len([each for each in said if each.category is NotCaptured]) == 1 and not update.epochs.graphs
    assert bool(update.graphed.graphs) == (algo == "masac")  # whose minibatches are launched one by one all the same
    train(tmp_path / "plain", *settings, "trainer.capture=false")
    assert not difference(tmp_path / "graph", tmp_path / "plain")


@pytest.mark.parametrize("name", UPDATES)
def test_captured_updates_are_the_plain_ones(tmp_path, strict, name) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        trainer, _, _ = train(tmp_path / "graph", *UPDATES[name])
    graphs = trainer.updater.device_update.graphed.graphs.values()
    assert graphs and max(graph.runs for graph in graphs) >= 3
    plain, _, _ = train(tmp_path / "plain", *UPDATES[name], "trainer.capture=false")
    assert plain.updater.device_update is None
    assert not difference(tmp_path / "graph", tmp_path / "plain")


def test_captured_rollouts_are_the_plain_ones(tmp_path, strict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        _, task, _ = train(tmp_path / "graph", *MEMORY, sizes=FOREIGN)
    assert [graph.runs for graph in task.collector.graph.graphs.values()] == [5]  # of 8
    _, plain, _ = train(tmp_path / "plain", *MEMORY, "trainer.capture=false", sizes=FOREIGN)
    assert plain.collector.graph is None
    assert not difference(tmp_path / "graph", tmp_path / "plain")


def test_a_gpu_that_is_named_is_the_current_one_when_graphs_are_captured(tmp_path, monkeypatch) -> None:
    seen, capture_begin = [], torch.cuda.CUDAGraph.capture_begin

    def begin(graph: torch.cuda.CUDAGraph, *arguments: object, **settings: object) -> None:
        seen.append(settings["capture_error_mode"])
        capture_begin(graph, *arguments, **settings)

    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", begin)
    train(tmp_path, *MEMORY, "device=cuda:0", sizes=FOREIGN)
    modes = ["thread_local"] * 2  # of rollouts and of epochs; a loader's thread may pin memory meanwhile
    assert seen == [torch.device("cuda:0"), *modes]


def test_a_resumed_run_captures_again(tmp_path, strict) -> None:
    train(tmp_path / "whole", *MEMORY, "trainer.keep_every=4", sizes=FOREIGN)
    trainer, task, _ = resume(cut_back(shutil.copytree(tmp_path / "whole", tmp_path / "half"), 4))
    assert trainer.updater.device_update.epochs.graphs
    assert not difference(tmp_path / "whole", tmp_path / "half")


def test_what_cannot_be_captured_says_so_once(tmp_path) -> None:
    total = torch.zeros(2, device="cuda")

    def work(x: torch.Tensor) -> list[torch.Tensor]:
        total.add_(x)
        return [x * 2] if total.sum().item() > 1e9 else [x]

    graphed, x = GraphedWork(work, "this work"), torch.ones(2, device="cuda")
    with pytest.warns(NotCaptured, match="^this work: no CUDA graph, aten::_local_scalar_dense waits") as said:
        for _ in range(6):
            assert graphed([x], [total])[0].tolist() == [1, 1]
    assert len(said) == 1 and total.tolist() == [6, 6]
    # torch leaves the one of a failed capture as it is
    assert torch.cuda.current_stream() is torch.cuda.default_stream()


def test_a_graph_that_differs_is_given_up(tmp_path) -> None:
    """A number of the host is baked into a capture: the work's own results stay, and no host waits for the verdict."""
    total, box = torch.zeros(2, device="cuda"), [1.0]
    graphed, x = GraphedWork(lambda x: [total.add_(x, alpha=box[0]).clone()], "this work"), torch.ones(2, device="cuda")
    for number in range(1, 5):
        assert graphed([x], [total])[0].tolist() == [number] * 2
    (graph,) = graphed.graphs.values()
    assert graph.runs == 1
    box[0] = 10.0
    with watched():
        result = graphed([x], [total])[0]
    assert result.tolist() == total.tolist() == [14, 14]
    with pytest.warns(NotCaptured, match="^this work: no CUDA graph any more, a replay differs"):
        graphed.settle()
    assert graphed([x], [total])[0].tolist() == [24, 24] and not graphed.graphs


def test_memory_that_has_moved_is_captured_again() -> None:
    memory = [torch.zeros(2, device="cuda")]
    graphed, x = GraphedWork(lambda x: [memory[0].add_(x).clone()], "this work"), torch.ones(2, device="cuda")
    for _ in range(5):
        graphed([x], memory)
    memory[0] = torch.full((2,), 100.0, device="cuda")
    assert [graphed([x], memory)[0][0].item() for _ in range(5)] == [101, 102, 103, 104, 105]
    assert [graph.runs for graph in graphed.graphs.values()] == [2]
