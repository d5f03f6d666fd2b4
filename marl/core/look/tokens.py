"""Colours by name, in light and in dark, and the style sheet of every page that is made of them.

A text colour has a contrast of 4.5 or more to each ground that it stands on, a line 3 or more (WCAG 2.2, AA); a test
computes both. Pages and figures of runs take their colours from here.
"""

from pathlib import Path

SHEET = Path(__file__).with_name("sheet.css")
DARK_MODE = "(prefers-color-scheme: dark)"

LIGHT = {
    "text": "#1c1f24",
    "soft": "#565c64",  # text of less weight
    "page": "#f4f5f7",  # behind everything
    "card": "#ffffff",  # behind a thing of its own
    "track": "#e9ecf0",  # behind bars, and rows of a table in turn
    "line": "#d3d7dc",  # between things
    "edge": "#7d8590",  # around what can be pressed
    "accent": "#1f5fae",  # links, what is chosen, the focus
    "on-accent": "#ffffff",
    "stage": "#ffffff",  # behind drawings of the world
    "ink": "#111111",  # what is written on them
}
DARK = {
    "text": "#e6e8eb",
    "soft": "#a9b0b9",
    "page": "#14161a",
    "card": "#1f2228",
    "track": "#2b2f37",
    "line": "#3a3f48",
    "edge": "#7b8491",
    "accent": "#8ab8f5",
    "on-accent": "#0d1a2b",
    "stage": "#191c21",
    "ink": "#f1f2f4",
}

# Agents, algorithms and groups in this order. After Paul Tol's bright and muted schemes, for every kind of colour
# vision, each with a darker and a lighter form.
SERIES = ("#3b6ea5", "#c83f53", "#20802f", "#8f6200", "#0c7590", "#a32f71", "#636870", "#4b3fa8", "#7d1f4f", "#586c00")
DARK_SERIES = (
    "#7fb2ec", "#ff8d99", "#63c877", "#e2b04a", "#4fc4df", "#ec8fc4", "#b4b9c0", "#b0a3f8", "#de93b5", "#b3c653",
)  # fmt: skip


def contrast(one: str, other: str) -> float:
    """Contrast of two colours "#rrggbb", 1 to 21, as WCAG 2.2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", 0 to 1."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def variables() -> str:
    """The colours as CSS variables: `--text` and the like, `--series-0` and on; dark where the system asks for it."""

    def block(colours: dict[str, str], series: tuple[str, ...]) -> str:
        named = {**colours, **{f"series-{i}": colour for i, colour in enumerate(series)}}
        return ":root { " + " ".join(f"--{name}: {colour};" for name, colour in named.items()) + " }"

    return f"{block(LIGHT, SERIES)}\n@media {DARK_MODE} {{ {block(DARK, DARK_SERIES)} }}"


def style() -> str:
    """All of a page's CSS."""
    return f"{variables()}\n{SHEET.read_text()}"
