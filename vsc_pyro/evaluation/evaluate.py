r"""`evaluate`: what a trained `VAE` is worth on data, always with hard spikes. `bounds`: datum by datum.

* whether it works: how many latents a datum uses, and how much of the data its code explains, see
  `vsc_pyro.evaluation.survey`; what looks wrong and what to try, see `vsc_pyro.evaluation.advice`;
* ELBO :math:`= E_q[\log p(x|z)] - KL(q \| p)`, its two parts apart, at beta = 1;
* importance-weighted bound :math:`\log \frac1K \sum_k p(x|z_k)\,p(z_k)/q(z_k|x)` (Burda et al., 2016), from the exact
  mixture densities. Where the prior is a mixture that training assigns data to, p(z) is the mixture itself;
* relaxation gap: the objective as trained (soft spikes, if the posterior's draws are soft) minus the same of exact
  draws of that posterior, by the same random numbers. A large gap means that the objective measured a code that is not
  the one the model has;
* older counts of sparsity: expected L0 :math:`\sum_j \gamma_j`; hard L0, counting :math:`\gamma_j > 1/2` or posterior
  above prior odds; Hoyer's measure
  :math:`(\sqrt J - |z|_1/|z|_2)/(\sqrt J - 1)` of codes divided by their standard deviation
  (Hoyer, 2004; Mathieu et al., 2019); active units, :math:`Var_x E_q[z_j|x] > 0.01` (Burda et al., 2016; the median
  where a family need not have a mean, see `vsc_pyro.distributions.centre`);
* against the truth, where it can be had (a linear decoder with Gaussian noise): the evidence itself and the error of
  :math:`\gamma` as an estimate of P(z_j != 0 | x).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import bool_or_auto, choice, natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, inclusion_logits, is_point
from vsc_pyro.evaluation.advice import advise, warn_of_nothing
from vsc_pyro.evaluation.figures import Evaluation
from vsc_pyro.evaluation.importance import Weighing, are_worth_compiling, chunk_of, codes_of
from vsc_pyro.evaluation.relaxation import GAP_DRAWS, relaxation_gap
from vsc_pyro.evaluation.survey import survey
from vsc_pyro.inference.linear_exact import exact_posterior, linear_gaussian
from vsc_pyro.inference.linear_gibbs import GibbsPosterior, gibbs_posterior
from vsc_pyro.models.data_checks import check_figure, in_memory
from vsc_pyro.models.vae import VAE

_POINT, _DEPENDS = "the posterior is a point", "the prior depends on the datum"


def _gibbs(model: VAE, x: Tensor, seed: int, progress: bool) -> GibbsPosterior:
    return gibbs_posterior(model, x, num_samples=1000, thin=1000, seed=seed, progress=progress)  # of no use: its draws


# What refuses a model that has no such posterior, on a datum, and what infers.
_REFERENCES = {
    "exact": (exact_posterior, lambda model, x, seed, progress: exact_posterior(model, x)),
    "gibbs": (linear_gaussian, _gibbs),
}


def evaluate(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    *,
    num_draws: int = 100,
    seed: int = 0,
    reference: str | None = None,
    progress: bool = False,
    compile: bool | str = "auto",
) -> Evaluation:
    """Evaluate `model`, where it is and in evaluation mode, on `data`.

    Memory is bounded whatever `num_draws` and the sizes of data, layers and mixture priors are: draws are taken and
    reduced in chunks, see `vsc_pyro.evaluation.importance`; of each datum only its figures and a code are kept. (How
    large chunks are decides which random numbers a draw is made of, so that another type of device gives other draws.)
    The caller's random state and the model's mode are left as they were.

    Where codes explain nothing of data that a linear code would explain, a `vsc_pyro.NothingExplainedWarning` says so.

    Args:
        model: a `VAE`.
        data: a `Dataset`, or any array or tensor of shape ``(N, ...)``; dynamic binarisation is drawn by `seed`.
        num_draws: draws K of each code.
        seed: of binarisation and draws.
        reference: compare with the true posterior: ``"exact"``, see `vsc_pyro.exact_posterior`, or ``"gibbs"``,
            `vsc_pyro.gibbs_posterior` with its defaults, which takes a while and whose own error adds to the
            `inclusion_error`.
        progress: show a bar, of draws of data; it says whether they are compiled.
        compile: draw, decode and weigh codes by a compiled graph (`vsc_pyro.acceleration.CompiledFunction`): same
            random numbers, results equal but for rounding, in some three quarters of the time on a CPU. ``"auto"``
            does for long work, on a CPU some 13 million codes of 784 pixels (as 10,000 images of 1,340 draws); less
            would wait longer for the compiler, 3 to 10 seconds, than it gains. A last smaller chunk is not compiled.
            What cannot be captured (a decoder that looks at values) is eager, after a warning that says why.

    Raises:
        ValueError: data that do not fit the model, fewer than one draw, a model whose `reference` cannot be had, a
            `compile` that is none of these, or a figure of a datum that is not finite (the message names it).
    """
    num_draws, seed, data = _checked(model, data, num_draws, seed, compile)
    if reference is not None:
        refuse, infer = choice("reference", reference, _REFERENCES)
        refuse(model, data.images[:1])
        with model.evaluating():
            has_atom = inclusion_logits(model.encoder(data.images[:1].to(model.reference))) is not None
        if not has_atom and reference == "gibbs":
            raise ValueError("reference='gibbs' tells inclusion probabilities, and the encoder's codes have none")
    is_bound, missing = _what_bounds(model, data)
    seen, no_gap = [], []

    def measure(x: Tensor, weigh: Weighing) -> tuple[Tensor, ...]:
        if reference is not None:
            seen.append(x)
        gap, reason = relaxation_gap(model, x, seed)
        no_gap.extend([reason] if reason else [])
        return (*_evaluate_batch(model, is_bound, missing, x, weigh), gap.cpu())

    fields = _in_batches("evaluate", model, data, num_draws, seed, progress, compile, measure)
    _check_finite(fields, missing)
    result = _summary(fields, num_draws, data.binarize, missing)
    if not math.isfinite(result.relaxation_gap):
        reason = no_gap[0] if no_gap else f"that of datum {int((~fields[-1].isfinite()).nonzero()[0, 0])} is not finite"
        result = dataclasses.replace(result, relaxation_gap=math.nan, no_gap=reason)
    result = _with_survey(result, model, data, seed)
    if reference is None:
        return result
    truth = infer(model, torch.cat(seen), seed, progress)
    evidence = float(truth.log_evidence.mean()) if reference == "exact" else math.nan
    _, _, _, _, inclusion, *_ = fields
    error = float((inclusion - truth.inclusion.cpu()).abs().mean()) if has_atom else math.nan
    return dataclasses.replace(
        result, reference=reference, evidence=evidence, gap=evidence - result.elbo, inclusion_error=error
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds on the evidence of each datum, in nats, with hard spikes; what `bounds` returns.

    Attributes:
        elbo: evidence lower bound, shape ``(N,)``, float64, on the CPU; NaN where there is none.
        iwae: importance-weighted bound of `num_draws` draws, likewise.
        num_draws, binarize: the protocol.
        no_bound: why there is no bound, or None.
    """

    elbo: Tensor
    iwae: Tensor
    num_draws: int
    binarize: str | None
    no_bound: str | None = None


