"""How much each input has to do with an output: integrated gradients, and pictures of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marl.core.errors import UserError
from marl.core.look.figures import style


def integrated_gradients(
    function: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor, steps: int = 64
) -> tuple[Tensor, float]:
    """(x − x₀) · ∫₀¹ ∂f(x₀ + a (x − x₀))/∂x da, the share of each input in f(x) − f(x₀) (Sundararajan et al. 2017).

    Args:
        function: rows [N, ...] to one number each [N].
        inputs: [N, ...].
        baseline: x₀, where nothing is seen, broadcast over rows.
        steps: points of the integral (captum's Gauss-Legendre).

    Returns:
        Attributions [N, ...], which add up to f(x) − f(x₀) in every row, and the largest |error| of that sum.

    Raises:
        UserError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UserError("attribution: captum is not installed; run pip install -e '.[attribution]'") from error
    attributions, delta = IntegratedGradients(function).attribute(
        inputs, baseline.expand_as(inputs).contiguous(), n_steps=steps, internal_batch_size=max(len(inputs), 4096),
        return_convergence_delta=True,
    )  # fmt: skip
    return attributions.detach(), delta.abs().max().item()


def draw_pictures(pictures: Tensor, shares: Tensor, titles: Sequence[str], out: Path) -> None:
    """Pictures [N, C, H, W] above, below them what spoke for (red) and against (blue) the label: shares likewise."""
    figure, axes = _figure(2, len(pictures), (1.3 * len(pictures), 3.0))
    for i, title in enumerate(titles):
        picture, share = pictures[i].mean(0).numpy(), shares[i].sum(0).numpy()
        limit = max(float(np.abs(share).max()), 1e-12)
        axes[0, i].imshow(picture, cmap="gray")
        axes[1, i].imshow(share, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[0, i].set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    _save(figure, out)


def draw_parts(shares: np.ndarray, outputs: Sequence[str], parts: Sequence[str], title: str, out: Path) -> None:
    """A table in colours: outputs (rows) by parts of the input (columns), mean |share| [outputs, parts]."""
    figure, axes = _figure(1, 1, (2 + 0.42 * len(parts), 1.6 + 0.3 * len(outputs)))
    shown = axes[0, 0].imshow(shares, cmap="magma_r", vmin=0, aspect="auto")
    axes[0, 0].set_xticks(range(len(parts)), parts, rotation=90, fontsize=7)
    axes[0, 0].set_yticks(range(len(outputs)), outputs, fontsize=7)
    axes[0, 0].set_title(title, fontsize=9)
    axes[0, 0].set_xlabel("part of the observation", fontsize=8)
    figure.colorbar(shown, ax=axes[0, 0], label="mean |share|")
    _save(figure, out)


def _figure(rows: int, columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({**style(), "axes.grid": False}):
        return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _save(figure, out: Path) -> None:
    from matplotlib import pyplot as plt

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"out={out}: {error}") from error
    finally:
        plt.close(figure)


def rows_of_each(labels: Tensor, count: int) -> Tensor:
    """Indices of up to `count` rows, of every label in turn: int64 [N] -> int64 [count]."""
    by_label = [(labels == label).nonzero().flatten() for label in labels.unique()]
    longest = max(len(each) for each in by_label)
    turns = [each[i : i + 1] for i in range(longest) for each in by_label]
    return torch.cat(turns)[:count]
