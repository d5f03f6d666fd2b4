"""Writes the gallery of the zoo, and the live pages that it links to.

    python docs/scripts/gallery.py [OUT.html] [zoo.url=FOLDER]

OUT.html is docs/zoo/gallery.html if left out. Each policy plays a few episodes, of which the middle one is shown.
"""

import sys
from pathlib import Path

from agents.deploy.gallery_page import gallery_page
from marl.core.zoo import index as zoo
from marl.launch import cli


def main(arguments: list[str]) -> None:
    """Write the page and say how large it is."""
    target = Path(*zoo.taken(arguments) or (zoo.OURS / "gallery.html",))
    names = gallery_page(target)
    print(f"{target}: {len(names)} policies, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv[1:])
