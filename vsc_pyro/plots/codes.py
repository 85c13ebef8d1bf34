"""Codes of many data at once."""

from __future__ import annotations

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
from vsc_pyro.plots.inputs import batches, data_for, looking, usage_of
from vsc_pyro.plots.pictures import name_latents

# The eight hues of Okabe & Ito (2008), a grey and a wine; classes beyond take them again, with another marker.
_HUES = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9", "#000000", "#999999", "#F0E442", "#661100")
_MARKERS = "o^sDv"
_MOST_COLUMNS = 256  # latents of a map
_MOST_BARS = 128  # latents that have a bar each
_LEAST = 1e-4  # inclusion at the foot of a logarithmic axis


@looking
def inclusion_map(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    num_classes: int | None = None,
    by: str = "class",
    num: int = 200,
    *,
    seed: int = 0,
) -> Figure:
    """Inclusion probability of latents (columns, most used first), means of classes or of every datum (rows).

    Of more than 256 latents the most used are shown, and the title says so. Most used, here and in all pictures, is by
    mean inclusion over all data passed, of equals by how much their centres vary.

    Args:
        model: a `VAE`.
        data: a `Dataset`, by class one with labels; or, by datum, also data of shape ``(N, ...)``.
        num_classes: rows by class, from 0 on, all labels among them; if None, those that there are.
        by: ``"class"``, or ``"datum"``: rows are data, sorted by their labels where they have any.
        num: rows by datum, data from the first on.
        seed: of binarisation.

    Raises:
        ValueError: rows by class of data without labels, or fewer than there are; an unknown `by`; data that do not fit
            the model.
    """
    show = choice("by", by, {"class": _show_classes, "datum": _show_data})
    num = positive_int("num", num)
    data = data_for(model, data)
    if by == "class" and data.labels is None:
        raise ValueError(
            "inclusion_map by class needs labels, and data.labels is None; pass Dataset(images, labels), or by='datum'"
        )
    if num_classes is not None:
        low, high = (int(label) for label in data.labels.aminmax())
        if low < 0 or high >= positive_int("num_classes", num_classes):
            raise ValueError(f"num_classes={num_classes} rows do not hold labels from {low} to {high}; pass None")
    seen = data.draw(slice(None))
    ranked = usage_of(model, seen).order
    order = ranked[:_MOST_COLUMNS]
    shown = slice(num if by == "datum" else None)
    inclusion = torch.cat(
        [inclusion_of(model.encoder(x.to(model.reference))).cpu()[:, order] for x in seen[shown].split(1000)]
    )
    labels = None if data.labels is None else data.labels[shown].cpu()
    figure = Figure(figsize=(10, 3.6 if by == "class" else 5.5), layout="constrained")
    axes = figure.subplots()
    rows = show(axes, inclusion, labels, num_classes)
    image = axes.imshow(rows.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    name_latents(axes, order.tolist())
    some = f", the {len(order)} most used of {len(ranked):,} latents" if len(order) < len(ranked) else ""
    axes.set(xlabel="latent, most used first", title=f"Inclusion by {by}{some}")
    figure.colorbar(image, label="mean inclusion probability" if by == "class" else "inclusion probability")
    return figure


def _show_classes(axes: Axes, inclusion: Tensor, labels: Tensor, num_classes: int | None) -> Tensor:
    classes = labels.unique().tolist() if num_classes is None else range(num_classes)
    axes.set_yticks(range(len(classes)), list(map(str, classes)))
    axes.set_ylabel("class")
    return torch.stack([inclusion[labels == label].mean(0) for label in classes])


def _show_data(axes: Axes, inclusion: Tensor, labels: Tensor | None, _: int | None) -> Tensor:
    if labels is None:
        axes.set_ylabel("datum")
        return inclusion
    classes, counts = labels.unique(return_counts=True)
    ends = counts.cumsum(0)
    axes.set_yticks((ends - 0.5 * counts - 0.5).tolist(), [str(int(label)) for label in classes])
    axes.set_ylabel("datum, by class")
    for end in ends[:-1].tolist():
        axes.axhline(end - 0.5, color="white", linewidth=0.8)
    return inclusion[labels.argsort(stable=True)]


@looking
def inclusion_usage(model: VAE, data: Dataset | Tensor | np.ndarray, *, seed: int = 0) -> Figure:
    r"""How often latents are on: the mean of :math:`P(z_j \neq 0 | x)` over data against the prior's, most used first.

    Of a good fit the two agree, for the prior is then the mean of the posteriors. A prior without an atom at zero for
    each latent is left out. That of a learned inclusion with a hyperprior is its posterior mean.

    Args:
        model: a `VAE` whose posterior has an atom at zero.
        data: data of shape ``(N, ...)``.
        seed: of binarisation.

    Raises:
        ValueError: a model without spikes, or data that do not fit it.
    """
    data = data_for(model, data)
    x = data.images[:1].to(model.reference)
    posterior = model.encoder(x)
    if inclusion_logits(posterior) is None:
        raise ValueError(
            f"inclusion_usage needs spikes, and codes of {type(model.encoder).__name__} have none: every latent is "
            "always on; build the model with SpikeSlabEncoder or ThresholdEncoder"
        )
    usage = usage_of(model, data.draw(slice(None)))
    used, order = usage.inclusion, usage.order
    prior = inclusion_logits(model.marginal_prior(x).expand(posterior.batch_shape))
    expected = None if prior is None else prior[0].sigmoid().cpu()[order].numpy()
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    draw = _draw_bars if len(order) <= _MOST_BARS else _draw_curve
    draw(axes, used[order].numpy(), expected, order.tolist())
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)  # beside the title
    on = int((usage.highest > 0.5).sum())
    axes.set(ylabel="inclusion probability", title=f"Use of latents: {on:,} of {len(order):,} are ever on")
    axes.title.set_ha("left")
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