def bounds(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    *,
    num_draws: int = 100,
    seed: int = 0,
    progress: bool = False,
    compile: bool | str = "auto",
) -> Bounds:
    """Bound the evidence of each datum, as `evaluate` does, whose `elbo` and `iwae` are the means of these.

    Of a prior that depends on the datum there is none, and a warning says so.

    Minus a bound is a score of how unlike the training data a datum is (C. M. Bishop, 1994), with a known trap: simple
    data, of few edges or many pixels that are always alike, may have the higher bound though nothing like them was in
    training (E. Nalisnick et al., 2019). Compare only data that are binarised alike.

    Args:
        model, data, num_draws, seed, progress, compile: as of `evaluate`.

    Raises:
        ValueError: data that do not fit the model, fewer than one draw, a `compile` that is not known, or a figure of a
            datum that is not finite (the message names it).
    """
    num_draws, seed, data = _checked(model, data, num_draws, seed, compile)
    is_bound, missing = _what_bounds(model, data)
    if missing == _DEPENDS:
        warnings.warn(f"all bounds are NaN, for there is none: {missing}", stacklevel=2)
    measure = functools.partial(_evaluate_batch, model, is_bound, missing)
    fields = _in_batches("bounds", model, data, num_draws, seed, progress, compile, measure)
    _check_finite(fields, missing)
    reconstruction, kl, _, iwae, *_ = fields
    return Bounds(reconstruction - kl, iwae, num_draws, data.binarize, missing)


def _checked(
    model: VAE, data: Dataset | Tensor | np.ndarray, num_draws: int, seed: int, compile: bool | str
) -> tuple[int, int, Dataset]:
    num_draws, seed = positive_int("num_draws", num_draws), natural_int("seed", seed)
    bool_or_auto("compile", compile)
    data = in_memory(data)
    model.check_data(data.images)
    return num_draws, seed, data


def _in_batches(
    name: str,
    model: VAE,
    data: Dataset,
    num_draws: int,
    seed: int,
    progress: bool,
    compile: bool | str,
    measure: Callable[[Tensor, Weighing], tuple[Tensor, ...]],
) -> list[Tensor]:
    """What `measure` tells of batches of data, in evaluation mode and seeded; float64."""
    like, num_codes = model.reference, len(data) * num_draws
    # The data have been checked; Pyro would check every draw again and wait for the device each time.
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
            parts = [measure(data.draw(rows).to(like), weigh) for rows in torch.arange(len(data)).split(chunk.rows)]
    return [torch.cat(field).double() for field in zip(*parts, strict=True)]


