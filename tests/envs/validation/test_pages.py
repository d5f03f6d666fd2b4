"""Rows of a table are replaced by name, the rest of a page stays."""

import pytest

from envs.validation import gradients
from envs.validation.pages import replace_rows

PAGE = """# Title

| other | b |
|---|---|
| x | 9 |

| a | b |
|---|---|
| x | 1 |
| z | 3 |

End.
"""


def test_rows_are_replaced_and_new_ones_stand_in_their_place():
    expected = PAGE.replace("| x | 1 |\n| z | 3 |", "| x | 1 |\n| y | 2 |\n| z | 4 |")
    assert replace_rows(PAGE, "| a | b |\n|---|---|\n| z | 4 |\n| y | 2 |") == expected
    added = replace_rows(PAGE, "| a | b |\n|---|---|\n| z | 4 |", lambda old, new: [new[0], old[1] + "+" + new[1]])
    assert added == PAGE.replace("| z | 3 |", "| z | 3+4 |")
    with pytest.raises(ValueError, match=r"no table with the heading \| a \| c \|"):
        replace_rows(PAGE, "| a | c |\n|---|---|\n| z | 4 |")


def test_a_row_without_timing_keeps_times_of_the_same_program_only():
    row = {
        "scenario": "s",
        "why": "",
        "step_operations": 10,
        "operations": 25,
        "seconds": {"compilers": 0.0},
        "median": 1e-7,
        "most": 2e-7,
        "worst": 3e-7,
        "autograd": "its own gradients are nan",
    }
    timed = row | {"seconds": {"compilers": 1.24}, "step_us": 10.0, "gradient_us": 20.0, "vmas_us": 3000.0}
    page = gradients.table([timed])
    assert page.splitlines()[2] == (
        "| s | 10, 25 | 1.2 | 1e-07, 2e-07, 3e-07 | its own gradients are nan | 10 | 20 | 2.0 | 3.0 | 150 | 100 |"
    )
    assert replace_rows(page, gradients.table([row]), gradients.merge) == page
    longer = replace_rows(page, gradients.table([row | {"operations": 26}]), gradients.merge).splitlines()[2]
    assert longer == "| s | 10, 26 | 0.0 | 1e-07, 2e-07, 3e-07 | its own gradients are nan |  |  |  |  |  |  |"
    refused = replace_rows(page, gradients.table([{"scenario": "s", "why": "no kernel"}]), gradients.merge)
    assert refused.splitlines()[2] == "| s | — |  | no kernel |  |  |  |  |  |  |  |"