def _draw_curve(axes: Axes, used: np.ndarray, expected: np.ndarray | None, order: list[int]) -> None:
    at = np.arange(1, len(order) + 1)
    foot = max(_LEAST, 0.5 * float(used.min()))
    axes.fill_between(at, used.clip(foot), foot, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(at, used.clip(_LEAST), color=BLUE, label="posterior, mean over data")
    if expected is not None:
        axes.plot(at, expected.clip(_LEAST), linestyle="", marker=".", markersize=2, color=ORANGE, label="prior")
    # A few carry most of the use: on plain axes the curve would be a corner.
    axes.set(yscale="log", ylim=(foot, 1), xlim=(1, len(order)))
    rare = int((used < _LEAST).sum())
    axes.set_xlabel(f"rank of the latent, most used first; {rare:,} are on in less than {_LEAST:.2%} of the data")


@looking
def embedding(
    model: VAE, data: Dataset | Tensor | np.ndarray, num: int = 2000, method: str = "pca", *, seed: int = 0
) -> Figure:
    """Codes of data as points in the plane, coloured by class, each class named where its mean is.

    A code is `vsc_pyro.distributions.centre`, the posterior mean where there is one. Codes of two latents are shown as
    they are, whatever the method.

    Args:
        model: a `VAE` of two latents or more.
        data: a `Dataset` with labels; without, or of an array of shape ``(N, ...)``, points are of one colour.
        num: how many data, from the first on.
        method: of more latents, ``"pca"``, the two directions of the largest variance, or ``"tsne"``, scikit-learn's
            t-SNE (van der Maaten & Hinton, 2008), in which neighbours mean something and distances do not.
        seed: of binarisation, and of t-SNE.

    Raises:
        ValueError: a model of one latent; fewer than two data, of t-SNE four; an unknown method; data that do not fit.
    """
    project = choice("method", method, _METHODS)
    least = 4 if method == "tsne" else 2
    data = data_for(model, data)
    x = data.images[: positive_int("num", num)]
    if len(x) < least:
        raise ValueError(f"method={method!r} needs at least {least} data, got {len(x)}; pass more, or a larger num")
    latents = model.encoder(x[:1].to(model.reference)).event_shape[-1]
    if latents < 2:
        raise ValueError("embedding needs codes of at least two latents, and the model's have 1; there is no plane")
    shown = Dataset(x, None, data.binarize)
    codes = torch.cat([centre(model.encoder(batch)).cpu() for batch in batches(model, shown)])
    points, names = (codes, ["latent 0", "latent 1"]) if latents == 2 else project(codes, seed)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    if data.labels is None:
        axes.scatter(*points.T.numpy(), s=6, color=BLUE, linewidths=0)
    else:
        _scatter_classes(axes, points, data.labels[: len(x)].cpu())
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


def _scatter_classes(axes: Axes, points: Tensor, labels: Tensor) -> None:
    for place, label in enumerate(labels.unique().tolist()):
        own = points[labels == label]
        colour, marker = _HUES[place % len(_HUES)], _MARKERS[place // len(_HUES) % len(_MARKERS)]
        axes.scatter(*own.T.numpy(), s=7, color=colour, marker=marker, linewidths=0, alpha=0.7, label=str(label))
    axes.legend(title="class", bbox_to_anchor=(1, 1), loc="upper left", frameon=False, markerscale=3, fontsize=8)
    for label in labels.unique().tolist():  # above all points
        name = axes.text(*points[labels == label].mean(0).tolist(), str(label), ha="center", va="center")
        name.set(fontsize=13, fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])
