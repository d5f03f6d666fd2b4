"""Networks that read a whole team: deep sets, attention over agents, a graph of agents' distances.

Shapes: A agents (or members of a set), F features, W width, H heads, `...` any leading dimensions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks.common import (
    ActivationName,
    Gain,
    Init,
    Shape,
    Width,
    activation_module,
    initialise,
    shape_tuple,
    without_head,
)
from marl.networks.mlp import MLP

Pool = Literal["mean", "max", "sum"]


def reads_team(network: object) -> bool:
    """Whether a network, or a factory of networks, reads all agents at once: its class says `reads_team = True`.

    Such a class is built like any other, `Network(in_shape, out_features, …)`; for F features per agent it maps
    [..., A, F] to [..., A, out_features], for any A.
    """
    while isinstance(network, partial):
        network = network.func
    return bool(getattr(network, "reads_team", False))


class Team(nn.Module):
    """What the networks of this file share: `mix` [..., A, F] → [..., A, W], then a linear head for each agent.

    forward: float [..., A, F] → float [..., A, out_features] for `in_shape` F: one row for every agent, each of which
    depends on all of them; reordering the agents reorders the rows, and A may change from call to call.
    float [..., N, F] → float [..., out_features] for `in_shape` (N, F): a set of N members, whose features are averaged
    before the head; its order does not matter. Raises UserError for another shape.
    """

    reads_team = True

    def __init__(self, in_shape: Shape, out_features: Width, width: int) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.features, self.is_set = self.in_shape[-1], len(self.in_shape) == 2
        self.out_features = out_features
        if len(self.in_shape) > 2:
            raise UserError(
                f"network={type(self).__name__}: reads a team's observations (features) or sets (members, features), "
                f"not inputs {self.in_shape}"
            )
        self.head = nn.Linear(width, out_features)

    def mix(self, x: Tensor) -> Tensor:
        """[..., A, F] → [..., A, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x)
        return self.head(mixed.mean(-2) if self.is_set else mixed)


def pooled(x: Tensor, pool: Pool) -> Tensor:
    """Over the agents: [..., A, W] → [..., 1, W]."""
    return {"mean": x.mean, "max": x.amax, "sum": x.sum}[pool](-2, keepdim=True)


