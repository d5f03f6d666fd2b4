"""What was checked and measured on a GPU, as one Markdown table, and its place on a page."""

from pathlib import Path

from bench import report
from bench.gpu.parts import FAILED, LEFT, NONE, PASSED

BEGIN, END = "<!-- gpu check: begin -->", "<!-- gpu check: end -->"
HEAD = ["part", "what", "outcome", "ours", "beside it", "ratio", "more"]
SHOWN = {PASSED: "passed", FAILED: "**failed**", NONE: "none", LEFT: "left out"}
KNOWN = {"key", "name", "item", "peer", "unit", "rounds", "ours", "theirs", "ratio", "low", "high", "path", "value",
         "about", "report", "left", "outcome", "said", "replays"}  # fmt: skip


def counts(results: dict) -> dict[str, int]:
    """How many rows have which outcome."""
    outcomes = [row["outcome"] for part in results["parts"].values() for row in part["rows"] if "outcome" in row]
    return {name: outcomes.count(name) for name in SHOWN}


def line(part: str, row: dict) -> list[str]:
    """One line of the table."""
    more = [row["said"]] if row.get("said") else []
    more += [f"path: {row['path']}"] if row.get("path") else []
    more += [f"{name.replace('_', ' ')} {report.number(value)}" for name, value in row.items()
             if name not in KNOWN and isinstance(value, int | float)]  # fmt: skip
    cells = [part, row["name"], SHOWN.get(row.get("outcome", ""), "")]
    if "ratio" in row:
        spread = f" ({report.spread(row)})" if row["rounds"] > 1 else ""
        cells += [f"{report.number(row['ours'])} {row['unit']}", f"{row['peer']}: {report.number(row['theirs'])}",
                  f"{report.number(row['ratio'])}×{spread}"]  # fmt: skip
    elif "value" in row:
        cells += [f"{report.number(row['value'])} {row['unit']}", "", ""]
    else:
        cells += ["", "", ""]
    return [cell.replace("|", "/") for cell in [*cells, ", ".join(more)]]


def summary(results: dict) -> str:
    """How many checks passed, in one line."""
    found = counts(results)
    return (f"{found[PASSED]} checks passed, {found[FAILED]} failed, {found[NONE]} had nothing to check, parts cut "
            f"short: {found[LEFT]}; {results['seconds']:.0f} s.")  # fmt: skip


def markdown(results: dict) -> str:
    """The whole: command, machine, the summary, and one table."""
    about = results["machine"]
    card = [about[name] for name in ("gpu", "capability", "memory_gb", "cuda") if name in about]
    more = f"Compute capability {card[1]}, {card[2]} GB, CUDA {card[3]}." if len(card) == 4 else ""
    lines = [line(name, row) for name, part in results["parts"].items() for row in part["rows"]]
    parts = [f"`{results['command']}`", f"{report.machine_line(about)} {more}".strip(), summary(results)]
    return "\n\n".join([*parts, report.table(HEAD, lines)])


def check_page(path: Path) -> str:
    """Why the table cannot be put on a page, in one sentence, or ""."""
    if not path.is_file():
        return f"--write {path}: there is no such file"
    page = path.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        return f"--write {path}: needs one line {BEGIN} and one line {END}"
    return ""


def write(path: Path, text: str) -> None:
    """Put `text` between the markers of a page."""
    report.write(path, text, BEGIN, END)
