"""Auto-encoders, embeddings and tied weights: formulas, shapes, what they learn; and the pictures."""

from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

from agents.models.actor import Actor
from agents.policies.policy import Policy
from envs.spec import ActionSpec, GroupSpec
from marl.config import compose
from marl.core.errors import UserError
from marl.data import ArrayData, Digits, Erase, Flip, Noise, Reconstruction, Shift
from marl.engine.trainer import Trainer
from marl.launch import build
from marl.networks import VAE, AutoEncoder, Embedding
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised
from tests.fixtures.runs import make_run


def test_reconstruction_is_its_own_target_scaled_by_the_training_split():
    data = Reconstruction(Digits())
    assert data.kind == "regression" and data.out_features == 64 and data.in_shape == (1, 8, 8)
    assert torch.equal(data.train["x"].flatten(1), data.train["y"])
    assert (data.train["y"].min(), data.train["y"].max()) == (0, 1)
    noisy = Reconstruction(Digits(), noise=0.3)
    error = noisy.train["x"].flatten(1) - noisy.train["y"]
    assert torch.equal(noisy.train["y"], data.train["y"]) and error.std() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(noisy.test["x"], data.test["x"])
    with pytest.raises(UserError, match="nothing to reconstruct"):
        Reconstruction(ArrayData("regression", 1, (torch.ones(4, 2), torch.ones(4)), (torch.ones(4, 2), torch.ones(4))))


def test_what_moves_the_picture_moves_its_target_and_what_disturbs_it_does_not():
    settings = {"objective": nn.MSELoss(), "epochs": 1, "sampler": "sequential"}
    task = Supervised(Reconstruction(Digits()), AutoEncoder, augment=[Shift(2), Flip()], **settings)
    plain = Supervised(Reconstruction(Digits()), AutoEncoder, **settings)
    moved, still = (next(iter(each.loader.epoch(0))) for each in (task, plain))
    assert torch.equal(moved["x"].flatten(1), moved["y"]) and not torch.equal(moved["y"], still["y"])
    noisy = Supervised(Reconstruction(Digits()), AutoEncoder, augment=[Noise(0.1), Erase(2)], **settings)
    batch = next(iter(noisy.loader.epoch(0)))
    assert torch.equal(batch["y"], still["y"]) and not torch.equal(batch["x"], still["x"])


def test_tied_weights_are_one_parameter_transposed():
    net = AutoEncoder(6, 6, hidden=[5], latent=3, tied=True)
    assert sum(p.numel() for p in net.parameters()) == (6 * 5 + 5) + (5 * 3 + 3) + 5 + 6  # the decoder adds biases only
    x = torch.randn(7, 6)
    first, last = net.encoder[0], net.encoder[-1]
    code = torch.relu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    hidden = torch.relu(code @ last.weight + net.decoder[0].bias)
    torch.testing.assert_close(net(x), hidden @ first.weight + net.head.bias)
    net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    copy = AutoEncoder(6, 6, hidden=[5], latent=3, tied=True)
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(x), net(x))
    with pytest.raises(UserError, match="network.tied=true"):
        AutoEncoder(6, 2, tied=True)


def test_vae_draws_while_training_and_gives_the_mean_in_evaluation(monkeypatch):
    torch.manual_seed(0)
    net = VAE((1, 4, 4), 16, hidden=[8], latent=3)
    x = torch.rand(5, 1, 4, 4)
    assert net(x).shape == (5, 16 + 6) and not torch.equal(net(x), net(x))
    draws = torch.stack([net.train()(x) for _ in range(2000)])
    assert torch.equal(draws[0, :, 16:], draws[1, :, 16:])  # the code's distribution does not depend on the draw
    net.eval()
    outputs = net(x)
    torch.testing.assert_close(outputs[:, :16], net.decode(net.encode(x)))
    torch.testing.assert_close(outputs[:, 16:19], net.encode(x))
    monkeypatch.setattr(net, "decode", lambda code: code)  # what is decoded: drawn by the code's mean and deviation
    codes = torch.stack([net.train()(x)[:, :3] for _ in range(4000)])
    torch.testing.assert_close(codes.mean(0), outputs[:, 16:19], atol=0.08, rtol=0)
    torch.testing.assert_close(codes.std(0), (outputs[:, 19:] / 2).exp(), atol=0.08, rtol=0)
    with pytest.raises(UserError, match="network=vae: reconstructs its 16 inputs"):
        VAE((1, 4, 4), 3)


