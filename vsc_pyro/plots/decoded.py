"""What a model makes of data, and what it makes up: reconstructions and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import Drawing, Style, as_pixels, drawing_of, show
from vsc_pyro.plots.inputs import looking, proper_prior, slab_quantiles
from vsc_pyro.plots.pictures import grid, in_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack


def reconstructions(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 12, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Data as the model sees them above the means that the decoder gives for one draw of their codes.

    Args:
        model, data: a `VAE` and data of shape ``(N, ...)``.
        num: how many data, from the first on.
        seed: of binarisation and draws.
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
    """The same data above what each of several models makes of them: a row of `reconstructions` for each.

    Args:
        models: what to write beside each row, and its `VAE`.
        data: data of shape ``(N, ...)``.
        num: how many data, from the first on.
        seed: of binarisation, the same for all models, and of draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: no model.
    """
    if not models:
        raise ValueError("models holds no model; pass at least one, by the name to write beside its row")
    rows = [_reconstruct(model, in_memory(data), positive_int("num", num), seed=seed) for model in models.values()]
    pictures = [rows[0][0], *(decoded for _, decoded in rows)]
    title = "Reconstructions, hard spikes"
    return grid(pictures, ["data", *models], title, drawing_of(pictures[0], **style))


@looking
def _reconstruct(model: VAE, data: Dataset, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = data.draw(slice(num)).to(model.reference)
    decoded = model.decoder(model.encoder(x).sample()).mean
    return x.cpu(), decoded.reshape(x.shape).cpu()


@looking
def prior_samples(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 60, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Means that the decoder gives for codes drawn from the prior.

    Args:
        model: a `VAE`.
        data: data of shape ``(N, ...)``; gives the pictures their shape (and the prior its x, if it looks at one).
        num: how many samples.
        seed: of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.
    """
    data = in_memory(data)
    x = data.images[:1].to(model.reference)
    prior = proper_prior(model, x)
    z = prior.expand((1,)).sample((positive_int("num", num),)).squeeze(1)
    drawing = drawing_of(data.images, **style)
    rows, _ = in_rows(model.decoder(z).mean.reshape(num, *x.shape[1:]).cpu(), [], drawing.per_row(12))
    return grid(rows, [""] * len(rows), "Decoded samples of the prior", drawing)


@looking
def manifold(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 15, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """What a model of two latents decodes throughout its plane, at evenly spaced quantiles of the prior.

    The codes are those at the levels 1/2n, 3/2n, ..., 1 - 1/2n of either latent (Kingma & Welling, 2014). Of a
    spike-and-slab prior both latents are on: levels are those of the slab.

    Args:
        model: a `VAE` of two latents.
        data: data of shape ``(N, ...)``; gives the pictures their shape.
        num: pictures n along either axis.
        seed: of the draws that quantiles are taken from, where the prior has no formula for them.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: a model of another number of latents, or a flat prior.
    """
    num = positive_int("num", num)
    data = in_memory(data)
    x = data.images[:1].to(model.reference)
    prior = proper_prior(model, x)
    if prior.event_shape != (2,):
        raise ValueError(
            f"manifold needs a model of two latents, and this one has {prior.event_shape[-1]}; "
            "build it with latent_dim=2, or see embedding or traversals"
        )
    levels = (torch.arange(num).to(x) + 0.5) / num
    across, up = (slab_quantiles(prior, latent, levels) for latent in (0, 1))
    # The rows of a picture run down, the axis up.
    decoded = [model.decoder(torch.stack([across, value.expand(num)], 1)).mean for value in up.flip(0)]
    drawing = drawing_of(data.images, **style)
    draw = _manifold_of_pictures if drawing.kind == "picture" else _manifold_of_vectors
    values = [[f"{value:.1f}" for value in axis.tolist()] for axis in (across, up.flip(0))]
    return draw([row.reshape(num, *drawing.shape).cpu() for row in decoded], *values, drawing)


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
