"""What a model makes of data, and what it makes up: reconstructions and samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from pyro.distributions import ImproperUniform
from torch import Tensor

from vsc_pyro.arguments import positive_int
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.plots.looking import looking
from vsc_pyro.plots.pictures import grid
from vsc_pyro.vae import VAE


def reconstructions(model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 12, *, seed: int = 0) -> Figure:
    """Data as the model sees them above the means that the decoder gives for one draw of their codes.

    Args:
        model, data: a `VAE` and data of shape ``(N, ...)``.
        num: how many data, from the first on.
        seed: of binarisation and draws.
    """
    return comparison({"decoded": model}, data, num, seed=seed)


def comparison(
    models: Mapping[str, VAE], data: Dataset | Tensor | np.ndarray, num: int = 12, *, seed: int = 0
) -> Figure:
    """The same data above what each of several models makes of them: a row of `reconstructions` for each.

    Args:
        models: what to write beside each row, and its `VAE`.
        data: data of shape ``(N, ...)``.
        num: how many data, from the first on.
        seed: of binarisation, the same for all models, and of draws.

    Raises:
        ValueError: no model.
    """
    if not models:
        raise ValueError("models holds no model; pass at least one, by the name to write beside its row")
    rows = [_reconstruct(model, as_dataset(data), positive_int("num", num), seed=seed) for model in models.values()]
    pictures = [rows[0][0], *(decoded for _, decoded in rows)]
    return grid(pictures, ["data", *models], "Reconstructions, hard spikes")


@looking
def _reconstruct(model: VAE, data: Dataset, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = data.draw(slice(num)).to(model.reference)
    decoded = model.decoder(model.encoder(x).sample()).mean
    return x.cpu(), decoded.reshape(x.shape).cpu()


@looking
def prior_samples(model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 60, *, seed: int = 0) -> Figure:
    """Means that the decoder gives for codes drawn from the prior.

    Args:
        model: a `VAE`.
        data: data of shape ``(N, ...)``; gives the pictures their shape (and the prior its x, if it looks at one).
        num: how many samples.
        seed: of the draws.
    """
    x = as_dataset(data).images[:1].to(model.reference)
    prior = model.marginal_prior(x)
    if isinstance(prior, ImproperUniform):
        raise ValueError("the prior is flat, and there is nothing to draw from; build the model with a proper prior")
    z = prior.expand((1,)).sample((positive_int("num", num),)).squeeze(1)
    decoded = model.decoder(z).mean.reshape(num, *x.shape[1:]).cpu()
    columns = min(num, 12)
    rows = [decoded[start : start + columns] for start in range(0, num, columns)]
    return grid(rows, [""] * len(rows), "Decoded samples of the prior")
