"""Where code comes from: what dotted paths name, never in a foreign run, and the checkout that this program is of."""

import filecmp
import importlib
import importlib.util
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from marl.core.errors import UserError, closest
from marl.core.moved import current

# Python's own modules hold nothing that a configuration may name, and some act when they are imported.
OWN_OF_PYTHON = frozenset(sys.stdlib_module_names)
INSTALLED = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
OF_A_RUN = ("checkpoints", "metrics.csv", "summary.json")
PACKAGES = Path(__file__).resolve().parents[2]
CODE = (".py", ".cpp", ".h", ".js")  # of the packages
INSTALL = "`pip install -e . -c constraints.txt`"


def checkout_of(script: str) -> Path | None:
    """The checkout, or unpacked source archive, that a file lies in; None: in none."""
    ours = Path(__file__).resolve().relative_to(PACKAGES)
    folders = Path(script).resolve().parents
    return next((folder for folder in folders if (folder / ours).is_file() and (folder / "conf").is_dir()), None)


def own_checkout(packages: Path = PACKAGES) -> Path:
    """The packages' own, else (`pip install .` copies packages only) that of the script that runs."""
    return packages if (packages / "conf").is_dir() else checkout_of(sys.argv[0] if sys.argv else "") or packages


CHECKOUT = own_checkout()  # conf/ and docs/zoo lie in it


def require_checkout(checkout: Path = CHECKOUT, packages: Path = PACKAGES) -> None:
    """Raises UserError where there is none, or one of other code than the packages that were installed from it."""
    if not (checkout / "conf").is_dir():
        raise UserError(
            f"{checkout / 'conf'}: is not there. It lies in the checkout or the unpacked source archive: run a script "
            f"that lies there, or install there with {INSTALL}"
        )
    if checkout == packages:
        return
    for name in ("marl", "agents", "envs"):
        for path in sorted(path for path in (checkout / name).rglob("*") if path.suffix in CODE and path.is_file()):
            copy = packages / path.relative_to(checkout)
            if not copy.is_file() or not filecmp.cmp(path, copy, shallow=False):
                raise UserError(
                    f"{copy}: is not what {path} is. The packages were installed as a copy, and the checkout has "
                    f"changed since: install again there, with {INSTALL} once and for all"
                )


def find_user_modules() -> None:
    """A user's own classes are named from the directory they work in.

    It comes last: no file that lies there takes the place of an installed package. A run directory is left out.
    """
    here = os.getcwd()
    if here not in sys.path and not is_run(Path(here)):
        sys.path.append(here)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: such folders are handed around, and nothing there is imported."""
    config = folder / "config.yaml"
    if not config.is_file() or not any((folder / name).exists() for name in OF_A_RUN):
        return False
    return b"_target_" in config.read_bytes()


def resolve(target: Any, key: str) -> Callable:
    """The class or function with a dotted path, importing what it needs.

    Raises:
        UserError: no such module or name, with the closest; a package that is not installed; a module of Python's own
            or one that lies in a run directory; or a module that fails while it is imported.
    """
    named = locate(target, key)
    if not callable(named):
        raise UserError(f"{key}={target}: must be a class or function, not a {type(named).__name__}")
    return named


def locate(target: Any, key: str) -> Any:
    """What a dotted path names, be it a module. Raises UserError as `resolve`."""
    parts = current(str(target)).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{key}={target}: must be a dotted path such as package.module.Class")
    named: Any = load(parts[0], key, target)
    for i, part in enumerate(parts[1:], 1):
        parent = named
        named = getattr(parent, part, None)
        package = sys.modules.get(".".join(parts[:i]), parent)  # an attribute may hide a module of the same name
        if named is None and hasattr(package, "__path__"):
            named = load(".".join(parts[: i + 1]), key, target)
        if named is None:
            where = ".".join(parts[:i])
            names = [n for n in dir(parent) if not n.startswith("_")]
            names += [m.name for m in pkgutil.iter_modules(getattr(package, "__path__", []))]
            raise UserError(f"{key}={target}: {where} has no '{part}'{closest(part, dict.fromkeys(names))}")
    return named


def module(name: str, key: str, target: Any) -> Any:
    """The module with a dotted name, its packages looked at first. Raises UserError as `resolve`."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        loaded = load(".".join(parts[:i]), key, target)
        if loaded is None:
            raise UserError(f"{key}={target}: there is no module {'.'.join(parts[:i])!r}")
    return loaded


def load(name: str, key: str, target: Any) -> Any:
    """The module `name`, looked at before it is run; None where its package is there and has no such module.

    Raises:
        UserError: as `resolve`, naming the `key` and its value `target`.
    """
    if name.partition(".")[0] in OWN_OF_PYTHON:
        message = "is Python's own; a configuration names classes of this framework, of torch and of your own modules"
        raise UserError(f"{key}={target}: {name.partition('.')[0]} {message}")
    if name in sys.modules:
        return sys.modules[name]
    try:
        _refuse_run(importlib.util.find_spec(name), key, target)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            if "." in name:
                return None
            hint = "install it, or run from its folder"
            raise UserError(f"{key}={target}: no module '{name}' ({hint})") from None
        raise UserError(f"{key}={target}: needs the package '{error.name}', which is not installed") from None
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise UserError(f"{key}={target}: importing '{name}' failed with {fault(error)}") from error


def _refuse_run(spec: Any, key: str, target: Any) -> None:
    """Raise UserError where a module lies in a run directory; what is installed is passed over."""
    if spec is None:
        return
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    for place in map(Path, places):
        if any(place.is_relative_to(installed) for installed in INSTALLED):
            continue
        for folder in (place.resolve(), *place.resolve().parents):
            if is_run(folder):
                message = "a run directory, from which nothing is imported; your own modules lie outside of runs"
                raise UserError(f"{key}={target}: {place} lies in {folder}, {message}")


def on_demand(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first asked for (PEP 562).

    So `from package import Name` is short, and `import package` loads nothing.

    Args:
        package: its `__name__`.
        homes: {name: module that defines it}.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


def fault(error: BaseException) -> str:
    """What other people's code raised, in one line: `NameError: name 'x' is not defined (scenario.py:3)`."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno}, {frames[-1].name})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:300]
    return f"{type(error).__name__}: {message or 'no message'}{place}"
