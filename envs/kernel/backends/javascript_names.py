"""Gives the values of a JavaScript function as few names as are needed at once, so that pages with it stay small."""

import heapq
import re
from collections.abc import Sequence

VALUE = re.compile(r"\bv\d+\b")
SET = re.compile(r"(?:const|let) (v\d+)\b")


def function(name: str, arguments: str, lines: Sequence[str]) -> list[str]:
    """The lines of a function whose statements are `lines`: no loops in them, and every value is set before it is read.

    A name is given again after the last line that reads its value. What happens in which order stays as it is.
    """
    last = {value: i for i, line in enumerate(lines) for value in VALUE.findall(line)}
    names: dict[str, str] = {}
    free: list[int] = []
    numbers: dict[str, int] = {}
    body, most = [], 0
    for i, line in enumerate(lines):
        values = list(dict.fromkeys(VALUE.findall(line)))
        new = [value for value in values if value not in names]
        for value in new:  # a browser would no longer say so: names are declared before all statements
            assert SET.match(line) and SET.match(line)[1] == value, f"{value} is read before it is set: {line}"
        for value in values:  # a statement reads before it sets, so its result may take the name of what it read
            if last[value] == i and value not in new:
                heapq.heappush(free, numbers[value])
        for value in new:
            if free:
                numbers[value] = heapq.heappop(free)
            else:
                numbers[value], most = most, most + 1
            names[value] = f"v{numbers[value]}"
        for value in new:
            if last[value] == i:
                heapq.heappush(free, numbers[value])
        bare = line.removeprefix("const ").removeprefix("let ")
        body.append(VALUE.sub(lambda found: names[found.group()], bare))
    declared = [f"let {', '.join(f'v{k}' for k in range(most))};"] if most else []
    return [f"function {name}({arguments}) {{", *declared, *body, "}"]
