"""The style of all figures that are drawn with Matplotlib; use: `with matplotlib.rc_context(FIGURES): …`."""

from typing import Any

from marl.core.look.tokens import LIGHT, SERIES

LINES = ("-", "--", "-.", ":")  # where there are more things than colours
FIGURES: dict[str, Any] = {
    "font.size": 9,
    "text.color": LIGHT["text"],
    "axes.labelcolor": LIGHT["text"],
    "axes.titlesize": 10,
    "axes.edgecolor": LIGHT["edge"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["edge"],
    "ytick.color": LIGHT["edge"],
    "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["soft"],
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # journals refuse Type 3
    "savefig.bbox": "tight",
}


def style() -> dict[Any, Any]:
    """FIGURES with the colours of lines: for code that draws without naming them."""
    from cycler import cycler

    return {**FIGURES, "axes.prop_cycle": cycler(color=SERIES)}
