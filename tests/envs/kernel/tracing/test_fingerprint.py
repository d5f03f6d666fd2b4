"""The name of a trace: the same for the same program whatever the state, another where a draw decides the program."""

from envs.kernel.backends.cpp import emit
from envs.kernel.ir.layout import layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.tracing.trace import TRACED, drawn_values, trace
from envs.vmas.world import VmasWorld


def test_traces_of_one_fingerprint_have_one_program() -> None:
    template = VmasWorld("mpe/simple_push", num_envs=2).template(TRACED, pool_size=64)
    found: dict[str, set[str]] = {}  # fingerprint -> what the goal is, and the program
    for _ in range(6):
        template.reset()
        drawn = repr(drawn_values(template.pool))
        traced = trace(template, audited=False)
        lowered = lower(traced)
        source = emit(lowered, layout(lowered, template.spec))
        found.setdefault(traced.fingerprint(), set()).add((drawn, source))
    assert len(found) == 2 and all(len(same) == 1 for same in found.values())
    assert len({source for ((_, source),) in found.values()}) == 2
