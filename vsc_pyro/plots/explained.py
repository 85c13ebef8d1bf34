"""One datum and its code: what is on, and what each part of it draws."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro.arguments import positive_int
from vsc_pyro.distributions import centre, inclusion_of, slab_of
from vsc_pyro.plots.looking import likely_code, looking, quantiles, some_data
from vsc_pyro.plots.pictures import BLUE, limits_of, name_latents, show
from vsc_pyro.vae import VAE

_PER_ROW = 6


@looking
def code(model: VAE, x: Tensor | np.ndarray, num: int = 20, coverage: float = 0.9, *, seed: int = 0) -> Figure:
    """The code of one datum: how probably each latent is on, and what it is then.

    Beside the datum, stems of the inclusion probabilities of the most probable latents, and below them the centres and
    central intervals of their slabs, pale where a latent is more likely off. Without an atom at zero every latent is on
    with probability 1, and those farthest from zero come first; a point has intervals of no length.

    Args:
        model: a `VAE`.
        x: one datum, as the model is to see it, with or without a leading dimension of 1.
        num: how many latents, most probable first.
        coverage: share of the slab that an interval holds, strictly between 0 and 1, as much beyond either end.
        seed: of the draws that intervals are taken from, where the slab has no formula for its quantiles.

    Raises:
        ValueError: not one datum, or one that does not fit the model; no latent; a coverage outside (0, 1).
    """
    num = positive_int("num", num)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage!r}")
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    slab = slab_of(posterior)
    inclusion, centres = inclusion_of(posterior)[0], centre(slab)[0]
    by_size = centres.abs().argsort(descending=True)
    order = by_size[inclusion[by_size].argsort(descending=True, stable=True)][:num].cpu()
    levels = x.new_tensor([(1 - coverage) / 2, (1 + coverage) / 2])
    low, high = (end[0].cpu()[order].numpy() for end in quantiles(slab, levels))
    inclusion, centres = inclusion.cpu()[order].numpy(), centres.cpu()[order].numpy()

    width = min(8.0, 2.8 + 0.2 * len(order))  # of all but the datum
    figure = Figure(figsize=(2.0 + width, 3.8), layout="constrained")
    panels = figure.subplot_mosaic([["datum", "inclusion"], ["datum", "slab"]], width_ratios=(2, width))
    show(panels["datum"], x[0], limits_of(x))
    panels["datum"].set_title("datum", fontsize=10)
    at = np.arange(len(order))
    above, below = panels["inclusion"], panels["slab"]
    above.vlines(at, 0, inclusion, color=BLUE)
    above.plot(at, inclusion, "o", color=BLUE, markersize=4)
    above.set(ylim=(0, 1.08), ylabel="P(on | x)")
    above.set_title(f"Code: {int((inclusion_of(posterior) > 0.5).sum())} of {len(inclusion_of(posterior)[0])} on")
    below.axhline(0, color="0.7", linewidth=1)
    for likely, alpha in ((inclusion > 0.5, 1.0), (inclusion <= 0.5, 0.3)):
        ends = np.stack([centres - low, high - centres])[:, likely]
        below.errorbar(at[likely], centres[likely], ends, fmt="o", color=BLUE, alpha=alpha, markersize=4)
    below.set(xlabel="latent, most probable first", ylabel=f"z if on, {coverage:.0%}")
    for axes in (above, below):
        name_latents(axes, order.tolist())
        axes.set_xlim(-0.6, len(order) - 0.4)
    return figure


@looking
def explanation(model: VAE, x: Tensor | np.ndarray, num: int = 12, *, seed: int = 0) -> Figure:
    r"""What each active latent adds to a picture: the datum, its reconstruction, and contributions, largest first.

    The contribution of latent j is what the picture loses without it,

    .. math:: c_j = E[x | z] - E[x | z \text{ with } z_j = 0],

    for the most likely code z: active latents, those on with a probability above 1/2, at the centres of their slabs and
    all others at zero. Only a linear decoder with the mean as its output makes the contributions add up (to the picture
    less that of an empty code); for any other they do not, since what a latent adds depends on the others, and strokes
    that several latents draw belong to none of them. The size of a contribution is its Euclidean norm. All share one
    scale, symmetric about zero. Of pictures in colour the mean over channels is shown, in which a change of hue alone
    cancels.

    Args:
        model: a `VAE`.
        x: one datum, as the model is to see it, with or without a leading dimension of 1.
        num: how many contributions at most, largest first.
        seed: of nothing that is drawn here; taken as in every picture.

    Raises:
        ValueError: not one datum, or one that does not fit the model; no contribution to show; a datum with no active
            latent.
    """
    num = positive_int("num", num)
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    inclusion, z = inclusion_of(posterior)[0], likely_code(posterior)[0]
    active = (inclusion > 0.5).nonzero().flatten()
    if not len(active):
        raise ValueError(
            f"no latent of x is active: the largest inclusion probability is {float(inclusion.max()):.2g}, and active "
            "means above 0.5; take another datum"
        )
    without = z.repeat(len(active), 1)
    without[torch.arange(len(active)), active] = 0
    whole, *less = model.decoder(torch.cat([z[None], without])).mean.reshape(-1, *x.shape[1:])
    added = whole - torch.stack(less)
    order = added.flatten(1).norm(dim=1).argsort(descending=True)[:num]
    maps = added[order].cpu()
    if maps.ndim == 4:
        maps = maps.mean(1)
    names = [
        f"latent {latent}\n$\\gamma$ {inclusion[latent]:.2f}, z {z[latent]:.2f}" for latent in active[order].tolist()
    ]

    num_rows = -(-len(order) // _PER_ROW)
    num_columns = min(len(order), _PER_ROW)
    figure = Figure(figsize=(max(5.2, 3.4 + 1.1 * num_columns), 0.5 + 1.5 * max(2, num_rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1.1 * num_columns + 1.0))
    for axes, picture, name in zip(left.subplots(2, 1), (x[0], whole), ("datum", "reconstruction"), strict=True):
        show(axes, picture, limits_of(x))
        axes.set_title(name, fontsize=8)
    panels = right.subplots(num_rows, num_columns, squeeze=False)
    _show_contributions(panels, maps, names)
    figure.suptitle(
        f"Explanation: {len(order)} of {len(active)} active latents, largest contribution first", fontsize=10
    )
    return figure


def _show_contributions(panels: np.ndarray, maps: Tensor, names: list[str]) -> None:
    limit = max(float(maps.abs().max()), 1e-12)
    flat: list[Axes] = list(panels.flat)
    for axes in flat[len(maps) :]:
        axes.axis("off")
    for axes, contribution, name in zip(flat, maps, names, strict=False):
        image = show(axes, contribution, (-limit, limit), cmap="RdBu")
        axes.set_title(name, fontsize=8)
    bar = flat[0].figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label("decoded with it minus without", fontsize=8)
    bar.ax.tick_params(labelsize=8)
