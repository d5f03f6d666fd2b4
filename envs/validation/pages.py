"""Rows of a Markdown table on a page, replaced by the names in their first column."""

from collections.abc import Callable


def replace_rows(page: str, table: str, merge: Callable[[list[str], list[str]], list[str]] | None = None) -> str:
    """The page with the rows of `table` in its own table of that heading, in the order of their names.

    merge: (cells on the page, new cells) -> cells, of rows that the page has already.

    Raises:
        ValueError: the page has no table with that heading.
    """
    heading, _, *new = table.splitlines()
    lines = page.split("\n")
    if heading not in lines:
        raise ValueError(f"the page has no table with the heading {heading}")
    start = lines.index(heading) + 2
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    rows = {cells(line)[0]: line for line in lines[start:end]}
    for line in new:
        name, *_ = found = cells(line)
        if merge and name in rows:
            line = "| " + " | ".join(merge(cells(rows[name]), found)) + " |"
        rows[name] = line
    return "\n".join([*lines[:start], *(rows[name] for name in sorted(rows)), *lines[end:]])


def cells(line: str) -> list[str]:
    """What stands in a row of a table."""
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
