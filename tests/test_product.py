"""Everything with everything: each combination trains, saves, resumes and evaluates, or is refused in one sentence.

By default a set of combinations in which every two choices of different kinds meet. PRODUCT=five runs every combination
of algorithm, actions, critic, network and scenario, each with one choice of tools; PRODUCT=all each with every one:
PRODUCT=five python -m pytest tests/test_product.py -n auto
"""

import csv
import itertools
import math
import os
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from agents.policies.policy import Policy
from marl.checkpoints import checkpoint_file
from marl.checkpoints.resume import resumed
from marl.config import compose, conf_tree
from marl.core.errors import UserError
from marl.launch import build

KINDS = {
    "algorithm": {
        "shared": [],
        "separate": ["algo.share_actor=separate", "algo.share_critic=separate"],
        "sequential": ["algo.update=sequential", "algo.share_actor=separate"],
    },
    "actions": {
        "continuous": [],
        "discrete": ["env.continuous_actions=false"],
        "multi_discrete": ["env.continuous_actions=false", "env.multi_discrete=true"],
        "hybrid": ["env.words=discrete"],
    },
    "critic": {
        "local": ["algo.critic=local"],
        "concat": ["algo.critic=concat"],
        "state": ["algo.critic=state", "env.global_state=true"],
        "agent_state": ["algo.critic=agent_state", "env.global_state=true"],
        "state_missing": ["algo.critic=state"],
    },
    "network": {name: [f"network={name}"] for name in conf_tree.group_options("network")}
    | {
        "multi_encoders": ["network=multi", "network.encoders={camera: mlp, near.set: attention, own: cnn1d}"],
        "multi_memory": ["network=multi", "network.memory=gru"],
    },
    "scenario": {
        "cooperative": ["env=vmas/balance"],
        "competitive": ["env=vmas/mpe/simple_tag"],
        "different_sizes": ["env=vmas/mpe/simple_speaker_listener"],
        "dictionary": ["env=vmas/balance", "env.scenario=tests.fixtures.scouts.Watchers"],
        "talking": ["env=vmas/mpe/simple_reference"],
        "one_agent": ["env=vmas/mpe/simple"],
        "ends": ["env=vmas/balance", "env.scenario=tests.envs.vmas.ends_cases.Arrive"],  # each agent on its own
        "masked": ["env=vmas/balance", "env.scenario=tests.envs.vmas.ends_cases.Veil"],  # choices, and who is there
    },
    "tools": {
        "plain": [],
        "normalised": ["algo.value_norm=running", "algo.normalize_observation=true", "algo.reward_norm=std"],
        "popart_ids": ["algo.value_norm=popart", "algo.agent_ids=true", "algo.entropy_coef=0.01"],
        "limit_ends": ["algo.time_limit=end"],
        "remaining_time": ["env.observe_time=true"],
        "stages": ["curriculum.env.max_steps={0: 5, 0.5: 4}"],
        "teams": ["curriculum.env.scenario_kwargs.n_agents={draw: [1, 2]}"],
    },
}
SIZES = [
    "env.num_envs=3",
    "env.max_steps=5",
    "env.fast=off",
    "algo.rollout_steps=4",
    "algo.minibatch_size=6",
    "algo.epochs=2",
    "frames=36",
    "task.eval_episodes=2",
    "trainer.progress=off",
    "trainer.evaluate_every=0",
    "logger=csv",
]
REPLAYED = ("iql", "vdn", "qmix", "iddpg", "maddpg", "matd3", "isac", "masac")
VALUES = {  # algorithms that learn values of actions
    "algorithm": {name: [f"algo={name}", "algo.updates=3", "algo.buffer_frames=24"] for name in REPLAYED}
    | {
        "iql_on_disk": ["algo=iql", "algo.updates=3", "algo.buffer_frames=24", "algo.buffer_on=disk"],
        "masac_by_priority": ["algo=masac", "algo.updates=3", "algo.buffer_frames=24", "algo.priority=0.6"],
        "qmix_limit_ends": ["algo=qmix", "algo.updates=3", "algo.buffer_frames=24", "algo.time_limit=end"],
    }
    | {name: [f"algo={name}", "algo.epochs=2"] for name in ("pqn", "pqn_vdn")},
    "actions": KINDS["actions"],
    "critic": {"its_own": [], **KINDS["critic"]},
    "network": {
        name: [*how, *(["algo.chunk_length=2", "algo.burn_in=1"] if name in ("gru", "lstm", "multi_memory") else [])]
        for name, how in KINDS["network"].items()
    },
    "scenario": KINDS["scenario"],
}
FOREIGN = {  # the same in environments that are no VMAS scenarios
    "algorithm": VALUES["algorithm"],
    "critic": {name: VALUES["critic"][name] for name in ("its_own", "local", "concat", "state_missing")},
    "network": {name: [f"network={name}"] for name in ("mlp", "multi", "attention")},
    "environment": {
        "gymnasium_choices": ["env=gymnasium"],
        "gymnasium_numbers": ["env=gymnasium", "env.id=Pendulum-v1"],
        "gymnasium_time": ["env=gymnasium", "env.observe_time=true"],
        "gymnasium_vector": ["env=gymnasium_vector"],
        "pettingzoo_masked": ["env=pettingzoo", "env.env=tests.envs.host_cases.Doors"],  # two groups, agents die
        "pettingzoo_ends": ["env=pettingzoo", "env.env=tests.envs.host_cases.Parting"],
        "pettingzoo_numbers": ["env=pettingzoo", "env.kwargs={continuous_actions: true}"],
        "memory": ["env=memory", "env.max_delay=2", "env.min_delay=1"],
        "pictures": ["env=picture_search"],
    },
}
SIMULATED = {  # algorithms that take gradients through the simulator
    "algorithm": {name: [f"algo={name}", "algo.rollout_steps=4"] for name in ("shac", "apg")}
    | {"separate": ["algo=shac", "algo.share_actor=separate", "algo.share_critic=separate"]},
    "actions": {name: KINDS["actions"][name] for name in ("continuous", "discrete", "hybrid")},
    "critic": KINDS["critic"],
    "network": {name: KINDS["network"][name] for name in ("mlp", "linear", "deep_sets", "gru", "multi")},
    "scenario": {name: KINDS["scenario"][name] for name in ("cooperative", "different_sizes", "one_agent", "ends")},
    "tools": {
        "plain": [],
        "normalised": ["algo.value_norm=running", "algo.normalize_observation=true"],
        "popart_ids": KINDS["tools"]["popart_ids"],
        "deterministic": ["algo.policy=deterministic"],
        "limit_ends": ["algo.time_limit=end"],
        "stages": KINDS["tools"]["stages"],
    },
}
GAMES = {  # agents that act in turn
    "algorithm": KINDS["algorithm"] | {"pqn": ["algo=pqn"]},
    "critic": KINDS["critic"],
    "network": KINDS["network"],
    "tools": {name: how for name, how in KINDS["tools"].items() if name not in ("stages", "teams")},
}
GAME = ["env=pettingzoo_aec", "env.env=tests.envs.turn_cases.env", *(s for s in SIZES if s != "env.fast=off")]


