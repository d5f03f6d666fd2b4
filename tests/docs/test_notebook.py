"""The notebook: runs as it stands with few frames, and the outputs that are stored in it are those of a run."""

import importlib.util
import re
from pathlib import Path

import pytest

for needed in ("nbclient", "ipykernel"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[dev]'")

import nbformat  # noqa: E402 (nbclient brings it)

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
COLUMNS = 80  # of what a cell prints, and of its code on the site


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "docs" / "scripts" / "run_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(scope="module")
def executed(script, tmp_path_factory):
    """The notebook after a run of four iterations, in a folder of its own, with this tree's packages."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path_factory.mktemp("notebook")
    yield folder, script.execute(NOTEBOOK, folder, frames=12_000)
    patch.undo()


def outputs(notebook) -> list[list[tuple]]:
    """Of each cell of code the kinds of its outputs; of text, what stands around numbers, too."""
    return [[kind(each) for each in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]


def kind(output) -> tuple:
    if output.output_type == "stream":
        return output.name, re.sub(r"[-\d. \n]+", " ", output.text).split()
    return output.output_type, sorted(output.data)


def texts(notebook) -> list[str]:
    """What its cells print."""
    return [each.text for cell in notebook.cells for each in cell.get("outputs", ()) if each.output_type == "stream"]


def figure_of(text: str, name: str) -> float:
    """The number behind a name."""
    return float(re.search(rf"{name} +(-?[\d.]+)", text)[1])


def test_a_run_gives_what_is_stored(stored, executed):
    again = executed[1]
    assert [cell.source for cell in stored.cells if "parameters" not in cell.metadata.get("tags", ())] == [
        cell.source for cell in again.cells if "parameters" not in cell.metadata.get("tags", ())
    ]
    assert outputs(again) == outputs(stored)
    assert sum(map(len, outputs(stored))) == 6  # shapes, bar, curves, returns, page, actions
    assert not any(name == "stderr" for cell in outputs(again) for name, *_ in cell)


def test_its_run_is_a_run_like_any_other(executed):
    (run,) = executed[0].glob("outputs/quickstart/*")
    assert {"config.yaml", "metrics.csv", "summary.json", "live.html", "policy.safetensors"} <= {
        path.name for path in run.iterdir()
    }
    assert (run / "metrics.csv").read_text().splitlines()[-1].startswith("4,12000,")


def test_training_is_one_line_that_is_drawn_over(executed):
    (cell,) = [cell for cell in executed[1].cells if "train(" in cell.source]
    (bar,) = cell.outputs
    assert bar.data["text/html"].count("<progress") == 1 and 'value="4" max="4"' in bar.data["text/html"]
    assert "4/4" in bar.data["text/plain"] and "eval/episode_return" in bar.data["text/plain"]
    assert max(map(len, bar.data["text/plain"].splitlines())) <= COLUMNS


def test_what_is_stored_is_clean(stored):
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, from top to bottom
    assert set(stored.metadata) == {"kernelspec", "language_info"} and stored.metadata.kernelspec.name == "python3"
    assert all(set(cell.metadata) <= {"tags"} for cell in stored.cells)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|Traceback", NOTEBOOK.read_text())
    lines = [line for cell in code for line in cell.source.splitlines()]
    lines += [line for text in texts(stored) for line in text.splitlines()]
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_what_is_stored_is_a_team_that_learned(stored):
    (told,) = [text for text in texts(stored) if text.startswith("trained")]
    assert figure_of(told, "trained") > 40 > 0 > figure_of(told, "random actions")
    (page,) = [each.data["text/html"] for cell in stored.cells for each in cell.get("outputs", ())
               if "iframe" in each.get("data", {}).get("text/html", "")]  # fmt: skip
    assert "trained for 600,000 frames" in page and "srcdoc=" in page
