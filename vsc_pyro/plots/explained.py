"""Figures of one datum and its code: the latents that are on, and the contribution of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.distributions import centre, given, hard_code, inclusion_of, slab_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import BLUE, Drawing, Style, drawing_of
from vsc_pyro.plots.inputs import quantiles, seeded_evaluation, some_data
from vsc_pyro.plots.pictures import draw_grid, in_rows, name_latents, write_sentence

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PER_ROW = 6
_PAIR = ("datum", "reconstruction")


@seeded_evaluation
def code(
    model: VAE,
    x: Tensor | np.ndarray,
    num: int = 20,
    coverage: float = 0.9,
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """The code of one datum: the inclusion probability of each latent, and its value given that it is on.

    Beside the datum are stems of the inclusion probabilities of the most probable latents. Below them are the centres
    and central intervals of their slabs, pale where a latent is more likely off. Without spikes every latent
    is on with probability 1, and those farthest from zero come first; the intervals of a point have length zero.

    Args:
        model: a `VAE`.
        x: one datum as the model sees it, with or without a leading dimension of 1.
        num: number of latents, most probable first.
        coverage: probability of the slab's central interval, strictly between 0 and 1.
        seed: seed of the draws that estimate quantiles of a slab without a formula.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: more than one datum, or one that does not fit the model; no latent; a coverage outside (0, 1).

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> figure = plots.code(vsc.VSC((1, 8, 8), latent_dim=5), torch.rand(1, 8, 8))
    >>> figure.axes[-1].get_xlabel()
    'latent, most probable first'
    """
    num = positive_int("num", num)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage!r}")
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    slab = slab_of(posterior)
    inclusion, centres = inclusion_of(posterior)[0], centre(slab)[0]
    by_size = centres.abs().argsort(descending=True)
    order = by_size[inclusion[by_size].argsort(descending=True, stable=True)][:num].cpu()
    levels = x.new_tensor([(1 - coverage) / 2, (1 + coverage) / 2])
    low, high = (end[0].cpu()[order].numpy() for end in quantiles(slab, levels))
    inclusion, centres = inclusion.cpu()[order].numpy(), centres.cpu()[order].numpy()

    panels = _panels_of_code(drawing_of(x, **style), x[0], len(order))
    panels["datum"].set_title("datum", fontsize=10)
    at = np.arange(len(order))
    above, below = panels["inclusion"], panels["slab"]
    above.vlines(at, 0, inclusion, color=BLUE)
    above.plot(at, inclusion, "o", color=BLUE, markersize=4)
    above.set(ylim=(0, 1.08), ylabel="P(on | x)")
    num_on = int((inclusion_of(posterior) > 0.5).sum())
    above.set_title(f"Code: {num_on or 'none'} of {posterior.event_shape[-1]:,} on")
    below.axhline(0, color="0.7", linewidth=1)
    for likely, alpha in ((inclusion > 0.5, 1.0), (inclusion <= 0.5, 0.3)):
        ends = np.stack([centres - low, high - centres])[:, likely]
        below.errorbar(at[likely], centres[likely], ends, fmt="o", color=BLUE, alpha=alpha, markersize=4)
    below.set(xlabel="latent, most probable first", ylabel=f"z if on, {coverage:.0%}")
    for axes in (above, below):
        name_latents(axes, order.tolist())
        axes.set_xlim(-0.6, len(order) - 0.4)
    return cast(Figure, above.get_figure(root=True))


def _panels_of_code(drawing: Drawing, datum: Tensor, num: int) -> dict[str, Axes]:
    """Return axes ``"datum"`` (already drawn), ``"inclusion"`` and ``"slab"`` with room for `num` latents."""
    width = min(8.0, 2.8 + 0.2 * num)  # without the datum
    if drawing.kind == "line":
        figure = Figure(figsize=(max(6.0, width), 5.2), layout="constrained")
        panels = figure.subplot_mosaic([["datum"], ["inclusion"], ["slab"]], height_ratios=(1.2, 1.5, 1.5))
    else:
        left = 2.0 + drawing.width_of_names
        size = (min(10.0, left + width), max(3.8, drawing.height + 0.5))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplot_mosaic([["datum", "inclusion"], ["datum", "slab"]], width_ratios=(2, size[0] - left))
    drawing.draw(panels["datum"], datum)
    return panels


@seeded_evaluation
def explanation(model: VAE, x: Tensor | np.ndarray, num: int = 12, *, seed: int = 0, **style: Unpack[Style]) -> Figure:
    r"""One datum, its reconstruction, and the contribution of each active latent, largest first.

    The contribution of latent j is what the decoded datum loses without it,

    .. math:: c_j = E[x | z] - E[x | z \text{ with } z_j = 0],

    for the most likely code z: active latents, those on with a probability above 1/2, are at the centres of their
    slabs, and all others are zero. Contributions add up (to the decoded datum less that of an empty code) only if the
    decoder is linear and its output is the mean. Otherwise the contribution of a latent depends on the others, and a
    stroke that several latents draw belongs to none of them. The size of a contribution is its Euclidean norm. All
    share one scale, symmetric about zero. For colour pictures the mean over channels is shown, in which a change of hue
    alone cancels. If no latent is active, the figure says so.

    Args:
        model: a `VAE`.
        x: one datum as the model sees it, with or without a leading dimension of 1.
        num: greatest number of contributions, largest first.
        seed: unused; accepted as by every other figure.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: more than one datum, or one that does not fit the model; no contribution to show.
    """
    num = positive_int("num", num)
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    inclusion, z = inclusion_of(posterior)[0], hard_code(posterior)[0]
    active = (inclusion > 0.5).nonzero().flatten()
    without = z.repeat(len(active), 1)
    without[torch.arange(len(active)), active] = 0
    whole, *less = given(model.decoder(torch.cat([z[None], without])), x).mean.reshape(-1, *x.shape[1:])
    added = torch.stack([whole - other for other in less]) if less else x.new_zeros(0, *x.shape[1:])
    order = added.flatten(1).norm(dim=1).argsort(descending=True)[:num]
    names = [
        f"latent {latent}\n$\\gamma$ {inclusion[latent]:.2f}, z {z[latent]:.2f}" for latent in active[order].tolist()
    ]
    title = f"Explanation: {len(order)} of {len(active)} active latents, largest contribution first"
    if not less:
        title = f"No latent is on: the largest inclusion probability is {float(inclusion.max()):.2g}"
    drawing = drawing_of(x, **style)
    explain = _explain_picture if drawing.kind == "picture" else _explain_vector
    figure = explain(drawing, torch.stack([x[0], whole]).cpu(), added[order].cpu(), names)
    figure.suptitle(title, fontsize=10)
    return figure


_NOTHING = "nothing to explain:\nno latent is more likely on than off,\nand the decoded code is all zeros"


def _explain_picture(drawing: Drawing, pair: Tensor, added: Tensor, names: list[str]) -> Figure:
    num_rows, num_columns = max(1, -(-len(names) // _PER_ROW)), max(1, min(len(names), _PER_ROW))
    figure = Figure(figsize=(max(5.2, 3.4 + 1.1 * num_columns), 0.5 + 1.5 * max(2, num_rows)), layout="constrained")
    left, right = _subfigures(figure, 1, 2, width_ratios=(1.5, 1.1 * num_columns + 1.0))
    for axes, picture, name in zip(left.subplots(2, 1), pair, _PAIR, strict=True):
        drawing.draw(axes, picture)
        axes.set_title(name, fontsize=8)
    if not names:
        write_sentence(right, _NOTHING)
        return figure
    maps = added.reshape(-1, *drawing.shape)
    if maps.ndim == 4:
        maps = maps.mean(1)
    own = Drawing(maps.shape[1:], _symmetric(maps), "RdBu")
    panels = right.subplots(num_rows, num_columns, squeeze=False)
    for axes in panels.flat[len(maps) :]:
        axes.axis("off")
    images = []
    for axes, contribution, name in zip(panels.flat, maps, names, strict=False):
        images.append(own.draw(axes, contribution))
        axes.set_title(name, fontsize=8)
    bar = right.colorbar(images[-1], ax=panels, shrink=0.8)
    bar.set_label("decoded with it minus without", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _explain_vector(drawing: Drawing, pair: Tensor, added: Tensor, names: list[str]) -> Figure:
    per_row = 1 if drawing.kind == "line" else _PER_ROW
    above, titles = in_rows(pair, _PAIR, min(per_row, 2))
    below, more = in_rows(added, names, per_row) if names else ([], [])  # torch splits no rows into one empty chunk
    rows, titles = above + below, titles + more
    own = drawing.between(*_symmetric(added)) if names else drawing
    drawings = [drawing.holding([pair])] * len(above) + [own] * len(below)
    labels = ["", ""][: len(above)] + ["added"] * len(below)
    if drawing.kind == "line":
        labels, titles = [title for (title,) in titles], []
    height = drawing.height + (0.25 if titles else 0.0)
    columns = max(map(len, rows))
    width = drawing.width_of_names + (8.0 if drawing.kind == "line" else 1.2 * max(columns, 3) + 0.8)
    figure = Figure(
        figsize=(min(10.0, max(width, 5.2)), height * len(rows) + 0.6 + 0.8 * (not names)), layout="constrained"
    )
    drawn = figure
    if not names:
        drawn, note = _subfigures(figure, 2, 1, height_ratios=(height * len(rows), 0.8))
        write_sentence(note, _NOTHING)
    draw_grid(drawn, rows, labels, drawings, titles)
    return figure


def _subfigures(figure: Figure, num_rows: int, num_columns: int, **ratios: Any) -> Any:
    return figure.subfigures(num_rows, num_columns, **ratios)  # matplotlib's stub returns a single subfigure


def _symmetric(values: Tensor) -> tuple[float, float]:
    limit = max(float(values.abs().max()), 1e-12)
    return -limit, limit
