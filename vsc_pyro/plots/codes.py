"""Codes of many data at once."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure

from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.plots.looking import inclusion_of, looking
from vsc_pyro.vae import VAE


@looking
def inclusion_map(model: VAE, data: Dataset, num_classes: int | None = None, *, seed: int = 0) -> Figure:
    """Mean inclusion probability of every latent (columns, most used first) for every class (rows).

    Args:
        model: a `VAE`.
        data: a `Dataset` with labels.
        num_classes: rows; the largest label plus one if None.
        seed: of binarisation.

    Raises:
        ValueError: data without labels.
    """
    data = as_dataset(data)
    if data.labels is None:
        raise ValueError("inclusion_map needs labels, and data.labels is None; pass Dataset(images, labels)")
    batches = [data.draw(rows).to(model.reference) for rows in torch.arange(len(data)).split(1000)]
    inclusion = torch.cat([inclusion_of(model.encoder(x)).cpu() for x in batches])
    labels = data.labels.cpu()
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    by_class = torch.stack([inclusion[labels == label].mean(0) for label in range(num_classes)])
    order = inclusion.mean(0).argsort(descending=True)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        by_class[:, order].numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(range(num_classes))
    ticks = range(0, len(order), max(1, math.ceil(len(order) / 25)))
    axes.set_xticks(ticks, [str(int(order[tick])) for tick in ticks])
    axes.set(xlabel="latent, most used first", ylabel="class", title="Inclusion by class")
    figure.colorbar(image, label="mean inclusion probability")
    return figure
