"""The PPO loss against TorchRL's ClipPPOLoss (values and gradients), by hand, and compiled."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, get_origin, get_type_hints

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.modules import TanhNormal as TorchRLTanhNormal
from torchrl.objectives import ClipPPOLoss

from agents.algorithms.coefficients import Scheduled
from agents.algorithms.ppo import PPO
from agents.algorithms.ppo_losses import value_loss
from agents.models.heads import Categorical, ClippedNormal, TanhNormal
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.networks import MLP

A, D, F, S, B = 3, 2, 5, 7, 64
NETWORK = partial(MLP, hidden=[16])
LOW, HIGH = torch.full((A, D), -1.0), torch.full((A, D), 2.0)
CONTINUOUS = ActionSpec("continuous", LOW, HIGH, (), None)
DISCRETE = ActionSpec("discrete", None, None, (5,), None)
POLICIES = {"tanh_normal": CONTINUOUS, "clipped_normal": CONTINUOUS, "categorical": DISCRETE}


def spec(action=CONTINUOUS, groups=("agents",), state_size=None):
    group = partial(GroupSpec, agents=("a", "b", "c"), observation_size=F, action=action)
    return EnvSpec({name: group(name=name) for name in groups}, state_size, 100)


def batch_for(loss, seed=0, shift=0.3):
    """A minibatch whose old policy and old values differ from the current ones."""
    g = torch.Generator().manual_seed(seed)
    data = {}
    for name in loss.groups:
        actor, critic = loss.actors[name], loss.critics[name]
        observation = torch.randn(B, A, F, generator=g)
        with torch.no_grad():
            raw, log_prob = actor.act(observation, generator=g)
            value = critic(observation, torch.zeros(B, S)) + torch.randn(B, A, generator=g)
        data[name] = {
            "observation": observation,
            "action": raw,
            "log_prob": log_prob + shift * torch.randn(B, A, generator=g),
            "advantage": torch.randn(B, A, generator=g),
            "return": value + 3 * torch.randn(B, A, generator=g),
            "value": value,
        }
    return TensorDict({**data, "state": torch.randn(B, S, generator=g)}, [B])


def torchrl_loss(loss, config, policy):
    """ClipPPOLoss over the very same modules, its actions in the environment's units."""
    actor = TensorDictModule(loss.actors["agents"], ["observation"], ["params"])
    if policy == "categorical":
        split = TensorDictModule(nn.Identity(), ["params"], ["logits"])
        keys, cls, kwargs = ["logits"], torch.distributions.Categorical, {}
    else:
        split = TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"])
        cls = TorchRLTanhNormal if policy == "tanh_normal" else IndependentNormal
        keys, kwargs = ["loc", "scale"], {"low": LOW, "high": HIGH} if policy == "tanh_normal" else {}
    network = ProbabilisticActor(
        ProbabilisticTensorDictSequential(actor, split),
        in_keys=keys,
        out_keys=["action"],
        distribution_class=cls,
        distribution_kwargs=kwargs,
        return_log_prob=True,
    )
    critic = nn.Sequential(loss.critics["agents"], nn.Unflatten(-1, (A, 1)))
    critic = TensorDictModule(critic, ["observation"], ["state_value"])
    return ClipPPOLoss(
        network,
        critic,
        clip_epsilon=config.clip,
        entropy_bonus=config.entropy_coef > 0,
        entropy_coeff=config.entropy_coef,
        critic_coeff=config.critic_coef,
        loss_critic_type="l2" if config.value_loss == "l2" else "smooth_l1",
        clip_value=config.value_clip,
        normalize_advantage=False,
        functional=False,
    )


def torchrl_batch(loss, batch):
    head, data = loss.actors["agents"].head, batch["agents"]
    raw = data["action"]
    # TorchRL, too, scores a Gaussian's unclipped sample; it stores a choice without an action dimension.
    to_torchrl = {TanhNormal: head.to_env, ClippedNormal: lambda u: u, Categorical: lambda u: u.squeeze(-1)}
    action = to_torchrl[type(head)](raw)
    return TensorDict(
        {
            "observation": data["observation"],
            "action": action,
            "action_log_prob": data["log_prob"] - head.log_jacobian(raw),
            "advantage": data["advantage"].unsqueeze(-1),
            "value_target": data["return"].unsqueeze(-1),
            "state_value": data["value"].unsqueeze(-1),
        },
        [B, A],
    )


