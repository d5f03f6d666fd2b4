"""Fixtures that tests of every package share."""

import pytest

# Files of shared cases assert too: without this, pytest shows no values when they fail.
pytest.register_assert_rewrite("tests.envs.chain_cases", "tests.envs.host_cases", "tests.envs.torchrl_cases",
                               "tests.envs.vector_cases")

from tests.fixtures.browser import browser  # noqa: E402, F401 (a fixture, found here by its name)
from tests.fixtures.javascript import javascript  # noqa: E402, F401
