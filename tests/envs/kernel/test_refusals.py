"""What a kernel refuses of an action is what the simulator refuses."""

import itertools
import shutil

import pytest
import torch

from envs.base import ActionError, EnvError
from envs.spec import ActionSpec
from tests.envs.kernel.helpers import assert_same, pair

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")
SPEAKING = {"team": ["speaker", "listener_0"]}
PADDED = {"scenario": "simple_speaker_listener", "heterogeneous": "pad", "groups": SPEAKING}
CHOICES = [
    {"scenario": "simple_tag", "continuous_actions": False},
    {"scenario": "simple_tag", "continuous_actions": False, "multi_discrete": True},
    {"scenario": "simple_reference", "words": "discrete"},
    PADDED,
    PADDED | {"continuous_actions": False},  # the narrower agent's wrap around, as far as the widest one's go
    PADDED | {"continuous_actions": False, "multi_discrete": True},
]


def test_actions_are_clamped_and_nan_is_refused():
    fast, eager = pair(scenario="simple_spread")
    ((name, action),) = eager.random_action(torch.Generator().manual_seed(0)).items()
    assert_same(fast.step({name: action * 9}), eager.step({name: action * 9}))
    with pytest.raises(EnvError, match="refused the action: not a number"):
        fast.step({name: torch.full_like(action, float("nan"))})
    with pytest.raises(EnvError, match="actions must be"):
        fast.step({name: action[:, :1]})


def wrong_numbers(spec: ActionSpec, d: int) -> list[float]:
    """Numbers that the d-th of an action may not be."""
    if d < spec.n_continuous:
        return [torch.nan]
    n = spec.nvec[d - spec.n_continuous]
    return [-1, n, n + 90, 2**40, 0.5, -0.5, torch.nan, torch.inf]


@pytest.mark.parametrize("settings", CHOICES, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_what_is_refused_by_the_simulator_is_refused_by_the_kernel(settings):
    fast, eager = pair(**settings)
    assert fast.path == "kernel" and eager.path == "eager"
    good = eager.random_action(torch.Generator().manual_seed(0))
    for name, group in eager.spec.groups.items():
        spec = group.action
        for agent, d in itertools.product(range(group.n_agents), range(spec.size)):
            read = spec.mask is None or bool(spec.mask[agent, d])
            for number in wrong_numbers(spec, d):
                if isinstance(number, float) and not read and d >= spec.n_continuous:
                    continue  # fractions are refused as a type, wherever they stand
                bad = good | {name: good[name].to(torch.float64 if isinstance(number, float) else good[name].dtype)}
                bad[name] = bad[name].clone()
                bad[name][-1, agent, d] = number
                for env in (fast, eager):
                    env.reset(1)
                if not read:
                    assert_same(fast.step(bad), eager.step(bad))
                    continue
                for env in (fast, eager):
                    with pytest.raises(ActionError, match="not a number, or outside of the allowed choices"):
                        env.step(bad)
        for d, n in enumerate(spec.nvec, spec.n_continuous):
            most = good | {name: good[name].clone()}
            most[name][..., d] = n - 1
            for env in (fast, eager):
                env.reset(1)
            assert_same(fast.step(most), eager.step(most))
