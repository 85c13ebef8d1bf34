"""Figures of decoded codes: reconstructions of data and samples of the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import given
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import Drawing, Style, as_pixels, drawing_of, show
from vsc_pyro.plots.inputs import check_named, data_for, proper_prior, seeded_evaluation, slab_quantiles
from vsc_pyro.plots.pictures import grid, in_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


def reconstructions(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 12, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Data as the model sees them, above the means decoded from one draw of their codes.

    Args:
        model, data: a `VAE` and data of shape ``(N, ...)``.
        num: number of data, from the first on.
        seed: seed of the binarisation and of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.
    """
    return comparison({"decoded": model}, data, num, seed=seed, **style)


def comparison(
    models: Mapping[str, VAE],
    data: Dataset | Tensor | np.ndarray,
    num: int = 12,
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """The same data above the reconstructions by several models, one row for each.

    Args:
        models: trained models, each a `VAE`, by the names to write beside their rows.
        data: data of shape ``(N, ...)``.
        num: number of data, from the first on.
        seed: seed of the binarisation, which is the same for all models, and of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: no model.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> models = {"narrow": vsc.VSC(64, 2), "wide": vsc.VSC(64, 20)}
    >>> len(plots.comparison(models, torch.rand(10, 64), num=4, image_shape=(8, 8)).axes)
    12
    """
    check_named("models", models, VAE)
    num = positive_int("num", num)
    rows = [_reconstruct(model, data_for(model, data), num, seed=seed) for model in models.values()]
    pictures = [rows[0][0], *(decoded for _, decoded in rows)]
    title = "Reconstructions, hard spikes"
    return grid(pictures, ["data", *models], title, drawing_of(pictures[0], **style))


@seeded_evaluation
def _reconstruct(model: VAE, data: Dataset, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = data.draw(slice(num)).to(model.reference)
    decoded = given(model.decoder(model.encoder(x).sample()), x).mean
    return x.cpu(), decoded.reshape(x.shape).cpu()


@seeded_evaluation
def prior_samples(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 60, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Means decoded from codes drawn from the prior.

    Args:
        model: a `VAE`.
        data: data of shape ``(N, ...)``, for the shape of the pictures (and for a prior that depends on a datum).
        num: number of samples.
        seed: seed of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: a `FlatPrior`, which cannot be sampled.
    """
    data = data_for(model, data)
    x = data.images[:1].to(model.reference)
    prior = proper_prior(model, x)
    z = prior.expand((1,)).sample((positive_int("num", num),)).squeeze(1)
    drawing = drawing_of(data.images, **style)
    rows, _ = in_rows(model.decoder(z).mean.reshape(num, *x.shape[1:]).cpu(), [], drawing.per_row(12))
    return grid(rows, [""] * len(rows), "Decoded samples of the prior", drawing)


@seeded_evaluation
def manifold(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 15, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Decoded means over the plane of a model of two latents, at evenly spaced quantiles of the prior.

    The codes are at the levels 1/(2n), 3/(2n), ..., 1 - 1/(2n) of each latent (Kingma & Welling, 2014). Under a
    spike-and-slab prior both latents are on, and the levels are those of the slab.

    Args:
        model: a `VAE` of two latents.
        data: data of shape ``(N, ...)``, for the shape of the pictures.
        num: number of pictures n along each axis.
        seed: seed of the draws that estimate quantiles without a formula.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: a model of another number of latents, or a flat prior.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> model = vsc.VAE(vsc.NormalEncoder(64, 2), vsc.BernoulliDecoder(2, 64), vsc.NormalPrior(2))
    >>> plots.manifold(model, torch.rand(10, 64), num=3, image_shape=(8, 8)).axes[0].get_ylabel()
    'latent 1'
    """
    num = positive_int("num", num)
    data = in_memory(data)
    x = data.images[:1].to(model.reference)
    prior = proper_prior(model, x)
    if prior.event_shape != (2,):
        raise ValueError(
            f"manifold needs a model of two latents, and this one has {prior.event_shape[-1]}; "
            "build it with latent_dim=2, or use embedding or traversals"
        )
    levels = (torch.arange(num).to(x) + 0.5) / num
    across, up = (slab_quantiles(prior, latent, levels) for latent in (0, 1))
    # The rows of a picture run down, and the axis runs up.
    decoded = [model.decoder(torch.stack([across, value.expand(num)], 1)).mean for value in up.flip(0)]
    drawing = drawing_of(data.images, **style)
    draw = _manifold_of_pictures if drawing.kind == "picture" else _manifold_of_vectors
    columns, rows = ([f"{value:.1f}" for value in axis.tolist()] for axis in (across, up.flip(0)))
    return draw([row.reshape(num, *drawing.shape).cpu() for row in decoded], columns, rows, drawing)


_MANIFOLD = "Decoded codes at quantiles of the prior"


def _manifold_of_pictures(rows: list[Tensor], across: list[str], down: list[str], drawing: Drawing) -> Figure:
    picture = np.concatenate([np.concatenate([as_pixels(tile) for tile in row], axis=1) for row in rows])
    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    axes = figure.subplots()
    whole = torch.from_numpy(picture)
    show(axes, whole.movedim(-1, 0) if whole.ndim == 3 else whole, drawing.limits, drawing.cmap)
    axes.axis("on")
    num = len(rows)
    height, width = (size / num for size in picture.shape[:2])
    at = np.arange(num) + 0.5
    axes.set_xticks(width * at - 0.5, across)
    axes.set_yticks(height * at - 0.5, down)
    axes.tick_params(labelsize=8, length=0)
    axes.set(xlabel="latent 0", ylabel="latent 1", title=_MANIFOLD)
    return figure


def _manifold_of_vectors(rows: list[Tensor], across: list[str], down: list[str], drawing: Drawing) -> Figure:
    title = f"{_MANIFOLD}: latent 0 from left to right, latent 1 upwards"
    return grid(rows, down, title, drawing, [across])
