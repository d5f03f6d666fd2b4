"""Moving pictures as files: animated GIF, MP4, and a page of GIFs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from envs.rendering.html_page import web
from marl.core.errors import UserError
from marl.core.look import tokens

COLOURS = 64  # of a GIF of drawn scenes


def quantized(frames: Iterable[np.ndarray]) -> list[Image.Image]:
    """Frames uint8 [H, W, 3] as pictures with a palette."""
    return [Image.fromarray(frame).quantize(COLOURS, dither=Image.Dither.NONE) for frame in frames]


def gif(path: Path | io.BytesIO, pictures: Sequence[Image.Image], seconds: float) -> None:
    """Write an animated GIF that repeats for ever; `seconds` per frame, in hundredths (the format's unit)."""
    pictures[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(seconds * 100) * 10),
        loop=0,
        optimize=True,
    )


def mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an H.264 video of frames uint8 [H, W, 3]. Raises UserError where the encoder is not installed."""
    try:
        import imageio_ffmpeg  # noqa: F401 - brings the encoder for imageio
    except ImportError as error:
        raise UserError("formats=[mp4]: imageio-ffmpeg is not installed; run pip install -e '.[video]'") from error
    import imageio

    with imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=2, quality=8) as writer:
        for frame in frames:
            writer.append_data(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])  # H.264 takes even sizes


def film_page(title: str, episodes: Sequence[tuple[str, Sequence[Image.Image]]], seconds: float) -> str:
    """A page that needs no server and no network: every episode as a GIF above its caption, which a button stops."""
    cards = []
    for caption, pictures in episodes:
        moving, still, shown = io.BytesIO(), io.BytesIO(), html.escape(caption)
        gif(moving, pictures, seconds)
        pictures[-1].save(still, "PNG", optimize=True)
        gif_data, png_data = (base64.b64encode(file.getvalue()).decode() for file in (moving, still))
        cards.append(f'<article><img alt="{shown}" src="data:image/png;base64,{png_data}" '
                     f'data-film="data:image/gif;base64,{gif_data}"><div>{shown}</div></article>')  # fmt: skip
    text, title = web("film.html").replace("/*STYLE*/", tokens.style()), html.escape(title)
    return text.replace("/*TITLE*/", title).replace("/*EPISODES*/", "".join(cards))
