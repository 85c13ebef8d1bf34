"""Codes changed one latent at a time, and what the decoder makes of them."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro.arguments import positive_int
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.distributions import centre
from vsc_pyro.plots.looking import inclusion_of, looking
from vsc_pyro.plots.pictures import grid
from vsc_pyro.vae import VAE


@looking
def traversals(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 10, limit: float = 3.0, *, seed: int = 0
) -> Figure:
    """What single latents draw: a row for each of the most used, in a datum in which it is surely on.

    The first columns are the datum, its decoded code and the same code with this one latent off; in the others the
    latent goes from -limit to limit, all others as they are.

    Args:
        model, data: a `VAE` and data of shape ``(N, ...)``.
        num: number of latents, most used first.
        limit: range of the latent's value, in standard deviations of the standard slab.
        seed: of binarisation and draws.
    """
    data = as_dataset(data)
    x = data.draw(slice(2000)).to(model.reference)
    posterior = model.encoder(x)
    inclusion, centres = inclusion_of(posterior), centre(posterior)
    # A latent is used where it is on and its value says something about the datum.
    use = inclusion.mean(0) * centres.std(0, correction=0)
    latents = use.argsort(descending=True)[: positive_int("num", num)].tolist()
    values = torch.linspace(-limit, limit, 7).to(x)
    rows, names = [], []
    for latent in latents:
        datum = int((inclusion[:, latent] * centres[:, latent].abs()).argmax())
        code = torch.where(inclusion[datum] > 0.5, centres[datum] / inclusion[datum], 0)
        codes = code.repeat(2 + len(values), 1)
        codes[1:, latent] = torch.cat([values.new_zeros(1), values])
        decoded = model.decoder(codes).mean.reshape(-1, *x.shape[1:])
        rows.append(torch.cat([x[datum : datum + 1], decoded]).cpu())
        names.append(f"latent {latent}\non {float(inclusion[:, latent].mean()):.0%}")
    columns = ["datum", "decoded", "off", *(f"z = {value:g}" for value in values.tolist())]
    return grid(rows, names, "Traversals of single latents", columns)
