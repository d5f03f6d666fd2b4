"""What a command did, and whether it behaved: no traceback, no signal, exit code 0, 2 or 3, one sentence with 2."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

ALLOWED = (0, 2, 3)
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Outcome:
    """How one command ended. code: negative for a signal, None where it gave no answer in time."""

    command: list[str]
    code: int | None
    out: str
    err: str
    seconds: float = 0.0
    where: str = ""

    def fault(self) -> str | None:
        """What is wrong with it, in a line; None where nothing is."""
        if self.code is None:
            return f"no answer in {self.seconds:.0f} s"
        if self.code < 0:
            return f"signal {-self.code}"
        debugging = self.code == 2 and any(text.startswith("debug=") for text in self.command)  # shows it on purpose
        for text in (self.err, self.out):
            if TRACEBACK in text and not debugging:
                return f"traceback (exit code {self.code}): {last_of_traceback(text)}"
        if self.code not in ALLOWED:
            return f"exit code {self.code}: {last_line(self.err or self.out)}"
        if self.code == 2:
            lines = [line for line in self.err.splitlines() if line.strip()]
            sentences = [i for i, line in enumerate(lines) if re.match(r"(\S+: )?error: ", line)]
            if len(sentences) != 1 or sentences[0] != len(lines) - 1:
                return f"exit code 2 without one sentence at the end: {last_line(self.err)!r}"
        return None

    def shown(self) -> str:
        """The command, for a shell."""
        text = shlex.join(self.command)
        return text if len(text) < 400 else f"{text[:300]} … ({len(text)} characters)"


def last_line(text: str) -> str:
    """The last line that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def last_of_traceback(text: str) -> str:
    """The exception and where it was raised."""
    block = text[text.rindex(TRACEBACK) :].splitlines()
    places = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text[text.rindex(TRACEBACK) :])
    raised = next((line for line in block[1:] if line and not line[0].isspace()), "")
    ours = [p for p in places if "site-packages" not in p[0] and "/lib/python" not in p[0]] or places
    path, line, function = ours[-1] if ours else ("", "", "")
    return f"{raised[:200]} ({path.rsplit('/', 3)[-1] if '/' in path else path}:{line} in {function})"
