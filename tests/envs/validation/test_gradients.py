"""A row of the table of gradients, built, verified and timed."""

from envs.validation.gradients import measure, table


def test_a_row_says_how_right_gradients_are_and_with_timing_what_they_cost():
    row = measure("mpe/simple", 16, timed=False)
    assert row["why"] == "" and row["astray"] == 0 and row["compared"] > 1000
    assert row["median"] < 1e-6 and row["autograd"][2] < 1e-5 and row["autograd_nan"] == 0
    assert table([row]).splitlines()[-1].endswith("|  |  |  |  |  |  |")
    timed = measure("mpe/simple", 16, rounds=1)
    assert min(timed[name] for name in ("step_us", "gradient_us", "vmas_us")) > 0
    assert "|  |" not in table([timed]).splitlines()[-1]
