"""scripts/benchmark.py: how it measures, what it reports, and that it runs (without peers, in tiny sizes)."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.append(str(SCRIPTS))  # where `python scripts/benchmark.py` finds its parts

from bench import hardware, off_policy, report, scaling, sides, timing  # noqa: E402

CUT = {"bound": True}  # the peer's run was ended before it arrived


class Turns:
    """Sides that note when they are asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def side(self, name: str):
        def answer() -> float:
            self.asked.append(name)
            return float(len(self.asked))

        return answer


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    turns = Turns()
    taken = timing.alternate({n: turns.side(n) for n in "ab"}, rounds=3, clock=timing.Clock(60))
    assert turns.asked == list("abbaabba")
    assert taken == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_when_the_time_is_up_the_round_in_hand_is_the_last() -> None:
    taken = timing.alternate({n: Turns().side(n) for n in "ab"}, rounds=9, clock=timing.Clock(0))
    assert [len(values) for values in taken.values()] == [1, 1]


def test_a_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    row = timing.compared("k", "case", "peer", "s", ours=[1, 2, 4], theirs=[10, 30, 20])
    assert row["ratio"] == 10 and (row["low"], row["high"]) == (5, 15) and row["rounds"] == 3


def test_flop_are_those_that_torch_counts() -> None:
    network = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    batch = torch.randn(5, 7)
    for trained in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = network(batch)
            if trained:
                out.sum().backward()
        assert hardware.products(network, 5, trained) == counter.get_total_flops()
    assert hardware.activations(network, 5) == 5 * (16 + 8)


def test_flop_of_a_gradient_step_are_those_of_its_products() -> None:
    """MADDPG, minibatch 3: the actor 16-8-2 on 4 agents' rows, the critic 72-8-4 on the team's."""
    sizes = ["env.num_envs=4", "algo.rollout_steps=5", "algo.minibatch_size=3", "algo.buffer_frames=40"]
    flop = off_policy.products(["experiment=benchmarl_maddpg", "network.hidden=[8]", *sizes])
    actor, critic = 12 * (16 * 8 + 8 * 2), 3 * (72 * 8 + 8 * 4)
    targets, values = actor + critic, critic
    critic_back, actor_back = critic + 3 * 8 * 4, actor + 12 * 8 * 2  # weights of all layers, inputs but the first's
    assert flop == 2 * (targets + values + critic_back + actor + critic + critic + actor_back)


def test_an_iteration_is_its_rollout_and_a_thousand_steps() -> None:
    replies = {
        "ours": [{"collect_s": 0.5, "update_s": 0.2}, {"collect_s": 0.5, "update_s": 0.4}],
        "peer": [{"collect_s": 1.0, "update_s": 2.0}, {"collect_s": 1.0, "update_s": 2.0}],
    }
    step, iteration = off_policy.rows("qmix", "one thread", replies, updates=100, gflop=0.3, rate=200.0)
    assert step["key"] == "off_policy/qmix/one_thread/step" and step["ours"] == pytest.approx(3)  # of 2 and 4 ms
    assert step["ratio"] == pytest.approx(20 / 3)
    assert step["peak_share_%"] == pytest.approx(50) and step["their_peak_share_%"] == pytest.approx(7.5)  # 0.3 GFLOP
    assert iteration["ours"] == pytest.approx((2.5 + 4.5) / 2) and iteration["theirs"] == pytest.approx(21)
    keys = {target.key for target in report.TARGETS if target.key.startswith("off_policy/")}
    assert step["key"] in keys and len(keys) == 9


def test_the_exponent_of_linear_cost_is_one() -> None:
    assert scaling.exponent([10, 100, 1000], [0.3, 3.0, 30.0]) == pytest.approx(1)
    assert scaling.exponent([2, 4, 8], [4, 16, 64]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("value", "extra", "verdict"),
    [(9, {}, "aim met"), (4, {}, "met"), (2, {}, "**missed**"), (2, CUT, "open"), (9, CUT, "aim met")],
)
def test_verdicts_on_ratios(value: float, extra: dict, verdict: str) -> None:
    row = timing.compared("end_to_end/5", "training", "peer", "s", ours=[1.0] * 5, theirs=[float(value)] * 5, **extra)
    target = next(target for target in report.TARGETS if target.key == "end_to_end/5")
    assert target.verdict(row).startswith(verdict)
    line = next(line for line in report.targets({"end_to_end/5": row}, "cpu").splitlines() if "| training |" in line)
    assert verdict in line and f"| {'> ' if extra else ''}{report.number(value)}× |" in line


