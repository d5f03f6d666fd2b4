"""A scenario changed without touching its class: the next run's numbers follow, and so do those of the same run."""

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vmas
from torch import nn

from envs.vmas.env import VmasEnv
from tests.fixtures.kernels import kernels_made_anew

ROOT = Path(__file__).parents[3]
HEAD = "import torch\nfrom tests.envs.kernel.zoo.base import Zoo, flat\n\n"


def scenario(body: str, before: str = "") -> str:
    """The source of a module with a scenario `Mine`."""
    lines = "\n".join(f"    {line}" if line else "" for line in body.splitlines())
    return f"{HEAD}{before}\n\nclass Mine(Zoo):\n{lines}\n"


def write_weights(folder: Path, pay: float) -> None:
    net = nn.Linear(2, 1)
    net.weight.data.zero_()
    net.bias.data.fill_(pay)
    torch.save(net.state_dict(), folder / "weights.pt")


def edit(file: str, text: str):
    """A source or text file of the folder that holds the pay."""
    return lambda folder, pay: (folder / file).write_text(text.format(pay=pay))


def variable(name: str):
    """An environment variable of the run that holds the pay; `measure_apart` hands it on."""
    return lambda folder, pay: (folder / f"{name}.variable").write_text(str(pay))


REWARD = "def reward(self, agent):\n    return flat(agent, {})"
AT_BUILD = ("def make_world(self, batch_dim, device, **kwargs):\n    self.pay = {}\n"
            "    return super().make_world(batch_dim, device, **kwargs)\n\n" + REWARD.format("self.pay"))
# {what is changed between two runs: (source of the scenario's module, how its pay is set, sources beside it)}
BETWEEN_RUNS = {
    "a helper's function": (scenario(REWARD.format("a_helper.bonus()"), "import a_helper"),
                            edit("a_helper.py", "def bonus():\n    return {pay}\n")),
    "a helper's constant": (scenario(REWARD.format("b_helper.PAY"), "import b_helper"),
                            edit("b_helper.py", "PAY = {pay}\n")),
    "a constant imported by name": (scenario(REWARD.format("PAY"), "from c_helper import PAY"),
                                    edit("c_helper.py", "PAY = {pay}\n")),
    "a helper's helper": (scenario(REWARD.format("d_helper.bonus()"), "import d_helper"),
                          edit("d_deeper.py", "def deeper():\n    return {pay}\n")),
    "a base class elsewhere": (f"{HEAD}import e_base\n\n\nclass Mine(e_base.Base):\n    pass\n",
                               edit("e_base.py", scenario(REWARD.format("{pay}")).replace("Mine", "Base"))),
    "a file read in make_world": (scenario(AT_BUILD.format("float(open(FOLDER / 'f.txt').read())")),
                                  edit("f.txt", "{pay}")),
    "a file read at import": (scenario(REWARD.format("PAY"), "PAY = float(open(FOLDER / 'g.txt').read())"),
                              edit("g.txt", "{pay}")),
    "a file read in the step": (scenario(REWARD.format("float((FOLDER / 'h.txt').read_text())")),
                                edit("h.txt", "{pay}")),
    "a variable read in make_world": (scenario(AT_BUILD.format("float(os.environ['ZOO_BUILD'])"), "import os"),
                                      variable("ZOO_BUILD")),
    "a variable read in the step": (scenario(REWARD.format("float(os.environ['ZOO_STEP'])"), "import os"),
                                    variable("ZOO_STEP")),
    "JSON read by a helper": (scenario(AT_BUILD.format("k_helper.read(FOLDER)['pay']"), "import k_helper"),
                              edit("k.json", '{{"pay": {pay}}}')),
    "a table of NumPy's": (scenario(AT_BUILD.format("torch.from_numpy(np.load(FOLDER / 'l.npy'))[1]").replace(
        "flat(agent, self.pay)", "flat(agent, 1.0) * self.pay"), "import numpy as np"),
                           lambda folder, pay: np.save(folder / "l.npy", np.float32([0, pay]))),
    "weights of a network": (scenario(
        "def make_world(self, batch_dim, device, **kwargs):\n    self.net = torch.nn.Linear(2, 1)\n"
        "    self.net.load_state_dict(torch.load(FOLDER / 'weights.pt', weights_only=True))\n"
        "    return super().make_world(batch_dim, device, **kwargs)\n\n"
        "def reward(self, agent):\n    with torch.no_grad():\n        return self.net(agent.state.pos)[:, 0]"),
                             write_weights),
    "a default argument": (scenario("def reward(self, agent):\n    return flat(agent, n_helper.bonus())",
                                    "import n_helper"),
                           edit("n_helper.py", "def bonus(pay={pay}):\n    return pay\n")),
}
BESIDE = {"d_helper.py": "import d_deeper\n\n\ndef bonus():\n    return d_deeper.deeper()\n",
          "k_helper.py": "import json\n\n\ndef read(folder):\n    return json.loads((folder / 'k.json').read_text())\n"}

