"""Each piece of a run's state has one owner: nothing assigns to the attributes of another object."""

import ast
from collections.abc import Iterator

import pytest

from tests.fixtures.sources import FILES, name, tree

OWNERS = {
    "trainer": "Trainer",
    "task": "Task",
    "run_state": "RunState",
    "metrics": "RunMetrics",
    "updater": "Updater",
    "checkpointer": "Checkpointer",
}


def names_of(module: ast.AST) -> set[str]:
    """Names that stand for an owner: those it usually has, and parameters that are annotated as one."""
    names = set(OWNERS)
    for node in ast.walk(module):
        if isinstance(node, ast.arg) and node.annotation is not None:
            words = {each.id for each in ast.walk(node.annotation) if isinstance(each, ast.Name)}
            if words & {*OWNERS.values(), "RunView"}:
                names.add(node.arg)
    return names


def targets(module: ast.AST) -> Iterator[ast.expr]:
    """Everything that is assigned to or deleted."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign | ast.Delete):
            yield from (part for target in node.targets for part in ast.walk(target))
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
            yield from ast.walk(node.target)
        elif isinstance(node, ast.NamedExpr | ast.withitem):
            yield from ast.walk(getattr(node, "target", None) or node.optional_vars or ast.Pass())
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            yield ast.Attribute(node.args[0], "…", ast.Store(), lineno=node.lineno)


def assignments(module: ast.AST) -> list[tuple[int, str]]:
    """Where a file assigns to an attribute of an owner: (line, what)."""
    names = names_of(module)
    return [
        (target.lineno, ast.unparse(target))
        for target in targets(module)
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store | ast.Del)
        if getattr(target.value, "id", getattr(target.value, "attr", None)) in names
    ]


def test_nothing_assigns_to_another_objects_state() -> None:
    assigned = {name(path): assignments(tree(path)) for path in FILES}
    assert not {path: found for path, found in assigned.items() if found}


def test_a_trainer_is_never_anything() -> None:
    anything = [
        f"{name(path)}, line {node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.arg) and node.arg in OWNERS and node.annotation is not None
        if "Any" in ast.unparse(node.annotation)
    ]
    assert not anything, ", ".join(anything)


@pytest.mark.parametrize(
    "text",
    [
        "trainer.iteration = 1",
        "self.task.seed += 1",
        "del trainer.update",
        "setattr(self.updater, name, 1)",
        "a, trainer.run_state.best = 1, 2",
        "def f(other: Updater): other.optimizer = None",
        "for run_state.iteration in range(3): pass",
    ],
)
def test_the_walk_sees_assignments(text: str) -> None:
    assert len(assignments(ast.parse(text))) == 1


@pytest.mark.parametrize("text", ["trainer = Trainer()", "self.task = task", "x = trainer.iteration", "task.f(a=1)"])
def test_reading_and_owning_are_no_assignments(text: str) -> None:
    assert not assignments(ast.parse(text))
