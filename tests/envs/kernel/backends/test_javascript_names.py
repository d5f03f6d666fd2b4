"""Few names for many values: by hand, and random functions that must compute what they did."""

import json
import random

import pytest

from envs.kernel.backends.javascript_names import function


def test_a_name_is_given_again_after_its_value_was_read_last() -> None:
    lines = ["const v10 = s[0];", "const v11 = f(v10 * v10);", "const v9 = f(v11 - v10);", "o[0] = v9;"]
    assert function("part0", "s, o", lines) == [
        "function part0(s, o) {",
        "let v0, v1;",
        "v0 = s[0];",
        "v1 = f(v0 * v0);",
        "v0 = f(v1 - v0);",
        "o[0] = v0;",
        "}",
    ]


def test_what_is_set_in_a_block_and_read_behind_it_keeps_its_name() -> None:
    lines = ["const v7 = s[0];", "let v8 = 0;", "if (!v7) {", "const v3 = s[1];", "v8 = v3;", "}"]
    lines += ["const v4 = s[2];", "o[0] = v8;", "o[1] = v4;"]
    body = function("part0", "s, o", lines)
    assert body[1:] == ["let v0, v1;", "v0 = s[0];", "v1 = 0;", "if (!v0) {", "v0 = s[1];", "v1 = v0;", "}"] + [
        "v0 = s[2];",
        "o[0] = v1;",
        "o[1] = v0;",
        "}",
    ]


def test_values_that_nothing_reads_and_functions_without_values() -> None:
    assert function("g", "o", ["const v5 = o[0];", "const v6 = o[1];"]) == [
        "function g(o) {",
        "let v0;",
        "v0 = o[0];",
        "v0 = o[1];",
        "}",
    ]
    assert function("g", "", []) == ["function g() {", "}"]


@pytest.mark.parametrize("line", ["o[0] = v1;", "const v2 = v1;", "v1 = s[0];"])
def test_a_value_that_is_read_before_it_is_set_is_an_error(line: str) -> None:
    with pytest.raises(AssertionError, match="v1 is read before it is set"):
        function("g", "s, o", [line])


def random_lines(draw: random.Random) -> list[str]:
    """Sums, products, choices and blocks of them over what is known so far; all numbers fit a double exactly enough."""
    known, lines, count = ["s[0]", "s[1]", "s[2]"], [], 0
    for _ in range(draw.randint(20, 60)):
        a, b, c = (draw.choice(known) for _ in range(3))
        text = draw.choice([f"({a} + {b}) / 2", f"{a} * {b}", f"{a} < {b} ? {c} : {b}", f"-{a}"])
        if draw.random() < 0.2:
            lines += [f"let v{count} = 0;", f"if (0 < {a}) {{", f"const v{count + 1} = {text};"]
            lines += [f"v{count} = v{count + 1} - {b};", "}"]
            known.append(f"v{count}")
            count += 2
        else:
            lines.append(f"const v{count} = {text};")
            known.append(f"v{count}")
            count += 1
        if draw.random() < 0.2:
            lines.append(f"o[{draw.randrange(8)}] = {draw.choice(known)};")
    return [*lines, f"o[8] = {known[-1]};"]


def test_random_functions_compute_what_they_did(javascript) -> None:
    draw = random.Random(0)
    pairs = []
    for _ in range(200):
        lines = random_lines(draw)
        ours = function("g", "s, o", lines)
        assert len(ours[1].split(",")) < sum("v" in line for line in lines) / 2
        pairs.append(["\n".join(lines), "\n".join(ours[1:-1])])
    apart = javascript(f"""
        let apart = 0;
        for (const [theirs, ours] of {json.dumps(pairs)}) for (let k = 0; k < 5; k++) {{
          const s = [Math.random() - 0.5, Math.random() - 0.5, Math.random() - 0.5], a = new Array(9).fill(0), b = [...a];
          new Function("s", "o", theirs)(s, a);
          new Function("s", "o", ours)(s, b);
          if (a.some((x, i) => !Object.is(x, b[i]))) apart++;
        }}
        return apart;""")
    assert apart == 0
