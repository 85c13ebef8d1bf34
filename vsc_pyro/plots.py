"""Pictures of a trained model, one function each, returning a `matplotlib.figure.Figure` to show or save.

Spikes are hard in every picture: a model is put into evaluation mode while it is drawn and left as it was.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro.distributions import ImproperUniform
from torch import Tensor

from vsc_pyro.arguments import positive_int
from vsc_pyro.calibration import Calibration
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.distributions import centre, inclusion_logits
from vsc_pyro.seeding import seeded
from vsc_pyro.training import History
from vsc_pyro.vae import VAE

_INCHES = 0.75  # of one small picture
F = TypeVar("F", bound=Callable[..., Any])


def _looking(function: F) -> F:
    """Run in evaluation mode, without gradients, and leave mode and random state as they were."""

    @functools.wraps(function)
    def wrapper(model: VAE, *args: Any, **kwargs: Any) -> Any:
        with model.evaluating(), seeded(kwargs.get("seed", 0), model.reference.device):
            return function(model, *args, **kwargs)

    return wrapper


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
    return _grid(pictures, ["data", *models], "Reconstructions, hard spikes")


@_looking
def _reconstruct(model: VAE, data: Dataset, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    x = data.draw(slice(num)).to(model.reference)
    decoded = model.decoder(model.encoder(x).sample()).mean
    return x.cpu(), decoded.reshape(x.shape).cpu()


@_looking
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
    return _grid(rows, [""] * len(rows), "Decoded samples of the prior")


@_looking
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
    inclusion, centres = _inclusion(posterior), centre(posterior)
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
    return _grid(rows, names, "Traversals of single latents", columns)


@_looking
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
    inclusion = torch.cat([_inclusion(model.encoder(x)).cpu() for x in batches])
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


@_looking
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
    figure = _grid(rows, [""] * len(rows), "Pseudo-inputs, and the share of data assigned to each")
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
    return _grid(rows, [""] * len(rows), "Receptive fields: atoms of the linear decoder")


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


def reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """The share of latents that are on against the probability that a posterior says, a curve for each calibration.

    Bars are two standard errors of the share, as if latents of a datum did not depend on one another. Below, how many
    latents of data are in each bin.

    Args:
        calibrations: what `vsc_pyro.check_calibration` returned, by the name to write beside its curve.

    Raises:
        ValueError: no calibration, or one of a posterior without an atom at zero.
    """
    if not calibrations:
        raise ValueError("calibrations holds none; pass at least one, by the name to write beside its curve")
    if any(math.isnan(result.ece) for result in calibrations.values()):
        raise ValueError("a posterior without an atom at zero has no inclusion probabilities to draw")
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    curves, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, result in calibrations.items():
        frequency = result.bin_frequency
        error = 2 * (frequency * (1 - frequency) / result.bin_count).sqrt()
        curves.errorbar(
            result.bin_inclusion, frequency, error, marker="o", markersize=3, label=f"{name}: error {result.ece:.3f}"
        )
        counts.stairs(result.bin_count, np.linspace(0, 1, len(frequency) + 1))
    curves.set(ylabel="share that is on", title="Reliability of inclusion probabilities")
    curves.legend(frameon=False)
    counts.set(xlabel="inclusion probability", ylabel="count", yscale="log")
    return figure


def rank_histograms(calibrations: Mapping[str, Calibration]) -> Figure:
    """Ranks of true codes among draws of the posterior, as multiples of what is expected; a panel for each calibration.

    A thin line for each latent and a thick one for all of them. Flat is calibrated, a valley a posterior that is too
    narrow, a slope one that is biased. The grey band holds 99 per cent of the values of a calibrated latent.

    Args:
        calibrations: what `vsc_pyro.check_calibration` returned, by the name to write above its panel.

    Raises:
        ValueError: no calibration.
    """
    if not calibrations:
        raise ValueError("calibrations holds none; pass at least one, by the name to write above its panel")
    figure = Figure(figsize=(3.2 * len(calibrations), 2.8), layout="constrained")
    panels = figure.subplots(1, len(calibrations), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, calibrations.items(), strict=True):
        share, edges = result.rank_share, np.linspace(0, 1, len(result.rank_share) + 1)
        band = 2.576 * ((1 - share) / (share * result.num_data)).sqrt()
        axes.fill_between(
            edges, *(np.append(1 + sign * band, 1 + sign * band[-1]) for sign in (-1, 1)), step="post", color="0.9"
        )
        for counts in result.rank_counts:
            axes.stairs(counts / (share * result.num_data), edges, baseline=None, color="C0", alpha=0.4, linewidth=0.8)
        overall = result.rank_counts.double().mean(0)
        axes.stairs(overall / (share * result.num_data), edges, baseline=None, color="k", linewidth=2)
        axes.set(title=f"{name}, p = {result.p_value:.2g}", xlabel="rank of the true code", ylim=(0, None))
    panels[0].set_ylabel("count / expected")
    return figure


def _inclusion(posterior: torch.distributions.Distribution) -> Tensor:
    logits = inclusion_logits(posterior)
    return torch.ones_like(centre(posterior)) if logits is None else logits.sigmoid()


def _grid(rows: list[Tensor], names: list[str], title: str, columns: list[str] | None = None) -> Figure:
    width = max(len(row) for row in rows)
    figure = Figure(figsize=(_INCHES * width + 1.0, _INCHES * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for row, name, line in zip(rows, names, grid, strict=True):
        for axes in line:
            axes.axis("off")
        for picture, axes in zip(row, line, strict=False):
            axes.imshow(_picture(picture), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    for name, axes in zip(columns or [], grid[0], strict=False):
        axes.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _picture(x: Tensor) -> np.ndarray:
    if x.ndim == 1:
        side = math.isqrt(len(x))
        x = x.reshape(side, side) if side * side == len(x) else x.reshape(1, -1)
    elif x.ndim == 3:
        x = x[0] if len(x) == 1 else x.permute(1, 2, 0)
    return x.numpy()
