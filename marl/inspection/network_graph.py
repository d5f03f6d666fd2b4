"""A picture of a network's graph: its layers and what flows between them, with shapes."""

import warnings
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.core.look.tokens import LIGHT, SERIES

# Operations that only look at a tensor otherwise, or that are bookkeeping of the exporter's.
PASSING = {"view", "reshape", "flatten", "unflatten", "_unsafe_view", "alias", "detach", "clone", "to", "_to_copy",
           "getitem", "_assert_tensor_metadata", "lift_fresh_copy", "contiguous"}  # fmt: skip


def trace(network: nn.Module, *inputs: Tensor) -> nx.DiGraph:
    """The graph of `network(*inputs)`: a vertex per layer, and per operation outside of layers.

    Vertices have "label" and "shape" (without the batch dimension). Traced by `torch.export` in evaluation mode. Raises
    UserError where it refuses.
    """
    training = network.training
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(network.eval(), inputs, strict=False)
    except Exception as error:  # the exporter has many ways to refuse
        why = str(error).splitlines()[0][:200]
        raise UserError(f"graph: {type(network).__name__} can't be traced: {why}") from error
    finally:
        network.train(training)
    graph = assemble(network, program.graph, merged=True)
    # A layer that is called twice would close a circle: then every operation stands for itself.
    return graph if nx.is_directed_acyclic_graph(graph) else assemble(network, program.graph, merged=False)


def assemble(network: nn.Module, traced: torch.fx.Graph, merged: bool) -> nx.DiGraph:
    """The exporter's operations as a graph; with `merged`, those of one layer are one vertex."""
    graph, place = nx.DiGraph(), {}
    modules = dict(network.named_modules())
    for node in traced.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and not _is_weight(node):
            label = "memory" if node.name == "memory" else "input"
            graph.add_node(node.name, label=label, shape=tuple(value.shape[1:]))
            place[node] = node.name
        if node.op != "call_function":
            continue
        sources = [place[each] for each in node.all_input_nodes if each in place]
        name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
        path = _layer(node, modules) if merged else ""
        if not path and name in PASSING:
            if sources:
                place[node] = sources[0]
            continue
        if not sources and not path:
            continue
        key = path or node.name
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
        label = f"{path}\n{type(modules[path]).__name__}" if path else name
        if key in graph:  # the latest operation of a layer is its output
            graph.nodes[key]["shape"] = shape or graph.nodes[key]["shape"]
        else:
            graph.add_node(key, label=label, shape=shape)
        place[node] = key
        graph.add_edges_from((source, key) for source in sources if source != key)
    return graph


def _is_weight(node: torch.fx.Node) -> bool:
    return node.name.startswith(("p_", "b_", "c_"))


def _layer(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    """The dotted name of the layer without layers inside that an operation belongs to; "" where there is none."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0].removeprefix("L['self'].").removeprefix("L['self']") if stack else ""
    return path if path in modules and not list(modules[path].children()) else ""


def draw(graphs: dict[str, nx.DiGraph], out: Path) -> None:
    """The graphs side by side, input at the top, as PNG, PDF or SVG. Raises UserError where `out` can't be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = {name: list(nx.topological_generations(graph)) for name, graph in graphs.items()}
    wide = [max(len(layer) for layer in each) for each in layers.values()]
    high = max(len(each) for each in layers.values())
    figure, axes = plt.subplots(1, len(graphs), figsize=(2.6 * sum(wide), 0.75 * high + 0.6), squeeze=False,
                                width_ratios=wide, layout="constrained")  # fmt: skip
    for axis, (name, graph) in zip(axes[0], graphs.items(), strict=True):
        place = {}
        for depth, layer in enumerate(layers[name]):
            for i, key in enumerate(layer):
                place[key] = (i - (len(layer) - 1) / 2, -depth)
        for key, (x, y) in place.items():
            about = graph.nodes[key]
            shape = "×".join(map(str, about["shape"]))
            colour = LIGHT["card"] if about["label"] in ("input", "memory") else LIGHT["track"]
            box = {"boxstyle": "round", "facecolor": colour, "edgecolor": SERIES[0]}
            axis.text(x, y, f"{about['label']}\n{shape}".strip(), ha="center", va="center", fontsize=7, bbox=box)
        for source, target in graph.edges:
            arrow = {"arrowstyle": "->", "color": SERIES[0], "shrinkA": 16, "shrinkB": 16}
            if place[source][1] - place[target][1] > 1:  # around the layers that it passes by
                arrow["connectionstyle"] = "arc3,rad=0.4"
            axis.annotate("", place[target], place[source], arrowprops=arrow, zorder=0)
        columns = max(abs(x) for x, _ in place.values()) + 0.6
        axis.set(xlim=(-columns, columns), ylim=(-len(layers[name]) + 0.4, 0.6), title=name)
        axis.title.set_fontsize(8)
        axis.axis("off")
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"out={out}: {error}") from error
    finally:
        plt.close(figure)
