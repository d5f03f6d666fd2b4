"""Fixtures that tests of every package share."""

import gc
import signal

import pytest

# Files of shared cases assert too: without this, pytest shows no values when they fail.
pytest.register_assert_rewrite(
    "tests.envs.chain_cases", "tests.envs.host_cases", "tests.envs.torchrl_cases", "tests.envs.vector_cases"
)

from tests.fixtures.browser import browser, running_browser  # noqa: E402, F401 (fixtures, found by their names)
from tests.fixtures.javascript import javascript  # noqa: E402, F401
from tests.fixtures.parsed_configs import parsed_configs  # noqa: E402, F401
from tests.fixtures.parsed_header import parsed_header  # noqa: E402, F401
from tests.fixtures.shell import shell  # noqa: E402, F401

# The files that take longest, in their order: they begin first, so that both cores end at the same time.
LONGEST = [
    "tests/envs/kernel/test_zoo.py",
    "tests/test_product.py",
    "tests/envs/validation/test_chains.py",
    "tests/envs/validation/test_chains_of_the_others.py",
    "tests/scripts/test_sweep.py",
    "tests/envs/vmas/test_scenarios.py",
    "tests/agents/tasks/test_learning.py",
    "tests/envs/kernel/test_kernels.py",
    "tests/trials/test_kills.py",
    "tests/marl/core/test_distributed.py",
    "tests/standin_cuda/test_standin_cuda.py",
    "tests/trials/fuzzing/test_fuzz.py",
    "tests/agents/tasks/test_on_policy.py",
    "tests/envs/rendering/test_recording.py",
    "tests/envs/kernel/test_changes.py",
    "tests/test_conf.py",
    "tests/test_commands.py",
    "tests/scripts/test_train.py",
    "tests/envs/vmas/test_snapshot.py",
    "tests/marl/capture/test_captured_loss.py",
]


def pytest_collection_finish() -> None:
    """What has been imported by now is no garbage: collections need not go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts files, and no tests within one."""
    places = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests recorded by `record_property`, a line for each name: how much was compared, compiled and run."""
    found: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            found.setdefault(name, []).append(str(value))
    for name, values in sorted(found.items()):
        terminalreporter.write_line(f"{name}, {len(values)}: {', '.join(sorted(values))}")


def pytest_configure() -> None:
    """Ctrl-C as usual: a shell starts what runs in its background with SIGINT ignored, and commands inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
