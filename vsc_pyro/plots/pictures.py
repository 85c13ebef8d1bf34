"""Many small pictures in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

# M. Okabe, K. Ito (2008), Color universal design: hues that differ for the colour-blind.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_INCHES = 0.75  # of one small picture
_WIDEST = 9.0  # of a row of them: with its name, a laptop's screen
_CHARACTER = 0.075  # of a title's width


def grid(
    rows: Sequence[Tensor],
    names: Sequence[str],
    title: str,
    titles: Sequence[Sequence[str]] = (),
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Rows of pictures ``(n, ...)``, a name beside each row, and above pictures `titles`, for the first rows or all."""
    width = max(len(row) for row in rows)
    inches = min(_INCHES, _WIDEST / width)
    needed = _CHARACTER * max(map(len, title.split("\n")))
    above = 0.5 + 0.2 * len(title.split("\n")) + 0.15 * max(0, sum(map(_lines, titles)) - 1)
    figure = Figure(figsize=(max(inches * width + 1.0, needed), inches * len(rows) + above), layout="constrained")
    draw_grid(figure, rows, names, titles, limits)
    figure.suptitle(title, fontsize=10)
    return figure


def _lines(titles: Sequence[str]) -> int:
    return max((title.count("\n") + 1 for title in titles), default=0)


def draw_grid(
    figure: FigureBase,
    rows: Sequence[Tensor],
    names: Sequence[str],
    titles: Sequence[Sequence[str]] = (),
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    """What `grid` shows, in a figure that is there."""
    panels = figure.subplots(len(rows), max(len(row) for row in rows), squeeze=False)
    for row, name, line in zip(rows, names, panels, strict=True):
        for axes in line:
            axes.axis("off")
        for picture, axes in zip(row, line, strict=False):
            show(axes, picture, limits)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for texts, line in zip(titles, panels, strict=False):
        for text, axes in zip(texts, line, strict=False):
            axes.set_title(text, fontsize=8)


def in_rows(pictures: Tensor, titles: Sequence[str], width: int) -> tuple[list[Tensor], list[Sequence[str]]]:
    """Pictures and their titles in rows of at most `width`."""
    starts = range(0, len(pictures), width)
    return list(pictures.split(width)), [titles[start : start + width] for start in starts]


def show(axes: Axes, picture: Tensor, limits: tuple[float, float] = (0.0, 1.0), **how: Any) -> Any:
    """One picture, grey from white to black between the limits, in axes without a frame; returns the image."""
    low, high = limits
    pixels = as_pixels(picture)
    if pixels.ndim == 3:  # of colours matplotlib takes no limits
        pixels = ((pixels - low) / (high - low)).clip(0, 1)
    axes.axis("off")
    how = {"cmap": "gray_r", "vmin": low, "vmax": high, "interpolation": "nearest"} | how
    return axes.imshow(pixels, **how)


def limits_of(x: Tensor) -> tuple[float, float]:
    """From 0 to 1 for data within, and for others their range."""
    low, high = float(x.min()), float(x.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1.0)


def as_pixels(x: Tensor) -> np.ndarray:
    """One datum ``(D,)``, ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)`` as pixels, of flat data a square if it is one."""
    if x.ndim == 1:
        side = math.isqrt(len(x))
        x = x.reshape(side, side) if side * side == len(x) else x.reshape(1, -1)
    elif x.ndim == 3:
        x = x[0] if len(x) == 1 else x.permute(1, 2, 0)
    return x.cpu().numpy()


def name_latents(axes: Axes, latents: Sequence[int]) -> None:
    """Ticks at 0, 1, ... that say which latent is there, of so many of them as there is room for."""
    most = 50 if max(latents) < 100 else 34
    ticks = range(0, len(latents), math.ceil(len(latents) / most))
    axes.set_xticks(ticks, [str(int(latents[tick])) for tick in ticks])
    axes.tick_params(labelsize=8)
    if len(ticks) > 25:
        axes.tick_params(axis="x", labelsize=7)
