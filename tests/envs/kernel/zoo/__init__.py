"""Small scenarios as users write them, by subject: state, code, external; each says what is expected of it."""

import importlib
from pathlib import Path

from tests.envs.kernel.zoo.base import Zoo


def scenarios() -> dict[str, type[Zoo]]:
    """{dotted path: class} of every scenario that says what it expects, file by file."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*/[!_]*.py")):
        module = importlib.import_module(f"{__name__}.{path.parent.name}.{path.stem}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and issubclass(value, Zoo) and value.__module__ == module.__name__
            if own and value.EXPECT:
                found[f"{module.__name__}.{name}"] = value
    return found
