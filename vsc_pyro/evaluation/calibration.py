r"""`check_calibration`: whether posteriors mean what they say, on data that the model itself made.

Codes z are drawn from the prior and data x from the decoder, so that the truth is known and the model is right; what
can be wrong is only the posterior. If it is the exact one,

* of the latents that it calls on with probability :math:`\gamma`, a share :math:`\gamma` is on. The *reliability* is
  that share by bins of equal width of :math:`\gamma`, and the *expected calibration error* the mean over bins, weighed
  by their counts, of its distance from the mean :math:`\gamma` of the bin (Naeini, Cooper & Hauskrecht, 2015). The
  *Brier score* (1950) is the mean of :math:`(\gamma - s)^2`, the *AUROC* the probability that a latent that is on has a
  larger :math:`\gamma` than one that is off;
* the rank of the true z among draws of the posterior is uniform: *simulation-based calibration* (Talts et al., 2018).
  Zeros tie, and ties are broken at random, which leaves the rank of one of several exchangeable numbers uniform.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.distributions import inclusion_logits, is_point, is_proper
from vsc_pyro.evaluation.probes import auroc
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.vae import VAE

_NUMBERS_AT_ONCE = 2**22  # drawn, in float32 16 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    r"""What `check_calibration` returns. What is said of inclusion is NaN for posteriors without an atom at zero.

    Attributes:
        brier: mean of :math:`(\gamma - s)^2` over data and latents.
        ece: expected calibration error, bins of equal width.
        auroc: of :math:`\gamma` against s, data and latents together.
        bin_inclusion: mean :math:`\gamma` in each bin, shape ``(bins,)``; NaN in empty bins.
        bin_frequency: share of latents that are on, shape ``(bins,)``; NaN in empty bins.
        bin_count: latents of data in each bin, shape ``(bins,)``.
        rank_counts: how often the true z had a rank in each bin of ranks, shape ``(J, rank bins)``.
        rank_share: the share of the ranks, 0 to `num_draws`, that each bin holds, shape ``(rank bins,)``.
        p_values: of the chi-squared test that each latent's ranks are uniform, shape ``(J,)``.
        num_data, num_draws: the protocol.
    """

    brier: float
    ece: float
    auroc: float
    bin_inclusion: Tensor
    bin_frequency: Tensor
    bin_count: Tensor
    rank_counts: Tensor
    rank_share: Tensor
    p_values: Tensor
    num_data: int
    num_draws: int

    @property
    def p_value(self) -> float:
        """Of the test that all latents' ranks are uniform: the smallest times their number (Bonferroni's bound)."""
        return min(1.0, len(self.p_values) * float(self.p_values.min()))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and lists, ready for JSON (what is not defined is None)."""
        fields = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return {k: _without_nan(v) for k, v in fields.items()} | {"p_value": self.p_value}

    def __str__(self) -> str:
        rows = [
            ("Brier score", f"{self.brier:.4f}", "of inclusion probabilities"),
            ("calibration error", f"{self.ece:.4f}", f"expected, {len(self.bin_count)} bins of equal width"),
            ("AUROC", f"{self.auroc:.4f}", "of inclusion probabilities against spikes"),
            ("rank uniformity", f"{self.p_value:.2g}", f"p-value, {self.num_draws} draws, all latents"),
        ]
        head = f"{self.num_data} data simulated from the model"
        return "\n".join([head, *(f"{name:<22}{value:>10}  {note}" for name, value, note in rows)])


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def check_calibration(
    model: VAE,
    *,
    num_data: int = 2000,
    num_draws: int = 99,
    posterior: Callable[[Tensor], Any] | None = None,
    bins: int = 10,
    rank_bins: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Simulate codes and data from `model`, infer the codes, and compare.

    The model, its mode and the caller's random state are left as they were. Codes are drawn from the prior as it is
    before any datum is seen; a latent variable of its own (a learned inclusion's posterior) is held at its mean.

    Args:
        model: a `VAE`.
        num_data: data to simulate.
        num_draws: draws of the posterior of each, among which the true code is ranked.
        posterior: takes data ``(B, ...)`` to their posterior: any distribution, or an object with an attribute
            `inclusion`, shape ``(B, J)``, and a method ``sample((K,))``, such as what `exact_posterior` and
            `gibbs_posterior` return; None for the model's encoder. Called in evaluation mode.
        bins: of inclusion probabilities, of equal width.
        rank_bins: of ranks, as nearly of equal width as `num_draws` allows.
        seed: of codes, data, draws and the breaking of ties.
        progress: show a bar.

    Raises:
        ValueError: a prior that cannot be drawn from, a posterior that is a point, or whose inclusion
            probabilities are not finite, or numbers below 1.
    """
    num_data, num_draws = positive_int("num_data", num_data), positive_int("num_draws", num_draws)
    bins, rank_bins = positive_int("bins", bins), positive_int("rank_bins", rank_bins)
    if rank_bins > num_draws + 1:
        raise ValueError(f"rank_bins must be at most the num_draws + 1 = {num_draws + 1} ranks, got {rank_bins}")
    seed = natural_int("seed", seed)
    infer = model.encoder if posterior is None else posterior
    parts = []
    with model.evaluating(), seeded(seed, model.reference.device), pyro.validation_enabled(False):
        # A prior before data gives no more heed to x than to its device.
        x = model.reference.new_zeros(1, *getattr(model.encoder, "input_shape", (1,)))
        prior = model.marginal_prior(x)
        if not is_proper(prior):
            raise ValueError(
                "the prior is flat, and there is nothing to draw from; build the model with a proper prior"
            )
        z = prior.expand((1,)).sample((num_data,)).squeeze(1)
        rows = max(1, _NUMBERS_AT_ONCE // (num_draws * z[0].numel()))
        for truth in tqdm(z.split(rows), desc="calibration", unit="batch", disable=not progress):
            parts.append(_infer(infer, model.decoder(truth).sample(), truth.flatten(1), num_draws))
    inclusion, ranks = (torch.cat(part) for part in zip(*parts, strict=True))
    on = z.flatten(1).cpu() != 0
    return Calibration(
        *_inclusion_scores(inclusion, on, bins), *_rank_test(ranks, num_draws, rank_bins), num_data, num_draws
    )


def _infer(infer: Callable[[Tensor], Any], x: Tensor, truth: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Inclusion probabilities and ranks of the true codes, shape ``(B, J)``, on the CPU."""
    posterior = infer(x)
    if hasattr(posterior, "inclusion"):
        inclusion = posterior.inclusion
    elif is_point(posterior):
        raise ValueError("the posterior is a point, without uncertainty to calibrate; take another encoder")
    else:
        logits = inclusion_logits(posterior)
        inclusion = torch.full_like(truth, torch.nan) if logits is None else logits.sigmoid()
        if logits is not None:
            check_figure("inclusion probability", inclusion)
    draws = posterior.sample((num_draws,)).flatten(2).to(truth)
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    ranks = below + torch.floor(torch.rand_like(truth, dtype=torch.float64) * (ties + 1))
    return inclusion.flatten(1).double().cpu(), ranks.long().cpu()


def _inclusion_scores(inclusion: Tensor, on: Tensor, bins: int) -> tuple:
    inclusion, on = inclusion.flatten(), on.flatten().double()
    if inclusion.isnan().any():
        nothing = torch.full((bins,), torch.nan, dtype=torch.float64)
        return math.nan, math.nan, math.nan, nothing, nothing, torch.zeros(bins, dtype=torch.long)
    index = (inclusion * bins).long().clamp(max=bins - 1)
    counts, predicted, observed = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, index, value)
        for value in (torch.ones_like(on), inclusion, on)
    )
    area = math.nan
    if 0 < on.mean() < 1:
        area = auroc(inclusion.unsqueeze(1), on.unsqueeze(1).numpy()).item()
    error = float((predicted - observed).abs().sum() / len(on))
    brier = float((inclusion - on).square().mean())
    return brier, error, area, predicted / counts, observed / counts, counts.long()


def _rank_test(ranks: Tensor, num_draws: int, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    from scipy.stats import chi2

    bin_of_rank = torch.arange(num_draws + 1) * bins // (num_draws + 1)
    share = torch.bincount(bin_of_rank, minlength=bins).double() / (num_draws + 1)
    counts = torch.stack([torch.bincount(bin_of_rank[column], minlength=bins) for column in ranks.T])
    expected = share * len(ranks)
    statistic = ((counts - expected).square() / expected).sum(1)
    return counts, share, torch.from_numpy(chi2.sf(statistic.numpy(), max(1, bins - 1)))
