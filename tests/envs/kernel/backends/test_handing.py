"""How values reach their readers across blocks and functions."""

from envs.kernel.backends.handing import Handing
from envs.kernel.ir.program import Program
from envs.kernel.ir.schedule import schedule


def two_blocks(part: int) -> tuple[Handing, dict[str, int]]:
    """Two costly arms under one condition, the second of which reads what the first computed, also in a block of its own.

    `first` is an output: the arm that it picks is read outside of its block.
    """
    p = Program()
    x, y = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
    near, close = p.op("lt", x, y), p.op("lt", x, p.const(-1.0, "f"))
    cheap = p.op("mul", x, y)
    inner = p.op("exp", cheap)
    arm = p.op("exp", p.op("exp", inner))
    first = p.op("select", near, arm, x)
    deep = p.op("exp", p.op("exp", p.op("exp", p.op("mul", first, cheap))))
    again = p.op("mul", p.op("select", close, deep, first), inner)
    second = p.op("select", near, again, first)
    plan = schedule(p, [first, second])
    plan.store(first, "o[0]")
    plan.store(second, "o[1]")
    names = {
        "x": x,
        "y": y,
        "near": near,
        "cheap": cheap,
        "inner": inner,
        "arm": arm,
        "first": first,
        "again": again,
        "deep": deep,
    }
    return Handing(p, plan.finish(), part, {x, y}), names


def test_what_a_block_reads_of_one_with_the_same_condition_is_kept_within_it():
    handing, v = two_blocks(1000)
    assert len(handing.parts) == 1 and set(handing.slots) == {v["inner"]}
    assert {x for names in handing.declared.values() for x in names} == {v["arm"], v["again"], v["deep"]}
    assert [value for value, _ in handing.again] == [v["cheap"]]  # where it is read, few environments come
    assert not handing.late


def test_functions_keep_what_others_read_and_read_inputs_again():
    """A function per statement: what a block declares outside is stored after it, all else where it is computed."""
    handing, v = two_blocks(1)
    assert len(handing.parts) > 5
    assert handing.late == {v["arm"], v["again"]}
    assert set(handing.slots) >= {v["near"], v["first"], v["inner"], v["arm"], v["again"]}
    assert not {v["x"], v["y"], v["cheap"]} & set(handing.slots)
    assert sorted(handing.slots.values()) == list(range(len(handing.slots)))