def everything(kinds: dict) -> list[tuple]:
    """All combinations; hybrid actions where somebody talks: `tests/envs/vmas/test_words.py` reads why not all."""
    talkers = {"different_sizes", "talking"}
    return [c for c in itertools.product(*kinds.values()) if "hybrid" not in c or talkers & {*c}]


def covering(combinations: list[tuple], strength: int = 2) -> list[tuple]:
    """Few combinations in which every `strength` choices of different kinds meet; greedy, always the same."""
    order = random.Random(0)
    places = list(itertools.combinations(range(len(combinations[0])), strength))
    holding = defaultdict(list)  # {some choices: the combinations that hold them}
    for c in combinations:
        for at in places:
            holding[at, tuple(c[i] for i in at)].append(c)
    missing, chosen = set(holding), []
    while missing:
        fitting = holding[min(missing)]  # one that is still missing, the rest at random: the best of some
        tried = order.sample(fitting, min(20, len(fitting)))
        best = max(tried, key=lambda c: sum((p, tuple(c[i] for i in p)) in missing for p in places))
        missing -= {(p, tuple(best[i] for i in p)) for p in places}
        chosen.append(best)
    return chosen


def in_turn(combinations: list[tuple]) -> list[tuple]:
    """Those whose choice of the last kind is the sum of the others' numbers: each combination of the others once."""
    numbered = [{name: i for i, name in enumerate(dict.fromkeys(names))} for names in zip(*combinations, strict=True)]
    places = [[number[name] for number, name in zip(numbered, c, strict=True)] for c in combinations]
    tools = len(numbered[-1])
    return [c for c, (*others, last) in zip(combinations, places, strict=True) if sum(others) % tools == last]


