"""Figures of codes edited one latent at a time, decoded.

The code of a datum is here its most likely one: latents that are on with a probability above 1/2 are at the centres of
their slabs, and all others are zero.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vsc_pyro._arguments import choice, natural_int, positive_float, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, given, hard_code, inclusion_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.plots.drawing import Style, drawing_of
from vsc_pyro.plots.inputs import (
    data_for,
    latent_index,
    proper_prior,
    seeded_evaluation,
    slab_draws,
    slab_quantiles,
    some_data,
    usage_of,
)
from vsc_pyro.plots.pictures import grid, in_rows, write_sentence

if TYPE_CHECKING:
    from typing_extensions import Unpack

_RANGE = (0.025, 0.975)  # levels of the slab that a traversal spans
_PER_ROW = 10
_NUM_MEASURED = 1000  # data from which the range of a latent is measured
_NAMED = 15  # latents listed in a title


@seeded_evaluation
def traversals(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    num: int = 10,
    limit: float | None = None,
    datum: int | None = None,
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """Traversals of the most used latents, one row each, in a datum in which the latent is surely on.

    The first columns are the datum, its decoded code, and the same code with this latent off. In the other columns the
    latent moves from -limit to limit, and all others keep their values. Latents that are in no datum more likely on
    than off are omitted. With `datum`, all rows edit that one datum.

    Args:
        model, data: a `VAE` and data of shape ``(N, ...)``.
        num: number of latents, most used first.
        limit: largest absolute value of the latent, above 0; None for the 98 per cent quantile of absolute codes in
            which these latents are on.
        datum: index of the datum to edit. Latents that are on in it come first, then as many that are off (more, if the
            first are fewer than half of `num`), both most used first.
        seed: seed of the binarisation and of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: a number below 1, a limit that is not above 0, data that do not fit the model, or no such datum.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> model = vsc.VAE(vsc.NormalEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.NormalPrior(5))
    >>> plots.traversals(model, torch.rand(10, 64), num=3, image_shape=(8, 8)).get_suptitle()
    'Traversals of single latents: 3 of 5 that are ever on, most used first'
    """
    num = positive_int("num", num)
    limit = None if limit is None else positive_float("limit", limit)
    seen = data_for(model, data).draw(slice(None))
    if datum is not None and natural_int("datum", datum) >= len(seen):
        raise ValueError(f"datum must be the index of one of {len(seen)} data, got {datum}")
    usage = usage_of(model, seen)
    used = usage.order[usage.highest[usage.order] > 0.5]
    latents, places, inclusion = used[:num], usage.datum[used[:num]], usage.inclusion
    title = f"Traversals of single latents: {len(latents)} of {len(used)} that are ever on, most used first"
    if datum is not None:
        inclusion = inclusion_of(model.encoder(seen[[datum]].to(model.reference)))[0].cpu()
        on, off = _on_and_off(used, inclusion > 0.5, num)
        latents, places = torch.cat([on, off]), torch.full((len(on) + len(off),), datum)
        title = f"Edits of one datum: {len(on)} latents that are on in it, then {len(off)} that are off"
    if not len(latents):
        figure = Figure(figsize=(6, 1.5), layout="constrained")
        write_sentence(figure, f"No latent is on in any of {len(seen)} data: {_why_off(usage.highest)}.")
        return figure
    if limit is None:
        sizes = hard_code(model.encoder(seen[:_NUM_MEASURED].to(model.reference)))[:, latents].abs()
        limit = max((float(size[size > 0].quantile(0.98)) for size in sizes.T if (size > 0).any()), default=1.0)
    probability = "mean P(on)" if datum is None else "P(on | x)"
    names = [f"latent {latent}\n{probability} {inclusion[latent]:.2f}" for latent in latents.tolist()]
    rows, columns = _traversed(model, seen[places].to(model.reference), latents.tolist(), limit)
    return grid(rows, names, title, drawing_of(seen, **style), [columns])


def _on_and_off(used: Tensor, is_on: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return `num` of the latents `used`, in order: those that are on, and at least as many that are off."""
    on, off = used[is_on[used]], used[~is_on[used]]
    off = off[: max(num // 2, num - len(on))]
    return on[: num - len(off)], off


def _traversed(model: VAE, x: Tensor, latents: list[int], limit: float) -> tuple[list[Tensor], list[str]]:
    """Return a row of pictures for each datum and its latent, and the titles of their columns."""
    values = (limit / 3 * torch.arange(-3.0, 4.0)).to(x)
    rows = []
    for place, (latent, code) in enumerate(zip(latents, hard_code(model.encoder(x)), strict=True)):
        decoded = _decoded(model, x[place : place + 1], code, latent, values).reshape(-1, *x.shape[1:])
        rows.append(torch.cat([x[place : place + 1], decoded]).cpu())
    return rows, ["datum", "decoded", "off", *(f"z = {value:.3g}" for value in values.tolist())]


def _why_off(inclusion: Tensor) -> str:
    return f"the largest inclusion probability is {float(inclusion.max()):.2g}, and on means above 0.5"


@seeded_evaluation
def traversal(
    model: VAE,
    x: Tensor | np.ndarray,
    latent: int,
    num: int = 9,
    values: Sequence[float] | Tensor | None = None,
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """Traversal of one latent in one datum: with its spike off, and on at values that span the prior's slab.

    The first row is the datum, its decoded code, and the same code with the latent off. Below the latent is on, and all
    others keep their values.

    Args:
        model: a `VAE`.
        x: one datum as the model sees it, with or without a leading dimension of 1.
        latent: index of the latent, from 0.
        num: number of values, evenly spaced between the 2.5 and 97.5 per cent quantiles of the prior's slab.
        values: values of the latent, instead of these.
        seed: seed of the draws that estimate quantiles of a slab without a formula (a mixture's).
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: more than one datum, or one that does not fit the model; a latent out of range; no values, or values
            that are not finite numbers; a flat prior, which has no quantiles, without `values`.

    >>> import torch, vsc_pyro as vsc
    >>> from vsc_pyro import plots
    >>> figure = plots.traversal(vsc.VSC((1, 8, 8), latent_dim=5), torch.rand(1, 8, 8), latent=2, values=[-1, 0, 1])
    >>> [axes.get_title() for axes in figure.axes]
    ['datum', 'decoded', 'spike off', 'z = -1.00', 'z = 0.00', 'z = 1.00']
    """
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    latent, num = latent_index(latent, posterior), positive_int("num", num)
    if values is None:
        prior = proper_prior(model, x, "pass values=(-2, 0, 2), or build the model with a proper prior")
        low, high = slab_quantiles(prior, latent, x.new_tensor(_RANGE)).tolist()
        values = np.linspace(low, high, num)
    values = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(f"values must be a sequence of finite numbers, at least one, got {values.tolist()!r}")
    return _off_and_on(model, x, latent, values, f"Traversal of latent {latent}", style)


@seeded_evaluation
def conditional_samples(
    model: VAE,
    x: Tensor | np.ndarray,
    latent: int | None = None,
    num: int = 10,
    slab: str = "prior",
    *,
    seed: int = 0,
    **style: Unpack[Style],
) -> Figure:
    """Samples of one datum's code with the slabs of its active latents redrawn, or that of one latent.

    The first row is the datum and its decoded code. Below are samples: the latents that are on stay on and are drawn
    anew, each by itself, and all others stay off (conditional sampling of Tonolini et al., 2020). With `latent`, this
    one alone is redrawn and on, the rest of the code is kept, and the first row also has the code with the latent off.

    Args:
        model: a `VAE`.
        x: one datum as the model sees it, with or without a leading dimension of 1.
        latent: index of the latent to redraw; None for all that are on.
        num: number of draws.
        slab: ``"prior"`` draws a latent as it is distributed over all data, ``"posterior"`` as in this datum; either
            given that it is on.
        seed: seed of the draws.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: more than one datum, or one that does not fit the model; a latent out of range; no draw; an unknown
            `slab`; a flat prior, which cannot be drawn from.
    """
    x = some_data(model, x, 1)
    posterior = model.encoder(x)
    num = positive_int("num", num)
    latents = (
        (inclusion_of(posterior)[0] > 0.5).nonzero().flatten().tolist()
        if latent is None
        else [latent_index(latent, posterior)]
    )
    remedy = "pass slab='posterior', or build the model with a proper prior"
    known = {"prior": lambda: proper_prior(model, x, remedy), "posterior": lambda: posterior}
    drawn_from = choice("slab", slab, known)()
    draws = [slab_draws(drawn_from, active, num) for active in latents]
    if latent is not None:
        return _off_and_on(model, x, latents[0], draws[0], f"Latent {latent} redrawn from the {slab}'s slab", style)
    codes = hard_code(posterior).repeat(1 + num, 1)
    if draws:
        codes[1:, latents] = torch.stack(draws, 1)
    decoded = given(model.decoder(codes), x).mean.reshape(-1, *x.shape[1:])
    drawing = drawing_of(x, **style)
    rows, _ = in_rows(decoded[1:], [], drawing.per_row(_PER_ROW))
    title = f"Conditional samples: {len(latents) or 'none'} on, redrawn from the {slab}'s slabs"
    names = ["", "samples", *[""] * (len(rows) - 1)]
    return grid([torch.cat([x, decoded[:1]]), *rows], names, title, drawing, [["datum", "decoded"]])


def _off_and_on(model: VAE, x: Tensor, latent: int, values: Tensor, title: str, style: Style) -> Figure:
    posterior = model.encoder(x)
    decoded = _decoded(model, x, hard_code(posterior)[0], latent, values).reshape(-1, *x.shape[1:])
    drawing = drawing_of(x, **style)
    rows, titles = in_rows(decoded[2:], [f"z = {value:.2f}" for value in values.tolist()], drawing.per_row(_PER_ROW))
    names = ["", "spike on", *[""] * (len(rows) - 1)]
    probability = float(inclusion_of(posterior)[0, latent])
    return grid(
        [torch.cat([x, decoded[:2]]), *rows],
        names,
        f"{title}, on with probability {probability:.2f}",
        drawing,
        [["datum", "decoded", "spike off"], *titles],
    )


def _decoded(model: VAE, x: Tensor, code: Tensor, latent: int, values: Tensor) -> Tensor:
    """Decode the code unchanged, with the latent at zero, and with it at each of the values."""
    codes = code.repeat(2 + len(values), 1)
    codes[1:, latent] = torch.cat([values.new_zeros(1), values])
    return given(model.decoder(codes), x).mean


@seeded_evaluation
def interpolation(
    model: VAE, x: Tensor | np.ndarray, num_steps: int = 8, *, seed: int = 0, **style: Unpack[Style]
) -> Figure:
    """Interpolation of two data through the latents that are active in either (after Tonolini et al., 2020).

    In the first row, latents that are active in both data move in a straight line, those active in one fade to or from
    zero, and all others are off. The second row, for comparison, is a straight line between the two mean codes
    (`centre`). Without spikes all latents are active, and the rows agree.

    Args:
        model: a `VAE`.
        x: two data, shape ``(2, ...)``, as the model sees them.
        num_steps: number of codes from the first to the second, both included.
        seed: unused; accepted as by every other figure.
        style: `names`, `image_shape`, `ink`; see `Style`.

    Raises:
        ValueError: other than two data, or data that do not fit the model; fewer than two steps.
    """
    if positive_int("num_steps", num_steps) < 2:
        raise ValueError(f"num_steps must be at least 2, to include both ends, got {num_steps}")
    x = some_data(model, x, 2)
    posterior = model.encoder(x)
    active = inclusion_of(posterior) > 0.5
    rows = []
    share = torch.linspace(0, 1, num_steps).to(x).unsqueeze(-1)
    for first, second in (hard_code(posterior), centre(posterior)):
        decoded = model.decoder(torch.lerp(first, second, share)).mean
        rows.append(torch.cat([x[:1], decoded.reshape(-1, *x.shape[1:]), x[1:]]))
    parts = {"first only": active[0] & ~active[1], "both": active.all(0), "second only": active[1] & ~active[0]}
    union = f"{int(active.any(0).sum())} latents active; " + "; ".join(
        f"{name}: {_listed(part.nonzero().flatten().tolist())}" for name, part in parts.items()
    )
    if not active.any():
        union = f"nothing is active in either datum: {_why_off(inclusion_of(posterior))}"
    columns = ["first", *(f"{value:.2f}" for value in share.flatten().tolist()), "second"]
    title = "Interpolation of codes\n" + textwrap.fill(union, 100)
    return grid(rows, ["active\nlatents", "all\nlatents"], title, drawing_of(x, **style), [columns])


def _listed(latents: list[int]) -> str:
    if not latents:
        return "none"
    more = f" and {len(latents) - _NAMED} more" if len(latents) > _NAMED else ""
    return ", ".join(map(str, latents[:_NAMED])) + more
