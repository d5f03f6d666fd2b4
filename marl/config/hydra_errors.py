"""What Hydra and OmegaConf complain about, as a user's mistake in one sentence."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from marl.config.conf_tree import CONF
from marl.config.overrides import nearest
from marl.core.errors import UserError, closest

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


@contextmanager
def translate_hydra_errors(composing: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn complaints of Hydra and OmegaConf into UserErrors.

    While `composing()` all that they raise is one: Hydra checks little of a command line, and ends with ValueErrors,
    TypeErrors and failed assertions of its own where an override is of a wrong kind.
    """
    try:
        yield
    except HYDRA_ERRORS as error:
        raise UserError(format_error(error)) from error
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError) or not composing():
            raise
        why = format_error(error) or type(error).__name__
        raise UserError(f"cannot compose a configuration from {shlex.join(sys.argv[1:])}: {why}") from error


def format_error(error: Exception) -> str:
    """What Hydra or OmegaConf complains about, in one sentence with the closest names."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").partition("/")
        if group == "hydra":
            kind, _, name = option.rpartition("/")
            known = error.options or ()
            more = "; others need pip install -e '.[sweep]'" if kind == "launcher" and "joblib" not in known else ""
            return f"hydra/{kind}={name}: no such option{closest(name, known) or more} (there are {', '.join(known)})"
        return nearest(group, option)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, with quotes around special characters"
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: a value is required; give {cause.full_key}=…"
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
            names = [str(key) for key in cause.parent_node if str(key)[0] != "_" and key != "hydra"]
            if not names and str(cause.full_key).startswith("hydra.launcher."):
                return f"unknown key '{cause.full_key}': this launcher has none; hydra/launcher=joblib has n_jobs"
            if cause.parent_node._get_parent() is None:
                names += [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in names]
            hint = closest(cause.key, names) or f"; '+{cause.full_key}=…' adds a key"
            return f"unknown key '{cause.full_key}'{hint} (there are {', '.join(names)})"
    there = re.search(r"Could not append to config. An item is already at '([^']+)'", str(causes[-1]) + str(error))
    if there:
        return f"+{there[1]}=…: this key is there already; write {there[1]}=… without the '+'"
    text = ": ".join(dict.fromkeys(str(cause).strip().splitlines()[0] for cause in causes if str(cause).strip()))
    return f"{text}; -m runs one job per value, key=[a,b] is a list" if text.startswith("Ambiguous value") else text
