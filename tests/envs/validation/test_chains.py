"""Chained steps of scenarios that have a kernel, through ends of episodes, on the kernel path and on the eager path."""

import shutil

import pytest

from envs.validation.chains import chain
from tests.envs.chain_cases import NAMES, check

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")


@pytest.mark.parametrize("scenario", NAMES[::2])
def test_chained_steps_agree_until_rounding_carries_them_apart(scenario):
    check(scenario)


def test_scenarios_without_a_kernel_say_why():
    assert "continuous range" in chain("debug/het_mass", num_envs=2).why
