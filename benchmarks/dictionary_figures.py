"""Figures of `dictionaries.py`, drawn from its file of results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsc_pyro._files import replacing

Cells = Sequence[Mapping[str, Any]]
_AXES = {"f1": "F1", "mcc": "decoder MCC", "hard_explained_variance": "explained variance"}


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Draw F1 and MCC, or the explained variance, against L0, and reliability, of each world and size."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in record["results"]:
        groups.setdefault((cell["world"], cell["size"]), []).append(cell)
    for (world, size), cells in groups.items():
        name = f"dictionaries-{world}-{size}".replace(" ", "-")
        _save(_against_l0(cells), folder / f"{name}-l0.png")
        if any(cell["test"]["bin_count"] for cell in cells):
            _save(_reliability(cells), folder / f"{name}-reliability.png")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _figure(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * count, 4.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _budgets(cells: Cells) -> list[int]:
    return sorted({cell["steps"] for cell in cells if cell["steps"]})


def _colours(cells: Cells) -> dict[str, Any]:
    from matplotlib import colormaps

    return {method: colormaps["tab20"](i % 20) for i, method in enumerate(dict.fromkeys(c["method"] for c in cells))}


def _against_l0(cells: Cells) -> Any:
    """Large points are reported, small ones belong to grids; hollow ones are of a smaller budget."""
    shown = [name for name in _AXES if any(cell["test"][name] is not None for cell in cells)]
    has_truth = "f1" in shown
    figure, axes = _figure(2 if has_truth else 1)
    colours, largest = _colours(cells), max(_budgets(cells), default=0)
    for axis, name in zip(axes, shown if has_truth else shown[-1:], strict=False):
        for method, colour in colours.items():
            own = [cell for cell in cells if cell["method"] == method and cell["test"][name] is not None]
            if not own[:1] or method in ("probe", "true posterior"):
                continue
            label = method
            for cell in own:
                is_full = cell["steps"] == largest
                style = {"facecolors": colour if is_full else "none", "edgecolors": colour, "label": label}
                axis.scatter(cell["test"]["hard_l0"], cell["test"][name], 40 if cell["reported"] else 8, **style)
                label = None
        axis.set_xlabel("L0, latents on in a datum")
        axis.set_ylabel(_AXES[name])
        if has_truth and (truth := cells[0]["test"]["true_l0"]):
            axis.axvline(truth, color="grey", linewidth=0.8, linestyle=":")
    axes[-1].legend(fontsize=7)
    return figure


def _reliability(cells: Cells) -> Any:
    """Stated probabilities against frequencies, at the largest budget, summed over seeds."""
    figure, (axis,) = _figure(1)
    largest = max(_budgets(cells), default=0)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for method, colour in _colours(cells).items():
        own = [c["test"] for c in cells if c["method"] == method and c["reported"] and c["steps"] in (largest, 0)]
        own = [test for test in own if test["is_probabilistic"]]
        if own:
            axis.plot(*_pooled(own), marker=".", color=colour, label=method)
    axis.set_xlabel("stated probability that the feature is present")
    axis.set_ylabel("share of data in which it is")
    axis.legend(fontsize=7)
    return figure


def _pooled(tests: Cells) -> tuple[list[float], list[float]]:
    stated, happened = [], []
    for bin_ in range(len(tests[0]["bin_count"])):
        parts = [(t["bin_count"][bin_], t["bin_inclusion"][bin_], t["bin_frequency"][bin_]) for t in tests]
        number = sum(part[0] for part in parts)
        if number:
            stated.append(sum(n * value for n, value, _ in parts if n) / number)
            happened.append(sum(n * value for n, _, value in parts if n) / number)
    return stated, happened
