r"""`evaluate`: bounds, sparsity and usefulness of the codes of a trained `VAE`, always with hard spikes.

* Usefulness: the number of latents that a datum uses and the share of the data that its code explains, see
  `vsc_pyro.evaluation.survey`; problems and remedies, see `vsc_pyro.evaluation.advice`.
* Bounds: ELBO, its two parts and the importance-weighted bound, means of `vsc_pyro.evaluation.bounds`.
* Relaxation gap: the objective with codes drawn as in training (soft spikes under a relaxed gate) minus the objective
  with exact draws of the same posterior, from the same random numbers. If the gap is large, training measures a code
  that the model does not have.
* Older counts of sparsity: expected L0 :math:`\sum_j \gamma_j`; hard L0, which counts :math:`\gamma_j > 1/2`, or
  posterior odds above prior odds; Hoyer's measure :math:`(\sqrt J - |z|_1/|z|_2)/(\sqrt J - 1)` of codes divided by
  their standard deviation (Hoyer, 2004; Mathieu et al., 2019); active units, :math:`Var_x E_q[z_j|x] > 0.01` (Burda et
  al., 2016), where `vsc_pyro.distributions.centre` replaces the mean of families without one.
* Against the true posterior, for a linear decoder with Gaussian noise: the evidence, and the error of :math:`\gamma` as
  an estimate of P(z_j != 0 | x).

References
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders.
    P. O. Hoyer (2004), Non-negative matrix factorization with sparseness constraints.
    E. Mathieu, T. Rainforth, N. Siddharth, Y. W. Teh (2019), Disentangling disentanglement in variational autoencoders.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import torch
from torch import Tensor

from vsc_pyro._arguments import choice
from vsc_pyro.datasets import Dataset
from vsc_pyro.evaluation.advice import advise, warn_of_nothing
from vsc_pyro.evaluation.bounds import (
    Figures,
    check_finite,
    checked_arguments,
    figures_of,
    figures_of_batch,
    missing_bound,
)
from vsc_pyro.evaluation.codes import Encodable, has_atom
from vsc_pyro.evaluation.figures import Evaluation
from vsc_pyro.evaluation.importance import Weighing
from vsc_pyro.evaluation.relaxation import relaxation_gap
from vsc_pyro.evaluation.survey import survey
from vsc_pyro.inference.linear_exact import ExactPosterior, exact_posterior, linear_gaussian
from vsc_pyro.inference.linear_gibbs import GibbsPosterior, gibbs_posterior
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.loaded import Loaded


def evaluate(
    model: VAE,
    data: Encodable,
    *,
    num_draws: int = 100,
    seed: int = 0,
    reference: str | None = None,
    progress: bool = False,
    compile: bool | str = "auto",
) -> Evaluation:
    """Evaluate `model` on `data`, in evaluation mode and on the model's device.

    Memory is bounded whatever `num_draws` and the sizes of data, layers and mixture priors: draws are made and reduced
    in chunks, see `vsc_pyro.evaluation.importance`, and only the figures and one code of each datum are kept. The size
    of a chunk depends on the type of device and determines which random numbers make up a draw, so results on a CPU and
    on a GPU differ by sampling noise. The caller's random state and the model's mode are restored.

    If figures of some data are not finite (a value of 1e30 overflows in float32), their means are NaN, the latents are
    not surveyed, and a warning, `no_bound` and `advice` name the first such datum.

    If codes explain nothing of data that a linear code would explain, this issues a `vsc_pyro.NothingExplainedWarning`.

    Args:
        model: a `VAE`.
        data: a `Dataset`, or an array or tensor of shape ``(N, ...)``; `seed` draws dynamic binarisation. Or a
            `DataLoader`, for data larger than memory, with the results of its data in memory. It is read several
            times, in its order (``shuffle=False``); its batches are tensors, or tuples that begin with one.
        num_draws: draws K of each code.
        seed: of binarisation and draws.
        reference: compare with the true posterior: ``"exact"`` for `vsc_pyro.exact_posterior`, or ``"gibbs"`` for
            `vsc_pyro.gibbs_posterior` with its defaults. Gibbs sampling is slow, and its own error adds to
            `inclusion_error`.
        progress: show a bar of draws, which names compiled draws.
        compile: draw, decode and weigh codes by a compiled graph (`vsc_pyro.acceleration.CompiledFunction`), with the
            same random numbers and results equal but for rounding. ``"auto"`` compiles if the work is long enough to
            repay the compilation. The last, smaller chunk is not compiled. A model that cannot be captured (a decoder
            that branches on values) runs eagerly, after a warning with the reason.

    Raises:
        ValueError: data that do not fit the model, fewer than one draw, a `reference` that does not exist for the
            model, an unknown `compile`, or an objective that is finite for no datum (the message names one).

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> _ = torch.manual_seed(0)
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4, hidden=()), vsc.SpikeSlabPrior(2, 0.3)
        ... )
        >>> result = vsc.evaluate(model, torch.randn(20, 4), num_draws=5, reference="exact")
        >>> result.elbo < result.evidence, result.usage.shape
        (True, torch.Size([2]))
    """
    num_draws, seed, seen = checked_arguments(model, data, num_draws, seed, compile)
    if reference is not None:
        _check_reference(reference, model, seen)
    missing, batches, no_gap = missing_bound(model, seen), [], []
    measure_bounds = functools.partial(figures_of_batch, model, model.is_bound, missing)

    def measure(x: Tensor, weigh: Weighing) -> Figures:
        if reference is not None:
            batches.append(x)
        gap, reason = relaxation_gap(model, x, seed)
        no_gap.extend([reason] if reason else [])
        return measure_bounds(x, weigh)._replace(gap=gap.cpu())

    figures = figures_of("evaluate", model, seen, num_draws, seed, progress, compile, measure)
    broken = _partly_broken(figures, missing)
    result = _summary(figures, num_draws, seen.binarize, broken or missing, no_gap)
    # Information and shares explained mean nothing beside values that overflow.
    result = dataclasses.replace(result, advice=(broken,)) if broken else _with_survey(result, model, seen, seed)
    if reference is None:
        return result
    inclusion = figures.inclusion if has_atom(model, seen) else figures.inclusion * math.nan
    truth = _true_posterior(reference, model, torch.cat(batches), seed, progress)
    evidence = float(truth.log_evidence.mean()) if isinstance(truth, ExactPosterior) else math.nan
    error = float((inclusion - truth.inclusion.cpu()).abs().mean())
    return dataclasses.replace(
        result, reference=reference, evidence=evidence, gap=evidence - result.elbo, inclusion_error=error
    )


def _partly_broken(figures: Figures, missing: str | None) -> str | None:
    """Return the error of figures that are finite for some data only, after a warning; None if all are.

    Raises:
        ValueError: the objective of no datum is finite.
    """
    try:
        check_finite(figures, missing)
    except ValueError as error:
        if not (figures.reconstruction - figures.trained_kl).isfinite().any():
            raise
        warnings.warn(f"means over data are NaN: {error}", stacklevel=3)
        return str(error)
    return None


def _check_reference(reference: str, model: VAE, data: Dataset | Loaded) -> None:
    """Raise `ValueError` if the reference does not exist for this model."""
    infer = choice("reference", reference, {"exact": exact_posterior, "gibbs": linear_gaussian})
    infer(model, data.images[:1])
    if reference == "gibbs" and not has_atom(model, data):
        raise ValueError(
            "reference='gibbs' needs a posterior with inclusion probabilities, and the encoder's codes have none; "
            "take an encoder of spikes"
        )


def _true_posterior(
    reference: str, model: VAE, x: Tensor, seed: int, progress: bool
) -> ExactPosterior | GibbsPosterior:
    if reference == "exact":
        return exact_posterior(model, x)
    # Only moments are used, so one draw of each chain is kept.
    return gibbs_posterior(model, x, num_samples=1000, thin=1000, seed=seed, progress=progress)


def _summary(
    figures: Figures, num_draws: int, binarize: str | None, missing: str | None, no_gap: list[str]
) -> Evaluation:
    reconstruction, kl, inclusion = figures.reconstruction, figures.kl, figures.inclusion
    on = inclusion > 0.5
    gap = float(figures.gap.mean())
    if not math.isfinite(gap):
        unknown = (~figures.gap.isfinite()).nonzero()
        gap, no_gap = math.nan, no_gap or [f"that of datum {int(unknown[0])} is not finite"]
    return Evaluation(
        elbo=_mean(reconstruction - kl),
        objective=_mean(reconstruction - figures.trained_kl),
        reconstruction=_mean(reconstruction),
        kl=_mean(kl),
        kl_is_exact=bool(figures.kl_is_exact.all()),
        iwae=_mean(figures.iwae),
        relaxation_gap=gap,
        expected_l0=float(inclusion.sum(1).mean()),
        hard_l0=float(on.double().sum(1).mean()),
        hard_l0_odds=float(figures.on_by_odds.sum(1).mean()),
        hoyer=hoyer(figures.code),
        active_units=int((figures.centre.var(0, correction=0) > 0.01).sum()),
        used_latents=int(on.any(0).sum()),
        usage=inclusion.mean(0).float(),
        num_draws=num_draws,
        num_data=len(kl),
        binarize=binarize,
        no_bound=missing,
        no_gap=no_gap[0] if math.isnan(gap) else None,
    )


def _mean(values: Tensor) -> float:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else math.nan


def _with_survey(result: Evaluation, model: VAE, data: Dataset | Loaded, seed: int) -> Evaluation:
    seen = survey(model, data, seed=seed)
    warn_of_nothing(model, data, seen, seed=seed, stacklevel=4)
    return dataclasses.replace(
        result,
        # `usage` belongs to the binarisation that the other counts were made with.
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
    r"""Return Hoyer's sparsity :math:`(\sqrt J - |z|_1/|z|_2)/(\sqrt J - 1)` of standardised codes, averaged over data.

    Each latent is divided by its standard deviation over data; a latent that never varies counts as 0. A code of zeros
    has sparsity 1. The result is NaN if J = 1.

    Args:
        codes: shape ``(N, J)``.

    Example:
        >>> import torch
        >>> from vsc_pyro.evaluation.evaluate import hoyer
        >>> round(hoyer(torch.eye(5)), 4)
        1.0
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
