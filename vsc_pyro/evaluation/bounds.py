r"""`bounds`: bounds on the evidence of each datum, always with hard spikes, and the figures that `evaluate` averages.

* ELBO :math:`= E_q[\log p(x|z)] - KL(q \| p)` at beta = 1;
* importance-weighted bound :math:`\log \frac1K \sum_k p(x|z_k)\,p(z_k)/q(z_k|x)` (Burda et al., 2016), with the
  exact density of spike and slab. For a mixture prior whose components are assigned to data in training, p(z) is the
  mixture.

References
    C. M. Bishop (1994), Novelty detection and neural network validation.
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders.
    E. Nalisnick, A. Matsukawa, Y. W. Teh, D. Gorur, B. Lakshminarayanan (2019), Do deep generative models know what
        they don't know?
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import bool_or_auto, natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, has_mean, inclusion_logits, is_point
from vsc_pyro.distributions.linear_normal import as_linear
from vsc_pyro.evaluation.codes import Encodable, drawn_batches, first_posterior
from vsc_pyro.evaluation.importance import Weighing, are_worth_compiling, chunk_of, codes_of
from vsc_pyro.evaluation.relaxation import GAP_DRAWS
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.loaded import Loaded, as_readable

T = TypeVar("T")
_POINT, _DEPENDS = "the posterior is a point", "the prior depends on the datum"


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds on the evidence of each datum, in nats, with hard spikes; the result of `bounds`.

    Attributes:
        elbo: evidence lower bound, shape ``(N,)``, float64, on the CPU; NaN if there is none.
        iwae: importance-weighted bound of `num_draws` draws, shape ``(N,)``, float64, on the CPU; NaN if there is none.
        num_draws, binarize: the protocol.
        no_bound: reason why there is no bound, or None.
    """

    elbo: Tensor
    iwae: Tensor
    num_draws: int
    binarize: str | None
    no_bound: str | None = None


def bounds(
    model: VAE,
    data: Encodable,
    *,
    num_draws: int = 100,
    seed: int = 0,
    progress: bool = False,
    compile: bool | str = "auto",
) -> Bounds:
    """Return bounds on the evidence of each datum; their means are the `elbo` and `iwae` of `evaluate`.

    If p(z) depends on the datum and the prior defines no marginal, all values are NaN, with a warning.

    The negative bound is a novelty score (C. M. Bishop, 1994) with a known trap: simple data, with few edges or many
    constant pixels, may have a higher bound than the training data although nothing like them was in training (E.
    Nalisnick et al., 2019). Compare only data with the same binarisation.

    Args:
        model, data, num_draws, seed, progress, compile: as in `evaluate`.

    Raises:
        ValueError: data that do not fit the model, fewer than one draw, an unknown `compile`, or a figure of a datum
            that is not finite (the message names it).

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.NormalPrior(2))
        >>> vsc.bounds(model, torch.randn(20, 4), num_draws=5).elbo.shape
        torch.Size([20])
    """
    num_draws, seed, seen = checked_arguments(model, data, num_draws, seed, compile)
    missing = missing_bound(model, seen)
    if missing == _DEPENDS:
        warnings.warn(f"all bounds are NaN, because there is none: {missing}", stacklevel=2)
    measure = functools.partial(figures_of_batch, model, model.is_bound, missing)
    figures = figures_of("bounds", model, seen, num_draws, seed, progress, compile, measure)
    check_finite(figures, missing)
    return Bounds(figures.reconstruction - figures.kl, figures.iwae, num_draws, seen.binarize, missing)


class Figures(NamedTuple):
    """Figures of N data in J latents, on the CPU.

    Attributes:
        reconstruction: mean of log p(x|z), shape ``(N,)``.
        kl: KL divergence from the marginal prior, shape ``(N,)``; NaN if there is no bound.
        trained_kl: KL divergence from the prior used in training, shape ``(N,)``.
        iwae: importance-weighted bound, shape ``(N,)``; NaN if there is no bound.
        inclusion: inclusion probabilities, shape ``(N, J)``; for a posterior without spikes, 1 where the
            code is not 0.
        on_by_odds: 1 where the posterior odds exceed the prior odds, shape ``(N, J)``.
        code: one draw, shape ``(N, J)``.
        centre: centre of the posterior, shape ``(N, J)``.
        kl_is_exact: 1 if `kl` is in closed form, one entry a batch.
        gap: relaxation gap, shape ``(N,)``; empty if not measured.
    """

    reconstruction: Tensor
    kl: Tensor
    trained_kl: Tensor
    iwae: Tensor
    inclusion: Tensor
    on_by_odds: Tensor
    code: Tensor
    centre: Tensor
    kl_is_exact: Tensor
    gap: Tensor


def checked_arguments(
    model: VAE, data: Encodable, num_draws: int, seed: int, compile: bool | str
) -> tuple[int, int, Dataset | Loaded]:
    num_draws, seed = positive_int("num_draws", num_draws), natural_int("seed", seed)
    bool_or_auto("compile", compile)
    return num_draws, seed, as_readable(data, seed, model)


