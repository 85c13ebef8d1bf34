"""Figures of the calibration of inclusion probabilities and codes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vsc_pyro.evaluation.calibration import Calibration
from vsc_pyro.evaluation.dictionaries import DictionaryEvaluation
from vsc_pyro.plots.inputs import check_named


def reliability(calibrations: Mapping[str, Calibration | DictionaryEvaluation]) -> Figure:
    """Share of latents that are on against their inclusion probability, a curve per calibration (reliability diagram).

    For a dictionary, the share of latents whose own feature is present. The legend has the calibration errors.

    Error bars are two standard errors of the share, as if the latents of a datum were independent. The lower panel
    shows how many latents each bin counts.

    Args:
        calibrations: results of `vsc_pyro.check_calibration`, or of `vsc_pyro.evaluate_dictionary` with known features,
            by the names for the legend.

    Raises:
        ValueError: no calibration, one of a posterior without spikes, or one of a dictionary without known features.
    """
    check_named("calibrations", calibrations, Calibration, DictionaryEvaluation)
    for name, result in calibrations.items():
        if math.isnan(result.ece):
            raise ValueError(
                f"calibrations[{name!r}] has no inclusion probabilities to compare with the truth: it is of a "
                "posterior without spikes, or of a dictionary without known features, which evaluate_dictionary takes "
                "by dictionary= and from data with factors"
            )
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, result in calibrations.items():
        frequency = result.bin_frequency
        error = 2 * (frequency * (1 - frequency) / result.bin_count).sqrt()
        curves.errorbar(
            result.bin_inclusion, frequency, error, marker="o", markersize=3, label=f"{name}: error {result.ece:.2g}"
        )
        counts.stairs(result.bin_count, np.linspace(0, 1, len(frequency) + 1))
    events = {"on" if isinstance(result, Calibration) else "present" for result in calibrations.values()}
    curves.set(ylabel=f"share that is {' or '.join(sorted(events))}", title="Reliability of inclusion probabilities")
    figure.legend(frameon=False, loc="outside lower center")
    counts.set(xlabel="inclusion probability", ylabel="count", yscale="log")
    return figure


def rank_histograms(calibrations: Mapping[str, Calibration]) -> Figure:
    """Ranks of true codes among draws of the posterior, relative to the expected count; a panel per calibration.

    Each latent has a thin line, and all together a thick one. A calibrated posterior has a flat histogram, one that is
    too narrow a valley, and a biased one a slope. The grey band holds 99 per cent of the values of a calibrated latent.

    Args:
        calibrations: results of `vsc_pyro.check_calibration`, by the names for the panels.

    Raises:
        ValueError: no calibration.
    """
    check_named("calibrations", calibrations, Calibration)
    figure = Figure(figsize=(3.2 * len(calibrations), 2.8), layout="constrained")
    panels = figure.subplots(1, len(calibrations), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, calibrations.items(), strict=True):
        share, edges = result.rank_share, np.linspace(0, 1, len(result.rank_share) + 1)
        band = 2.576 * ((1 - share) / (share * result.num_data)).sqrt()
        axes.fill_between(
            edges, *(np.append(1 + sign * band, 1 + sign * band[-1]) for sign in (-1, 1)), step="post", color="0.9"
        )
        for counts in result.rank_counts:
            axes.stairs(counts / (share * result.num_data), edges, baseline=None, color="C0", alpha=0.4, linewidth=0.8)
        overall = result.rank_counts.double().mean(0)
        axes.stairs(overall / (share * result.num_data), edges, baseline=None, color="k", linewidth=2)
        axes.set(title=f"{name}, p = {result.p_value:.2g}", xlabel="rank of the true code", ylim=(0, None))
    panels[0].set_ylabel("count / expected")
    return figure
