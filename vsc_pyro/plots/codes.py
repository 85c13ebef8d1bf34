"""Figures of the codes of many data."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from vsc_pyro._arguments import choice, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import BLUE, GREEN, ORANGE, PURPLE
from vsc_pyro.plots.inputs import batches, data_for, seeded_evaluation, usage_of
from vsc_pyro.plots.pictures import name_latents

# The eight hues of Okabe & Ito (2008), a grey and a wine; further classes repeat them with another marker.
_HUES = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#000000", "#999999", "#F0E442", "#661100")
_MARKERS = "o^sDv"
_MOST_BARS = 128  # latents with a bar each
_LEAST = 1e-4  # inclusion at the lower end of a logarithmic axis


@seeded_evaluation
def inclusion_map(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    num_classes: int | None = None,
    by: str = "class",
    num: int = 200,
    num_latents: int = 256,
    *,
    seed: int = 0,
) -> Figure:
    """Inclusion probabilities of latents (columns, most used first), averaged over classes or for single data (rows).

    If there are more than `num_latents`, the most used are shown, and the title says so. All figures order latents by
    mean inclusion over all data passed, and equals by the variance of their centres.

    Args:
        model: a `VAE`.
        data: a `Dataset` with labels; for ``by="datum"`` also data of shape ``(N, ...)``.
        num_classes: number of rows by class, for labels from 0 on; None for one row for each label that occurs.
        by: ``"class"``, or ``"datum"`` for one row a datum, sorted by labels if there are any.
        num: number of rows by datum, from the first datum on.
        num_latents: greatest number of columns.
        seed: seed of the binarisation.

    Raises:
        ValueError: rows by class of data without labels, or labels beyond `num_classes`; an unknown `by`; data that do
            not fit the model.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> data = vsc.Dataset(torch.rand(10, 64), labels=torch.arange(10) % 3)
    >>> plots.inclusion_map(vsc.VSC(64, 5), data).axes[0].get_title()
    'Inclusion by class'
    """
    by_class = choice("by", by, {"class": True, "datum": False})
    num = positive_int("num", num)
    data = data_for(model, data)
    if by_class and data.labels is None:
        raise ValueError(
            "inclusion_map by class needs labels, and data.labels is None; pass Dataset(images, labels), or by='datum'"
        )
    if num_classes is not None and data.labels is not None:
        low, high = (int(label) for label in data.labels.aminmax())
        if low < 0 or high >= positive_int("num_classes", num_classes):
            raise ValueError(f"num_classes={num_classes} rows do not hold labels from {low} to {high}; pass None")
        if data.class_names is not None and num_classes > len(data.class_names):
            raise ValueError(f"num_classes={num_classes} rows are more than {len(data.class_names)} classes; pass None")
    seen = data.draw(slice(None))
    ranked = usage_of(model, seen).order
    order = ranked[: positive_int("num_latents", num_latents)]
    shown = slice(None if by_class else num)
    inclusion = torch.cat(
        [inclusion_of(model.encoder(x.to(model.reference))).cpu()[:, order] for x in seen[shown].split(1000)]
    )
    figure = Figure(figsize=(10, 3.6 if by_class else 5.5), layout="constrained")
    axes = figure.subplots()
    if by_class:
        rows = _rows_of_classes(axes, inclusion, data, num_classes)
    else:
        rows = _rows_of_data(axes, inclusion, data[shown])
    image = axes.imshow(rows.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    name_latents(axes, order.tolist())
    some = f", the {len(order)} most used of {len(ranked):,} latents" if len(order) < len(ranked) else ""
    axes.set(xlabel="latent, most used first", title=f"Inclusion by {by}{some}")
    figure.colorbar(image, label="mean inclusion probability" if by_class else "inclusion probability")
    return figure


def _rows_of_classes(axes: Axes, inclusion: Tensor, data: Dataset, num_classes: int | None) -> Tensor:
    labels = cast(Tensor, data.labels).cpu()
    classes = labels.unique().tolist() if num_classes is None else range(num_classes)
    axes.set_yticks(range(len(classes)), [str(data.class_name(label)) for label in classes])
    axes.set_ylabel("class")
    return torch.stack([inclusion[labels == label].mean(0) for label in classes])


def _rows_of_data(axes: Axes, inclusion: Tensor, data: Dataset) -> Tensor:
    if data.labels is None:
        axes.set_ylabel("datum")
        return inclusion
    labels = data.labels.cpu()
    classes, counts = labels.unique(return_counts=True)
    ends = counts.cumsum(0)
    axes.set_yticks((ends - 0.5 * counts - 0.5).tolist(), [str(data.class_name(label)) for label in classes.tolist()])
    axes.set_ylabel("datum, by class")
    for end in ends[:-1].tolist():
        axes.axhline(end - 0.5, color="white", linewidth=0.8)
    return inclusion[labels.argsort(stable=True)]


@seeded_evaluation
def inclusion_usage(model: VAE, data: Dataset | Tensor | np.ndarray, *, seed: int = 0) -> Figure:
    r"""Use of latents: the mean of :math:`P(z_j \neq 0 | x)` over data beside the prior's inclusion, most used first.

    In a good fit the two agree, because the prior is then the mean of the posteriors. The prior is omitted if it has no
    spike for each latent. A learned inclusion with a hyperprior is shown at its posterior mean.

    Args:
        model: a `VAE` whose posterior has spikes.
        data: data of shape ``(N, ...)``.
        seed: seed of the binarisation.

    Raises:
        ValueError: a model without spikes, or data that do not fit it.
    """
    data = data_for(model, data)
    x = data.images[:1].to(model.reference)
    posterior = model.encoder(x)
    if inclusion_logits(posterior) is None:
        raise ValueError(
            f"inclusion_usage needs spikes, and codes of {type(model.encoder).__name__} have none: every latent is "
            "always on; build the model with a SpikeSlabEncoder or ThresholdEncoder"
        )
    usage = usage_of(model, data.draw(slice(None)))
    used, order = usage.inclusion, usage.order
    prior = inclusion_logits(model.marginal_prior(x).expand(posterior.batch_shape))
    expected = None if prior is None else prior[0].sigmoid().cpu()[order].numpy()
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    if len(order) <= _MOST_BARS:
        _draw_bars(axes, used[order].numpy(), expected, order.tolist())
    else:
        _draw_curve(axes, used[order].numpy(), expected)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)  # beside the title
    on = int((usage.highest > 0.5).sum())
    axes.set(ylabel="inclusion probability", title=f"Use of latents: {on:,} of {len(order):,} are ever on")
    axes.title.set_horizontalalignment("left")
    axes.title.set_x(0)
    return figure


def _draw_bars(axes: Axes, used: np.ndarray, expected: np.ndarray | None, order: list[int]) -> None:
    at = np.arange(len(order))
    axes.bar(at, used, color=BLUE, label="posterior, mean over data")
    if expected is not None:
        size = min(5.0, 300 / len(order))
        style = {"markeredgecolor": "k", "markersize": size, "markeredgewidth": size / 5}
        axes.plot(at, expected, linestyle="", marker="D", color=ORANGE, label="prior", **style)
    name_latents(axes, order)
    axes.set(xlabel="latent, most used first", xlim=(-0.8, len(order) - 0.2), ylim=(0, None))


def _draw_curve(axes: Axes, used: np.ndarray, expected: np.ndarray | None) -> None:
    at = np.arange(1, len(used) + 1)
    foot = max(_LEAST, 0.5 * float(used.min()))
    axes.fill_between(at, used.clip(foot), foot, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(at, used.clip(_LEAST), color=BLUE, label="posterior, mean over data")
    if expected is not None:
        axes.plot(at, expected.clip(_LEAST), linestyle="", marker=".", markersize=2, color=ORANGE, label="prior")
    # A few latents have most of the use: on linear axes the curve would be a corner.
    axes.set(yscale="log", ylim=(foot, 1), xlim=(1, len(used)))
    rare = int((used < _LEAST).sum())
    axes.set_xlabel(f"rank of the latent, most used first; {rare:,} are on in less than {_LEAST:.2%} of the data")


@seeded_evaluation
def embedding(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 2000, method: str = "pca", *, seed: int = 0
) -> Figure:
    """Codes of data as points in the plane, coloured by class, with each class's name at its mean.

    A code is `vsc_pyro.distributions.centre`, the posterior mean where there is one. Codes of two latents are shown
    unchanged, whatever the method.

    Args:
        model: a `VAE` of at least two latents.
        data: a `Dataset` with labels; without labels, or from an array of shape ``(N, ...)``, all points have one
            colour.
        num: number of data, from the first on.
        method: projection of more than two latents: ``"pca"``, the two directions of largest variance, or ``"tsne"``,
            scikit-learn's t-SNE (van der Maaten & Hinton, 2008), in which neighbours have a meaning but distances do
            not.
        seed: seed of the binarisation, and of t-SNE.

    Raises:
        ValueError: a model of one latent; fewer than two data, or four for t-SNE; an unknown method; data that do not
            fit the model.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> plots.embedding(vsc.VSC(64, latent_dim=2), torch.rand(10, 64)).axes[0].get_xlabel()
    'latent 0'
    """
    project = choice("method", method, _METHODS)
    least = 4 if method == "tsne" else 2
    data = data_for(model, data)
    x = data.images[: positive_int("num", num)]
    if len(x) < least:
        raise ValueError(f"method={method!r} needs at least {least} data, got {len(x)}; pass more, or a larger num")
    latents = model.encoder(x[:1].to(model.reference)).event_shape[-1]
    if latents < 2:
        raise ValueError("embedding needs codes of at least two latents, and the model has 1; see traversals instead")
    shown = Dataset(x, None, data.binarize)
    codes = torch.cat([centre(model.encoder(batch)).cpu() for batch in batches(model, shown)])
    points, names = (codes, ["latent 0", "latent 1"]) if latents == 2 else project(codes, seed)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    if data.labels is None:
        axes.scatter(*points.T.numpy(), s=6, color=BLUE, linewidths=0)
    else:
        _scatter_classes(axes, points, data[: len(x)])
    axes.set(xlabel=names[0], ylabel=names[1], title=f"Codes of {len(x)} data")
    return figure


def _principal_components(codes: Tensor, seed: int) -> tuple[Tensor, list[str]]:
    centred = codes - codes.mean(0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = lengths**2 / (lengths**2).sum().clamp(min=1e-30)
    return centred @ directions[:2].T, [f"principal component {i + 1}, {shares[i]:.0%} of the variance" for i in (0, 1)]


def _neighbours(codes: Tensor, seed: int) -> tuple[Tensor, list[str]]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(codes) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes.numpy())
    return torch.from_numpy(points), ["t-SNE 1", "t-SNE 2"]


_METHODS = {"pca": _principal_components, "tsne": _neighbours}


def _scatter_classes(axes: Axes, points: Tensor, data: Dataset) -> None:
    labels = cast(Tensor, data.labels).cpu()
    for place, label in enumerate(labels.unique().tolist()):
        own = points[labels == label]
        colour, marker = _HUES[place % len(_HUES)], _MARKERS[place // len(_HUES) % len(_MARKERS)]
        name = str(data.class_name(label))
        axes.scatter(*own.T.numpy(), s=7, color=colour, marker=marker, linewidths=0, alpha=0.7, label=name)
    axes.legend(title="class", bbox_to_anchor=(1, 1), loc="upper left", frameon=False, markerscale=3, fontsize=8)
    for label in labels.unique().tolist():  # in a loop of its own, so that names are above all points
        x, y = points[labels == label].mean(0).tolist()
        name = axes.text(x, y, str(data.class_name(label)), ha="center", va="center")
        size = 13 if data.class_names is None else 8
        name.set(fontsize=size, fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])
