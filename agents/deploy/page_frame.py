"""A page inside a notebook: in a frame below the cell, without a server that would have to find the file."""

import html
from pathlib import Path

from marl.core.errors import UserError
from marl.core.look.tokens import LIGHT


class PageFrame:
    """A page as notebooks show it; its text is a part of the notebook from then on.

    `IPython.display.IFrame` would name the file, which VS Code, Colab and a web site of the notebook don't find.
    """

    def __init__(self, path: Path, height: int):
        self.path, self.height, self.text = path, height, path.read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"{self.path}: open it in a browser"

    def _repr_html_(self) -> str:
        """What a notebook asks of the object that it shows."""
        style = f"width: 100%; height: {self.height}px; border: 1px solid {LIGHT['edge']}; border-radius: 4px"
        title, inside = html.escape(self.path.name), html.escape(self.text)
        # A page may come from anyone: within the sandbox its scripts reach neither the notebook nor its server.
        may = "allow-scripts allow-downloads"
        return f'<iframe title="{title}" style="{style}" sandbox="{may}" srcdoc="{inside}"></iframe>'


def show_page(path: str | Path, height: int = 760) -> PageFrame:
    """Show an HTML file in a notebook; this call is to be the last line of a cell.

    Args:
        path: the file, such as `live_page` and `replay_page` return.
        height: of the frame, CSS pixels.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return PageFrame(path, height)
