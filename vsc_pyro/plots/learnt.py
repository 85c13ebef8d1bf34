"""What a model has learnt, without a code: pseudo-inputs, atoms, the course of training."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro.arguments import positive_int
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.plots.looking import looking
from vsc_pyro.plots.pictures import grid
from vsc_pyro.training import History
from vsc_pyro.vae import VAE


@looking
def pseudo_inputs(model: VAE, data: Dataset | Tensor | np.ndarray, *, seed: int = 0) -> Figure:
    """The learned pseudo-inputs of a `PseudoInputPrior`, most used first, and the share of data assigned to each.

    Args:
        model: a `VAE` with such a prior.
        data: data of shape ``(N, ...)``; gives the pictures their shape, and the shares.
        seed: of binarisation.

    Raises:
        ValueError: a model without pseudo-inputs.
    """
    if not hasattr(model.prior, "pseudo_inputs"):
        raise ValueError(
            f"the model's prior must have pseudo-inputs, and {type(model.prior).__name__} has none; "
            "build it with PseudoInputPrior"
        )
    data = as_dataset(data)
    batches = (data.draw(rows).to(model.reference) for rows in torch.arange(len(data)).split(1000))
    shares = torch.cat([model.prior(x).log_assignment.exp() for x in batches]).mean(0)
    order = shares.argsort(descending=True)
    inputs = model.prior.pseudo_inputs[order].reshape(-1, *data.images.shape[1:]).cpu()
    columns = min(len(order), 10)
    rows = list(inputs.split(columns))
    titles = [f"{share:.0%}" for share in shares[order].tolist()]
    figure = grid(rows, [""] * len(rows), "Pseudo-inputs, and the share of data assigned to each")
    for axes, title in zip((a for a in figure.axes if a.images), titles, strict=True):
        axes.set_title(title, fontsize=7)
    return figure


def receptive_fields(model: VAE, num: int = 100) -> Figure:
    """The atoms of a linear decoder, what each latent adds to the picture, largest norm first, each on its own scale.

    Args:
        model: a `VAE` whose decoder has a `dictionary` (``hidden=()``).
        num: how many atoms.

    Raises:
        ValueError: a decoder that is not linear.
    """
    atoms = model.decoder.dictionary.detach().cpu()
    order = atoms.flatten(1).norm(dim=1).argsort(descending=True)[: positive_int("num", num)]
    atoms = atoms[order]
    # Zero is grey, whatever the sign of an atom.
    largest = atoms.flatten(1).abs().amax(1).clamp(min=1e-12)
    shown = 0.5 + 0.5 * atoms / largest.reshape(-1, *[1] * (atoms.ndim - 1))
    rows = list(shown.split(math.ceil(math.sqrt(len(order)))))
    return grid(rows, [""] * len(rows), "Receptive fields: atoms of the linear decoder")


def training_curve(history: History) -> Figure:
    """What was maximised against epochs, as `fit` measured it (the ELBO by the gate as trained, where there is one).

    Raises:
        ValueError: a history without an epoch.
    """
    if not len(history):
        raise ValueError("history holds no epoch; pass what fit returned")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(history) + 1), history.elbo, color="#0072B2", marker="." if len(history) < 30 else None)
    # The first epochs fall off a cliff that would hide all others.
    later = history.elbo[len(history) // 10 :]
    margin = 0.05 * (max(later) - min(later)) or 1.0
    axes.set_ylim(min(later) - margin, max(later) + margin)
    axes.set(xlabel="epoch", ylabel="training objective, nats per datum", title="Training")
    axes.grid(alpha=0.3)
    return figure
