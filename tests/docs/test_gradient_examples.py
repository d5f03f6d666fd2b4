"""The examples of docs/gradients.md: a mass is found again, and plans earn more."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "gradients"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_the_mass_of_a_package_is_found_again(example):
    estimates = example("identify").identify(mass=20.0, guess=4.0)
    assert estimates[0] == pytest.approx(4.0) and estimates[-1] == pytest.approx(20.0, rel=0.02)


def test_plans_earn_more(example):
    returns = example("plan").improve()
    assert returns[0] < -300 and returns[-1] > -200
