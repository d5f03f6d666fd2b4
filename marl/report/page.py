"""A report's pages: one self-contained HTML file (no network, no other files) and the same in Markdown."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from marl.core.look import tokens
from marl.report import figures, tables
from marl.report.compare import Comparison
from marl.report.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")
DRAWN = {  # a figure's colours, and the page's variables in their place
    **{tokens.LIGHT[name]: name for name in ("text", "soft", "card", "line", "edge", "ink")},
    **{colour: f"series-{i}" for i, colour in enumerate(tokens.SERIES)},
}
SECTIONS = {  # figures and tables by the beginnings of their names, in reading order
    "Learning curves": ("curves_", "Interquartile mean over runs, with 95 % bands of the stratified bootstrap."),
    "Scores": ("scores", ""),
    "Aggregates": ("aggregates", ""),
    "Performance profiles": ("profiles", "The further right and up, the better; where lines cross neither dominates."),
    "Probability of improvement": ("improvement", "An interval that holds 0.5 does not tell the two apart."),
    "Sample efficiency": ("sample_efficiency", "Normalised score over all tasks while training."),
    "Groups and agents": ("agents", "Not drawn where all agents get the same."),
}


def facts(comparison: Comparison, left_out: Sequence[str]) -> list[str]:
    """What a reader has to know of the comparison, in sentences."""
    sentences = [
        f"{len(comparison.runs)} runs: {len(comparison.algorithms)} algorithms ({', '.join(comparison.algorithms)}) "
        f"on {len(comparison.tasks)} tasks ({', '.join(comparison.tasks)}).",
        {
            "final": "A run's score is its last evaluation.",
            "best": "A run's score is its best evaluation, which flatters it: it is chosen after the fact.",
            "absolute": "A run's score is its absolute metric: the best checkpoint, fresh episodes.",
        }[comparison.which],
        f"Intervals: 95 %, percentiles of a stratified bootstrap over runs ({comparison.reps} resamples or more). "
        "They tell of other seeds, not of other tasks.",
    ]
    few = sorted({f"{a} on {t}" for (a, t), runs in comparison.groups.items() if len(runs) < 5})
    if few:
        sentences.append(f"Fewer than 5 runs, so that intervals are rough and too narrow: {', '.join(few)}.")
    apart = [a for a in comparison.algorithms if a not in comparison.complete]
    if apart:
        names = ", ".join(apart)
        sentences.append(f"Left out of what is said over all tasks, since they did not run on each: {names}.")
    variants = {f"{run.algorithm} on {run.task}": run.variant for run in comparison.runs if run.variant}
    sentences += [f"{name}: {variant[:500]}." for name, variant in variants.items()]
    return sentences + [f"Left out: {sentence}." for sentence in left_out]


def html(title: str, sentences: Sequence[str], drawn: Mapping[str, Figure], content: Mapping[str, Table]) -> str:
    """The page."""
    body = ["<ul>", *(f"<li>{escape(sentence)}</li>" for sentence in sentences), "</ul>"]
    for heading, (start, hint) in SECTIONS.items():
        images = [_image(name, figure) for name, figure in drawn.items() if name.startswith(start)]
        grids = [_grid(table) for name, table in content.items() if name.startswith(start)]
        if images or grids:
            body += [f"<h2>{escape(heading)}</h2>", f"<p>{escape(hint)}</p>" if hint else "", *images, *grids]
    body += ["<h2>Normalisation</h2>", _grid(content["limits"])]
    page = TEMPLATE.read_text().replace("{{style}}", tokens.style())
    return page.replace("{{title}}", escape(title)).replace("{{body}}", "\n".join(body))


def _image(name: str, figure: Figure) -> str:
    """The figure as a part of the page: in its colours, light or dark, and with its text as text."""
    text = figures.svg(figure).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)  # a page has many figures, and each name once
    for colour, variable in DRAWN.items():
        text = text.replace(colour, f"var(--{variable})")
    alt = escape(name.replace("_", " "))
    points = float(re.search(r'width="([\d.]+)pt"', text)[1])
    least = 0.8 * points  # smaller is not readable: on a phone it scrolls
    text = text.replace("<svg", f'<svg role="img" aria-label="{alt}" style="min-width: {least:.0f}pt"', 1)
    return f"<figure>{_region(alt, text)}<figcaption>{alt}</figcaption></figure>"


def _region(label: str, inside: str) -> str:
    """What scrolls in itself where it is too wide, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def _grid(table: Table) -> str:
    head = "".join(f'<th scope="col"><button>{escape(column)}</button></th>' for column in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        best = [" class=best" if (i, j) in table.best else "" for j in range(len(row))]
        cells = "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(best, row, strict=True))
        rows.append(f"<tr>{cells}</tr>")
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    caption = escape(table.caption)
    return f'<p class="hint soft">{caption}</p>' + _region(caption, f"<table>{inside}</table>")


def markdown(title: str, sentences: Sequence[str], drawn: Mapping[str, Figure], content: Mapping[str, Table]) -> str:
    """The same for a repository or a wiki; figures lie in `figures/`."""
    lines = [f"# {title}", "", *(f"- {sentence}" for sentence in sentences), ""]
    for heading, (start, hint) in {**SECTIONS, "Normalisation": ("limits", "")}.items():
        images = [f"![{name}](figures/{name}.png)\n" for name in drawn if name.startswith(start)]
        grids = [f"{table.caption}\n\n{table.markdown()}" for name, table in content.items() if name.startswith(start)]
        if images or grids:
            lines += [f"## {heading}", "", *([hint, ""] if hint else []), *images, *grids]
    return "\n".join(lines)


def write(out: Path, title: str, comparison: Comparison, left_out: Sequence[str] = ()) -> list[Path]:
    """Write report.html, report.md, figures/*.png and *.pdf, tables/*.md, *.tex and *.csv; returns what was written."""
    drawn = figures.draw(comparison)
    content = {**tables.make(comparison), "limits": tables.limits(comparison)}
    sentences = facts(comparison, left_out)
    written = {
        "report.html": html(title, sentences, drawn, content),
        "report.md": markdown(title, sentences, drawn, content),
    }
    for name, table in content.items():
        for ending, text in (("md", table.markdown()), ("tex", table.latex()), ("csv", table.csv())):
            written[f"tables/{name}.{ending}"] = text
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (out / name).write_text(text)
    for name, figure in drawn.items():
        figures.save(figure, out / "figures", name)
    return [out / name for name in written] + sorted((out / "figures").iterdir())