class DeepSets(Team):
    """Deep sets (Zaheer et al. 2017): h_i = φ(x_i), c = pool_j h_j, y_i = head(ρ([h_i, c])); a set: head(mean_i ρ).

    φ and ρ are MLPs whose last activation is part of them. Linear in the number of agents.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        encoder: Annotated[Sequence[Width], Field(min_length=1)] = (64,),
        hidden: Annotated[Sequence[Width], Field(min_length=1)] = (64,),
        pool: Pool = "mean",
        activation: ActivationName = "tanh",
        init: Init = "default",
        last_gain: Gain | None = None,
    ) -> None:
        super().__init__(in_shape, out_features, hidden[-1])
        self.pool: Pool = pool
        inner = without_head(init)
        self.phi = MLP(self.features, encoder[-1], encoder[:-1], activation, init=inner)
        self.rho = MLP(2 * encoder[-1], hidden[-1], hidden[:-1], activation, init=inner)
        self.act = activation_module(activation)
        initialise(nn.ModuleList(), self.head, activation, init, last_gain)

    def mix(self, x: Tensor) -> Tensor:
        h = self.act(self.phi(x))
        return self.act(self.rho(torch.cat([h, pooled(h, self.pool).expand_as(h)], -1)))


class Attention(Team):
    """Multi-head self-attention over agents (Vaswani et al. 2017; over sets: Lee et al. 2019), without positions.

    h = W x; per layer h += attend(norm(h)), then h += MLP(norm(h)), a residual block with the norm in front (Xiong et
    al. 2020); y = head(norm(h)). The attention is softmax(q_i·k_j / sqrt(W / H)) over all agents j, i among them.
    Raises UserError where the heads don't divide the width.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        width: Width = 64,
        heads: Width = 4,
        layers: Width = 1,
        activation: ActivationName = "tanh",
        init: Init = "default",
        last_gain: Gain | None = None,
    ) -> None:
        super().__init__(in_shape, out_features, width)
        if width % heads:
            raise UserError(f"network.heads={heads}: must divide network.width={width}")
        self.heads = heads
        self.embed = nn.Linear(self.features, width)
        self.queries = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))  # queries, keys and values
        self.joins = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        inner = without_head(init)
        self.blocks = nn.ModuleList(MLP(width, width, (width,), activation, init=inner) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        linear = nn.ModuleList([self.embed, *self.queries, *self.joins])
        initialise(linear, self.head, activation, init, last_gain)

    def attend(self, x: Tensor, layer: int) -> Tensor:
        """One attention layer without its residual: [..., A, W] → [..., A, W]."""
        q, k, v = self.queries[layer](x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # [..., A, H, W / H]
        scores = torch.einsum("...ihd,...jhd->...hij", q, k) * q.shape[-1] ** -0.5
        mixed = torch.einsum("...hij,...jhd->...ihd", scores.softmax(-1), v)
        return self.joins[layer](mixed.flatten(-2))

    def mix(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer, block in enumerate(self.blocks):
            h = h + self.attend(self.norms[2 * layer](h), layer)
            h = h + block(self.norms[2 * layer + 1](h))
        return self.norms[-1](h)


class Graph(Team):
    """Messages between agents that are near (Gilmer et al. 2017), with their distances (as in EGNN, Satorras 2021).

    h = act(W x); per layer every agent i takes the mean over its neighbours j ≠ i of
    act(A h_i + B h_j + C [p_j − p_i, |p_j − p_i|]), as m_i (0 without neighbours), and h_i += act(U [h_i, m_i]).
    Neighbours are within `radius` of each other, or everybody.

    Args:
        positions: indices of the features that are an agent's position, such as [0, 1]; None: no positions, so every
            other agent is a neighbour and messages know no distance.
        radius: in the positions' units (deviations, where observations are normalised); None: everybody.
        layers: rounds of messages; what is k edges away is heard after k.

    Raises UserError for indices that are no features, or a radius without positions.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        positions: Sequence[Annotated[int, Field(ge=0)]] | None = (0, 1),
        radius: Annotated[float, Field(gt=0)] | None = None,
        width: Width = 64,
        layers: Width = 1,
        activation: ActivationName = "tanh",
        init: Init = "default",
        last_gain: Gain | None = None,
    ) -> None:
        super().__init__(in_shape, out_features, width)
        self.positions, self.radius = list(positions or ()), radius
        wrong = [i for i in self.positions if i >= self.features]
        if wrong:
            raise UserError(
                f"network.positions={self.positions}: feature {wrong[0]} does not exist, there are {self.features} "
                f"(0 to {self.features - 1})"
            )
        if radius is not None and not self.positions:
            raise UserError(f"network.radius={radius}: needs network.positions, the features that are a position")
        # As a tensor: a list would be brought to the GPU at every call, which waits for it.
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(self.positions, dtype=torch.int64), persistent=False)
        edge = len(self.positions) + 1 if self.positions else 0
        self.embed = nn.Linear(self.features, width)
        self.mine = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.theirs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.edges = nn.ModuleList(nn.Linear(edge, width, bias=False) for _ in range(layers if edge else 0))
        self.updates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))
        self.act = activation_module(activation)
        linear = nn.ModuleList([self.embed, *self.mine, *self.theirs, *self.edges, *self.updates])
        initialise(linear, self.head, activation, init, last_gain)

    def edges_of(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Each p_j − p_i and distance, [..., A, A, P + 1] (None without positions); weights [..., A, A] of the mean."""
        A = x.shape[-2]
        near = 1.0 - torch.eye(A, dtype=x.dtype, device=x.device)
        if not self.positions:
            return None, near / max(A - 1, 1)
        p = x[..., self.columns]
        away = p.unsqueeze(-3) - p.unsqueeze(-2)  # [..., i, j, P]: from i to j
        distance = (away.square().sum(-1) + 1e-12).sqrt()  # smooth where two agents, or i and i, coincide
        if self.radius is not None:
            near = near * (distance <= self.radius)
        weight = near / near.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.cat([away, distance.unsqueeze(-1)], -1), weight

    def mix(self, x: Tensor) -> Tensor:
        edge, weight = self.edges_of(x)
        h = self.act(self.embed(x))
        for layer, update in enumerate(self.updates):
            messages = self.mine[layer](h).unsqueeze(-2) + self.theirs[layer](h).unsqueeze(-3)  # [..., i, j, W]
            if edge is not None:
                messages = messages + self.edges[layer](edge)
            heard = (self.act(messages) * weight.unsqueeze(-1)).sum(-2)
            h = h + self.act(update(torch.cat([h, heard], -1)))
        return h


def refuse_separate(network: Callable[..., nn.Module]) -> None:
    """Raises UserError where a network that reads the whole team would be made once per agent."""
    if reads_team(network):
        raise UserError(
            f"network={getattr(network, 'func', network).__name__}: reads the whole team, one network for all agents; "
            "use algo.share_actor=shared and algo.share_critic=shared, or another network"
        )
