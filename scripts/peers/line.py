"""How the benchmark talks to a side it measures: one JSON line in, one out; nothing but Python's own."""

import json
import os
import sys
from collections.abc import Iterator


class Line:
    """The answering end. Standard output carries answers only: whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer) -> None:
        """Answer; the first message says that the side is ready."""
        self.out.write(json.dumps(answer) + "\n")
        self.out.flush()

    def commands(self) -> Iterator[dict]:
        """What is asked, one dict after the other, until the benchmark closes the line."""
        for text in iter(sys.stdin.readline, ""):
            yield json.loads(text)
