"""Infos over episodes that span rollouts, against a loop over the steps; of first episodes; over processes' names."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from agents.collection.ends import Ends
from agents.collection.episode_infos import EpisodeInfos, FirstEpisodes, ended_means, figure
from envs.infos import KINDS, InfoBuffers, InfoRules
from tests.fixtures.shell import ranks

RULES = InfoRules.of({"x*": list(KINDS), "late": ["end", "mean"], "*": []})


def by_hand(steps):
    """{kind: number} of what an episode told step by step; nan where nothing was."""
    told = [x for x in steps if x == x and abs(x) != torch.inf]
    end = steps[-1] if abs(steps[-1]) != torch.inf else torch.nan
    if not told:
        return dict.fromkeys(KINDS, torch.nan)
    return {"mean": sum(told) / len(told), "end": end, "sum": sum(told), "min": min(told), "max": max(told)}


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("find", [True, False])  # False: as on a GPU, where every step is a row
def test_every_kind_equals_a_loop_over_episodes_that_span_rollouts(steps, find):
    generator = torch.Generator().manual_seed(steps)
    infos = EpisodeInfos(RULES)
    info = InfoBuffers(RULES, steps, 3, {"a": 2, "b": 1}, "cpu")
    ran: dict = {}  # {(group, name, environment, agent): {step of all: what was told}}
    ends_of: dict = {e: [-1] for e in range(3)}  # steps of all at which an environment's episodes ended
    for rollout in range(12):
        done = torch.rand(steps, 3, generator=generator) < 0.3
        for t in range(steps):
            told = {"a": {"x1": torch.randn(3, 2, generator=generator), "x2": torch.randn(3, 2, generator=generator)},
                    "b": {"x1": torch.randn(3, 1, generator=generator), "no": torch.ones(3, 1)}}  # fmt: skip
            for value in (told["a"]["x1"], told["b"]["x1"]):
                value[torch.rand(value.shape, generator=generator) < 0.4] = torch.nan
            told["a"]["x2"][0] = torch.inf
            if rollout == 5:  # a name that comes late, and goes
                told["b"]["xlate"] = torch.randn(3, 1, generator=generator)
            info.write(t, told)
            for group, names in told.items():
                for name, value in names.items():
                    for e in range(3):
                        for a in range(value.shape[1]):
                            ran.setdefault((group, name, e, a), {})[rollout * steps + t] = float(value[e, a])
        ends = Ends(done)
        if not find:
            ends.rows = torch.arange(done.numel())
            ends.ended = done.flatten()
        reduced = infos.reduce(info, ends)
        sums: dict = {}
        for row, ended in zip(ends.rows.tolist(), ends.ended.tolist(), strict=True):
            if not ended:
                continue
            t, e = divmod(row, 3)
            at, now, began = ends.rows.tolist().index(row), rollout * steps + t, ends_of[e][-1] + 1
            ends_of[e].append(now)
            for (group, key), value in reduced.items():
                name, kind = key.split("/")
                for a in range(value.shape[1]):
                    each = ran.get((group, name, e, a), {})
                    expected = by_hand([each.get(step, torch.nan) for step in range(began, now + 1)])[kind]
                    got = float(value[at, a])
                    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True), (group, key, e, a)
                    if expected == expected:
                        sums.setdefault((group, key), []).append(expected)
        means = ended_means(reduced, ends)
        assert means.keys() == reduced.keys() and ("b", "no/end") not in means
        for key, mean in means.items():
            each = sums.get(key)
            expected = sum(each) / len(each) if each else torch.nan
            assert float(mean) == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
    assert sum(map(len, ends_of.values())) > 8 and ("b", "xlate") in infos.names()


def test_it_goes_on_from_what_was_saved_to_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    rollouts = [(torch.randn(5, 2, 2, generator=generator), torch.rand(5, 2, generator=generator) < 0.2)
                for _ in range(6)]  # fmt: skip

    def play(infos, parts):
        info, rows = InfoBuffers(RULES, 5, 2, {"a": 2}, "cpu"), []
        for values, done in parts:
            for t in range(5):
                info.write(t, {"a": {"x": values[t]}})
            rows += infos.reduce(info, Ends(done)).values()
        return rows

    whole = play(EpisodeInfos(RULES), rollouts)
    first, second = EpisodeInfos(RULES), EpisodeInfos(RULES)
    rows = play(first, rollouts[:3])
    second.load(first.state_dict(), "cpu")
    rows += play(second, rollouts[3:])
    assert len(rows) == len(whole) and all(torch.equal(a, b) for a, b in zip(rows, whole, strict=True))
    fewer = EpisodeInfos(InfoRules.of({"y": ["end"]}))
    fewer.load(first.state_dict(), "cpu")
    assert fewer.names() == []


@pytest.mark.parametrize("steps", [5, 128, 300])
def test_first_episodes_are_reduced_in_parts(steps):
    """Environment e ends after (e + 1) steps first, and again and again after; the last one at the last step."""
    lengths = [1, 2, steps]
    groups = {"agents": SimpleNamespace(n_agents=1, ends=False)}
    env = SimpleNamespace(spec=SimpleNamespace(groups=groups), num_envs=3, device=torch.device("cpu"))
    first, running = FirstEpisodes(env, InfoRules.of({"*": ["sum", "end", "max"]})), torch.ones(3, dtype=torch.bool)
    for t in range(steps):
        done = torch.tensor([(t + 1) % length == 0 for length in lengths])
        told = {"x": torch.tensor([[1.0], [t + 1.0], [1.0]]), "last": torch.where(done, 1.0, torch.nan).unsqueeze(1)}
        first.add(SimpleNamespace(info={"agents": told}, done=done), running)
        running = running & ~done
    reduced = first.reduced()["agents"]
    assert reduced["x/sum"].ravel().tolist() == [1, 3, steps] and reduced["x/end"].ravel().tolist() == [1, 2, 1]
    assert reduced["x/max"].ravel().tolist() == [1, 2, 1] and reduced["last/end"].ravel().tolist() == [1, 1, 1]


def test_where_agents_end_each_on_its_own_their_own_last_step_counts():
    """Random lives: of an agent the steps count in which it lived, and the last of them is its end."""
    generator = torch.Generator().manual_seed(3)
    rules, steps = InfoRules.of({"*": ["mean", "end", "sum", "min", "max"]}), 7
    infos, info = EpisodeInfos(rules), InfoBuffers(rules, steps, 4, {"a": 3}, "cpu")
    episodes = [[[] for _ in range(3)] for _ in range(4)]  # what each agent was told while it lived, as yet
    ended = 0
    for _ in range(5):
        done = torch.rand(steps, 4, generator=generator) < 0.15
        alive = torch.rand(steps, 4, 3, generator=generator) < 0.6
        values = torch.randn(steps, 4, 3, generator=generator)
        for t in range(steps):
            info.write(t, {"a": {"x": values[t]}})
        ends = Ends(done)
        reduced = infos.reduce(info, ends, {"a": alive})
        rows = ends.rows.tolist()
        for t in range(steps):
            for e in range(4):
                for a in range(3):
                    episodes[e][a] += [values[t, e, a].item()] * int(alive[t, e, a])
                if not done[t, e]:
                    continue
                ended += 1
                for a in range(3):
                    expected = by_hand(episodes[e][a]) if episodes[e][a] else dict.fromkeys(KINDS, torch.nan)
                    for kind in KINDS:
                        got = reduced["a", f"x/{kind}"][rows.index(t * 4 + e), a].item()
                        assert got == pytest.approx(expected[kind], rel=1e-4, abs=1e-5, nan_ok=True), kind
                episodes[e] = [[], [], []]
    assert ended > 10


def test_nothing_told_is_no_figure():
    info = InfoBuffers(RULES, 2, 2, {"a": 2}, "cpu")
    ends = Ends(torch.ones(2, 2, dtype=torch.bool))
    assert EpisodeInfos(RULES).reduce(info, ends) == {} and ended_means({}, ends) == {}
    info.write(0, {"a": {"late": torch.ones(2, 2)}})
    ends = Ends(torch.zeros(2, 2, dtype=torch.bool))
    means = ended_means(EpisodeInfos(RULES).reduce(info, ends), ends)
    assert set(means) == {("a", "late/end"), ("a", "late/mean")} and all(mean.isnan() for mean in means.values())


def test_names_say_the_group_where_there_are_several():
    assert figure("agents", "success/end", ["agents"]) == "info/success/end"
    assert figure("red", "success/end", ["red", "blue"]) == "red/info/success/end"


def test_totals_and_maxima_by_hand():
    done = torch.tensor([[0], [1], [0], [1], [0]], dtype=torch.bool)
    values = torch.tensor([1.0, 2, 4, 8, 16]).view(5, 1, 1)
    ends = Ends(done)
    totals, rest = ends.totals(values, torch.tensor([[100.0]]))
    assert totals.flatten().tolist() == [101, 103, 4, 12, 16] and rest.tolist() == [[16]]
    assert ends.rows.tolist() == [1, 3]
    assert ends.last_totals(values, torch.tensor([[100.0]]))[0].tolist() == [[103], [12]]
    most, rest = ends.last_maxima(-values, torch.tensor([[-0.5]]))
    assert most.tolist() == [[-0.5], [-4]] and rest.tolist() == [[-16]]
    assert_close(ends.last_maxima(values, torch.tensor([[-torch.inf]]))[0], torch.tensor([[2.0], [8]]))


def test_processes_tell_of_one_another(shell, tmp_path):
    """One process is told x, the other y: both log both, as means over all episodes that were told of them."""
    (tmp_path / "process.py").write_text(PROCESS)
    told = [json.loads(process.stdout) for process in shell.together(tmp_path, tmp_path / "process.py", *ranks())]
    assert told[0] == told[1] == {"x/end": 2.0, "x1/end": 4.667, "y/end": 7.0}


PROCESS = """
import json, torch
from agents.collection.ends import Ends
from agents.collection.episode_infos import EpisodeInfos, ended_means
from envs.infos import InfoBuffers, InfoRules
from marl.core import distributed
distributed.start()
rules, rank = InfoRules.of({"*": ["end"]}), distributed.rank()
infos, info = EpisodeInfos(rules), InfoBuffers(rules, 1, 2, {"a": 1}, "cpu")
x, y = torch.full((2, 1), 2.0), torch.full((2, 1), 7.0)
info.write(0, {"a": {"y": y, "x1": torch.tensor([[4.0], [4]])} if rank else {"x": x, "x1": torch.full((2, 1), 6.0)}})
ends = Ends(torch.tensor([[True, rank == 1]]))  # two episodes of the second process ended, and one of the first
infos.share_names(info)
print(json.dumps({key: round(float(m), 3) for (_, key), m in ended_means(infos.reduce(info, ends), ends).items()}))
distributed.stop()
"""
