"""Figures of the results of `vsc_pyro.evaluate_dictionary`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vsc_pyro.evaluation.dictionaries import DENSITY_EDGES, DictionaryEvaluation
from vsc_pyro.plots.inputs import check_named

_OUTSIDE: dict[str, Any] = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1, 1)}


def firing_densities(evaluations: Mapping[str, DictionaryEvaluation]) -> Figure:
    """Histogram of the share of data in which each latent is on, on a logarithmic axis; the legend counts dead latents.

    Args:
        evaluations: results of `vsc_pyro.evaluate_dictionary`, by the names for the legend.

    Raises:
        ValueError: no evaluation.
    """
    check_named("evaluations", evaluations, DictionaryEvaluation)
    figure, axes = _beside_a_legend()
    for name, found in evaluations.items():
        axes.stairs(found.density_counts, DENSITY_EDGES, label=f"{name}: {found.dead} of {found.num_latents} dead")
    least = min(1 / found.num_data for found in evaluations.values())
    axes.set(xlabel="share of data, log10", ylabel="latents", title="Firing densities", xlim=(math.log10(least), 0))
    axes.legend(**_OUTSIDE)
    return figure


def feature_cosines(evaluations: Mapping[str, DictionaryEvaluation]) -> Figure:
    """Histogram of the absolute cosine of each atom with the true feature nearest to it.

    Several atoms may have one nearest feature. The decoder MCC in the legend is of the one-to-one matching instead.

    Args:
        evaluations: results of `vsc_pyro.evaluate_dictionary` with a true dictionary, by the names for the legend.

    Raises:
        ValueError: no evaluation, or one without a true dictionary.
    """
    check_named("evaluations", evaluations, DictionaryEvaluation)
    figure, axes = _beside_a_legend()
    for name, found in evaluations.items():
        if found.cosine is None:
            raise ValueError(f"the evaluation {name!r} has no true features; pass dictionary= to evaluate_dictionary")
        counts, edges = np.histogram(found.cosine.numpy(), 40, (0, 1))
        axes.stairs(counts, edges, label=f"{name}: {found.mcc:.3f}")
    axes.set(xlabel="absolute cosine with the nearest true feature", ylabel="latents", title="Atoms", xlim=(0, 1))
    axes.legend(**_OUTSIDE, title="MCC of one-to-one matching", alignment="left")
    return figure


def recovery(evaluations: Mapping[str, Sequence[DictionaryEvaluation]]) -> Figure:
    """F1 and decoder MCC against the hard L0, a curve for each method; a dotted line marks the true L0.

    Args:
        evaluations: results of `vsc_pyro.evaluate_dictionary` at several settings of each method, by the names for the
            legend, with known features.

    Raises:
        ValueError: no evaluation, or one without known features.
    """
    check_named("evaluations", evaluations, Sequence)
    everything = [found for results in evaluations.values() for found in results]
    if not everything or any(math.isnan(found.f1) for found in everything):
        raise ValueError("evaluations must have known features; pass data with factors and dictionary=")
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, measure, title in zip(panels, ("f1", "mcc"), ("F1 of detections", "Decoder MCC"), strict=True):
        for name, results in evaluations.items():
            results = sorted(results, key=lambda found: found.hard_l0)
            values = [getattr(found, measure) for found in results]
            axes.plot([found.hard_l0 for found in results], values, marker="o", markersize=4, label=name)
        for number, true_l0 in enumerate(sorted({round(found.true_l0, 2) for found in everything})):
            label = None if number else "features present (true L0)"
            axes.axvline(true_l0, color="0.6", linestyle=":", linewidth=1, label=label)
        axes.set(xlabel="latents on in a datum (L0)", title=title, ylim=(0, 1))
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _beside_a_legend() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3), layout="constrained")
    return figure, figure.subplots()
