"""Networks behind one factory, `network(in_shape, out_features)`: one class for classifiers and agents."""

from marl.networks.autoencoder import VAE, AutoEncoder
from marl.networks.cnn import CNN
from marl.networks.common import ACTIVATIONS
from marl.networks.embedding import Embedding
from marl.networks.linear import Linear
from marl.networks.mlp import MLP
from marl.networks.multi.network import Multi
from marl.networks.multi.part import Part, reads_parts, with_parts
from marl.networks.per_agent import PerAgent
from marl.networks.polynomial import Polynomial
from marl.networks.recurrent import GRU, LSTM
from marl.networks.team import Attention, DeepSets, Graph, reads_team

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "GRU",
    "LSTM",
    "MLP",
    "VAE",
    "Attention",
    "AutoEncoder",
    "DeepSets",
    "Embedding",
    "Graph",
    "Linear",
    "Multi",
    "Part",
    "PerAgent",
    "Polynomial",
    "reads_parts",
    "reads_team",
    "with_parts",
]
