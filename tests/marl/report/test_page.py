"""The report as a reader gets it: files on disk, and the page in a real browser without a network."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from marl.core.look.tokens import SERIES
from marl.report import page
from marl.report.compare import Comparison
from marl.report.find import find
from tests.marl.report.helpers import write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A report on two algorithms, two tasks, two seeds."""
    folder = tmp_path_factory.mktemp("page")
    for i, (critic, task) in enumerate((c, t) for c in ("concat", "local") for t in ("balance", "navigation")):
        for seed in (0, 1):
            values = [0, 10 + i + seed, 20 - i + 3 * seed]
            agents = {"agent_0": values, "agent_1": [2 * v for v in values]}
            place = folder / "runs" / f"{critic}_{task}_{seed}"
            write_run(place, values, seed=seed, critic=critic, scenario=task, agents=agents)
    runs, _ = find([folder / "runs"])
    page.write(folder / "out", "A & B <report>", Comparison(runs, reps=200), ["x: unfinished"])
    return folder / "out"


def test_figures_and_tables_come_in_every_format(out: Path) -> None:
    names = {"aggregates", "profiles", "improvement", "sample_efficiency"}
    names |= {f"{kind}_{task}" for kind in ("curves", "agents") for task in ("balance", "navigation")}
    assert {path.name for path in (out / "figures").iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "pdf")}
    assert all((out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in names)
    assert all((out / "figures" / f"{name}.pdf").read_bytes()[:5] == b"%PDF-" for name in names)
    tables = {"scores", "aggregates", "improvement", "sample_efficiency", "agents", "limits"}
    files = {path.name for path in (out / "tables").iterdir()}
    assert files == {f"{table}.{ending}" for table in tables for ending in ("md", "tex", "csv")}
    text = (out / "report.md").read_text()
    pictures = re.findall(r"!\[\w+\]\((figures/\w+\.png)\)", text)
    assert len(pictures) == len(names) and all((out / picture).is_file() for picture in pictures)
    assert "Left out: x: unfinished." in text and "Fewer than 5 runs" in text


def test_the_page_opens_without_a_network_and_sorts_its_tables(out: Path, browser) -> None:
    browser.open(out / "report.html")
    assert browser.run("return document.title") == "A & B <report>"
    figures = "const all = [...document.querySelectorAll('figure svg')];"
    drawn = "all.every((f) => f.getBoundingClientRect().width > 100 && f.querySelectorAll('text').length > 3)"
    assert browser.wait(f"{figures} return {drawn} && all.length") == 8
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids)) > 100
    empty = "const named = [...document.querySelectorAll('use, [clip-path]')]; return named.filter((e) => !document" \
        ".querySelector(e.getAttribute('xlink:href') || e.getAttribute('clip-path').slice(4, -1))).length"  # fmt: skip
    assert browser.run(empty) == 0
    headings = browser.run("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings[0] == "Learning curves" and "Probability of improvement" in headings
    column = "return [...document.querySelector('table').tBodies[0].rows].map(r => r.cells[2].textContent)"
    before = browser.run(column)
    browser.run("document.querySelectorAll('table')[0].querySelectorAll('th')[2].click()")
    numbers = [float(cell.split(" ")[0]) for cell in browser.run(column)]
    assert numbers == sorted(numbers) and len(before) == 4
    browser.run("document.querySelectorAll('table')[0].querySelectorAll('th')[2].click()")
    assert [float(cell.split(" ")[0]) for cell in browser.run(column)] == numbers[::-1]
    assert browser.errors() == [] and browser.requests() == []


def test_texts_of_figures_stay_texts() -> None:
    """A figure is a part of the page, and names in it come from files of others."""
    figure = Figure()
    figure.subplots().set_title('</text><script>alert(1)</script><b>&</b> run (#2), "#3"', color=SERIES[1])
    text = page._image("one", figure)
    assert 'run (#2), "#3"' in html.unescape(text)
    assert "&lt;script&gt;" in text and "<script" not in text and "<b>" not in text
    assert "var(--series-1)" in text and SERIES[1] not in text and 'id="one-' in text


def test_figures_have_room_for_long_names(tmp_path: Path, recwarn) -> None:
    for value in (1, 2):
        write_run(tmp_path / str(value), [0, value], a_name_of_some_length=value, another_name_of_some_length=value)
    runs, _ = find([tmp_path])
    page.write(tmp_path / "out", "Long", Comparison(runs, reps=100))
    assert [str(warning.message) for warning in recwarn if "layout" in str(warning.message)] == []


SIZED = r"""
import re, runpy, sys
sys.argv = ["report.py", *sys.argv[1:]]
try:
    runpy.run_path("scripts/report.py", run_name="__main__")
finally:
    peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]  # unlike ru_maxrss, since exec
    print(int(peak) // 1024, "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_report_on_many_runs_takes_little_memory(tmp_path: Path) -> None:
    """160 runs of one algorithm and task are resampled together: 1,333 MB where a whole curve was held at a time."""
    for seed in range(160):
        values = [float(i + seed % 7) for i in range(50)]
        write_run(tmp_path / "runs" / f"{seed}", values, seed=seed)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", SIZED, str(tmp_path / "runs"), f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    megabytes, torch = done.stdout.split()[-2:]
    assert int(megabytes) < 300 and torch == "False"