@pytest.mark.parametrize(("value", "verdict"), [(1.2, "aim met"), (1.7, "met"), (2.4, "**missed**")])
def test_verdicts_where_less_is_better(value: float, verdict: str) -> None:
    target = next(target for target in report.TARGETS if target.key == "floor/rollout/600")
    assert target.verdict(timing.figure(target.key, "rollout", value, "x floor")) == verdict


def test_the_report_goes_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write(page, "new")
        assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="page.md needs one line"):
        report.write(page, "new")
    assert page.read_text() == "no markers\n"


def test_what_was_not_measured_stays_on_the_page_with_its_date() -> None:
    def page(date: str, targets: list[str], *sections: str) -> str:
        table = "\n".join(["Targets\n", "| against | case |", "| --- | --- |", *targets])
        return "\n\n### ".join([f"command {date}\n\nMeasured {date} on it.", table, *sections])

    before = ["| a | one | 5× |", "| a | two | 6× |", "| b | three | 7× |"]
    old = page("May", before, "first\n\nA 2 s.", "third\n\nA 3 s.")
    now = ["| a | k | not measured |", "| a | two | 9× |", "| c | k | not measured |", "| b | k | not measured |"]
    new = page("June", now, "second\n\nA 1 s.")
    lines = ["| a | one | 5× |", "| a | two | 9× |", "| c | k | not measured |", "| b | three | 7× |"]
    expected = page("June", lines, "first\n\nA 2 s, May.", "second\n\nA 1 s.", "third\n\nA 3 s, May.")
    assert report.merged(old, new, ["first", "second", "third"]) == expected
    assert report.merged("", new, ["first", "second", "third"]) == new


def test_the_performance_page_can_be_written_to() -> None:
    page = (SCRIPTS.parent / "docs" / "performance.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1


def test_our_side_collects_and_trains_when_asked() -> None:
    sizes = ["env.num_envs=4", "algo.rollout_steps=5", "algo.minibatch_size=10", "network.hidden=[8]"]
    with sides.ours("collect", *sizes) as side:
        assert side.ready["frames"] == 20 and side.ready["seconds"] > 0
        answer = side.ask(times=3)
        assert len(answer["seconds"]) == 3 and answer["collect_s"] == pytest.approx(sum(answer["seconds"]) / 3)
    with sides.ours("train", *sizes) as side:
        for times in (1, 2):
            answer = side.ask(times=times)
            assert 0 < answer["collect_s"] + answer["update_s"] <= answer["iteration_s"]
    assert side.process.returncode == 0


def test_a_side_that_fails_is_quoted() -> None:
    with pytest.raises(sides.SideError, match=r"ours_side.py ended .*algo.gama"), sides.ours("train", "algo.gama=1"):
        raise AssertionError("it started")


def test_the_script_measures_reports_and_names_what_is_missing(shell, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    done = shell(tmp_path, "benchmark", "--quick", "--rounds", "1", "--only", "hardware", "simulation",
                 "collection", "off_policy", "--peers", "nowhere", "--write", str(page),
                 "--json", "figures.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "figures.json").read_text())["cases"]
    keys = {row["key"]: row for case in cases.values() for row in case["rows"]}
    assert {"peak/gemm", "peak/memory", "floor/rollout/8", "floor/update/40", "simulation/balance/4"} <= set(keys)
    assert keys["simulation/balance/4"]["ratio"] > 0 and keys["peak/gemm"]["value"] > 0
    assert all("make peers" in cases[name]["error"] for name in ("collection", "off_policy"))
    text = page.read_text()
    assert "| balance, 4 environments | raw VMAS |" in text and "Not complete: " in text
    assert "make peers" in text and "not measured" in text

    again = shell(tmp_path, "benchmark", "--report", "--json", "figures.json")
    assert again.returncode == 0 and text.split(report.BEGIN)[1].split(report.END)[0].strip() in again.stdout
