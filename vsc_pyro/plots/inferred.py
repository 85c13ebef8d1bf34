"""What a model infers of data that are incomplete, or that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.bounds import Bounds
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import BLUE, GREEN, ORANGE, PURPLE, Style, drawing_of
from vsc_pyro.plots.inputs import data_for, looking
from vsc_pyro.plots.pictures import grid

if TYPE_CHECKING:
    from typing_extensions import Unpack

_HIDDEN = 0.35  # grey of hidden pixels, between the limits: neither ink nor paper


@looking
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
    """Missing pixels as `vsc_pyro.VAE.impute` draws them: what is observed, the mean, draws, and the truth.

    Args:
        model: a `VAE`.
        data: data of shape ``(N, ...)``, whole.
        mask: bool, True where a pixel is observed, of a shape that broadcasts to the data shown; others are shaded,
            of vectors left out.
        num: how many data, from the first on: a column each.
        num_samples: how many draws of each; the mean is of at least 20.
        seed: of binarisation and draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: as `impute`.
    """
    data = data_for(model, data)
    x = data.draw(slice(positive_int("num", num))).to(model.reference)
    num_samples = positive_int("num_samples", num_samples)
    # Another seed than the data's: of one stream the pixels' noise would be that of the draws as well.
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
    """Importance-weighted bounds of single data, a histogram for each data set: how alike the model finds them.

    Args:
        bounds: what `vsc_pyro.bounds` returned, by the name to write in the legend, the model's own data first.

    Raises:
        ValueError: no bounds, or those of a model that has none, or values that are not finite.
    """
    if not bounds:
        raise ValueError("bounds holds none; pass at least one, by the name to write in the legend")
    for name, result in bounds.items():
        if result.no_bound:
            raise ValueError(f"bounds of {name!r} are NaN: {result.no_bound}; take a model that has bounds")
        if count := int((~result.iwae.isfinite()).sum()):
            raise ValueError(f"bounds of {name!r} hold {count} NaN or infinite values; leave those data out")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    everything = torch.cat([result.iwae for result in bounds.values()])
    # Single data far out would squeeze all others into a bin or two.
    low, high = np.quantile(everything.numpy(), [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1.0, 60)
    colours = [BLUE, ORANGE, GREEN, PURPLE]
    for i, (name, result) in enumerate(bounds.items()):
        values = result.iwae.clamp(edges[0], edges[-1]).numpy()
        style = {"color": colours[i % 4], "linestyle": ["-", "--", "-.", ":"][i % 4]}
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
