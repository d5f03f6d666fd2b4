"""Imports: arrows between packages, no circles among files, few that know Hydra, none for its side effects."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.fixtures.sources import FILES, INITS, PACKAGES, ROOT, name, package_of, tree

ENVS_MAY_IMPORT = ("marl.core", "marl.native")  # of marl: errors, seeds, files, devices, kinds; compiled code
HYDRA = ("hydra", "omegaconf")
KNOW_HYDRA = {  # beside scripts: what composes and checks configurations, and what starts runs
    "marl/config/compose.py",
    "marl/config/hydra_errors.py",
    "marl/config/overrides.py",
    "marl/config/saved_config.py",
    "marl/launch/multirun.py",
    "marl/launch/new_run_directory.py",
    "marl/launch/run.py",
}
# A run has callbacks, and their hooks are handed the run: one of the two can only know the other's type.
KNOW_TYPES = {"marl/callbacks/base.py", "marl/callbacks/early_stopping.py"}


def module(path: Path) -> str:
    """The dotted name of a file; a package's is that of its `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def type_imports(path: Path) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which is never run."""
    branches = [node for node in ast.walk(tree(path)) if isinstance(node, ast.If)]
    types = [part for node in branches if ast.unparse(node.test).endswith("TYPE_CHECKING") for part in node.body]
    return {each for part in types for each in ast.walk(part)}


