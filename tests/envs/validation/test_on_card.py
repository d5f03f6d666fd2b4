"""What is asked of kernels on a card, asked of this machine's, since the device is an argument."""

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.tracing.trace import TRACED
from envs.validation import on_card

SCENARIO = "mpe/simple_spread"


def test_a_step_is_compared_where_it_runs() -> None:
    found = on_card.compare_step(SCENARIO, "cpu", steps=6)
    assert not found["why"] and not found["difference"] and found["operations"] > 100
    assert found["report"]["compared"] == 6 * TRACED and found["report"]["astray"] == 0
    assert "registers" not in found  # of a thread on a GPU


def test_a_kernel_that_is_wrong_there_is_told(monkeypatch) -> None:
    on_card.compare_step(SCENARIO, "cpu", steps=1)  # verified and kept

    def load_state(self, read) -> None:
        right(self, read)
        self.state.mul_(1.01)

    right = KernelStep.load_state
    monkeypatch.setattr(KernelStep, "load_state", load_state)
    found = on_card.compare_step(SCENARIO, "cpu", steps=2)
    assert found["difference"].startswith("the kernel disagrees with the simulator of simple_spread.py")
    assert found["report"]["astray"] > TRACED


def test_a_scenario_without_a_kernel_says_why() -> None:
    for compare in (on_card.compare_step, on_card.compare_gradient):
        found = compare("tests.envs.kernel.zoo.code.numbers.ItemOfState", "cpu")
        assert "numbers.py" in found["why"]


def test_gradients_are_compared_where_there_are_kernels_of_them() -> None:
    found = on_card.compare_gradient(SCENARIO, "cpu")
    assert found["astray"] == 0 < found["compared"]
