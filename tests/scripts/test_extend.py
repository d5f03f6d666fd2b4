"""A user's own scenario and network, from their own directory, through train, resume and evaluate."""

import json
from pathlib import Path

SCENARIO = '''"""A user's scenario."""
from vmas.scenarios.balance import Scenario as Balance

class Calm(Balance):
    """Balance whose reward is 1 per step."""
    def reward(self, agent):
        return super().reward(agent) * 0 + 1
'''
NETWORK = '''"""A user's network."""
import torch

class Wide(torch.nn.Module):
    """One hidden layer."""
    def __init__(self, in_shape: int | tuple[int, ...], out_features: int, width: int = 8):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.LazyLinear(width), torch.nn.ReLU(), torch.nn.Linear(width, out_features)
        )
        self.layers(torch.zeros(1, in_shape if isinstance(in_shape, int) else in_shape[0]))

    def forward(self, x):
        return self.layers(x)
'''
ENV = """\
defaults:
  - /env/vmas/base@_here_
  - _self_
scenario: mine.scenario.Calm
max_steps: 10
num_envs: 4
"""


def test_outside_the_package(shell, tmp_path: Path) -> None:
    files = {
        "mine/scenario.py": SCENARIO,
        "mine/network.py": NETWORK,
        "conf/env/calm.yaml": ENV,
        "conf/network/wide.yaml": "_target_: mine.network.Wide\n_partial_: true\nwidth: 8\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    mine = ["--config-dir", "conf", "env=calm", "network=wide", "network.width=5"]
    size = ["algo.rollout_steps=10", "algo.minibatch_size=20", "frames=40", "task.eval_episodes=3"]
    done = shell(tmp_path, "train", *mine, *size, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = shell(tmp_path, "train", "--config-dir", "conf", "resume=run", "frames=80")
    assert done.returncode == 0, done.stderr
    done = shell(tmp_path, "evaluate", "ckpt=run", "out=e.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["frames"] == 80
    assert json.loads((tmp_path / "e.json").read_text())["episode_return"]["mean"] == 10.0
