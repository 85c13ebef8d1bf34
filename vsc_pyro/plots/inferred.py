"""Figures of what a model infers about incomplete and about unseen data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.bounds import Bounds
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import BLUE, GREEN, ORANGE, PURPLE, Style, drawing_of
from vsc_pyro.plots.inputs import check_named, data_for, seeded_evaluation
from vsc_pyro.plots.pictures import grid

if TYPE_CHECKING:
    from typing_extensions import Unpack

_HIDDEN = 0.35  # grey of hidden pixels as a share of the range, neither ink nor paper


@seeded_evaluation
def imputations(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    mask: Tensor | np.ndarray,
    num: int = 8,
    num_samples: int = 4,
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """Missing pixels as `vsc_pyro.impute` draws them: the observed ones, the mean, draws, and the truth.

    Args:
        model: a `VAE`.
        data: complete data of shape ``(N, ...)``.
        mask: bool, True where a pixel is observed, broadcastable to the data shown. Hidden pixels are shaded, hidden
            features of vectors omitted.
        num: number of data, from the first on, one column each.
        num_samples: number of draws shown; the mean is over at least 20.
        seed: seed of the binarisation and of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: arguments that `vsc_pyro.impute` refuses.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> mask = torch.arange(8) < 4  # the left half is observed
    >>> figure = plots.imputations(vsc.VSC((1, 8, 8), latent_dim=5), torch.rand(9, 1, 8, 8), mask, num=3, num_samples=2)
    >>> len(figure.axes)
    15
    """
    data = data_for(model, data)
    x = data.draw(slice(positive_int("num", num))).to(model.reference)
    num_samples = positive_int("num_samples", num_samples)
    # Not the seed of the binarisation: the draws would reuse its random numbers.
    found = model.impute(x, mask, num_samples=max(num_samples, 20), seed=seed + 1)
    drawing = drawing_of(x, **style)
    low, high = drawing.limits
    hidden = low + _HIDDEN * (high - low) if drawing.kind == "picture" else torch.nan
    observed = torch.as_tensor(mask, device=x.device).expand(x.shape)
    shaded = torch.where(observed, x, hidden)
    rows = [shaded, found.mean, *found.samples[:num_samples], x]
    names = ["observed", "mean", *(f"draw {i}" for i in range(1, num_samples + 1)), "truth"]
    what = "pixels" if drawing.kind == "picture" else "features"
    return grid([row.cpu() for row in rows], names, f"Missing {what}, given the others", drawing)


def bound_histograms(bounds: Mapping[str, Bounds]) -> Figure:
    """Histograms of the importance-weighted bounds of single data, one for each data set.

    Args:
        bounds: results of `vsc_pyro.bounds`, by the names for the legend, the model's own data first.

    Raises:
        ValueError: no bounds, bounds of a model that has none, or values that are not finite.
    """
    check_named("bounds", bounds, Bounds)
    for name, result in bounds.items():
        if result.no_bound:
            raise ValueError(f"bounds of {name!r} are NaN: {result.no_bound}; use a model that has bounds")
        if count := int((~result.iwae.isfinite()).sum()):
            raise ValueError(f"bounds of {name!r} hold {count} NaN or infinite values; remove those data")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    everything = torch.cat([result.iwae for result in bounds.values()])
    # Without clipping, a few outliers would squeeze all others into a bin or two.
    low, high = np.quantile(everything.numpy(), [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1.0, 60)
    colours = [BLUE, ORANGE, GREEN, PURPLE]
    for i, (name, result) in enumerate(bounds.items()):
        values = result.iwae.clamp(edges[0], edges[-1]).numpy()
        style: dict[str, Any] = {"color": colours[i % 4], "linestyle": ["-", "--", "-.", ":"][i % 4]}
        label = f"{name}: mean {float(result.iwae.mean()):.1f}"
        axes.stairs(np.histogram(values, edges)[0] / len(values), edges, label=label, linewidth=1.6, **style)
    num_draws = {result.num_draws for result in bounds.values()}
    axes.set(
        xlabel=f"bound of {' or '.join(map(str, sorted(num_draws)))} draws, nats (ends: and beyond)",
        ylabel="share of data",
        title="Bounds of single data",
    )
    axes.legend(frameon=False)
    return figure
