"""From Python: the same objects, weights and run directories as from the configuration; README's lines run."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import agents
import envs
import marl
from agents import MAPPO, SHAC, VDN, Policy, make_task
from agents.tasks.off_policy import OffPolicy
from agents.tasks.on_policy import OnPolicy
from agents.tasks.short_horizon import ShortHorizon
from envs import VmasEnv
from marl import Trainer, UserError, preset, train
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.config.conf_tree import group_options
from marl.config.described import node_of
from marl.launch import build
from marl.networks import MLP
from tests.fixtures.runs import TINY, make_run

ROOT = Path(__file__).resolve().parents[3]
BALANCE = {"n_agents": 4, "package_mass": 5, "random_package_pos_on_line": True}
ENV = partial(VmasEnv, "balance", num_envs=4, fast="off", max_steps=15, scenario_kwargs=BALANCE)


def tiny_task(**settings):
    arguments = {"frames": 80, "device": "cpu", "eval_episodes": 3, **settings}
    return make_task(ENV, MAPPO(rollout_steps=10, minibatch_size=20), **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two iterations from Python."""
    folder = tmp_path_factory.mktemp("python") / "run"
    train(tiny_task(), folder, Trainer(grad_clip=5.0, threads=1, progress="off", evaluate_every=1))
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint_file.load(run / "checkpoints" / "last.pt")["loss"]


def test_it_learns_the_weights_that_the_command_line_learns(run, tmp_path):
    theirs = weights(make_run(tmp_path / "run", "algo=mappo", "env=vmas/balance"))
    ours = weights(run)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_its_configuration_is_the_one_that_was_composed(run):
    ours = compose.check(compose.saved(run))
    theirs = compose.check(compose.compose([*TINY, "algo=mappo", "env=vmas/balance"]))
    for key in ("algo", "trainer", "optimizer", "scheduler", "seed", "frames", "name"):
        both = [config[key] for config in (ours, theirs)]
        built = both if key == "trainer" else [build.part(v) if isinstance(v, dict) else v for v in both]
        assert built[0] == built[1], key
    assert ours["env"].items() <= theirs["env"].items()


def test_scripts_read_what_python_wrote(run):
    _, task = build.rebuild(run)
    again = task.run_episodes(3).episode_returns()
    fresh = tiny_task()
    fresh.loss.load_state_dict(weights(run))
    assert (again == fresh.run_episodes(3).episode_returns()).all()
    policy = Policy.load(run)
    assert policy.metadata["env"]["scenario"] == "balance" and policy.metadata["run"]["frames"] == 80


def test_a_run_is_not_written_over(run):
    with pytest.raises(UserError, match="holds a run already"):
        train(tiny_task(), run)


def test_what_a_notebook_defines_is_trained_with_a_warning(tmp_path):
    class Mine(MLP):
        pass

    task = tiny_task(network=partial(Mine, hidden=[8]))
    with pytest.warns(UserWarning, match="no config.yaml.*task.network=.*Mine: lies in no module"):
        train(task, tmp_path / "run", Trainer(progress="off", threads=1), loggers=[])
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("option", [name for name in group_options("algo") if name != "ppo"])
def test_every_algorithm_has_its_name(option):
    algo = getattr(agents, option.upper())()
    composed = build.part(compose.check(compose.compose([f"algo={option}"]))["algo"])
    assert algo == composed and type(algo) is type(composed)


@pytest.mark.parametrize(
    "option", ["env/vmas/balance", "network/normed_mlp", "optimizer/adam_fast", "scheduler/linear"]
)
def test_presets_are_what_the_configuration_builds(option):
    group, _, name = option.partition("/")
    composed = build.part(compose.check(compose.compose([f"{group}={name}"]))[group])
    mine = preset(option)
    if isinstance(mine, partial):
        assert (mine.func, mine.args, mine.keywords) == (composed.func, composed.args, composed.keywords)
    else:
        assert mine == composed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MAPPO(gama=0.9), "unknown key 'algo.gama'; did you mean 'gamma'"),
        (lambda: MAPPO(gamma=1.5), "algo.gamma=1.5: must be at most 1"),
        (lambda: preset("network/mpl"), "network has no 'mpl'; did you mean 'mlp'"),
        (lambda: preset("nets/mlp"), "conf has no 'nets'"),
        (lambda: preset("experiment/navigation"), "experiment=navigation"),
        (lambda: preset("scheduler/one_cycle"), "stages.0..max_lr|max_lr.*is filled in"),
        (lambda: make_task(VmasEnv("balance", num_envs=2, fast="off"), MAPPO()), "functools.partial.VmasEnv"),
    ],
)
def test_mistakes_are_told_in_a_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_algorithm_chooses_task_and_network():
    env = partial(ENV, continuous_actions=False)
    assert type(tiny_task()) is OnPolicy
    task = make_task(env, VDN(), frames=2000, device="cpu", eval_episodes=2)
    assert type(task) is OffPolicy
    assert any(isinstance(module, nn.LayerNorm) for module in task.loss.modules())  # network=normed_mlp
    task = make_task(partial(ENV, fast="kernel"), SHAC(minibatch_size=20), frames=2000, device="cpu", eval_episodes=2)
    assert type(task) is ShortHorizon


def test_nodes_say_how_objects_were_built():
    assert node_of(partial(MLP, hidden=(8, 8)), "network") == {
        "_target_": "marl.networks.mlp.MLP", "_partial_": True, "hidden": [8, 8]}  # fmt: skip
    assert node_of(Trainer(3, grad_clip=1.0), "trainer")["max_iterations"] == 3
    with pytest.raises(UserError, match="network.1.: an object of Linear, of which nothing says"):
        node_of([1, nn.Linear(1, 1)], "network")


@pytest.mark.parametrize("package", [agents, envs, marl])
def test_short_names_are_what_their_modules_define(package):
    for name in dir(package):
        getattr(package, name)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_the_packages_loads_nothing():
    code = "import sys, marl, agents; assert {'torch', 'agents.policies', 'marl.engine'}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_lines_of_the_readme(tmp_path, monkeypatch, capsys):
    """As they stand, with a budget of two iterations."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    lines = blocks[0].strip().splitlines()
    assert len(blocks) == 1 and len(lines) < 15
    assert "frames=600_000" in blocks[0]
    monkeypatch.chdir(tmp_path)
    exec(blocks[0].replace("frames=600_000", "frames=6_000, eval_episodes=20"), {"__name__": "lines"})
    assert (tmp_path / "outputs" / "python" / "live.html").stat().st_size > 50_000
    assert "torch.Size([8, 4, 2])" in capsys.readouterr().out
