"""The stand-in itself: what it computes, refuses, and runs again."""

from functools import partial

import pytest
import torch

from envs.kernel.verification.verify import eager_step
from envs.vmas.world import VmasWorld
from tests.standin_cuda.standin import Graph, library, watched

WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copied from the host": lambda x: torch.tensor([1.0], device="cuda"),
    "copied to the host": lambda x: torch.empty(3).copy_(x),
    "masked": lambda x: x[x > 0],
    "masked write of a tensor": lambda x: x.index_put_((x > 0,), torch.ones((), device="cuda")),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


def test_tensors_say_where_they_are() -> None:
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert x.device == torch.device("cuda:0") and x.is_cuda and (x.t() @ x).device == x.device
    assert (x * 2 + 1).cpu().tolist() == [[1, 3, 5], [7, 9, 11]]
    assert torch.empty(2, device="cuda").isnan().all()  # memory that was never written to
    assert x.to("cpu").device.type == "cpu" and torch.ones(2).pin_memory().is_pinned()


@pytest.mark.parametrize("mixed", [lambda x, y: x + y, lambda x, y: y + x, lambda x, y: torch.cat([x, y])])
def test_devices_do_not_mix(mixed) -> None:
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        mixed(x, y)
    assert (x + torch.tensor(2.0)).tolist() == [3, 3, 3]  # a number may come from the host
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="cuda", generator=torch.Generator())


@pytest.mark.parametrize("name", WAITS)
def test_waiting_is_refused_where_it_is_watched(name) -> None:
    x = torch.ones(3, device="cuda")
    WAITS[name](x)
    with watched(), pytest.raises(RuntimeError, match="waits for the device"):
        WAITS[name](x)
    with watched():  # these don't
        x[x > 0] = 0.5
        torch.where(x > 0, x, 0.0).sum()
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)


def test_gradients_optimisers_and_numbers_are_those_of_the_cpu() -> None:
    def trained(device: str) -> torch.Tensor:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).to(device)
        adam = torch.optim.Adam(net.parameters(), fused=True)
        x = torch.randn(6, 4, generator=torch.Generator(device).manual_seed(5), device=device)
        for _ in range(3):
            net(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            adam.step()
        return torch.cat([p.detach().cpu().flatten() for p in net.parameters()])

    assert torch.equal(trained("cuda"), trained("cpu"))


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.LSTM])
def test_memories_are_those_of_the_cpu(kind) -> None:
    torch.manual_seed(0)
    cell, x = kind(3, 4), torch.randn(5, 2, 3)
    expected = cell(x)[0]
    expected.square().sum().backward()
    gradients = [p.grad for p in cell.parameters()]
    cell.zero_grad()
    out = cell.to("cuda")(x.to("cuda"))[0]
    out.square().sum().backward()
    torch.testing.assert_close(out.cpu(), expected)
    for parameter, gradient in zip(cell.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient)


def test_the_seed_of_the_process_is_the_devices_too() -> None:
    torch.manual_seed(5)
    states, drawn = torch.cuda.get_rng_state_all(), torch.rand(2, device="cuda")
    torch.manual_seed(5)
    assert len(states) == 1 and torch.equal(torch.rand(2, device="cuda"), drawn)
    torch.cuda.set_rng_state_all(states)
    assert torch.equal(torch.rand(2, device="cuda"), drawn)


def captured(function) -> Graph:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            function()
    finally:
        torch.cuda.set_stream(stream)  # torch leaves that of a failed capture, for later cases too
    return graph


def test_a_graph_runs_again_where_it_ran() -> None:
    x, results = torch.ones(3, device="cuda"), []

    def step() -> None:
        results[:] = [x.cumsum(0) * 2, torch.rand(2, device="cuda")]
        x.add_(1)

    graph = captured(step)
    assert x.tolist() == [1, 1, 1] and results[0].isnan().all()  # a GPU runs nothing meanwhile
    torch.cuda.manual_seed(7)
    expected = torch.rand(2, device="cuda")
    x.fill_(5)
    torch.cuda.manual_seed(7)
    graph.replay()
    assert results[0].tolist() == [10, 20, 30] and x.tolist() == [6, 6, 6] and torch.equal(results[1], expected)
    assert len(graph) >= 4


def test_a_graph_keeps_the_numbers_of_the_host_but_not_memory_of_others() -> None:
    x, factor = torch.ones(3, device="cuda"), torch.tensor(2.0)
    graph = captured(partial(x.mul_, factor))
    factor.fill_(100.0)
    graph.replay()
    assert x.tolist() == [2, 2, 2]
    del x
    with pytest.raises(RuntimeError, match="was freed"):
        graph.replay()


def test_numbers_of_the_host_are_no_tensors_in_a_graph() -> None:
    """A third of one is rounded to float32, as it is outside of a graph; a float64 tensor would not be."""
    x, results = torch.tensor(3.0, device="cuda"), []
    graph = captured(lambda: results.append(x * (1 / 3) - 1))
    graph.replay()
    assert results[0].item() == (x * (1 / 3) - 1).item()


@pytest.mark.parametrize("name", ["item", "cpu", "copied from the host", "masked", "nonzero", "synchronize"])
def test_what_waits_cannot_be_captured(name) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="waits|previous error"):
        captured(lambda: WAITS[name](x))
    assert not library().standin_is_capturing()


@pytest.mark.parametrize("scenario", ["football", "mpe/simple_reference"])
def test_a_rewritten_step_of_the_simulator_is_the_cpus(scenario: str) -> None:
    """What a kernel with unrolled loops is compared with: questions and masked writes are answered on the device."""
    given, found = torch.Generator(), []
    for device in ("cuda", "cpu"):
        world = VmasWorld(scenario, num_envs=5, pool_size=8, device=device)
        world.reset(0)
        action = world.random_action(given.manual_seed(1))
        with world.pool.stream:
            values = eager_step(world, action, rewritten=True)
        assert {value.device.type for value in values.values()} == {device}
        found.append({key: value.cpu() for key, value in values.items()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-5, atol=1e-6)
