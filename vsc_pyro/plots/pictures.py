"""Grids of small drawings in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from vsc_pyro.plots.drawing import Drawing

# Sizes in inches.
_PICTURE = 0.75
_WIDEST = 9.0  # a row fits a laptop's screen
_BAR_PANEL = 1.5  # greatest width of a panel of bars
_TALLEST = 30.0  # greatest height of a figure of bars
_CHARACTER = 0.075  # width of a title's character


def grid(
    rows: Sequence[Tensor],
    names: Sequence[str],
    title: str,
    drawing: Drawing,
    titles: Sequence[Sequence[str]] = (),
) -> Figure:
    """Draw rows of data ``(n, ...)``, with a name beside each row and `titles` above the data of the first rows.

    Lines are drawn in the transposed grid where that gives them more room.
    """
    rows, names, titles = _turned(rows, names, drawing, titles)
    drawing = drawing.holding(rows)
    width = max(len(row) for row in rows)
    needed = _CHARACTER * max(map(len, title.split("\n")))
    above = 0.5 + 0.2 * len(title.split("\n")) + 0.15 * max(0, sum(map(_lines, titles)) - 1)
    height = min(drawing.height, max(_PICTURE, _TALLEST / len(rows)))
    inches = _panel_width(drawing, width)
    size = (max(inches * width + 1.0 + drawing.width_of_names, needed), height * len(rows) + above)
    figure = Figure(figsize=size, layout="constrained")
    draw_grid(figure, rows, names, drawing, titles)
    figure.suptitle(title, fontsize=10)
    return figure


def _panel_width(drawing: Drawing, width: int) -> float:
    room = _WIDEST - drawing.width_of_names
    return {
        "picture": min(_PICTURE, room / width),
        "bars": min(_BAR_PANEL, room / width),
        "line": room / width,
    }[drawing.kind]


def _turned(
    rows: Sequence[Tensor], names: Sequence[str], drawing: Drawing, titles: Sequence[Sequence[str]]
) -> tuple[Sequence[Tensor], Sequence[str], Sequence[Sequence[str]]]:
    lengths = {len(row) for row in rows}
    if drawing.kind != "line" or len(lengths) > 1 or len(rows) >= max(lengths) or len(titles) > 1:
        return rows, names, titles
    (length,) = lengths
    columns = [torch.stack([row[column] for row in rows]) for column in range(length)]
    return columns, titles[0] if titles else [""] * length, [names]


def _lines(titles: Sequence[str]) -> int:
    return max((title.count("\n") + 1 for title in titles), default=0)


def draw_grid(
    figure: FigureBase,
    rows: Sequence[Tensor],
    names: Sequence[str],
    drawing: Drawing | Sequence[Drawing],
    titles: Sequence[Sequence[str]] = (),
) -> None:
    """Draw the rows of `grid` in an existing figure, all with one drawing or each with its own."""
    panels = figure.subplots(len(rows), max(len(row) for row in rows), squeeze=False)
    drawings = [drawing] * len(rows) if isinstance(drawing, Drawing) else drawing
    for place, (row, name, line) in enumerate(zip(rows, names, panels, strict=True)):
        for axes in line[len(row) :]:
            axes.axis("off")
        last = place == len(rows) - 1 or drawings[place + 1] != drawings[place]
        for column, (datum, axes) in enumerate(zip(row, line, strict=False)):
            drawings[place].draw(axes, datum, first=not column, last=last)
        if drawings[place].kind == "picture":
            line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        else:
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for texts, line in zip(titles, panels, strict=False):
        for text, axes in zip(texts, line, strict=False):
            axes.set_title(text, fontsize=8)


def in_rows(pictures: Tensor, titles: Sequence[str], width: int) -> tuple[list[Tensor], list[Sequence[str]]]:
    """Split pictures and their titles into rows of at most `width`."""
    starts = range(0, len(pictures), width)
    return list(pictures.split(width)), [titles[start : start + width] for start in starts]


def write_sentence(figure: FigureBase, sentence: str) -> None:
    """Write a sentence into an empty figure."""
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", fontsize=9, wrap=True)


def name_latents(axes: Axes, latents: Sequence[int]) -> None:
    """Label the ticks 0, 1, ... of the x axis by `latents`, as many of them as fit."""
    most = 50 if max(latents) < 100 else 34
    ticks = range(0, len(latents), math.ceil(len(latents) / most))
    axes.set_xticks(ticks, [str(int(latents[tick])) for tick in ticks])
    axes.tick_params(labelsize=8)
    if len(ticks) > 25:
        axes.tick_params(axis="x", labelsize=7)
