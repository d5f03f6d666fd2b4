"""The scalar program: sharing, folding, and only rewrites that hold for nan, infinities and both zeros."""

import itertools
import math

import numpy as np
import pytest

from envs.kernel.ir.program import Program, evaluate
from envs.kernel.ir.schedule import schedule

VALUES = [0.0, -0.0, 1.0, -1.0, 2.5, 0.1, math.inf, -math.inf, math.nan, 1e-42, 3e38]


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "min", "max"])
@pytest.mark.parametrize("number", VALUES)
def test_rewrites_with_a_constant_keep_every_bit(name, number):
    for swapped in (False, True):
        p = Program()
        x, c = p.input(("x",), "f"), p.const(number, "f")
        v = p.op(name, *((c, x) if swapped else (x, c)))
        plain = Program()
        y, d = plain.input(("x",), "f"), plain.input(("c",), "f")
        w = plain.op(name, *((d, y) if swapped else (y, d)))
        xs = np.array(VALUES, np.float32)
        ours = np.broadcast_to(evaluate(p, [v], {("x",): xs})[0], xs.shape).astype(np.float32)
        theirs = evaluate(plain, [w], {("x",): xs, ("c",): np.full_like(xs, number)})[0]
        both_nan = np.isnan(ours) & np.isnan(theirs)
        assert np.array_equal(ours.view(np.int32)[~both_nan], theirs.view(np.int32)[~both_nan])


def test_constants_fold_in_float32():
    p = Program()
    third = p.op("div", p.const(1, "f"), p.const(3, "f"))
    assert p.number(third) == np.float32(1) / np.float32(3)
    assert p.number(p.op("mul", third, p.const(3, "f"))) == np.float32(1)


def test_zeros_of_either_sign_are_different_constants():
    p = Program()
    assert p.const(0.0, "f") != p.const(-0.0, "f")
    x = p.input(("x",), "f")
    assert p.op("add", x, p.const(-0.0, "f")) == x
    assert p.op("add", x, p.const(0.0, "f")) != x  # -0 + 0 is +0
    square = p.op("mul", x, x)
    assert p.op("add", square, p.const(0.0, "f")) == square  # a square is never -0


def test_equal_operations_are_one_value():
    p = Program()
    x, y = p.input(("x",), "f"), p.input(("y",), "f")
    assert p.op("add", x, y) == p.op("add", y, x)
    assert p.op("sub", x, y) != p.op("sub", y, x)
    assert p.op("neg", p.op("neg", x)) == x


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_logic_with_constants(name):
    for number, value in itertools.product([False, True], [False, True]):
        p = Program()
        x = p.input(("x",), "b")
        v = p.op(name, x, p.const(number, "b"))
        expected = {"and": value and number, "or": value or number, "xor": value != number}[name]
        assert bool(evaluate(p, [v], {("x",): np.array(value)})[0]) == expected


def test_what_nobody_needs_is_left_out():
    p = Program()
    x = p.input(("x",), "f")
    p.op("sin", x)
    assert p.live([p.op("cos", x)]) == [x, p.op("cos", x)]


def test_costly_arms_of_a_select_run_only_where_somebody_reads_them():
    p = Program()
    x, near = p.input(("x",), "f"), p.input(("near",), "b")
    costly = x
    for _ in range(4):
        costly = p.op("sin", costly)
    v = p.op("select", near, costly, p.const(0.0, "f"))
    plan = schedule(p, [v])
    plan.store(v, "target")
    blocks = [s[1] for s in plan.finish().steps if s[0] == "block"]
    assert len(blocks) == 1 and blocks[0].literal == (near, True)
    assert sum(s[0] == "define" for s in blocks[0].steps) == 4 and blocks[0].hoisted == [costly]


def test_an_arm_that_others_read_too_runs_always():
    p = Program()
    x, near = p.input(("x",), "f"), p.input(("near",), "b")
    costly = p.op("sin", p.op("sin", p.op("sin", x)))
    v = p.op("select", near, costly, p.const(0.0, "f"))
    plan = schedule(p, [v, costly])
    plan.store(v, "a")
    plan.store(costly, "b")
    assert all(s[0] != "block" for s in plan.finish().steps)
