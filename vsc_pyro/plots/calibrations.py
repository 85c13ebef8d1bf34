"""What `vsc_pyro.check_calibration` found."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vsc_pyro.evaluation.calibration import Calibration


def reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """The share of latents that are on against the probability that a posterior says, a curve for each calibration.

    Bars are two standard errors of the share, as if latents of a datum did not depend on one another. Below, how many
    latents of data are in each bin.

    Args:
        calibrations: what `vsc_pyro.check_calibration` returned, by the name to write beside its curve.

    Raises:
        ValueError: no calibration, or one of a posterior without an atom at zero.
    """
    if not calibrations:
        raise ValueError("calibrations holds none; pass at least one, by the name to write beside its curve")
    if any(math.isnan(result.ece) for result in calibrations.values()):
        raise ValueError("a posterior without an atom at zero has no inclusion probabilities to draw")
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, result in calibrations.items():
        frequency = result.bin_frequency
        error = 2 * (frequency * (1 - frequency) / result.bin_count).sqrt()
        curves.errorbar(
            result.bin_inclusion, frequency, error, marker="o", markersize=3, label=f"{name}: error {result.ece:.3f}"
        )
        counts.stairs(result.bin_count, np.linspace(0, 1, len(frequency) + 1))
    curves.set(ylabel="share that is on", title="Reliability of inclusion probabilities")
    curves.legend(frameon=False)
    counts.set(xlabel="inclusion probability", ylabel="count", yscale="log")
    return figure


def rank_histograms(calibrations: Mapping[str, Calibration]) -> Figure:
    """Ranks of true codes among draws of the posterior, as multiples of what is expected; a panel for each calibration.

    A thin line for each latent and a thick one for all of them. Flat is calibrated, a valley a posterior that is too
    narrow, a slope one that is biased. The grey band holds 99 per cent of the values of a calibrated latent.

    Args:
        calibrations: what `vsc_pyro.check_calibration` returned, by the name to write above its panel.

    Raises:
        ValueError: no calibration.
    """
    if not calibrations:
        raise ValueError("calibrations holds none; pass at least one, by the name to write above its panel")
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
