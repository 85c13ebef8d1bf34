"""Figures of `dictionaries.py`, drawn from its file of results alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cycler import cycler
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vsc_pyro import plots
from vsc_pyro._files import replacing
from vsc_pyro.evaluation.dictionaries import DictionaryEvaluation

Cells = Sequence[Mapping[str, Any]]
_BINS = ("bin_count", "bin_inclusion", "bin_frequency")


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Draw F1 and MCC, or the explained variance, against L0, and reliability, of each world and size."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in record["results"]:
        groups.setdefault((cell["world"], cell["size"]), []).append(cell)
    with rc_context({"axes.prop_cycle": cycler(color=colormaps["tab20"](range(20)))}):
        for (world, size), cells in groups.items():
            name = f"dictionaries-{world}-{size}".replace(" ", "-")
            dictionaries = [cell for cell in cells if cell["method"] not in ("probe", "true posterior")]
            if dictionaries:
                _save(_against_l0(dictionaries), folder / f"{name}-l0.png")
            if results := _reliability(cells):
                _save(plots.reliability(results), folder / f"{name}-reliability.png")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _against_l0(cells: Cells) -> Figure:
    """Curves are of the largest budget; large points are reported, hollow ones of a smaller budget."""
    largest = max(cell["steps"] for cell in cells)
    has_truth = any(cell["test"]["f1"] is not None for cell in cells)
    measures = ("f1", "mcc") if has_truth else ("hard_explained_variance",)
    cells = [cell for cell in cells if cell["test"][measures[0]] is not None]
    curves: dict[str, list[Any]] = {cell["method"]: [] for cell in cells}
    for cell in cells:
        if cell["steps"] == largest:
            curves[cell["method"]].append(SimpleNamespace(**cell["test"]))
    figure: Any = plots.recovery(curves) if has_truth else _explained(curves)
    for axes, measure in zip(figure.axes, measures, strict=True):
        colours = {method: curve.get_color() for method, curve in zip(curves, axes.get_lines(), strict=False)}
        for cell in (cell for cell in cells if cell["reported"]):
            colour = colours[cell["method"]]
            face = colour if cell["steps"] == largest else "none"
            axes.scatter(cell["test"]["hard_l0"], cell["test"][measure], 40, facecolors=face, edgecolors=colour)
    figure.axes[0].get_legend().remove()
    handles = [*figure.axes[0].get_legend_handles_labels()[0], *_kinds_of_points(cells, largest)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=7)
    return figure


def _kinds_of_points(cells: Cells, largest: int) -> list[Line2D]:
    kinds = [Line2D([], [], color="0.4", marker="o", markersize=4, label=f"every run of {largest:,} steps")]
    for steps in sorted({cell["steps"] for cell in cells if cell["reported"]}, reverse=True):
        face = "0.4" if steps == largest else "none"
        label = f"reported run of {steps:,} steps"
        kinds.append(Line2D([], [], color="0.4", marker="o", linestyle="", markerfacecolor=face, label=label))
    return kinds


def _explained(curves: Mapping[str, Sequence[Any]]) -> Figure:
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for method, results in curves.items():
        points = sorted((result.hard_l0, result.hard_explained_variance) for result in results)
        axes.plot(*np.reshape(points, (-1, 2)).T, marker="o", markersize=4, label=method)
    axes.set(xlabel="latents on in a datum (L0)", title="Explained variance")
    axes.legend()
    return figure


def _reliability(cells: Cells) -> dict[str, Any]:
    """Return bins by method, at the largest budget, summed over seeds."""
    largest = max(cell["steps"] for cell in cells)
    tests: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        test = cell["test"]
        if cell["reported"] and cell["steps"] in (largest, 0) and test["is_probabilistic"] and test["bin_count"]:
            tests.setdefault(cell["method"], []).append(test)
    return {method: _summed(own) for method, own in tests.items()}


def _summed(tests: Cells) -> DictionaryEvaluation:
    # In the file, the means of an empty bin are None.
    counts, *means = (torch.tensor(np.array([test[name] for test in tests], float)) for name in _BINS)
    count = counts.sum(0)
    inclusion, frequency = ((counts * mean).nansum(0) / count for mean in means)
    ece = float((count * (inclusion - frequency).abs()).nansum() / count.sum())
    others: Any = {field.name: math.nan for field in fields(DictionaryEvaluation) if field.default is MISSING}
    return DictionaryEvaluation(**others, ece=ece, bin_count=count, bin_inclusion=inclusion, bin_frequency=frequency)