@pytest.mark.parametrize(("name", "figure"), [("autoencoder", 0.02), ("vae", 26.0)])
def test_presets_reconstruct_digits_and_draw_them(name, figure, tmp_path):
    epochs = ["epochs=40", "trainer.progress=off"]
    config = compose.check(compose.compose([f"experiment={name}", *epochs]))
    setup = build.build_setup(config)
    task = build.build_task(config)
    summary = build.build_trainer(config).fit(task, tmp_path, **{**setup, "loggers": []})
    assert summary["final"]["test_loss"] < figure  # the mean picture: 0.0735, and 27.0 nats
    rows = 3 if name == "vae" else 2
    assert Image.open(tmp_path / "reconstructions.png").size == (12 * 9 * 8, rows * 9 * 8)


def test_pictures_are_of_pictures_and_autoencoders(tmp_path):
    for experiment, words in (("sine", "draws pictures"), ("digits", "needs network=autoencoder")):
        overrides = [f"experiment={experiment}", "callbacks=reconstructions", "trainer.progress=off"]
        config = compose.check(compose.compose(overrides))
        setup = build.build_setup(config)
        with pytest.raises(UserError, match=words):
            build.build_trainer(config).fit(build.build_task(config), tmp_path, **{**setup, "loggers": []})


def test_embedding_learns_a_table_that_no_line_fits(tmp_path):
    torch.manual_seed(0)
    table = torch.randn(6)
    x = torch.stack([torch.randint(6, (600,)).float(), torch.randn(600)], 1)
    y = table[x[:, 0].long()] + 0.5 * x[:, 1]
    data = ArrayData("regression", 1, (x[:400], y[:400]), (x[400:], y[400:]), normalise=False)
    task = Supervised(data, partial(Embedding, categories={0: 6}, size=4, hidden=[16]), nn.MSELoss(), 60)
    summary = Trainer(progress="off").fit(task, tmp_path, optimizer=OptimizerConfig(lr=0.01))
    assert summary["final"]["loss"] < 0.01
    net = Embedding(3, 2, {1: 4}, size=5, hidden=[])
    weight, row = net.mlp.head, torch.tensor([0.5, 2.0, -1.0])
    expected = weight(torch.cat([row[[0, 2]], net.tables[0].weight[2]]))
    torch.testing.assert_close(net(row), expected)
    for wrong in ({}, {3: 2}, {-1: 2}):
        with pytest.raises(UserError, match="columns, 0 to 2"):
            Embedding(3, 2, wrong)
    with pytest.raises(IndexError):  # a category that the table lacks
        Embedding(2, 1, {0: 3})(x)


def test_an_auto_encoder_serves_actors_and_critics(tmp_path):
    folder = make_run(tmp_path / "run", "network=autoencoder")
    names = list(Policy.load(folder).state_dict())
    assert any(name.startswith("actors.") and "encoder" in name for name in names)
    assert any(name.startswith("critics.") and "decoder" in name for name in names)


def test_an_actor_looks_up_what_is_discrete_in_its_observation():
    action = ActionSpec("discrete", nvec=(4,))
    spec = GroupSpec("agents", ("a", "b"), 3, action)
    actor = Actor(spec, partial(Embedding, categories={2: 5}, hidden=[8]))
    observation = torch.tensor([[0.3, -1.0, 4.0], [0.1, 0.2, 0.0]]).expand(6, 2, 3)
    assert actor(observation).shape == (6, 2, 4)
    actor(observation).sum().backward()
    gradient = actor.network.networks[0].tables[0].weight.grad
    assert gradient[[0, 4]].abs().sum() > 0 and gradient[[1, 2, 3]].abs().sum() == 0


def test_elbo_refuses_other_networks():
    config = compose.check(compose.compose(["experiment=autoencoder", "objective=elbo"]))
    with pytest.raises(UserError, match="network=vae gives them"):
        build.build_task(config)