SCRIPT = '''
import json, sys
import torch
from envs.vmas.env import VmasEnv

def mean(name, fast):
    env = VmasEnv(name, num_envs=5, max_steps=50, seed=3, fast=fast)
    generator = torch.Generator().manual_seed(0)
    total = sum(env.step(env.random_action(generator)).reward["agents"].mean().item() for _ in range(6))
    return total / 6, env.path

print(json.dumps({name: [mean(name, "auto"), mean(name, "off")] for name in sys.argv[1:]}))
'''


def measure_apart(folder: Path, names: list[str], first: Path | None = None) -> dict:
    """{scenario: [(mean reward, path) by default, with fast=off]} of a run in a process of its own."""
    variables = {path.stem: path.read_text() for path in folder.glob("*.variable")}
    paths = [str(p) for p in (first, folder, ROOT) if p is not None]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, cwd=folder, timeout=300,
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1",
             "MARL_KERNEL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """What a run measured with pay 1, and the next one, in another process, with pay 2."""
    folder = tmp_path_factory.mktemp("changes")
    names = {what: f"mine_{i}" for i, what in enumerate(BETWEEN_RUNS)}
    for file, text in BESIDE.items():
        (folder / file).write_text(text)
    for what, (source, _) in BETWEEN_RUNS.items():
        module = f"from pathlib import Path\n\nFOLDER = Path({str(folder)!r})\n{source}"
        (folder / f"{names[what]}.py").write_text(module)
    runs = []
    with kernels_made_anew(folder / "cache"):
        for pay in (1.0, 2.0):
            for _, change in BETWEEN_RUNS.values():
                change(folder, pay)
            runs.append(measure_apart(folder, [f"{name}.Mine" for name in names.values()]))
    return {what: [run[f"{name}.Mine"] for run in runs] for what, name in names.items()}


@pytest.mark.parametrize("what", BETWEEN_RUNS)
def test_the_next_run_follows(what, two_runs):
    for pay, (default, off) in zip((1.0, 2.0), two_runs[what], strict=True):
        assert off[0] == pytest.approx(pay), "the simulator itself"
        assert default[0] == pytest.approx(pay), f"by {default[1]}"


def test_an_edit_of_the_simulators_own_files_is_followed(tmp_path):
    """A copy of VMAS, in place of the installed one, whose drag is edited between two runs."""
    copy = tmp_path / "first" / "vmas"
    shutil.copytree(Path(vmas.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.gif"))
    (tmp_path / "dragged.py").write_text(scenario("def reward(self, agent):\n    return agent.state.vel.norm(dim=-1)"))
    core, runs = copy / "simulator" / "core.py", []
    utils = copy / "simulator" / "utils.py"
    with kernels_made_anew(tmp_path / "cache"):
        for drag in ("DRAG = 0.25", "DRAG = 0.9"):
            for file in (core, utils):  # wherever this version keeps it
                file.write_text(file.read_text().replace("\nDRAG = 0.25\n", f"\n{drag}\n"))
            runs.append(measure_apart(tmp_path, ["dragged.Mine", "mpe/simple"], first=tmp_path / "first"))
    for name in runs[0]:
        for default, off in (run[name] for run in runs):
            assert default[0] == pytest.approx(off[0], rel=1e-4), f"{name} by {default[1]}"
    assert abs(runs[0]["dragged.Mine"][1][0] - runs[1]["dragged.Mine"][1][0]) > 0.01, "the edit was one"


# ---- within one process: {what is changed: (source of the module, how a user sets its pay to 2)}

def _rebind_partial(module):
    module.paying = module.functools.partial(module.pay, 2.0)


def _other_method(module):
    module.Mine.reward = lambda self, agent: module.flat(agent, 2.0)


def _class_again(module):
    module.Mine = module.make(2.0)


IN_PROCESS = {
    "a class attribute": (scenario("PAY = 1.0\n\n" + REWARD.format("self.PAY")),
                          lambda module: setattr(module.Mine, "PAY", 2.0)),
    "a base class's attribute": (f"{HEAD}\nclass Base(Zoo):\n    PAY = 1.0\n\n\nclass Mine(Base):\n    "
                                 "def reward(self, agent):\n        return flat(agent, self.PAY)\n",
                                 lambda module: setattr(module.Base, "PAY", 2.0)),
    "a module's variable": (scenario(REWARD.format("PAY"), "PAY = 1.0"), lambda module: setattr(module, "PAY", 2.0)),
    "a module's dictionary": (scenario(REWARD.format("SETTINGS['pay']"), "SETTINGS = {'pay': 1.0}"),
                              lambda module: module.SETTINGS.update(pay=2.0)),
    "a module's tensor in place": (scenario("def reward(self, agent):\n    return flat(agent, 1.0) * PAY",
                                            "PAY = torch.ones(())"), lambda module: module.PAY.fill_(2.0)),
    "a module's array in place": (scenario(REWARD.format("float(PAY[0])"), "import numpy as np\nPAY = np.ones(1)"),
                                  lambda module: module.PAY.fill(2.0)),
    "a closure's value": (f"{HEAD}\ndef make(pay):\n    class Made(Zoo):\n        def reward(self, agent):\n"
                          "            return flat(agent, pay)\n\n    return Made\n\n\nMine = make(1.0)\n", _class_again),
    "a default argument": (scenario("def reward(self, agent, pay=1.0):\n    return flat(agent, pay)"),
                           lambda module: setattr(module.Mine.reward, "__defaults__", (2.0,))),
    "a lambda in a dictionary": (scenario(REWARD.format("TABLE['pay']()"), "TABLE = {'pay': lambda: 1.0}"),
                                 lambda module: module.TABLE.update(pay=lambda: 2.0)),
    "a method put in its place": (scenario(REWARD.format("1.0")), _other_method),
    "a helper function put in its place": (scenario(REWARD.format("pay()"), "\ndef pay():\n    return 1.0\n"),
                                           lambda module: setattr(module, "pay", lambda: 2.0)),
    "a partial's argument": (scenario(REWARD.format("paying()"), "import functools\n\n\ndef pay(value):\n"
                                      "    return value\n\n\npaying = functools.partial(pay, 1.0)\n"), _rebind_partial),
    "a default of make_world": (scenario(
        "def make_world(self, batch_dim, device, pay=1.0, **kwargs):\n    self.pay = pay\n"
        "    return super().make_world(batch_dim, device, **kwargs)\n\n" + REWARD.format("self.pay")),
                                lambda module: setattr(module.Mine.make_world, "__defaults__", (2.0,))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of modules on the path, with a cache of its own."""
    place = tmp_path_factory.mktemp("modules")
    with kernels_made_anew(place / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setenv("MARL_KERNEL_CACHE", str(place / "cache"))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield place


COUNT = itertools.count()


def module_of(folder: Path, source: str):
    name = f"changed_{next(COUNT)}"
    (folder / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def play(env: VmasEnv, steps: int = 6) -> float:
    generator = torch.Generator().manual_seed(0)
    return sum(env.step(env.random_action(generator)).reward["agents"].mean().item() for _ in range(steps)) / steps


def measure(name: str) -> float:
    """The mean reward by default, which is the simulator's own."""
    default, off = (play(VmasEnv(f"{name}.Mine", num_envs=5, max_steps=50, fast=fast)) for fast in ("auto", "off"))
    assert default == pytest.approx(off), "by default, and by the simulator"
    return default


@pytest.mark.parametrize("what", IN_PROCESS)
def test_the_next_environment_follows(what, folder):
    source, change = IN_PROCESS[what]
    module = module_of(folder, source)
    assert measure(module.__name__) == pytest.approx(1.0)
    change(module)
    assert measure(module.__name__) == pytest.approx(2.0)


def test_a_reloaded_helper_is_followed(folder):
    (folder / "reloaded.py").write_text("def pay():\n    return 1.0\n")
    importlib.invalidate_caches()
    module = module_of(folder, scenario(REWARD.format("reloaded.pay()"), "import reloaded"))
    assert measure(module.__name__) == pytest.approx(1.0)
    (folder / "reloaded.py").write_text("def pay():\n    return 2.0\n")
    importlib.reload(module.reloaded)
    assert measure(module.__name__) == pytest.approx(2.0)


# ---- between two steps of one environment, through env.simulator

BETWEEN_STEPS = {
    "an attribute of the scenario": lambda simulator: setattr(simulator.scenario, "pay", 5.0),
    "a dictionary of the scenario": lambda simulator: simulator.scenario.table.update(pay=5.0),
    "the world's drag": lambda simulator: setattr(simulator.world, "_drag", 0.9),
    "an agent's mass": lambda simulator: setattr(simulator.agents[0], "mass", 4.0),
    "a constant tensor": lambda simulator: simulator.scenario.weights.mul_(3.0),
    "a method of the instance": lambda simulator: setattr(
        simulator.scenario, "reward", lambda agent: torch.full_like(agent.state.pos[:, 0], 7.0)),
}
STEERED = scenario("""def make_world(self, batch_dim, device, **kwargs):
    self.pay, self.table, self.weights = 1.0, {"pay": 1.0}, torch.ones(2)
    return super().make_world(batch_dim, device, **kwargs)

def reward(self, agent):
    return self.pay * self.table["pay"] * (2.0 + (agent.state.pos + agent.state.vel) @ self.weights)""")


@pytest.mark.parametrize("what", BETWEEN_STEPS)
def test_a_change_between_steps_counts_from_the_next_step_on(what, folder):
    name = f"{module_of(folder, STEERED).__name__}.Mine"
    runs = []
    for fast in ("auto", "off"):
        env = VmasEnv(name, num_envs=5, max_steps=50, fast=fast)
        generator, rewards = torch.Generator().manual_seed(0), []
        for t in range(12):
            if t == 6:
                BETWEEN_STEPS[what](env.simulator)
            rewards.append(env.step(env.random_action(generator)).reward["agents"])
        runs.append(torch.stack(rewards))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-4)