def _what_bounds(model: VAE, data: Dataset) -> tuple[bool, str | None]:
    """Whether what is trained is a bound, and why there is none at all, or None."""
    with model.evaluating():
        point = is_point(model.encoder(data.images[:1].to(model.reference)))
    is_bound = model.is_bound
    return is_bound, _POINT if point else None if is_bound or model.has_marginal else _DEPENDS


def _evaluate_batch(model: VAE, is_bound: bool, missing: str | None, x: Tensor, weigh: Weighing) -> tuple[Tensor, ...]:
    codes = codes_of(model, x)
    posterior, prior, _, trained_kl = codes
    weights = weigh(x, codes)
    last = weights.last
    exact = trained_kl is not None and is_bound
    if trained_kl is None:
        trained_kl = weights.trained_ratio
    kl, bound = trained_kl if is_bound else weights.log_ratio, weights.log_mean
    if missing:
        kl, bound = kl * math.nan, bound * math.nan
    own, other = inclusion_logits(posterior), inclusion_logits(prior)
    on = (last != 0).to(last)  # which, without an atom, all are
    inclusion, by_odds = on, on
    if own is not None:
        inclusion = own.sigmoid()
        # A prior of a user's own need not have odds for each latent.
        by_odds = on * math.nan if other is None else (own > other).to(last)
    terms = (weights.log_likelihood, kl, trained_kl, bound)
    each = (inclusion, by_odds, last, centre(posterior))
    return (*(t.cpu() for t in terms), *(t.flatten(1).cpu() for t in each), torch.tensor([exact]))


def _check_finite(fields: list[Tensor], missing: str | None) -> None:
    """Raise `ValueError` that names a datum and its figure, if one is not finite."""
    reconstruction, kl, trained_kl, iwae, inclusion, _, codes, means, *_ = fields
    figures = {"reconstruction": reconstruction, "objective": reconstruction - trained_kl}
    if missing is None:
        figures |= {"KL divergence": kl, "importance-weighted bound": iwae}
    figures |= {"inclusion probability": inclusion, "code": codes, "mean of the code": means}
    for name, values in figures.items():
        check_figure(name, values)


def _summary(fields: list[Tensor], num_draws: int, binarize: str | None, missing: str | None) -> Evaluation:
    reconstruction, kl, trained_kl, iwae, inclusion, by_odds, codes, means, exact, gap = fields
    on = inclusion > 0.5
    return Evaluation(
        elbo=float((reconstruction - kl).mean()),
        objective=float((reconstruction - trained_kl).mean()),
        reconstruction=float(reconstruction.mean()),
        kl=float(kl.mean()),
        kl_is_exact=bool(exact.all()),
        iwae=float(iwae.mean()),
        relaxation_gap=float(gap.mean()),
        expected_l0=float(inclusion.sum(1).mean()),
        hard_l0=float(on.double().sum(1).mean()),
        hard_l0_odds=float(by_odds.sum(1).mean()),
        hoyer=hoyer(codes),
        active_units=int((means.var(0, correction=0) > 0.01).sum()),
        used_latents=int(on.any(0).sum()),
        usage=inclusion.mean(0).float(),
        num_draws=num_draws,
        num_data=len(kl),
        binarize=binarize,
        no_bound=missing,
    )


def _with_survey(result: Evaluation, model: VAE, data: Dataset, seed: int) -> Evaluation:
    seen = survey(model, data, seed=seed)
    warn_of_nothing(model, data, seen, seed=seed, stacklevel=4)
    return dataclasses.replace(
        result,
        # Of the draws of the data that the other counts are of.
        used_per_datum=float(result.usage.double()[seen.is_informative].sum()),
        informative_latents=int(seen.is_informative.sum()),
        information=seen.information.float(),
        r2=seen.r2,
        hard_r2=seen.hard_r2,
        entropy_explained=seen.entropy_explained,
        hard_entropy_explained=seen.hard_entropy_explained,
        baseline=seen.baseline,
        advice=advise(model, data, seen, seed=seed),
    )


def hoyer(codes: Tensor) -> float:
    r"""Mean over data of Hoyer's sparsity :math:`(\sqrt J - |z|_1/|z|_2)/(\sqrt J - 1)`, each latent standardised.

    Latents are divided by their standard deviation over data (those that never vary are left out of the norms, not of
    J); a code of zeros counts as fully sparse, 1.

    Args:
        codes: shape ``(N, J)``, J of at least 2.
    """
    num_latents = codes.shape[1]
    if num_latents < 2:
        return math.nan
    deviation = codes.std(0, correction=0)
    scaled = torch.where(deviation > 0, codes / deviation, torch.zeros_like(codes))
    l1, l2 = scaled.abs().sum(1), scaled.norm(dim=1)
    root = math.sqrt(num_latents)
    sparsity = torch.where(l2 > 0, (root - l1 / l2) / (root - 1), torch.ones_like(l2))
    return float(sparsity.mean())
