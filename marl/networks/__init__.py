"""Networks behind one factory, `network(in_shape, out_features)`: one class for classifiers and agents."""

from marl.networks.cnn import CNN
from marl.networks.common import ACTIVATIONS
from marl.networks.linear import Linear
from marl.networks.lstm import LSTM
from marl.networks.mlp import MLP
from marl.networks.per_agent import PerAgent

__all__ = ["ACTIVATIONS", "CNN", "LSTM", "MLP", "Linear", "PerAgent"]
