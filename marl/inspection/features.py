"""What named layers give, read by forward hooks: for a look, for histograms, as inputs of another model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch

from torch import Tensor, nn

from marl.core.errors import UserError, closest


def named(module: nn.Module, patterns: Sequence[str], key: str = "layers") -> dict[str, nn.Module]:
    """The modules below `module` whose dotted names match one of `patterns` (`*` and `?` as in file names).

    Raises UserError for a pattern that matches none, with the setting's `key` and the closest names.
    """
    modules = {name: each for name, each in module.named_modules() if name}
    named_modules = {}
    for pattern in patterns:
        matching = [name for name in modules if fnmatch(name, pattern)]
        if not matching:
            hint = closest(pattern, modules) or f" (there are {', '.join(modules)})"
            raise UserError(f"{key}={pattern}: no such layer{hint}")
        named_modules |= {name: modules[name] for name in matching}
    return {name: each for name, each in modules.items() if name in named_modules}  # in the model's order


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """The layers without layers inside, by dotted name."""
    return {name: each for name, each in module.named_modules() if name and not list(each.children())}


def output_of(value: object) -> Tensor | None:
    """The tensor of a layer's output: itself, the first one of a tuple (a recurrent layer's), or None."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, Tensor) else None


@contextmanager
def features(module: nn.Module, layers: Sequence[str] | dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that fills with what `layers` give while `module` is called inside: {name: tensor}.

    The latest call counts. Layers: names or patterns, see `named`. The tensors are part of the graph of gradients, and
    nothing of it is left behind. A fused MLP runs layer by layer meanwhile, equal to rounding.
    """
    watched = layers if isinstance(layers, dict) else named(module, layers)
    outputs: dict[str, Tensor] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            tensor = output_of(output)
            if tensor is not None:
                outputs[name] = tensor

        return hook

    handles = [each.register_forward_hook(note(name)) for name, each in watched.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
