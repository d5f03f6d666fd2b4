"""Schedules: every value before its readers, and lazy values only where a condition that they are read under holds."""

import itertools

import numpy as np
import pytest

from envs.kernel.ir.program import Program, arguments, evaluate
from envs.kernel.ir.schedule import Scope, schedule


def play(program: Program, outputs: list[int], inputs: dict[tuple, object]) -> tuple[list, set[int]]:
    """A schedule run for one environment: the outputs, and the values that were computed. KeyError: read too early."""
    plan = schedule(program, outputs)
    for i, value in enumerate(outputs):
        plan.store(value, str(i))
    found, computed, stored = {}, set(), {}

    def number(value: int) -> object:
        return program.number(value) if program.ops[value][0] == "const" else found[value]

    def run(scope: Scope) -> None:
        for step in scope.steps:
            if step[0] == "block":
                found.update({v: program.kinds[v] != "b" and np.float32(np.nan) for v in step[1].hoisted})
                condition, answer = step[1].literal
                if bool(number(condition)) == answer:
                    run(step[1])
            elif step[0] == "store":
                stored[step[2]] = number(step[1])
            else:
                value, (name, *args) = step[1], program.ops[step[1]]
                computed.add(value)
                if name == "input":
                    found[value] = inputs[args[0]]
                    continue
                alone, names = Program(), [program.kinds[a] for a in args]
                again = alone.op(name, *(alone.input((k,), kind) for k, kind in enumerate(names)))
                found[value] = evaluate(alone, [again], {(k,): number(a) for k, a in enumerate(args)})[0]
        for value in [v for step in scope.steps if step[0] == "define" for v in step[1:]]:
            if scope.parent and value not in scope.hoisted and not _declared(scope, value):
                found.pop(value, None)  # its name ends with its block

    run(plan.finish())
    return [stored[str(i)] for i in range(len(outputs))], computed


def _declared(scope: Scope, value: int) -> bool:
    """Whether a value is declared before one of the blocks around it."""
    return any(value in around.hoisted for around in scope.path)


def costly(program: Program, value: int) -> int:
    for _ in range(3):
        value = program.op("sin", value)
    return value


@pytest.mark.parametrize("answers", list(itertools.product([False, True], repeat=3)))
def test_what_two_arms_read_within_other_arms_is_as_lazy_as_both(answers):
    """shared is read where a and b hold: within the arm of c, which asks for both, and once more outside of it."""
    p = Program()
    x = p.input(("x",), "f")
    a, b, c = (p.input((name,), "b") for name in "abc")
    shared, zero = costly(p, x), p.const(0.0, "f")

    def masked(value: int) -> int:
        return p.op("select", a, p.op("select", b, value, zero), zero)

    within = p.op("select", c, costly(p, masked(p.op("mul", shared, x))), zero)
    outputs = [within, masked(p.op("add", shared, x))]
    inputs = {("x",): np.float32(0.7)} | {(name,): answer for name, answer in zip("abc", answers, strict=True)}
    found, computed = play(p, outputs, inputs)
    np.testing.assert_array_equal(found, evaluate(p, outputs, inputs))
    assert (shared in computed) == (answers[0] and answers[1])


@pytest.mark.parametrize("answers", list(itertools.product([False, True], repeat=2)))
def test_a_condition_that_is_being_written_is_not_asked_for(answers):
    """c2 needs a select by c; an arm of another select by c joins its block and needs what is read under c2 alone."""
    p = Program()
    x, y, c = p.input(("x",), "f"), p.input(("y",), "f"), p.input(("c",), "b")
    zero = p.const(0.0, "f")
    first = p.op("select", c, costly(p, x), zero)
    c2 = p.op("lt", first, y)
    shared = costly(p, p.op("mul", x, x))
    second = p.op("select", c, costly(p, shared), zero)
    outputs = [p.op("select", c2, p.op("add", second, shared), zero)]
    inputs = {("x",): np.float32(0.7), ("y",): np.float32(1.0 if answers[0] else -1.0), ("c",): answers[1]}
    np.testing.assert_array_equal(play(p, outputs, inputs)[0], evaluate(p, outputs, inputs))


@pytest.mark.parametrize("seed", range(40))
def test_a_schedule_computes_what_its_program_means(seed):
    """Random programs of questions within questions, whose arms share what they read."""
    rng, p = np.random.default_rng(seed), Program()
    numbers = [p.input(("x", i), "f") for i in range(3)]
    conditions = [p.input(("c", i), "b") for i in range(4)]
    for _ in range(60):
        a, b = (int(v) for v in rng.choice(numbers[-12:], 2))
        kind = rng.integers(4)
        if kind == 0:
            conditions.append(p.op("lt", a, b))
        elif kind == 1:
            numbers.append(costly(p, p.op("add", a, b)))
        else:
            numbers.append(p.op("select", int(rng.choice(conditions)), a, b))
    outputs = [v for v in numbers[-6:] if arguments(p.ops[v])]
    for _ in range(8):
        inputs = {("x", i): np.float32(rng.standard_normal()) for i in range(3)}
        inputs |= {("c", i): bool(rng.integers(2)) for i in range(4)}
        np.testing.assert_array_equal(play(p, outputs, inputs)[0], evaluate(p, outputs, inputs))
