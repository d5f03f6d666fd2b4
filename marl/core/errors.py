"""What ends a run: a user's mistake, divergence, a lost process, a signal; each with the exit code of its script."""

import difflib
import signal
from collections.abc import Iterable

LONGEST = 1500  # characters of a message: what it quotes may be a whole file


class UserError(ValueError):
    """A user's mistake, told in one sentence that names the key, its value and what is allowed; scripts exit 2."""

    exit_code = 2


class Unusable(UserError):
    """A file that is not used though nothing is wrong with it: of another format, or out of reach at the moment.

    It is refused by name; a damaged one would be set aside, and an older one used.
    """


class Damaged(UserError):
    """A file that does not hold what files of its kind hold."""


class Diverged(RuntimeError):
    """A loss or gradient that is not finite; scripts print the sentence and exit 3."""

    exit_code = 3


class NonFinite(RuntimeError):
    """A task met a number that is not finite and can't go on; the text says which, whose and where.

    The engine makes it a Diverged, or goes back to the last checkpoint (`marl.engine.recovery`).
    """


class CannotCompile(RuntimeError):
    """What can't become a compiled library or a kernel; the message is one sentence that says why."""


class LostProcess(RuntimeError):
    """Another process of a distributed run is gone or does not answer; scripts print the sentence and exit 4."""

    exit_code = 4


class Stopped(Exception):
    """A signal ended the run after a finished update and a checkpoint; scripts exit 128 + the signal's number."""

    def __init__(self, signum: int, iteration: int) -> None:
        name = signal.Signals(signum).name
        self.where = f"{name}: stopped after iteration {iteration}"
        super().__init__(f"{self.where}; resume=RUN_DIR continues from there")
        self.exit_code = 128 + signum


def one_line(text: object) -> str:
    """A message as one line of text: line breaks and other characters that a terminal acts on are escapes."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text).strip())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} … {line[-280:]}"


def closest(name: str, options: Iterable[str]) -> str:
    """A hint such as `; did you mean 'gamma'?` with up to three options near to `name`, or nothing."""
    name, options = str(name), [str(option) for option in options]
    matches = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if len(name) >= 3:  # people remember a part of a name: 'spread' for 'simple_spread'
        matches += [o for o in options if o not in matches and name.lower() in o.lower()]
    return f"; did you mean {' or '.join(repr(option) for option in matches[:3])}?" if matches else ""
