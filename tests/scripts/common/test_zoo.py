"""The zoo's four uses, by the commands that people type; its list, its verification, and policies that are added."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from agents.deploy import gallery_page, zoo_card
from agents.policies.policy import Policy
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.core.errors import UserError
from marl.core.zoo import index as zoo
from marl.launch import build
from tests.fixtures.runs import TINY, make_run

TAG = ["env=vmas/mpe/simple_tag", "env.max_steps=12"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"balance": make_run(folder / "balance"), "simple_tag": make_run(folder / "simple_tag", *TAG)}


@pytest.fixture(scope="module")
def filled(runs, tmp_path_factory) -> Path:
    """A zoo of two policies, trained for a moment."""
    folder = tmp_path_factory.mktemp("zoo")
    zoo.use(str(folder))
    for name, run in runs.items():
        zoo_card.add(run, name, "last", episodes=4)
    zoo.use(None)
    return folder


@pytest.fixture
def shelf(filled: Path, monkeypatch) -> Path:
    """That zoo, as the one of this process."""
    monkeypatch.setattr(zoo, "_chosen", str(filled))
    return filled


# ---- the four uses


def test_evaluate_and_play_take_one(shelf, runs, shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "evaluate", "ckpt=zoo/balance", f"zoo.url={shelf}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs" / "zoo" / "balance" / "evaluation.json").read_text())
    summary = json.loads((runs["balance"] / "summary.json").read_text())["final"]["episode_return"]
    assert result["episode_return"] == summary  # the very episodes of the run's own last evaluation
    done = shell(tmp_path, "play", "ckpt=zoo/balance", "seeds=1", f"zoo.url={shelf}")
    assert done.returncode == 0, done.stderr
    assert "const PROGRAM" in (tmp_path / "outputs" / "zoo" / "balance" / "live.html").read_text()
    done = shell(tmp_path, "play", "ckpt=zoo/balanse", f"zoo.url={shelf}")
    assert done.returncode == 2 and "did you mean 'balance'? (there are balance, simple_tag)" in done.stderr
    assert {path.name for path in shelf.iterdir()} == {
        f"{name}.{kind}" for name in ("balance", "simple_tag") for kind in ("json", "safetensors")
    } | {"index.json"}


def test_a_run_begins_from_one(shelf, shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "train", *TINY, f"zoo.url={shelf}", "init_from=zoo/balance", "trainer.max_iterations=1",
                 "optimizer.lr=1e-12", "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = checkpoint_file.load_weights(tmp_path / "run" / "checkpoints" / "last.pt")
    for name, value in Policy.load("zoo/balance").state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)


def test_a_group_is_played_by_one(shelf) -> None:
    overrides = [*TINY, *TAG, "groups.adversary.policy=zoo/simple_tag"]
    task = build.build_task(compose.check(compose.compose(overrides)))
    own, taken = task.lineup.players["adversary"], Policy.load("zoo/simple_tag").actors["adversary"]
    assert list(task.loss.actors) == ["agent"]
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in taken.state_dict().items())
    assert not any(parameter.requires_grad for parameter in own.parameters())


def test_other_scripts_take_one(shelf, script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, options in {"export": {"format": "safetensors"}, "replay": {"episodes": 1, "max_steps": 3}}.items():
        module = script(name)
        module.run(module.Options(ckpt="zoo/balance", **options))
    written = {str(path.relative_to("outputs/zoo/balance")) for path in Path("outputs/zoo/balance").rglob("*.*")}
    assert written >= {"export/policy.safetensors", "replay/replay.html"}
    evaluate = script("evaluate")
    result = evaluate.evaluate(evaluate.Options("zoo/balance", episodes=2), ["env.max_steps=5"])
    assert result["episode_length"]["mean"] <= 5


def test_a_run_cannot_be_resumed_from_one(shelf, shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "train", "resume=zoo/balance")
    assert done.returncode == 2 and "init_from=FILE starts a new run" in done.stderr


# ---- list, verify, add


def test_the_list_and_the_verification(shelf, script, capsys, monkeypatch, tmp_path: Path) -> None:
    module = script("zoo")
    for columns in (80, 110):
        monkeypatch.setenv("COLUMNS", str(columns))
        module.run(["list"])
        printed = capsys.readouterr().out
        assert "balance" in printed and "mpe/simple_tag" in printed and "mappo" in printed
        assert ("frames" in printed) == (columns == 110) and max(map(len, printed.splitlines())) <= columns
    module.run(["verify", "balance", "zoo/simple_tag"])
    printed = capsys.readouterr().out
    # simple_tag: the return of both groups, then of each
    assert printed.count(" met ") == 1 + 3 and "NOT MET" not in printed
    spoilt = tmp_path / "spoilt"
    shutil.copytree(shelf, spoilt)
    card = json.loads((spoilt / "balance.json").read_text())
    card["evaluated"]["mode"]["all"]["ci95"] = [1000.0, 1001.0]
    (spoilt / "balance.json").write_text(json.dumps(card))
    zoo.write_entry(spoilt, "balance")
    monkeypatch.setattr(zoo, "_chosen", str(spoilt))
    with pytest.raises(SystemExit) as stop:
        module.run(["verify", "balance"])
    assert stop.value.code == 1 and "NOT MET" in capsys.readouterr().out


def test_what_a_foreign_card_asks_for_has_bounds(shelf, script, monkeypatch, tmp_path: Path) -> None:
    module, spoilt = script("zoo"), tmp_path / "spoilt"
    shutil.copytree(shelf, spoilt)
    monkeypatch.setattr(zoo, "_chosen", str(spoilt))

    def refused(**changed: object) -> str:
        card = json.loads((shelf / "balance.json").read_text())
        card["evaluated"] |= changed
        (spoilt / "balance.json").write_text(json.dumps(card))
        zoo.write_entry(spoilt, "balance")
        with pytest.raises(UserError, match="zoo/balance: ") as told:
            module.run(["verify", "balance"])
        return str(told.value)

    row = {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert "of which 2 to 100,000 are played" in refused(episodes=10**9)
    assert "quoted=random" in refused(quoted="random")
    assert "tells of others, which does not play" in refused(mode={"others": row})
    assert "no figure that could be verified" in refused(mode={"all": {"mean": "much", "ci95": [0, 1]}})
    card = json.loads((shelf / "balance.json").read_text())
    del card["trained"]
    (spoilt / "balance.json").write_text(json.dumps(card))
    zoo.write_entry(spoilt, "balance")
    with pytest.raises(UserError, match="zoo/balance: its card lacks what the list tells"):
        module.run(["list"])


def test_a_policy_from_elsewhere_names_no_zoo_of_its_own(shelf) -> None:
    policy = Policy.load("zoo/balance")
    policy.metadata["config"]["zoo"] = {"url": "https://127.0.0.1:1/${oc.env:HOME}"}
    path = shelf.parent / "stranger.safetensors"
    policy.save(path)
    assert compose.saved(path).zoo.url is None


def test_a_card_says_what_its_policy_is(shelf, runs) -> None:
    card, entry = zoo.card("simple_tag"), zoo.entries()["simple_tag"]
    assert card["about"] == "MAPPO on mpe/simple_tag (3 adversary, 1 agent), the last policy of one run."
    assert (card["scenario"], card["algorithm"], card["trained"]["frames"]) == ("mpe/simple_tag", "mappo", 80)
    assert card["sha256"] == entry.sha256 and card["bytes"] == entry.bytes and "GPL-3.0" in card["licence"]
    evaluated = card["evaluated"]
    assert (evaluated["quoted"], evaluated["episodes"], evaluated["against"]) == ("mode", 4, {})
    for how in ("mode", "samples", "random"):
        assert evaluated[how].keys() == {"all", "adversary", "agent"}
        low, high = evaluated[how]["all"]["ci95"]
        assert low <= evaluated[how]["all"]["mean"] <= high
    for name, run in runs.items():  # the very policy of the run
        ours, theirs = Policy.load(f"zoo/{name}").state_dict(), Policy.load(run).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("overrides", "against"),
    [
        (["groups.agent.eval_policy=random"], {"agent": "random"}),
        (["groups.agent.policy=heuristic"], {"agent": "heuristic"}),
        (["groups.agent.policy=zoo/simple_tag", "groups.agent.eval_policy=random"], {"agent": "random"}),
        (["groups.agent.policy=pool", "groups.agent.of=adversary"], {"agent": "adversary"}),
        (["groups.agent.eval_against=random"], {"others of agent": "random"}),
        (["groups.agent.lr=1e-3"], {}),
    ],
)
def test_a_card_says_who_played_the_others(overrides: list[str], against: dict[str, str]) -> None:
    config = compose.check(compose.compose([*TAG, *overrides]))
    assert zoo_card.opponents(config["groups"]) == against


def test_the_command_of_a_card_can_be_typed_again(tmp_path: Path) -> None:
    told = {"command": "/home/x/scripts/train.py algo=mappo 'a.b=[1, 2]' hydra.run.dir=/home/x/y trainer.progress=off"}
    assert zoo_card.command(tmp_path, told) == "python scripts/train.py algo=mappo 'a.b=[1, 2]'"
    (tmp_path / "job.json").write_text('{"overrides": ["seed=3", "paths.x=y", "env=vmas/wheel"]}')
    assert zoo_card.command(tmp_path, told) == "python scripts/train.py seed=3 env=vmas/wheel"


def test_runs_are_added_by_their_names(runs, script, tmp_path: Path, monkeypatch, capsys) -> None:
    module, balance = script("zoo"), str(runs["balance"])
    monkeypatch.setattr(zoo, "_chosen", str(tmp_path))
    module.run(["add", balance, "name={scenario}_{algorithm}", "episodes=2", "critics=false"])
    assert list(zoo.entries()) == ["balance_mappo"] and not zoo.card("balance_mappo")["critics"]
    assert (
        zoo.entries()["balance_mappo"].bytes < 0.75 * (runs["balance"] / "checkpoints/last.safetensors").stat().st_size
    )
    with pytest.raises(UserError, match="name=balance_mappo: is in .* already; replace=true puts"):
        module.run(["add", balance, "name=balance_mappo"])
    worse = tmp_path / "worse"
    shutil.copytree(runs["balance"], worse)
    module.run(["add", balance, balance, "episodes=2"])  # two runs of one name: the first of the best
    assert list(zoo.entries()) == ["balance", "balance_mappo"]
    evaluate = script("evaluate")
    monkeypatch.chdir(tmp_path)
    without = evaluate.evaluate(evaluate.Options("zoo/balance_mappo", episodes=2), [])
    assert (
        without["episode_return"]
        == evaluate.evaluate(evaluate.Options("zoo/balance", episodes=2), [])["episode_return"]
    )
    (worse / "summary.json").unlink()
    with pytest.raises(UserError, match="has no summary.json"):
        module.run(["add", str(worse), "name=other"])


def test_one_against_scripted_opponents_is_in_the_gallery(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "run", *TAG, "groups.agent.policy=simple_tag")
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(zoo, "_chosen", str(tmp_path / "zoo"))
    card = zoo_card.add(run, "simple_tag", "last", episodes=4)
    shown = gallery_page.entry("simple_tag", Policy.load("zoo/simple_tag"), card)
    assert shown["about"] == "MAPPO, 80 frames, against agent: simple_tag"
    assert gallery_page.gallery_page(tmp_path / "gallery.html", live=False) == ["simple_tag"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], "cannot do 'lst'; did you mean 'list'? (there are list, verify, add)"),
        (["list", "balance"], "balance: list takes nothing"),
        (["verify", "episodes=3"], "episodes=3: verify takes names"),
        (["add"], "name the runs whose policies are added"),
        (["add", "RUN", "name={seed}"], "may hold {scenario} and {algorithm}"),
        (["add", "RUN", "name=Two words"], "must be of small letters, digits and underscores"),
        (["add", "RUN", "which=worst"], "which=worst"),
    ],
)
def test_mistakes_are_told(arguments, words, runs, shelf, script) -> None:
    with pytest.raises(UserError) as told:
        script("zoo").run([str(runs["balance"]) if word == "RUN" else word for word in arguments])
    assert words in str(told.value)


def test_a_policy_that_needs_a_file_of_this_machine_is_refused(runs, tmp_path: Path) -> None:
    run = make_run(tmp_path / "against", *TAG, f"groups.adversary.policy={runs['simple_tag']}")
    with pytest.raises(UserError, match="groups.adversary.policy=.*: a policy of the zoo plays among"):
        zoo_card.packed(run)


def test_a_policy_of_an_algorithm_without_critics_of_states_is_the_same(tmp_path: Path, monkeypatch, script) -> None:
    """Its loss has more than the file, which holds actors alone: values of actions, and networks that follow."""
    run = make_run(tmp_path / "run", "algo=iddpg", "algo.buffer_frames=200", "algo.updates=2")
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(zoo, "_chosen", str(tmp_path / "zoo"))
    monkeypatch.chdir(tmp_path)
    zoo_card.add(run, "balance_iddpg", "last", episodes=2)
    evaluate = script("evaluate")
    ours, theirs = (evaluate.evaluate(evaluate.Options(ckpt), []) for ckpt in ("zoo/balance_iddpg", str(run)))
    assert ours["episode_return"] == theirs["episode_return"]
    begun = [*TINY, "algo=iddpg", "algo.buffer_frames=200", "init_from=zoo/balance_iddpg"]
    task = build.build_task(compose.check(compose.compose([*begun, "strict=false"])))
    expected = Policy.load(run).actors.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in task.loss.actors.state_dict().items())
    with pytest.raises(UserError, match="does not fit this task's networks: .*strict=false loads what fits"):
        build.build_task(compose.check(compose.compose(begun)))


def test_single_policies_have_no_versions_to_rate(shelf, script) -> None:
    module = script("elo")
    with pytest.raises(UserError, match="zoo/simple_tag: is no run directory, and so kept no versions"):
        module.rate(["zoo/simple_tag"], module.Options(episodes=2), [])
