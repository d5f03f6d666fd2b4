"""The losses of IQL, VDN, QMIX, DDPG, TD3 and SAC against TorchRL's, values and gradients, on random data."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, QValueModule, SafeSequential, TanhNormal
from torchrl.objectives import DDPGLoss as TorchRLDDPG
from torchrl.objectives import DiscreteSACLoss as TorchRLDiscreteSAC
from torchrl.objectives import SACLoss as TorchRLSAC
from torchrl.objectives import TD3Loss as TorchRLTD3
from torchrl.objectives import ValueEstimators
from torchrl.objectives.multiagent import QMixerLoss as TorchRLQMixer

from agents.algorithms.off_policy.ddpg import DDPG
from agents.algorithms.off_policy.q_learning import QLearning
from agents.algorithms.off_policy.sac import SAC
from agents.models.action_values.mixer import MonotonicMixer
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.networks import MLP

B, A, F, D, K, S, GAMMA = 32, 3, 5, 2, 4, 6, 0.9
NETWORK = partial(MLP, hidden=[16])
BOX = ActionSpec("continuous", -torch.ones(A, D), torch.ones(A, D))
CHOICES = ActionSpec("discrete", nvec=(K,))


def spec(action):
    return EnvSpec({"team": GroupSpec("team", ("a", "b", "c"), F, action)}, S, 100)


def batch(action, seed=0):
    """Ours, as `ReplayBuffer.sample` gives it."""
    g = torch.Generator().manual_seed(seed)
    if action.kind == "continuous":
        done = torch.rand(B, A, D, generator=g) * 2 - 1
    else:
        done = torch.randint(K, (B, A, 1), generator=g)
    team = {
        "observation": torch.randn(B, A, F, generator=g),
        "next_observation": torch.randn(B, A, F, generator=g),
        "action": done,
        "reward": torch.randn(B, A, generator=g),
    }
    terminated = torch.rand(B, generator=g) < 0.3
    states = {key: torch.randn(B, S, generator=g) for key in ("state", "next_state")}
    return {"team": team, "terminated": terminated, "discount": torch.full((B,), GAMMA), **states}


def theirs(rows, reward, terminated, action=None):
    """The same as TorchRL reads it."""
    team = rows["team"]
    flags = {key: terminated for key in ("done", "terminated")}
    return TensorDict(
        {
            "observation": team["observation"],
            "state": rows["state"],
            "action": team["action"] if action is None else action,
            "next": {
                "observation": team["next_observation"],
                "state": rows["next_state"],
                "reward": reward,
                **flags,
            },
        },
        batch_size=[B],
    )


def scramble(target, params):
    """Other weights for a target, ours and TorchRL's, so that a target that is not read would show."""
    flat = params.flatten_keys()
    for name, parameter in target.network.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        (key,) = [key for key in flat.keys() if key.endswith(name)]  # noqa: SIM118 - a TensorDict
        flat[key].copy_(parameter)


