"""Many small pictures in one figure."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_INCHES = 0.75  # of one small picture


def grid(rows: list[Tensor], names: list[str], title: str, columns: list[str] | None = None) -> Figure:
    width = max(len(row) for row in rows)
    figure = Figure(figsize=(_INCHES * width + 1.0, _INCHES * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for row, name, line in zip(rows, names, grid, strict=True):
        for axes in line:
            axes.axis("off")
        for picture, axes in zip(row, line, strict=False):
            axes.imshow(as_picture(picture), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for name, axes in zip(columns or [], grid[0], strict=False):
        axes.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def as_picture(x: Tensor) -> np.ndarray:
    if x.ndim == 1:
        side = math.isqrt(len(x))
        x = x.reshape(side, side) if side * side == len(x) else x.reshape(1, -1)
    elif x.ndim == 3:
        x = x[0] if len(x) == 1 else x.permute(1, 2, 0)
    return x.numpy()
