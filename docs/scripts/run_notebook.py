"""Runs docs/quickstart.ipynb and writes its outputs into it: python docs/scripts/run_notebook.py

They are what the docs site shows; run it where code that the notebook calls has changed what comes out. The tests run
the notebook with fewer frames, and compare.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "quickstart.ipynb"


def execute(path: Path, folder: Path, **parameters: Any) -> nbformat.NotebookNode:
    """The notebook at `path` after it ran in `folder`; CellExecutionError where a cell fails.

    parameters: variables that are set again after the cell whose tag is `parameters`.
    """
    notebook = nbformat.read(path, as_version=4)
    ours = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    for cell, source in [(cell, cell.source) for cell in ours] if parameters else ():
        cell.source = "\n".join([source, *(f"{name} = {value!r}" for name, value in parameters.items())])
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Run it as it stands, and keep what comes out."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(NOTEBOOK, Path(folder))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    main()
