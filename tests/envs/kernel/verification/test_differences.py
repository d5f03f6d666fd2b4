"""Wrong derivatives are found, and kinks are told from them."""

import numpy as np
import pytest

from envs.kernel.backends.cpp_gradient import emit_gradient
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile import compiled
from envs.kernel.ir import derivatives
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import gradient_layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.tape import Refusal
from envs.kernel.tracing.trace import TRACED, trace
from envs.kernel.verification.differences import verify_gradient
from envs.vmas.env import VmasEnv
from marl.native.compiler import compile_library, load


def checked(scenario: str):
    """The report on a scenario's gradients, made with the rules as they are now."""
    world = VmasEnv(scenario, num_envs=2, fast="off").world
    compilation, template = compiled(world), world.template(TRACED, pool_size=64)
    gradient = differentiate(lower(trace(template)))
    places = gradient_layout(gradient, compilation.places)
    source, *more = emit_gradient(gradient, places)
    kernel = GradientKernel(load(compile_library(source, more=more)), places, TRACED)
    return verify_gradient(template, gradient, compilation.step(TRACED), kernel)


def test_right_rules_pass_with_kinks_and_all():
    report = checked("mpe/simple_spread")
    assert report.astray == 0 and report.compared > 1500
    assert np.concatenate(report.errors).max() < 1e-4


@pytest.mark.parametrize(("name", "factor"), [("sqrt", 1.01), ("mul", 0.9), ("select", None)])
def test_a_wrong_rule_is_refused(monkeypatch, name: str, factor: float | None):
    """A slope that is off by a hundredth, a product's by a tenth, arms that are told apart by another question."""
    if factor is None:
        monkeypatch.setattr("envs.kernel.ir.gradient._Reverse._sum", _forgets_an_arm)
    else:
        rule = derivatives.RULES[name]

        def off(m, g, v, args):
            return [(a, m.p.op("mul", share, m.number(factor))) for a, share in rule(m, g, v, args)]

        monkeypatch.setitem(derivatives.RULES, name, off)
    with pytest.raises(Refusal, match=r"its gradients differ from differences of the step in \d+ of \d+ comparisons"):
        checked("mpe/simple_spread")


def _forgets_an_arm(self, v: int) -> int:
    """Adds up what was computed under conditions as if it had been computed under none."""
    total = self.products.number(0.0)
    for g in self.shares[v].values():
        total = self.p.op("add", total, g)
    return total
