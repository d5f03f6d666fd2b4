"""Fixtures that tests of every package share."""

import agents  # noqa: F401 - gives the networks of marl their kernel, as scripts/train.py does
from tests.browser import browser  # noqa: F401 (a fixture, found here by its name)
from tests.javascript import javascript  # noqa: F401
