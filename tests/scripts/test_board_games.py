"""A game is learnt by self-play, judged, and its policy plays on: Nim through the configuration that people run."""

import json

import torch
from omegaconf import OmegaConf

from agents.policies.policy import Policy
from envs.adapters.gymnasium_env import PettingZooEnv
from marl.config import compose
from marl.launch import build

NIM = "tests.envs.turn_cases.Nim"
GAME = ["experiment=tictactoe", f"env.env={NIM}", "env.max_steps=12", "network.hidden=[64]", "trainer.progress=off"]


def test_nim_is_learnt_by_self_play(tmp_path, script):
    """15,000 turns, seeds 0 to 3: of the games against random moves none was lost as first player and 2.0, 2.5, 2.5 and
    4.5 % as second, which only a mistake of the other's can win; random moves lose half of them."""
    config = compose.check(compose.compose([*GAME, "frames=15000", "seed=0"]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    OmegaConf.save(config, tmp_path / "config.yaml")
    final = trainer.fit(task, tmp_path, **{**build.build_setup(config), "loggers": []})["final"]
    assert final["info/player_0/not_lost"] > 0.95 and final["info/player_1/not_lost"] > 0.85
    module = script("crossplay")
    options = ["opponents=[random]", "episodes=100", f"out={tmp_path}/crossplay"]
    cells = module.crossplay(*module.parse([str(tmp_path), *options]))["cells"]
    assert cells[0][1]["agents"]["won"] > 0.9 and cells[1][0]["agents"]["won"] < 0.1
    assert cells[0][0]["agents"]["won"] == 0.5  # against itself the first player wins
    written = json.loads((tmp_path / "crossplay" / "crossplay.json").read_text())
    assert written["cells"] == cells
    policy, env = Policy.load(tmp_path), PettingZooEnv(NIM, num_envs=1)
    observation, _ = env.reset(0)
    for taken, left in ((2, 8), (1, 7), (3, 4)):  # it leaves multiples of four
        action = policy.act(observation, masks=env.masks())["agents"]
        assert env.masks()["agents"]["turn"][0].tolist() == [left != 7, left == 7]
        action = torch.full_like(action, taken - 1) if left == 7 else action
        observation = env.step({"agents": action}).observation
        assert observation["agents"].argmax(-1).tolist() == [[left, left]]
