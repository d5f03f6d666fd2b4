"""Small scenarios as users write them, in every way in which Python can hold state; each says what is expected of it."""

import importlib

from tests.envs.kernel.zoo.base import Zoo

FILES = ("containers", "counters", "draws", "effects", "clocks", "outside", "branches", "loops", "numbers", "indexing", "shared",
         "networks", "starts", "holders",
         "functions", "environments", "constants", "faulty", "plain", "habits", "late", "late_numbers", "late_questions", "buffers")


def scenarios() -> dict[str, type[Zoo]]:
    """{dotted path: class} of every scenario that says what it expects, file by file."""
    found = {}
    for file in FILES:
        module = importlib.import_module(f"{__name__}.{file}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Zoo) and value.__module__ == module.__name__ and value.EXPECT:
                found[f"{module.__name__}.{name}"] = value
    return found