def same_gradients(mine, module, expected, params):
    """The gradients of our loss in our module, and of TorchRL's in its parameters of the same names."""
    flat = params.flatten_keys()
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    keys = [next(key for key in flat.keys() if key.endswith(name)) for name in names]  # noqa: SIM118
    ours = torch.autograd.grad(mine, [dict(module.named_parameters())[name] for name in names], retain_graph=True)
    other = torch.autograd.grad(expected, [flat[key] for key in keys], retain_graph=True)
    assert names
    for name, a, b in zip(names, ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


class Values(nn.Module):
    """Our values of choices as a module of TorchRL's."""

    def __init__(self, actor):
        super().__init__()
        self.inner = actor

    def forward(self, observation):
        return self.inner(observation)


class Team(nn.Module):
    """Our mixer, given what TorchRL gives one: values [B, A, 1]."""

    def __init__(self, mixer):
        super().__init__()
        self.inner = mixer

    def forward(self, values, state):
        return self.inner(values.squeeze(-1), state).unsqueeze(-1)


@pytest.mark.parametrize("kind", ["sum", "monotonic"])
def test_mixed_q_learning_is_torchrls(kind):
    torch.manual_seed(0)
    algo = QLearning(mixer=kind, mixer_state="state", double=False, gamma=GAMMA, critic="local")
    loss = algo.make_loss(spec(CHOICES), NETWORK)
    actor, mixer = loss.actors["team"], loss.mixers["team"]
    values = SafeSequential(
        TensorDictModule(Values(deepcopy(actor)), ["observation"], ["action_value"]),
        QValueModule(action_space="categorical"),
    )
    team = TensorDictModule(Team(deepcopy(mixer)), ["chosen_action_value", "state"], ["chosen_global"])
    other = TorchRLQMixer(values, team, action_space="categorical")
    names = {"global_value": "chosen_global", "local_value": "chosen_action_value", "action_value": "action_value"}
    other.set_keys(**names, action="action", reward="reward", done="done", terminated="terminated")
    other.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    scramble(loss.target_actors["team"], other.target_local_value_network_params)
    if kind == "monotonic":
        scramble(loss.target_mixers["team"], other.target_mixer_network_params)
    rows = batch(CHOICES)
    reward = rows["team"]["reward"].mean(-1, keepdim=True)
    data = theirs(rows, reward, rows["terminated"].unsqueeze(-1), rows["team"]["action"].squeeze(-1))
    mine, expected = loss(rows)["loss"], other(data)["loss"]
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    same_gradients(mine, actor, expected, other.local_value_network_params)
    if kind == "monotonic":
        same_gradients(mine, mixer, expected, other.mixer_network_params)


class Mu(nn.Module):
    """Our deterministic actor as a module of TorchRL's."""

    def __init__(self, actor):
        super().__init__()
        self.inner = actor

    def forward(self, observation):
        return self.inner(observation).tanh()


class Q(nn.Module):
    """Our critic of actions as a module of TorchRL's: one value per agent, [B, A, 1]."""

    def __init__(self, critic, which=0):
        super().__init__()
        self.inner = critic.critics[which]

    def forward(self, observation, action):
        return self.inner(torch.cat([observation, action], -1), None).unsqueeze(-1)


@pytest.mark.parametrize(("kind", "delayed"), [("local", True), ("concat", True), ("concat", False)])
def test_ddpg_is_torchrls(kind, delayed):
    torch.manual_seed(1)
    loss = DDPG(critic=kind, gamma=GAMMA, delay_actor=delayed).make_loss(spec(BOX), NETWORK)
    actor, critic = loss.actors["team"], loss.q_critics["team"]
    other = TorchRLDDPG(
        TensorDictModule(Mu(deepcopy(actor)), ["observation"], ["action"]),
        TensorDictModule(Q(deepcopy(critic)), ["observation", "action"], ["state_action_value"]),
        delay_actor=delayed,
    )
    other.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    if delayed:
        scramble(loss.target_actors["team"], other.target_actor_network_params)
    flat = other.target_value_network_params.flatten_keys()
    for name, parameter in loss.target_critics["team"].network.critics[0].named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        next(value for key, value in flat.items() if key.endswith(name)).copy_(parameter)
    rows = batch(BOX)
    flags = rows["terminated"].view(B, 1, 1).expand(B, A, 1)
    outputs = other(theirs(rows, rows["team"]["reward"].unsqueeze(-1), flags))
    mine = loss(rows)
    torch.testing.assert_close(mine["critic_loss"], outputs["loss_value"].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine["actor_loss"], outputs["loss_actor"].detach(), rtol=1e-5, atol=1e-6)
    same_gradients(mine["loss"], actor, outputs["loss_actor"], other.actor_network_params)
    same_gradients(mine["loss"], critic.critics[0], outputs["loss_value"], other.value_network_params)


@pytest.mark.parametrize("kind", ["local", "concat"])
def test_td3_is_torchrls(kind):
    torch.manual_seed(2)
    loss = DDPG(critic=kind, gamma=GAMMA, twin=True).make_loss(spec(BOX), NETWORK)
    actor, critic = loss.actors["team"], loss.q_critics["team"]
    other = TorchRLTD3(
        TensorDictModule(Mu(deepcopy(actor)), ["observation"], ["action"]),
        [TensorDictModule(Q(deepcopy(critic), n), ["observation", "action"], ["state_action_value"]) for n in (0, 1)],
        bounds=(-1.0, 1.0),
        policy_noise=0.0,
        loss_function="l2",
    )
    other.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    scramble(loss.target_actors["team"], other.target_actor_network_params)
    scramble_twins(loss.target_critics["team"], other.target_qvalue_network_params)
    rows = batch(BOX)
    flags = rows["terminated"].view(B, 1, 1).expand(B, A, 1)
    outputs = other(theirs(rows, rows["team"]["reward"].unsqueeze(-1), flags))
    mine = loss(rows)
    torch.testing.assert_close(mine["critic_loss"], outputs["loss_qvalue"].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine["actor_loss"], outputs["loss_actor"].detach(), rtol=1e-5, atol=1e-6)
    same_gradients(mine["loss"], actor, outputs["loss_actor"], other.actor_network_params)


def scramble_twins(target, params):
    """As `scramble`, of two critics, whose parameters TorchRL stacks."""
    flat = params.flatten_keys()
    for n, critic in enumerate(target.network.critics):
        for name, parameter in critic.named_parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
            (key,) = [key for key in flat.keys() if key.endswith(name)]  # noqa: SIM118
            flat[key][n].copy_(parameter)


class Loc(nn.Module):
    """Our Gaussian actor as a module of TorchRL's."""

    def __init__(self, actor):
        super().__init__()
        self.inner = actor

    def forward(self, observation):
        return self.inner.head.loc_std(self.inner(observation))


@pytest.mark.parametrize("kind", ["local", "concat"])
def test_sac_is_torchrls(kind, monkeypatch):
    """With the same noise: zeros, so that both draw the mean."""
    torch.manual_seed(3)
    algo = SAC(critic=kind, gamma=GAMMA, temperature=0.7, target_entropy=-2.0)
    loss = algo.make_loss(spec(BOX), NETWORK)
    actor, critic = loss.actors["team"], loss.q_critics["team"]
    policy = ProbabilisticActor(
        TensorDictModule(Loc(deepcopy(actor)), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False},
        return_log_prob=True,
        log_prob_key="sample_log_prob",
    )
    other = TorchRLSAC(
        policy,
        [TensorDictModule(Q(deepcopy(critic), n), ["observation", "action"], ["state_action_value"]) for n in (0, 1)],
        alpha_init=0.7,
        target_entropy=-2.0,
        loss_function="l2",
    )
    other.set_keys(log_prob="sample_log_prob")
    other.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    scramble_twins(loss.target_critics["team"], other.target_qvalue_network_params)
    rows = batch(BOX)
    flags = rows["terminated"].view(B, 1, 1).expand(B, A, 1)
    data = theirs(rows, rows["team"]["reward"].unsqueeze(-1), flags, rows["team"]["action"].tanh())
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.zeros_like(x))
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda s, dtype, device: torch.zeros(s))
    outputs, mine = other(data), loss(rows)
    torch.testing.assert_close(mine["critic_loss"], outputs["loss_qvalue"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["actor_loss"], outputs["loss_actor"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["temperature_loss"], outputs["loss_alpha"].detach(), rtol=1e-4, atol=1e-5)
    same_gradients(mine["loss"], actor, outputs["loss_actor"], other.actor_network_params)
    (slope,) = torch.autograd.grad(mine["loss"], [loss.temperatures["team"]], retain_graph=True)
    (expected,) = torch.autograd.grad(outputs["loss_alpha"], [other.log_alpha], retain_graph=True)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)


class ChoiceValues(nn.Module):
    """Our critic of choices as a module of TorchRL's."""

    def __init__(self, critic, which):
        super().__init__()
        self.inner = critic.critics[which]

    def forward(self, observation):
        return self.inner(observation, None)


@pytest.mark.parametrize("kind", ["local", "concat"])
def test_discrete_sac_is_torchrls(kind):
    torch.manual_seed(4)
    algo = SAC(critic=kind, gamma=GAMMA, temperature=0.7, target_entropy=0.5)
    loss = algo.make_loss(spec(CHOICES), NETWORK)
    actor, critic = loss.actors["team"], loss.q_critics["team"]
    policy = ProbabilisticActor(
        TensorDictModule(Values(deepcopy(actor)), ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
        log_prob_key="sample_log_prob",
    )
    nets = [TensorDictModule(ChoiceValues(deepcopy(critic), n), ["observation"], ["action_value"]) for n in (0, 1)]
    other = TorchRLDiscreteSAC(
        policy, nets, action_space="categorical", num_actions=K, alpha_init=0.7, target_entropy=0.5, loss_function="l2"
    )
    other.set_keys(log_prob="sample_log_prob")
    other.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    scramble_twins(loss.target_critics["team"], other.target_qvalue_network_params)
    rows = batch(CHOICES)
    flags = rows["terminated"].view(B, 1, 1).expand(B, A, 1)
    action = rows["team"]["action"].squeeze(-1)
    outputs = other(theirs(rows, rows["team"]["reward"].unsqueeze(-1), flags, action))
    mine = loss(rows)
    torch.testing.assert_close(mine["critic_loss"], outputs["loss_qvalue"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["actor_loss"], outputs["loss_actor"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["temperature_loss"], outputs["loss_alpha"].detach(), rtol=1e-4, atol=1e-5)
    same_gradients(mine["loss"], actor, outputs["loss_actor"], other.actor_network_params)


@pytest.mark.parametrize("seed", range(5))
def test_a_monotonic_mixer_is_monotone_for_any_weights(seed):
    torch.manual_seed(seed)
    mixer = MonotonicMixer(A, S)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, 0.0, 3.0)
    values = torch.randn(64, A, requires_grad=True)
    (slope,) = torch.autograd.grad(mixer(values, torch.randn(64, S)).sum(), [values])
    assert (slope >= 0).all() and (slope > 0).any()