def imports(path: Path, types: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, anywhere in it: `from a import b` is a.b.

    types: with what is imported for type checkers only.
    """
    left_out = set() if types else type_imports(path)
    for node in ast.walk(tree(path)):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module(path).split(".")
                parts = parts if path.name == "__init__.py" else parts[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def ours(path: Path, imported: str) -> str | None:
    """The module of this tree that a dotted name means for a file; None: another library's.

    Scripts import one another from their own folder: `train` is scripts/train.py there.
    """
    places = [imported, f"scripts.{imported}"] if package_of(path) == "scripts" else [imported]
    for place in places:
        parts = place.split(".")
        for end in range(len(parts), 0, -1):
            if (module := ".".join(parts[:end])) in MODULES:
                return module
    return None


@cache
def arrows(path: Path, types: bool = True) -> dict[str, int]:
    """{module of this tree: line} of what a file imports.

    An import runs the `__init__.py` of every package above the module too; those above the file itself run before it.
    """
    lines: dict[str, int] = {}
    for line, imported in imports(path, types):
        target = ours(path, imported)
        if target is None:
            continue
        parts = target.split(".")
        above = [".".join(parts[:end]) for end in range(1, len(parts))]
        for each in [target, *(p for p in above if p in MODULES and not f"{module(path)}.".startswith(f"{p}."))]:
            if each != module(path):
                lines.setdefault(each, line)
    return lines


def components(graph: dict[str, list[str]]) -> list[list[str]]:
    """The strongly connected components with more than one node (Tarjan 1972), without recursion."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    waiting: set[str] = set()
    circles = []
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(graph[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        waiting.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    waiting.add(target)
                    work.append((target, iter(graph[target])))
                    break
                if target in waiting:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    first = stack.index(node)
                    component, stack[first:] = stack[first:], []
                    waiting.difference_update(component)
                    if len(component) > 1:
                        circles.append(sorted(component))
    return circles


def circle_within(component: list[str], graph: dict[str, list[str]]) -> list[str]:
    """A shortest way from the first module of a component back to it."""
    ways = {component[0]: [component[0]]}
    queue = [component[0]]
    for node in queue:
        for target in graph[node]:
            if target == component[0]:
                return [*ways[node], target]
            if target in component and target not in ways:
                ways[target] = [*ways[node], target]
                queue.append(target)
    raise AssertionError("no circle: this is no component")


def test_the_graph_sees_what_it_should() -> None:
    """A walk that finds nothing passes everything."""
    edges = {module(path): set(arrows(path)) for path in FILES}
    assert sum(map(len, edges.values())) > 3 * len(FILES)
    assert {target.split(".")[0] for targets in edges.values() for target in targets} == set(PACKAGES)
    assert "scripts.train" in edges["scripts.tune"]
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": []}
    assert components(graph) == [["a", "b", "c"]] and circle_within(["a", "b", "c"], graph) == ["a", "b", "c", "a"]


def test_arrows_point_one_way() -> None:
    wrong = []
    for path in FILES:
        allowed = PACKAGES[PACKAGES.index(package_of(path)) :]
        for target, line in arrows(path).items():
            other, where = target.split(".")[0], f"{name(path)}:{line} imports {target}"
            if other not in allowed:
                wrong.append(f"{where}: {package_of(path)} may import {', '.join(allowed)} only")
            elif package_of(path) == "envs" and other == "marl" and target != "marl":  # which is only run on the way
                if not f"{target}.".startswith(tuple(f"{each}." for each in ENVS_MAY_IMPORT)):
                    wrong.append(f"{where}: of marl, envs may import {' and '.join(ENVS_MAY_IMPORT)} only")
    assert not wrong, "arrows point scripts -> agents -> envs -> marl:\n" + "\n".join(wrong)


def test_few_files_know_hydra() -> None:
    libraries = [path for path in FILES if package_of(path) != "scripts"]
    know = {name(path) for path in libraries if any(each.split(".")[0] in HYDRA for _, each in imports(path))}
    assert know == KNOW_HYDRA


def test_no_circle_among_files() -> None:
    lines = {module(path): arrows(path, types=False) for path in FILES}
    graph = {name: list(targets) for name, targets in lines.items()}
    ways = []
    for component in components(graph):
        circle = circle_within(component, graph)
        steps = [f"{a} (line {lines[a][b]}) -> {b}" for a, b in zip(circle, circle[1:], strict=False)]
        ways.append(f"{len(component)} files are in circles, one of which is {', '.join(steps)}")
    assert not ways, "files import one another in a circle:\n" + "\n".join(ways)


def test_few_files_import_for_types_only() -> None:
    """Such an import hides a circle from the test above, so each is named."""
    assert {name(path) for path in FILES if type_imports(path)} == KNOW_TYPES


def used(path: Path) -> set[str]:
    """Names and dotted names that a file reads, also in quoted annotations; of an `__init__.py` what it hands on."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", dotted := ast.unparse(node)):
            names.add(dotted)
        for field in ("annotation", "returns"):
            for part in ast.walk(getattr(node, field, None) or ast.Module([], [])):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    names |= set(re.findall(r"\w+", part.value))
        if path.name == "__init__.py" and isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


def probes(path: Path) -> set[ast.AST]:
    """Imports whose failure is caught: they ask whether a package is installed."""
    nodes: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            if "ImportError" in caught or "ModuleNotFoundError" in caught:
                nodes |= {each for part in node.body for each in ast.walk(part)}
    return nodes


def test_nothing_is_imported_for_its_side_effects() -> None:
    unused = []
    for path in FILES:
        names, probed = used(path), probes(path)
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Import | ast.ImportFrom) or getattr(node, "module", "") == "__future__":
                continue
            for alias in node.names:
                dotted = isinstance(node, ast.Import) and not alias.asname
                bound = alias.name if dotted else alias.asname or alias.name
                if bound not in names and node not in probed:
                    unused.append(f"{name(path)}:{node.lineno} imports {alias.name}")
    assert not unused, "imported and never used; say what is wanted by a call:\n" + "\n".join(unused)


def test_packages_do_nothing_when_they_are_imported() -> None:
    active = []
    for path in INITS:
        for node in tree(path).body[1:]:
            harmless = isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
            # The environment's variable must be set before torch is loaded, by any module.
            if not harmless and not ast.unparse(node).startswith("os.environ.setdefault("):
                active.append(f"{name(path)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not active, "a package acts when it is imported:\n" + "\n".join(active)