def missing_bound(model: VAE, data: Dataset | Loaded) -> str | None:
    """Return the reason why the evidence has no bound, or None."""
    if is_point(first_posterior(model, data)):
        return _POINT
    return None if model.has_marginal else _DEPENDS


def figures_of(
    name: str,
    model: VAE,
    data: Dataset | Loaded,
    num_draws: int,
    seed: int,
    progress: bool,
    compile: bool | str,
    measure: Callable[[Tensor, Weighing], Figures],
) -> Figures:
    """Return the figures of data, float64; the arguments are those of `measured`."""
    parts = measured(name, model, data, num_draws, seed, progress, compile, measure)
    return Figures(*(torch.cat(field).double() for field in zip(*parts, strict=True)))


def measured(
    name: str,
    model: VAE,
    data: Dataset | Loaded,
    num_draws: int,
    seed: int,
    progress: bool,
    compile: bool | str,
    measure: Callable[[Tensor, Weighing], T],
) -> list[T]:
    """Return ``measure(x, weigh)`` for each batch x of data, in evaluation mode and seeded.

    Args:
        name: of the work, in the bar and in warnings.
        measure: its second argument weighs `num_draws` codes of each datum.
    """
    like, num_codes = model.reference, len(data) * num_draws
    # Data are checked once. Pyro would check every draw, and wait for the device each time.
    with model.evaluating(), seeded(seed, like.device), pyro.validation_enabled(False):
        with seeded(seed, like.device):
            chunk = chunk_of(model, data.images[:1].to(like), num_draws, GAP_DRAWS)
        chunk = chunk._replace(rows=min(chunk.rows, len(data)))
        if compile == "auto":
            compile = are_worth_compiling(chunk, num_codes, like.device)
        description = f"{name}, compiling" if compile else name
        with tqdm(total=num_codes, desc=description, unit="draw", unit_scale=True, disable=not progress) as bar:

            def after_chunk(num: int) -> None:
                bar.set_description(f"{name}, compiled" if weigh.is_compiled else name, refresh=False)
                bar.update(num)

            weigh = Weighing(model, chunk, num_draws, name, bool(compile), after_chunk)
            return [measure(x.to(like), weigh) for x in drawn_batches(data, chunk.rows)]


def expected_log_likelihood(model: VAE, x: Tensor) -> Tensor | None:
    r"""Return :math:`E_q \log p(x|z)` of each datum in closed form, shape ``(B,)``; None if there is none.

    There is one for a linear normal decoder without missing values, and codes with a mean and a variance.
    """
    posterior = model.encoder(x)
    if model.missing is not None or not has_mean(posterior):
        return None
    likelihood = model.decoder(posterior.mean)
    found = as_linear(likelihood)
    if found is None:
        return None
    linear, values = found
    return linear.expected_log_prob(values(x.reshape(len(x), *likelihood.event_shape)), posterior.variance)


def figures_of_batch(model: VAE, is_bound: bool, missing: str | None, x: Tensor, weigh: Weighing) -> Figures:
    codes = codes_of(model, x)
    weights = weigh(x, codes)
    kl, bound = weights.trained_kl if is_bound else weights.log_ratio, weights.log_mean
    if missing:
        kl, bound = kl * math.nan, bound * math.nan
    on = (weights.last != 0).to(weights.last)
    inclusion, by_odds = on, on
    logits, prior_logits = inclusion_logits(codes.posterior), inclusion_logits(codes.prior)
    if logits is not None:
        inclusion = logits.sigmoid()
        # A user's prior may have no odds for each latent.
        by_odds = on * math.nan if prior_logits is None else (logits > prior_logits).to(on)
    return Figures(
        reconstruction=weights.log_likelihood.cpu(),
        kl=kl.cpu(),
        trained_kl=weights.trained_kl.cpu(),
        iwae=bound.cpu(),
        inclusion=inclusion.flatten(1).cpu(),
        on_by_odds=by_odds.flatten(1).cpu(),
        code=weights.last.flatten(1).cpu(),
        centre=centre(codes.posterior).flatten(1).cpu(),
        kl_is_exact=torch.tensor([codes.trained_kl is not None and is_bound]),
        gap=torch.empty(0),
    )


def check_finite(figures: Figures, missing: str | None) -> None:
    """Raise `ValueError` that names a datum and its figure, if one is not finite."""
    checked = {
        "reconstruction": figures.reconstruction,
        "objective": figures.reconstruction - figures.trained_kl,
        "KL divergence": figures.kl,
        "importance-weighted bound": figures.iwae,
        "inclusion probability": figures.inclusion,
        "code": figures.code,
        "mean of the code": figures.centre,
    }
    for name, values in checked.items():
        if missing is None or name not in ("KL divergence", "importance-weighted bound"):
            check_figure(name, values)
