"""Networks behind one factory, `network(in_shape, out_features)`: one class for classifiers and agents."""

from marl.networks.autoencoder import VAE, AutoEncoder
from marl.networks.cnn import CNN
from marl.networks.common import ACTIVATIONS
from marl.networks.embedding import Embedding
from marl.networks.linear import Linear
from marl.networks.mlp import MLP
from marl.networks.per_agent import PerAgent
from marl.networks.polynomial import Polynomial
from marl.networks.recurrent import GRU, LSTM

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "GRU",
    "LSTM",
    "MLP",
    "VAE",
    "AutoEncoder",
    "Embedding",
    "Linear",
    "PerAgent",
    "Polynomial",
]