@pytest.mark.parametrize("critic", ["local", "concat"])
@pytest.mark.parametrize("value_clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["l2", "huber"])
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_torchrl_s_clip_ppo_loss(policy, kind, value_clip, critic):
    torch.manual_seed(0)
    # TorchRL samples the squashed Gaussian's entropy another way: its test is in test_distributions.
    entropy_coef = 0.0 if policy == "tanh_normal" else 0.01
    config = PPO(critic=critic, policy=policy, critic_coef=0.7, entropy_coef=entropy_coef, value_clip=value_clip)
    config = dataclasses.replace(config, value_loss=kind, huber_delta=1.0)
    loss = config.make_loss(spec(POLICIES[policy]), NETWORK)
    batch = batch_for(loss)
    ours = loss(batch)
    ours["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in loss.named_parameters()}
    loss.zero_grad()
    oracle = torchrl_loss(loss, config, policy)(torchrl_batch(loss, batch))
    total = oracle["loss_objective"] + oracle["loss_critic"]
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    if entropy_coef:
        total = total + oracle["loss_entropy"]
        close(-entropy_coef * ours["entropy"], oracle["loss_entropy"])
    total.backward()
    close(ours["policy_loss"], oracle["loss_objective"])
    close(config.critic_coef * ours["value_loss"], oracle["loss_critic"])
    close(ours["loss"], total)
    close(ours["clip_fraction"], oracle["clip_fraction"])
    assert 0.05 < ours["clip_fraction"] < 0.95  # both branches of the minimum were met
    for name, parameter in loss.named_parameters():
        assert parameter.grad.abs().max() > 1e-4, name
        close(gradients[name], parameter.grad)


def test_value_loss_by_hand():
    value, target = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([1.0, 20.0, 0.0])
    torch.testing.assert_close(value_loss(value, target), torch.tensor([1.0, 400.0, 9.0]))
    huber = value_loss(value, target, kind="huber", huber_delta=10.0)
    torch.testing.assert_close(huber, torch.tensor([0.5, 150.0, 4.5]))
    # The value moved from 2 to 3, where the clip allows 2.5: 3 is the worse of both, so it counts.
    old = torch.tensor([2.0])
    assert value_loss(value[2:], target[2:], old, clip=0.5).item() == 9.0
    # It moved from 5 to 3, where the clip allows 4.5, and 4.5 is worse.
    assert value_loss(value[2:], target[2:], torch.tensor([5.0]), clip=0.5).item() == 4.5**2


@pytest.mark.parametrize("policy", POLICIES)
def test_an_unmoved_policy_has_ratio_one(policy):
    loss = PPO(policy=policy).make_loss(spec(POLICIES[policy]), NETWORK)
    batch = batch_for(loss, shift=0.0)
    out = loss(batch)
    assert out["approx_kl"].item() == 0.0 and out["clip_fraction"].item() == 0.0
    torch.testing.assert_close(out["policy_loss"], -batch["agents", "advantage"].mean())


def test_entropy_is_computed_only_where_it_counts(monkeypatch):
    loss = PPO().make_loss(spec(), NETWORK)
    calls = []
    head = loss.actors["agents"].head
    entropy = head.entropy
    monkeypatch.setattr(head, "entropy", lambda params: calls.append(1) or entropy(params))
    batch = batch_for(loss)
    assert "entropy" not in loss(batch) and not calls
    loss.entropy_coef = Scheduled(0.1)
    out = loss(batch)
    assert calls == [1]
    torch.testing.assert_close(out["loss"], out["policy_loss"] + out["value_loss"] - 0.1 * out["entropy"])


def test_everything_but_the_loss_is_detached():
    out = PPO(entropy_coef=0.1).make_loss(spec(groups=("red", "blue")), NETWORK)
    out = out(batch_for(out))
    assert out.pop("loss").requires_grad
    assert out and all(x.dim() == 0 and not x.requires_grad for x in out.values())


def test_groups_sum_losses_and_average_diagnostics():
    loss = PPO(entropy_coef=0.1).make_loss(spec(groups=("red", "blue")), NETWORK)
    out = loss(batch_for(loss))
    for key in ("loss", "policy_loss", "value_loss"):
        torch.testing.assert_close(out[key].detach(), out[f"red/{key}"] + out[f"blue/{key}"])
    for key in ("entropy", "approx_kl", "clip_fraction"):
        torch.testing.assert_close(out[key], (out[f"red/{key}"] + out[f"blue/{key}"]) / 2)
    assert out["red/policy_loss"] != out["blue/policy_loss"]
    alone = PPO().make_loss(spec(), NETWORK)
    batch = batch_for(alone)
    assert all(torch.equal(x, alone(batch.to_dict())[key]) for key, x in alone(batch).items())  # plain dicts too
    assert set(alone(batch_for(alone))) == {"loss", "policy_loss", "value_loss", "approx_kl", "clip_fraction"}


@pytest.mark.parametrize("critic", ["state", "agent_state"])
def test_state_critics_read_the_global_state(critic):
    loss = PPO(critic=critic).make_loss(spec(state_size=S), NETWORK)
    batch = batch_for(loss)
    before = loss(batch)["value_loss"]
    batch["state"] += 1.0
    assert loss(batch)["value_loss"] != before
    with pytest.raises(UserError, match=f"algo.critic={critic}"):
        PPO(critic=critic).make_loss(spec(), NETWORK)


@pytest.mark.parametrize("policy", POLICIES)
def test_compiles_into_one_graph(policy):
    config = PPO(policy=policy, critic="agent_state", value_clip=0.2)
    loss = config.make_loss(spec(POLICIES[policy], state_size=S), NETWORK)
    batch = batch_for(loss)
    expected = loss(batch)
    expected["loss"].backward()
    gradients = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    out = torch.compile(loss, fullgraph=True, backend="aot_eager")(batch)
    out["loss"].backward()
    for key, x in expected.items():
        torch.testing.assert_close(out[key], x)
    for p, gradient in zip(loss.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_step_down_the_loss_makes_good_actions_likelier():
    torch.manual_seed(0)
    loss = PPO(entropy_coef=0.001).make_loss(spec(), NETWORK)
    batch = batch_for(loss, shift=0.0)
    data = batch["agents"]
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    first = loss(batch)
    for _ in range(20):
        optimizer.zero_grad()
        loss(batch)["loss"].backward()
        optimizer.step()
    last = loss(batch)
    assert last["policy_loss"] < first["policy_loss"] and last["value_loss"] < first["value_loss"]
    assert last["approx_kl"] > 0
    gain = loss.actors["agents"].evaluate(data["observation"], data["action"]) - data["log_prob"]
    assert (gain * data["advantage"]).mean() > 0


def test_settings_are_typed_with_ranges():
    hints = get_type_hints(PPO, include_extras=True)
    hints = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}
    assert set(hints) == {field.name for field in dataclasses.fields(PPO)}
    for key, bad in [
        ("gamma", 1.5), ("lam", -0.1), ("clip", 0.0), ("epochs", 0), ("epochs", 1.5), ("critic", "central"),
        ("policy", "beta"), ("value_clip", 0.0), ("target_kl", -1.0), ("minibatch_size", "many"),
        ("entropy_coef", -1.0), ("normalize_advantage", "yes"), ("share_actor", "groups"),
    ]:  # fmt: skip
        with pytest.raises(ValidationError):
            TypeAdapter(hints[key]).validate_python(bad, strict=True)
    for field in dataclasses.fields(PPO):
        TypeAdapter(hints[field.name]).validate_python(field.default, strict=True)
    with pytest.raises(UserError, match="algo.init_std=0.01 must be above"):
        PPO(init_std=0.01)


def test_config_files_name_every_setting_and_ippo_differs_in_the_critic_only():
    folder = Path(__file__).parents[3] / "conf" / "algo"
    shared = yaml.safe_load((folder / "ppo.yaml").read_text())
    assert shared.pop("_target_") == "agents.algorithms.ppo.PPO"
    assert set(shared) == {field.name for field in dataclasses.fields(PPO)}
    assert isinstance(PPO(**shared), PPO)
    for name, kind in [("mappo", "concat"), ("ippo", "local")]:
        config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert config == {"defaults": ["ppo", "_self_"], "critic": kind}