CHOOSE = {"all": list, "five": in_turn, "pairs": covering}[os.environ.get("PRODUCT", "pairs")]


def train(overrides: list[str], folder: Path):
    config = compose.check(compose.compose(overrides))
    trainer, content = build.build_trainer(config), resumed(config, folder)
    task = build.build_task(config)
    summary = trainer.fit(task, folder, resume=content, **build.build_setup(config))
    return config, task, summary


def run_or_refuse(kinds: dict, names: tuple[str, ...], sizes: list[str], tmp_path: Path) -> None:
    chosen = [o for kind, name in zip(kinds.values(), names, strict=True) for o in kind[name]]
    first_of_all = [o for o in chosen if "=" in o and o.split("=")[0] in ("env", "network", "algo")]
    overrides = [*first_of_all, *(o for o in chosen if o not in first_of_all), *sizes]
    try:
        config, _, first = train([*overrides, "trainer.max_iterations=2"], tmp_path)
    except UserError as refused:
        message = str(refused)
        assert "\n" not in message and 20 < len(message) < 600  # some name all keys
        assert not list(tmp_path.rglob("*.pt")), "refused after it began"
        return
    OmegaConf.save(config, tmp_path / "config.yaml")
    last = tmp_path / "checkpoints" / "last.pt"
    assert checkpoint_file.load(last)["iteration"] == 2 and first["frames"] == 24
    torch.manual_seed(len(names[0]))  # nothing may depend on the caller's generator
    _, task, summary = train([f"resume={tmp_path}", "trainer.max_iterations=3"], tmp_path)
    assert summary["frames"] == 36
    with open(tmp_path / "metrics.csv", newline="") as file:  # a run that began again would have logged more
        assert [int(row["iteration"]) for row in csv.DictReader(file)] == [1, 2, 3]
    figures = task.evaluate()
    assert all(math.isfinite(figures[key]) for key in ("episode_return", "episode_length"))
    assert summary["final"]["episode_return"]["mean"] == figures["episode_return"]
    policy = Policy.load(tmp_path)
    env = task.eval_env
    observation, state = env.reset(0)
    policy.values(observation, state, policy.critic_memory(env.num_envs))
    actions, _ = policy.act(observation, masks=env.masks(), memory=policy.memory(env.num_envs))
    env.step(actions)


@pytest.mark.parametrize("names", CHOOSE(everything(KINDS)), ids="-".join)
def test_it_runs_or_is_refused_in_a_sentence(names: tuple[str, ...], tmp_path: Path) -> None:
    run_or_refuse(KINDS, names, SIZES, tmp_path)


@pytest.mark.parametrize("names", CHOOSE(everything(VALUES)), ids="-".join)
def test_so_do_algorithms_that_learn_values(names: tuple[str, ...], tmp_path: Path) -> None:
    run_or_refuse(VALUES, names, [size for size in SIZES if size != "algo.epochs=2"], tmp_path)


@pytest.mark.parametrize("names", CHOOSE(everything(FOREIGN)), ids="-".join)
def test_so_do_they_in_other_environments(names: tuple[str, ...], tmp_path: Path) -> None:
    run_or_refuse(FOREIGN, names, [size for size in SIZES if size not in ("algo.epochs=2", "env.fast=off")], tmp_path)


@pytest.mark.parametrize("names", CHOOSE(everything(SIMULATED)), ids="-".join)
def test_so_do_algorithms_with_gradients_of_the_simulator(names: tuple[str, ...], tmp_path: Path) -> None:
    run_or_refuse(SIMULATED, names, [size for size in SIZES if size != "env.fast=off"], tmp_path)


@pytest.mark.parametrize("names", CHOOSE(everything(GAMES)), ids="-".join)
def test_so_do_games_in_which_agents_act_in_turn(names: tuple[str, ...], tmp_path: Path) -> None:
    run_or_refuse(GAMES, names, GAME, tmp_path)
