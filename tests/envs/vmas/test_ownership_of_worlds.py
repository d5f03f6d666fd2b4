"""Who may touch a VMAS environment's parts: others read what is public of it and of its world, and assign nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.vmas.env import VmasEnv
from envs.vmas.world import VmasWorld

ROOT = Path(__file__).resolve().parents[3]
# of environments, worlds, steppers, pools
OWNERS = ("envs/vmas", "tests/envs/vmas/test_env")
FILES = sorted(p for d in ("marl", "envs", "agents", "scripts", "docs", "tests") for p in (ROOT / d).rglob("*.py"))
OTHERS = [p for p in FILES if not str(p.relative_to(ROOT)).startswith(OWNERS)]
PARTS = {"world", "stepper", "pool", "path", "why_eager", "spec", "settings", "shared_draws", "scenario", "num_envs"}
ENVIRONMENTS = {"env", "world", "template", "fast", "eager"}  # what variables that hold one are called
HOLDERS = PARTS - {"path", "spec", "settings"} | {"env", "template"}  # attributes through which one is reached


@pytest.fixture(scope="module")
def members() -> set[str]:
    """Names of everything that a VmasEnv and its parts keep to themselves or show."""
    env = VmasEnv("simple_spread", num_envs=3)
    parts = [env, env.world, env.world.pool, *([env.stepper] if env.stepper else [])]
    classes = [VmasEnv, VmasWorld, *map(type, parts)]
    return {n for part in parts for n in vars(part)} | {n for cls in classes for n in vars(cls)}


def nodes(files: list[Path]) -> Iterator[tuple[Path, ast.AST]]:
    """All of the files' syntax trees."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


def owner_name(node: ast.expr) -> str:
    """The variable, or the attribute, through which `node` is reached."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_nothing_private_of_an_environment_is_used_elsewhere(members: set[str]) -> None:
    private = {name for name in members if name.startswith("_") and not name.endswith("__")}
    for path, node in nodes(OTHERS):
        if isinstance(node, ast.Attribute) and node.attr in private:
            name = owner_name(node.value)
            assert name not in ENVIRONMENTS | HOLDERS, f"{path}:{node.lineno} uses {name}.{node.attr}"


def test_nothing_is_assigned_to_an_environment_elsewhere(members: set[str]) -> None:
    for path, node in nodes([path for path in OTHERS if "tests" not in path.parts]):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in (each for t in targets for each in (t.elts if isinstance(t, ast.Tuple) else [t])):
            if isinstance(target, ast.Attribute) and target.attr in members:
                name = owner_name(target.value)
                assert name not in ENVIRONMENTS | HOLDERS, f"{path}:{node.lineno} assigns to {name}.{target.attr}"


def test_the_walk_would_see_it(members: set[str]) -> None:
    assert {"_why", "_offsets", "_bind", "_load", "ticks", "observe", "path", "why_eager", "stepper"} <= members
