"""The other half of the scenarios of test_chains.py, so that both cores have work."""

import shutil

import pytest

from tests.envs.chain_cases import NAMES, check

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")


@pytest.mark.parametrize("scenario", NAMES[1::2])
def test_chained_steps_agree_until_rounding_carries_them_apart(scenario):
    check(scenario)
