"""Clipping and Adam's step as one compiled call: torch's own numbers, and torch's own step where it does not apply."""

import platform

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from marl.native import library, threads
from marl.optim import fused_adam
from marl.optim.optimizer_config import clip_gradients

SHAPES = [[(64, 14), (64,), (64, 64), (64,), (9, 64), (9,)], [(3,), (17,), (100, 3), (1,), (5, 7)], [(33, 33)] * 2]


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's fused kernel cuts tensors into pieces for several threads, whose ends are rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Pair:
    """The same parameters twice, one set for each way of stepping, in two parts and two groups."""

    def __init__(self, kind: type[Adam], shapes: list[tuple], most: float | None = 0.5, decay: float = 0.0, **more):
        self.generator = torch.Generator().manual_seed(1)
        first = [torch.randn(shape, generator=self.generator) for shape in shapes]
        self.most, self.sets, self.optimizers = most, [], []
        for _ in range(2):
            params = [nn.Parameter(value.clone()) for value in first]
            groups = [{"params": params[:-1], "lr": 1e-3}, {"params": params[-1:], "lr": 3e-4, "weight_decay": decay}]
            self.sets.append(params)
            self.optimizers.append(kind(groups, **{"betas": (0.9, 0.99), "eps": 1e-5, "fused": True, **more}))
        self.fused = fused_adam.build_fused_step(self.optimizers[0], self.parts(self.sets[0]), most)

    @staticmethod
    def parts(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        return [parameters[:1], parameters[1:]]

    def draw(self, value: Tensor | None = None) -> None:
        scale = 10 ** (4 * torch.rand((), generator=self.generator) - 3)
        for a, b in zip(*self.sets, strict=True):
            a.grad = scale * torch.randn(a.shape, generator=self.generator) if value is None else value.expand_as(a)
            a.grad = a.grad.contiguous()
            b.grad = a.grad.clone()

    def slow(self, which: int) -> Tensor:
        norms = [clip_gradients(part, self.most) for part in self.parts(self.sets[which])]
        self.optimizers[which].step()
        return torch.linalg.vector_norm(torch.stack(norms))

    def step(self) -> bool:
        """One step of both; whether ours took the quick way."""
        norm = self.fused()
        quick = norm is not None
        norms = norm if quick else self.slow(0), self.slow(1)
        self.assert_close(*norms)
        return quick

    @staticmethod
    def assert_close(ours: Tensor, theirs: Tensor) -> None:
        exact = library.enabled and fused_adam.functions().width() == 16
        torch.testing.assert_close(ours, theirs, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-7}))

    def compare(self) -> None:
        for a, b in zip(*self.sets, strict=True):
            self.assert_close(a, b)
            for kind in ("exp_avg", "exp_avg_sq", "step"):
                self.assert_close(*(o.state[p][kind] for o, p in zip(self.optimizers, (a, b), strict=True)))


@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("shapes", SHAPES)
def test_steps_are_torchs(shapes, kind, decay, most):
    pair = Pair(kind, shapes, most, decay)
    for turn in range(20):
        pair.draw()
        assert pair.step() == (turn > 0)  # torch makes the states
        if turn == 10:
            for optimizer in pair.optimizers:  # as a schedule does
                optimizer.param_groups[0]["lr"] *= 0.5
    pair.compare()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its vectors have one length")
@pytest.mark.parametrize("absent", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx", "-mno-fma")])
def test_processors_with_shorter_vectors_get_the_same(absent, monkeypatch):
    build = library.compile_library
    monkeypatch.setattr(library, "compile_library", lambda source, flags: build(source, (*flags, *absent)))
    assert fused_adam.functions().width() == (8 if len(absent) == 1 else 4)
    pair = Pair(AdamW, SHAPES[1], 0.5, 0.01)
    for turn in range(10):
        pair.draw()
        assert pair.step() == (turn > 0)
    pair.compare()


def test_loaded_states_are_gone_on_with():
    pair = Pair(Adam, SHAPES[0])
    for _ in range(3):
        pair.draw()
        pair.step()
    for optimizer in pair.optimizers:
        optimizer.load_state_dict(optimizer.state_dict())
    pair.draw()
    assert pair.step()
    pair.compare()


def test_a_gradient_that_is_no_number_spreads_as_torchs():
    pair = Pair(Adam, SHAPES[1])
    pair.draw()
    pair.step()
    pair.draw(torch.tensor(float("nan")))
    norm, theirs = pair.fused(), pair.slow(1)
    assert norm.isnan() and theirs.isnan() and all(p.isnan().all() for ps in pair.sets for p in ps)


def hook(pair: Pair) -> None:
    pair.optimizers[0].register_step_pre_hook(lambda *_: None)


def missing(pair: Pair) -> None:
    pair.sets[0][0].grad = pair.sets[1][0].grad = None


def changing(pair: Pair) -> None:
    pair.optimizers[0].param_groups[0]["lr"] = torch.tensor(1e-3)


def amsgrad(pair: Pair) -> None:
    pair.optimizers[0].param_groups[0]["amsgrad"] = True


@pytest.mark.parametrize("change", [hook, missing, changing, amsgrad])
def test_what_it_does_not_know_torch_does(change):
    pair = Pair(Adam, SHAPES[0])
    for _ in range(2):
        pair.draw()
        pair.step()
    pair.draw()
    change(pair)
    assert pair.fused() is None


@pytest.mark.parametrize("helpers", [1, 3])
def test_steps_do_not_depend_on_who_helped(helpers):
    shapes, norms = [(257, 300), (40_001,), (5,)], []
    pairs = [Pair(AdamW, shapes, decay=0.1) for _ in range(2)]
    try:
        for i in range(12):  # the first is torch's
            for pair, count in zip(pairs, (0, helpers), strict=True):
                pair.draw()
                threads.allow(count)
                norms.append(pair.fused())
                if not i:
                    pair.slow(0)
    finally:
        threads.allow(None)
    assert norms[:2] == [None, None] and all(map(torch.equal, norms[2::2], norms[3::2]))
    assert all(map(torch.equal, pairs[0].sets[0], pairs[1].sets[0]))


def test_without_a_compiler_torch_steps(monkeypatch):
    monkeypatch.setattr(library, "enabled", False)
    pair = Pair(Adam, SHAPES[0])
    for _ in range(3):
        pair.draw()
        assert not pair.step()
    pair.compare()


def test_other_optimisers_large_models_and_halves_are_torchs(monkeypatch):
    p = nn.Parameter(torch.randn(4))
    assert fused_adam.build_fused_step(Adam([p], fused=True), [[p]], None) is not None
    assert fused_adam.build_fused_step(torch.optim.SGD([p], lr=0.1), [[p]], None) is None
    assert fused_adam.build_fused_step(Adam([p], fused=True), [[]], None) is None
    half = nn.Parameter(torch.randn(4).bfloat16())
    assert fused_adam.build_fused_step(Adam([half], fused=True), [[half]], None) is None
    monkeypatch.setattr(fused_adam, "MOST_NUMBERS", 3)
    assert fused_adam.build_fused_step(Adam([p], fused=True), [[p]], None) is None


def test_steps_that_differ_from_torchs_are_not_used(monkeypatch):
    build = library.compile_library
    monkeypatch.setattr(library, "compile_library", lambda s, f: build(s.replace("K(size) * a", "K(size) * g"), f))
    pair = Pair(Adam, SHAPES[0])
    pair.draw()
    pair.slow(0)
    with pytest.warns(UserWarning, match="torch's optimiser.*its steps differ"):
        assert pair.fused() is None
