"""What every script does around its work: help, a user's own modules, mistakes in one sentence, exit codes."""

import errno
import os
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marl.core import terminal
from marl.core.errors import Diverged, LostProcess, Stopped, UserError, one_line
from marl.core.imports import find_user_modules
from marl.core.zoo import index as zoo

DISK = (errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
DISK += (errno.ENAMETOOLONG, errno.ELOOP)
WRONG_KIND = {errno.EEXIST: "it is a file, not a folder", errno.EISDIR: "it is a folder, not a file"}
DISK += tuple(WRONG_KIND)
SAME_COMMAND = "the same command continues"  # of sweeps and studies
RESUME = "resume=RUN_DIR continues from the last checkpoint"
WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p", "--cfg", "-c",
              "--experimental-rerun"}  # fmt: skip
INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}  # what `--info` may be followed by
SMALLER = "smaller networks (network.…), minibatches or rollouts, or fewer environments (env.num_envs) need less"
Job = Callable[[Any, Path], Any]  # a configuration and a run directory → the metric of the run
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"


def main(document: str | None, job: Callable[[list[str]], Any], again: str = "") -> None:
    """A script that works on finished runs: `job(arguments)`, or `document` where help or nothing is asked for."""
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) == 1:
        print(terminal.fit(document or ""))
        sys.exit(0)
    find_user_modules()
    with guard(again):
        job(zoo.taken(sys.argv[1:]))


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags, with their values, before the overrides: among them it takes none of what comes after.

    Raises UserError for a flag without its value, which would take an override for it, and for one of several lines.
    """
    flags, overrides, left = [], [], deque(arguments)
    while left:
        argument = left.popleft()
        if argument in WITH_VALUE:
            if not left:
                raise UserError(f"{argument}: needs a value after it")
            flags += [argument, left.popleft()]
        elif argument in ("-i", "--info"):
            flags.append(f"--info={left.popleft() if left and left[0] in INFO else 'all'}")
        elif not argument.startswith("-"):
            overrides.append(argument)
        elif argument.isprintable():
            flags.append(argument)
        else:
            raise UserError(f"cannot read {argument!r}: write key=value, with quotes around special characters")
    return flags + overrides


@contextmanager
def guard(again: str = "") -> Iterator[None]:
    """Turn what ends a run into `error: …` on stderr and an exit code (`marl.core.errors`); a user's mistake has 2.

    HYDRA_FULL_ERROR=1 adds the traceback.

    Args:
        again: what continues the work after a signal, of scripts that train.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("; ".join(filter(None, ["interrupted", again])), file=sys.stderr)
        raise SystemExit(130) from None
    except Stopped as stopped:
        print(f"{stopped.where}; {again}" if again else stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except (UserError, Diverged, LostProcess) as error:
        if FULL_ERROR or any(a.startswith("debug=") for a in sys.argv):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    except (MemoryError, RuntimeError) as error:
        shortage = out_of_memory(error)
        if shortage is None:
            raise
        print(f"error: {shortage}; {SMALLER}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename2 or error.filename or "a file"  # the second is where a finished file was to go
        message = f"cannot write {place}: {WRONG_KIND.get(error.errno or 0, error.strerror)}"
        message += "; earlier checkpoints are untouched" if again == RESUME else ""
        print(f"error: {one_line(message)}", file=sys.stderr)
        raise SystemExit(2) from None


def out_of_memory(error: BaseException) -> str | None:
    """What an allocation that failed asked for, in words; None where the error is another."""
    message = str(error)
    size = re.search(r"(?:allocate|Tried to allocate) ([\d.]+ ?\w+)", message)
    torch = sys.modules.get("torch")  # scripts that read results do without its 120 MB
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    if isinstance(error, kinds) or "can't allocate memory" in message:
        return f"not enough memory{f' for {size[1]} at once' if size else ''}"
    if "Storage size calculation overflowed" in message or "invalid storage size" in message.lower():
        return "not enough memory for a tensor of such a size"
    return None
