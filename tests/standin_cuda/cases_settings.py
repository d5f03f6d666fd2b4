"""What may be chosen beside the algorithm, several settings at once, on the stand-in: nothing waits, all is finite."""

import math

import pytest

from marl.core.errors import UserError
from tests.standin_cuda.runs import REPLAYED, TINY, strict, train

__all__ = ["strict"]
MEMORY = ["network.hidden=8", "algo.chunk_length=2", "algo.burn_in=1"]
SLOTS = ["env.scenario=tests.envs.vmas.ends_cases.Visit", "env.continuous_actions=false"]
EVERYTHING = [
    "algo.entropy_coef=0.01",
    "algo.value_norm=popart",
    "algo.normalize_observation=true",
    "algo.clip_schedule=linear",
    "algo.value_clip=0.2",
    "algo.dual_clip=3",
    "algo.reward_norm=std",
]
RUNS = {
    "all that PPO has, an ema": [*EVERYTHING, "trainer.average=ema"],
    "lstm, agents that end each on its own": [*SLOTS, *EVERYTHING, "network=lstm", *MEMORY],
    "gru, separate, swa": ["network=gru", *MEMORY, "algo.share_actor=separate", "algo.share_critic=separate",
                           "trainer.average=swa", "trainer.average_from=0.3"],
    "one after the other, kl stop": ["algo.update=sequential", "algo.share_actor=separate", "algo.target_kl=0.5",
                                     "algo.critic=agent_state", "env.global_state=true"],
    "whole rollouts, multi-discrete, accumulate": ["algo.minibatch_size=null", "env.continuous_actions=false",
                                                   "env.multi_discrete=true", "trainer.accumulate=2"],
    "words, fp16": ["env=vmas/mpe/simple_reference", "env.words=discrete", "trainer.precision=fp16"],
    "ends, bf16": ["env.scenario=tests.envs.vmas.ends_cases.Arrive", "trainer.precision=bf16"],
    "masks, skipped": ["env.scenario=tests.envs.vmas.ends_cases.Veil", "env.continuous_actions=false",
                       "algo.normalize_observation=true", "trainer.non_finite=skip"],
    "parts of observations, clipped, multi": ["env.scenario=tests.fixtures.scouts.Watchers", "network=multi",
                                              "trainer.clip_value=0.1"],
    "past versions": ["env=vmas/mpe/simple_tag", "groups.adversary={past: 0.5, every: 1}",
                      "groups.agent={past: 0.25, every: 1}", "optimizer.name=Muon"],
    "a random group": ["env=vmas/mpe/simple_tag", "groups.adversary.policy=random", "optimizer=sgd"],
    "stages": ["curriculum.env.max_steps={0: 5, 0.5: 4}", "algo.value_norm=running"],
    "teams": ["curriculum.env.scenario_kwargs.n_agents={draw: [2, 3]}", "algo.critic=local", "optimizer=adamw"],
    "graph": ["network=graph", "trainer.recompute=false"],
    "attention, recomputed": ["network=attention", "trainer.recompute=true"],
    "deep sets": ["network=deep_sets", "trainer.deterministic=true"],
    "navigation": ["env=vmas/navigation", "network=normed_mlp"],
    "football": ["env=vmas/football", "env.max_steps=3", "frames=32"],
    "cue memory": ["env=memory", "env.max_delay=2", "env.min_delay=1"],
    "pictures": ["experiment=picture_search", "env.size=4"],
    "replay on disk, gru": ["algo=iql", *REPLAYED, "env.continuous_actions=false", "algo.buffer_on=disk",
                            "network=gru", *MEMORY[:2]],
    "replay, lstm": ["algo=masac", *REPLAYED, "network=lstm", *MEMORY],
    "replay, slots, prefill": ["algo=masac", *SLOTS, *REPLAYED, "algo.prefill=32"],
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_settings(tmp_path, request, name) -> None:
    if "on disk" not in name:  # a buffer in a file lies in the host's memory
        request.getfixturevalue("strict")
    foreign = name in ("cue memory", "pictures")
    sizes = [size for size in TINY if not (foreign and size in ("env.fast=off", "env.max_steps=5"))]
    trainer, task, summary = train(tmp_path, *RUNS[name], "trainer.evaluate_every=0", sizes=sizes)
    assert math.isfinite(summary["final"]["episode_return"]["mean"])
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in task.loss.parameters())


@pytest.mark.parametrize("env", ["gymnasium", "pettingzoo", "gymnasium_vector"])
def test_environments_of_the_host_are_refused(tmp_path, env) -> None:
    sizes = [size for size in TINY if not size.startswith(("env.fast", "env.max_steps"))]
    with pytest.raises(UserError, match="run on the CPU; write device=cpu"):
        train(tmp_path, f"env={env}", sizes=sizes)
