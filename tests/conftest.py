"""Fixtures that tests of every package share."""

from tests.fixtures.browser import browser  # noqa: F401 (a fixture, found here by its name)
from tests.fixtures.javascript import javascript  # noqa: F401
