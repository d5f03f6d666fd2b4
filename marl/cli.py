"""What every script does around its work: help, a user's own modules, mistakes in one sentence, exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from marl.errors import Diverged, LostProcess, Stopped, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
DISK += (errno.EEXIST,)
WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"}
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


def main(document: str, job: Callable[[list[str]], Any], *errors: type[Exception]) -> None:
    """A script that works on finished runs: `job(arguments)`, or `document` where help or nothing is asked for."""
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) == 1:
        print(document)
        sys.exit(0)
    find_user_modules()
    with guard(*errors):
        job(sys.argv[1:])


def find_user_modules() -> None:
    """A user's own classes are named from the directory they work in."""
    sys.path.insert(0, os.getcwd())


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags, with their values, before the overrides: among them it takes none of what comes after."""
    flags, overrides, left = [], [], iter(arguments)
    for argument in left:
        if argument in WITH_VALUE:
            flags += [argument, *islice(left, 1)]
        else:
            (flags if argument.startswith("-") else overrides).append(argument)
    return flags + overrides


@contextmanager
def guard(*errors: type[Exception]) -> Iterator[None]:
    """Turn what ends a run into `error: …` on stderr and an exit code (`marl.errors`); a user's mistake has 2.

    HYDRA_FULL_ERROR=1 adds the traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; resume=RUN_DIR continues from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except (UserError, Diverged, LostProcess, *errors) as error:
        if FULL_ERROR or any(a.startswith("debug=") for a in sys.argv):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        told = f"cannot write {error.filename or 'a file'}: {error.strerror}; earlier checkpoints are untouched"
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(2) from None
