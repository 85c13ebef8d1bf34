"""Figures of the features that each latent changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import Contrast, centre, contrast, inclusion_of, slab_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import BLUE, ORANGE, Drawing, ImageStyle, drawing_of
from vsc_pyro.plots.inputs import data_for, seeded_evaluation, usage_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CODES_AT_ONCE = 256
_WIDEST = 10.0  # inches
_PANEL = 1.5  # width in inches of bars, without the features' names
_FACTOR = 7  # characters of a factor beside a name


@seeded_evaluation
def loadings(
    model: VAE,
    names: Sequence[str] | None = None,
    data: Dataset | Tensor | np.ndarray | None = None,
    num: int = 12,
    num_features: int = 8,
    *,
    seed: int = 0,
    **style: Unpack[ImageStyle],
) -> Figure:
    r"""Loadings: the features that change most when a latent alone is turned on, for each latent.

    The loading of feature d on latent j is

    .. math:: \ell_{jd} = E[x_d | z = v_j e_j] - E[x_d | z = 0]

    at a typical value v of the latent. For a linear decoder whose output is the mean, it is v times the atom. With
    data, v is the root mean square of the slab's centre, weighted by the latent's inclusion, with the sign of the mean,
    and latents are ordered by use. Without data, v is 1, a standard deviation of the standard slab, and latents are
    ordered by the norm of their loadings.

    For counts, the change is divided by the standard deviation of the count, its mean over the two codes. Otherwise the
    same abundant features would come first in every latent, and by ratios those with hardly a count. The factor by
    which the rate changes stands beside each name.

    Loadings of images are shown as pictures of all features, blue where the latent adds and red where it removes; in
    colour pictures grey is no change.

    Args:
        model: a `VAE`.
        names: D names of features; None for their numbers.
        data: data of shape ``(N, ...)`` for the typical values, or None.
        num: number of latents.
        num_features: number of features of each, largest absolute loading first.
        seed: seed of the binarisation.
        style: `image_shape`; see `Style`.

    Raises:
        ValueError: another number of names than features, or data that do not fit the model.

    >>> import vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> model = vsc.VSC(3, latent_dim=2)
    >>> [axes.get_title() for axes in plots.loadings(model, names=["age", "dose", "site"]).axes][0].endswith("z = 1")
    True
    """
    num, num_features = positive_int("num", num), positive_int("num_features", num_features)
    if data is None:
        found, order = _strongest(model, None, None, num)
        effects, titles = found.values, {}
    else:
        seen = data_for(model, data).draw(slice(None))
        usage = usage_of(model, seen)
        values = _typical_values(model, seen)
        found, order = _strongest(model, values, usage.order[:num], num)
        effects = found.values.reshape(-1, *seen.shape[1:])
        titles = {j: f"mean P(on) {float(usage.inclusion[j]):.2f}, z = {float(values[j]):.2f}" for j in order.tolist()}
    drawing = drawing_of(effects, names=names, **style)
    labels = [f"latent {latent}\n{titles.get(latent, 'z = 1')}" for latent in order.tolist()]
    if drawing.kind == "picture":
        return _show_pictures(drawing, effects, labels)
    return _list_features(drawing, found, labels, num_features)


def _typical_values(model: VAE, seen: Tensor) -> Tensor:
    """Return the root mean square of each latent given that it is on, signed as its mean; ``(J,)``, on the CPU."""
    sums = squares = weights = torch.zeros(())
    for x in seen.split(1000):
        posterior = model.encoder(x.to(model.reference))
        inclusion, centres = inclusion_of(posterior), centre(slab_of(posterior))
        sums = sums + (inclusion * centres).sum(0).cpu()
        squares = squares + (inclusion * centres**2).sum(0).cpu()
        weights = weights + inclusion.sum(0).cpu()
    size = (squares / weights.clamp(min=1e-12)).sqrt()
    return torch.where(sums < 0, -size, size)


def _strongest(model: VAE, values: Tensor | None, order: Tensor | None, num: int) -> tuple[Contrast, Tensor]:
    """Return loadings and indices of the latents in `order`, or of the `num` latents with the largest loadings."""
    zeros = model.reference.new_zeros(1, cast(int, model.decoder.latent_dim))
    empty = model.decoder(zeros)
    latents = torch.arange(zeros.shape[-1]) if order is None else order
    values = torch.ones(zeros.shape[-1]) if values is None else values

    def effect(chunk: Tensor) -> Contrast:
        codes = zeros.repeat(len(chunk), 1)
        codes[torch.arange(len(chunk)), chunk] = values[chunk].to(codes)
        return contrast(model.decoder(codes), empty)

    if order is None:
        norms = torch.cat([effect(chunk).values.flatten(1).norm(dim=1) for chunk in latents.split(_CODES_AT_ONCE)])
        latents = norms.argsort(descending=True)[:num].cpu()
    parts = [effect(chunk) for chunk in latents.split(_CODES_AT_ONCE)]
    ratios = None if parts[0].ratios is None else torch.cat([cast(Tensor, part.ratios) for part in parts]).cpu()
    return Contrast(torch.cat([part.values for part in parts]).cpu(), parts[0].unit, ratios), latents


def _panels(num: int, inches: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(num, int(_WIDEST // inches[0])))
    num_rows = -(-num // columns)
    size = (max(inches[0] * columns, 4.0), inches[1] * num_rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(num_rows, columns, squeeze=False).flat)
    for axes in panels[num:]:
        axes.axis("off")
    figure.suptitle(title, fontsize=10)
    return figure, panels


def _show_pictures(drawing: Drawing, effects: Tensor, labels: list[str]) -> Figure:
    figure, panels = _panels(len(labels), (2.0, 2.0), "What each latent adds, each on a scale of its own")
    for axes, effect, label in zip(panels, effects.reshape(-1, *drawing.shape), labels, strict=False):
        limit = max(float(effect.abs().max()), 1e-12)
        drawing.between(-limit, limit, "RdBu").draw(axes, effect)
        axes.set_title(label, fontsize=8)
    return figure


def _list_features(drawing: Drawing, found: Contrast, labels: list[str], num_features: int) -> Figure:
    effects = found.values.flatten(1)
    num = min(num_features, effects.shape[1])
    names = drawing.feature_names if drawing.names else tuple(f"feature {name}" for name in drawing.feature_names)
    width = _PANEL + 0.07 * (max(map(len, names)) + (0 if found.ratios is None else _FACTOR))
    figure, panels = _panels(len(labels), (width, 0.7 + 0.14 * num), "Strongest features of each latent")
    for row, (axes, effect, label) in enumerate(zip(panels, effects, labels, strict=False)):
        strongest = effect.abs().argsort(descending=True, stable=True)[:num].tolist()
        values = effect[strongest].tolist()
        axes.barh(range(num), values, 0.75, color=[BLUE if value >= 0 else ORANGE for value in values])
        listed = [names[feature] for feature in strongest]
        if found.ratios is not None:
            factors = found.ratios[row, strongest].tolist()
            listed = [f"{name} \u00d7{factor:.3g}" for name, factor in zip(listed, factors, strict=True)]
        axes.set_yticks(range(num), listed)
        axes.axvline(0, color="0.6", linewidth=0.6)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7, length=2)
        axes.locator_params(axis="x", nbins=3)
        axes.set_title(label, fontsize=8)
    figure.supxlabel(f"change of a feature, {found.unit} (blue up, orange down)", fontsize=8)
    return figure
