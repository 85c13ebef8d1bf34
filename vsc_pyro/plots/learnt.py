"""Figures of learned parameters and of training: pseudo-inputs, atoms, the training curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.plots.drawing import BLUE, ORANGE, Style, drawing_of
from vsc_pyro.plots.inputs import batches, data_for, seeded_evaluation
from vsc_pyro.plots.pictures import draw_grid, grid, in_rows, name_latents
from vsc_pyro.training.history import History

if TYPE_CHECKING:
    from typing_extensions import Unpack


@seeded_evaluation
def pseudo_inputs(model: VAE, data: Dataset | Tensor | np.ndarray, *, seed: int = 0, **style: Unpack[Style]) -> Figure:
    """The learned pseudo-inputs of a `PseudoInputPrior`, most used first, and how often each is chosen.

    The title of each picture is its number and its share of the data, the mean of q(u | x). The bars below compare that
    share with the share of data for which the pseudo-input is the most probable one. Where the two differ, assignments
    are uncertain.

    Args:
        model: a `VAE` with such a prior.
        data: data of shape ``(N, ...)``, which determine the shares and the shape of the pictures.
        seed: seed of the binarisation.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: a model without pseudo-inputs, or data that do not fit it.
    """
    if not hasattr(model.prior, "pseudo_inputs"):
        raise ValueError(
            f"the model's prior must have pseudo-inputs, and {type(model.prior).__name__} has none; "
            "build the model with a PseudoInputPrior"
        )
    data = data_for(model, data)
    assignment = torch.cat([model.prior(x).log_assignment.exp().cpu() for x in batches(model, data)])
    shares = assignment.mean(0)
    chosen = assignment.argmax(1).bincount(minlength=len(shares)) / len(assignment)
    order = shares.argsort(descending=True)
    inputs = cast(Tensor, model.prior.pseudo_inputs).cpu()[order].reshape(-1, *data.images.shape[1:])
    titles = [f"{u}: {shares[u]:.0%}" for u in order.tolist()]
    drawing = drawing_of(data.images, **style)
    rows, titles = in_rows(inputs, titles, drawing.per_row(10))
    height = (drawing.height + 0.2) * len(rows)
    figure = Figure(figsize=(8.5 + drawing.width_of_names, height + 2.8), layout="constrained")
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=(height, 2.4)))  # the stub has one subfigure
    draw_grid(above, rows, [""] * len(rows), drawing, titles)
    axes = below.subplots()
    at = np.arange(len(order))
    axes.bar(at - 0.2, shares[order].numpy(), 0.4, color=BLUE, label="mean assignment")
    axes.bar(at + 0.2, chosen[order].numpy(), 0.4, color=ORANGE, label="most probable")
    name_latents(axes, order.tolist())
    axes.set(xlabel="pseudo-input, most used first", ylabel="share of data", xlim=(-0.8, len(order) - 0.2))
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    figure.suptitle("Pseudo-inputs, and how often each is chosen", fontsize=10)
    return figure


def receptive_fields(model: VAE, num: int = 100, **style: Unpack[Style]) -> Figure:
    """The atoms of a linear decoder, what each latent adds to the picture, largest norm first, each on its own scale.

    Args:
        model: a `VAE` whose decoder has a `dictionary` (``hidden=()``).
        num: number of atoms.
        style: `names`, `image_shape`, `ink`; see `Style`. Here ``ink="auto"`` means False: what an atom adds is bright.

    Raises:
        ValueError: a decoder that is not linear.

    >>> import vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> model = vsc.VAE(vsc.NormalEncoder(64, 5), vsc.NormalDecoder(5, 64, hidden=()), vsc.NormalPrior(5))
    >>> len([axes for axes in plots.receptive_fields(model, image_shape=(8, 8)).axes if axes.images])
    5
    """
    check_is_vae(model)
    atoms = cast(Tensor, model.decoder.dictionary).detach().cpu()
    order = atoms.flatten(1).norm(dim=1).argsort(descending=True)[: positive_int("num", num)]
    atoms = atoms[order]
    # Limits symmetric about zero, so that zero is grey.
    largest = atoms.flatten(1).abs().amax(1).clamp(min=1e-12)
    shown = atoms / largest.reshape(-1, *[1] * (atoms.ndim - 1))
    drawing = drawing_of(shown, **style).between(-1.0, 1.0)
    titles = [f"latent {latent}" for latent in order.tolist()] if drawing.kind != "picture" else []
    rows, titles = in_rows(shown, titles, drawing.per_row(math.ceil(math.sqrt(len(order)))))
    return grid(rows, [""] * len(rows), "Receptive fields: atoms of the linear decoder", drawing, titles)


def training_curve(history: History) -> Figure:
    """The training objective against epochs, as `fit` measured it (for a bound, the ELBO under the training gate).

    With validation, its bound is a second curve, and a dot marks `History.best_epoch`.

    Raises:
        ValueError: a history without an epoch.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> history = vsc.fit(vsc.VSC(64, 5), torch.rand(40, 64), epochs=2, progress=False)
    >>> plots.training_curve(history).axes[0].get_xlabel()
    'epoch'
    """
    if not isinstance(history, History):
        raise ValueError(f"history must be what fit returned, got {history!r}")
    if not len(history):
        raise ValueError("history holds no epoch; pass what fit returned")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = {"training objective": (history.elbo, BLUE)}
    if history.validation:
        curves["validation bound"] = (history.validation, ORANGE)
    for name, (values, colour) in curves.items():
        marker = "." if len(history) < 30 else None
        axes.plot(range(1, len(history) + 1), values, color=colour, marker=marker, label=name)
    # The steep rise of the first epochs would hide all others.
    later = [value for values, _ in curves.values() for value in values[len(history) // 10 :]]
    if (best := history.best_epoch) is not None:
        later.append(history.validation[best - 1])
        label = f"best epoch, {best}"
        axes.plot([best], [history.validation[best - 1]], "o", color=ORANGE, markeredgecolor="black", label=label)
        axes.legend(loc="lower right")
    margin = 0.05 * (max(later) - min(later)) or 1.0
    axes.set_ylim(min(later) - margin, max(later) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="epoch",
        ylabel="nats per datum" if history.validation else "training objective, nats per datum",
        title="Training",
    )
    axes.grid(alpha=0.3)
    return figure
