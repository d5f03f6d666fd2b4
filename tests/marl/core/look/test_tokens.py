"""The colours of pages and figures: told from each other in light and in dark, and in one place."""

import re
from pathlib import Path

import pytest

from marl.core.look.figures import FIGURES, style
from marl.core.look.tokens import DARK, DARK_SERIES, LIGHT, SERIES, contrast, luminance, variables

ROOT = Path(__file__).resolve().parents[4]
GROUNDS = ("page", "card", "track", "stage")
MODES = {"light": (LIGHT, SERIES), "dark": (DARK, DARK_SERIES)}


def test_contrast_is_wcags() -> None:
    assert luminance("#ffffff") == 1 and luminance("#000000") == 0
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#777777") == pytest.approx(4.478, abs=1e-3)  # WebAIM's checker says 4.47


@pytest.mark.parametrize("mode", MODES)
def test_text_is_readable_and_lines_are_seen(mode: str) -> None:
    colours, series = MODES[mode]
    texts = {(text, ground): contrast(colours[text], colours[ground])
             for text in ("text", "soft", "accent") for ground in GROUNDS}  # fmt: skip
    texts["on-accent", "accent"] = contrast(colours["on-accent"], colours["accent"])
    texts["ink", "stage"] = contrast(colours["ink"], colours["stage"])
    assert {pair: value for pair, value in texts.items() if value < 4.5} == {}
    lines = [contrast(one, colours[ground]) for one in (*series, colours["edge"]) for ground in ("card", "track")]
    assert min(lines) >= 3
    assert len(set(series)) == len(series) == 10


def test_both_modes_have_the_same_names() -> None:
    light, dark = variables().split("@media (prefers-color-scheme: dark)")
    names = [re.findall(r"--([\w-]+):", part) for part in (light, dark)]
    assert names[0] == names[1] and names[0][:2] == ["text", "soft"] and names[0][-1] == "series-9"


def test_nothing_else_has_colours_of_its_own() -> None:
    """In pages, figures and pictures. What is printed on paper is black on white, whatever the screen shows."""
    folders = ("agents", "envs", "marl", "scripts", "docs/scripts")
    endings = {".py", ".js", ".css", ".html"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    files.remove(ROOT / "marl" / "core" / "look" / "tokens.py")
    colour = re.compile(r"[\"' :]#[0-9a-fA-F]{3,8}\b|[\"'](?:white|black)[\"']|rgba?\(\d")
    screen = {str(path.relative_to(ROOT)): path.read_text().partition("@media print")[0] for path in files}
    found = {name: colour.findall(text) for name, text in screen.items()}
    assert len(files) > 300 and {name: colours for name, colours in found.items() if colours} == {}


def test_figures_are_drawn_in_the_pages_colours() -> None:
    used = {value for value in FIGURES.values() if isinstance(value, str) and value.startswith("#")}
    assert used and used <= set(LIGHT.values())
    assert style()["axes.prop_cycle"].by_key()["color"] == list(SERIES)
