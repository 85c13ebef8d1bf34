r"""`check_calibration`: a test of posterior probabilities on data that the model itself generates.

Codes z are drawn from the prior and data x from the decoder, so the true codes are known and the model is correct; only
the posterior can be wrong. Under the exact posterior,

* a share :math:`\gamma` of the latents with inclusion probability :math:`\gamma` is on. The *reliability* is that share
  in bins of :math:`\gamma` of equal width. The *expected calibration error* is the mean over bins, weighted by their
  counts, of the distance between this share and the bin's mean :math:`\gamma` (Naeini, Cooper & Hauskrecht, 2015). The
  *Brier score* (1950) is the mean of :math:`(\gamma - s)^2`, the *AUROC* the probability that a latent that is on has
  a larger :math:`\gamma` than one that is off;
* the rank of the true z among draws of the posterior is uniform: *simulation-based calibration* (Talts et al., 2018).
  Zeros tie. Ties are broken at random, which keeps the rank of exchangeable numbers uniform.

References
    G. W. Brier (1950), Verification of forecasts expressed in terms of probability.
    M. P. Naeini, G. F. Cooper, M. Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning.
    S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration.
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
from vsc_pyro.evaluation.figures import plain
from vsc_pyro.evaluation.probes import auroc
from vsc_pyro.evaluation.reliability import Reliability
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.vae import VAE

_NUMBERS_AT_ONCE = 2**22  # drawn latents: 16 MB in float32


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    r"""The result of `check_calibration`. Scores of inclusion are NaN for posteriors without spikes.

    Attributes:
        brier: mean of :math:`(\gamma - s)^2` over data and latents.
        ece: expected calibration error, bins of equal width.
        auroc: area under the ROC curve of :math:`\gamma` against s, data and latents pooled.
        bin_inclusion: mean :math:`\gamma` in each bin, shape ``(bins,)``; NaN in empty bins.
        bin_frequency: share of latents that are on in each bin, shape ``(bins,)``; NaN in empty bins.
        bin_count: number of pairs of datum and latent in each bin, shape ``(bins,)``.
        rank_counts: number of data whose true z has its rank in each bin of ranks, shape ``(J, rank bins)``.
        rank_share: share of the possible ranks, 0 to `num_draws`, that each bin holds, shape ``(rank bins,)``.
        p_values: p-value of the chi-squared test for uniform ranks of each latent, shape ``(J,)``.
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
        """P-value for uniform ranks of all latents: the smallest one times their number (Bonferroni's bound)."""
        return min(1.0, len(self.p_values) * float(self.p_values.min()))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `p_value` as plain numbers and lists, ready for JSON; NaN becomes None."""
        return plain(vars(self)) | {"p_value": self.p_value}

    def __str__(self) -> str:
        rows = [
            ("Brier score", f"{self.brier:.4f}", "of inclusion probabilities"),
            ("calibration error", f"{self.ece:.4f}", f"expected, {len(self.bin_count)} bins of equal width"),
            ("AUROC", f"{self.auroc:.4f}", "of inclusion probabilities against spikes"),
            ("rank uniformity", f"{self.p_value:.2g}", f"p-value, {self.num_draws} draws, all latents"),
        ]
        head = f"{self.num_data} data simulated from the model"
        return "\n".join([head, *(f"{name:<22}{value:>10}  {note}" for name, value, note in rows)])


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
    """Simulate codes and data from `model`, infer the codes, and compare them with the truth.

    Codes are drawn from the marginal prior, the distribution before any datum is seen. A latent variable of the prior
    (a learned inclusion's posterior) is held at its mean. The model's mode and the caller's random state are restored.

    Args:
        model: a `VAE`.
        num_data: number of data to simulate.
        num_draws: draws of each posterior, among which the true code is ranked.
        posterior: function from data ``(B, ...)`` to their posterior; None for the model's encoder. It is called in
            evaluation mode. A posterior is any distribution, or an object with an attribute `inclusion`, shape
            ``(B, J)``, and a method ``sample((K,))``, such as the results of `exact_posterior` and `gibbs_posterior`.
        bins: number of bins of inclusion probabilities, of equal width.
        rank_bins: number of bins of ranks, as nearly of equal width as `num_draws` allows.
        seed: of codes, data, draws and the breaking of ties.
        progress: show a bar.

    Raises:
        ValueError: a prior that cannot be sampled, a posterior that is a point, inclusion probabilities that are not
            finite, or numbers below 1.

    Example:
        >>> import vsc_pyro as vsc
        >>> model = vsc.VAE(
        ...     vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4, hidden=()), vsc.SpikeSlabPrior(2, 0.3)
        ... )
        >>> exact = vsc.check_calibration(
        ...     model, num_data=200, posterior=lambda x: vsc.exact_posterior(model, x), rank_bins=5
        ... )
        >>> exact.ece < 0.1, exact.rank_counts.shape
        (True, torch.Size([2, 5]))
    """
    num_data, num_draws = positive_int("num_data", num_data), positive_int("num_draws", num_draws)
    bins, rank_bins = positive_int("bins", bins), positive_int("rank_bins", rank_bins)
    if rank_bins > num_draws + 1:
        raise ValueError(f"rank_bins must be at most the num_draws + 1 = {num_draws + 1} ranks, got {rank_bins}")
    seed = natural_int("seed", seed)
    infer = model.encoder if posterior is None else posterior
    parts = []
    with model.evaluating(), seeded(seed, model.reference.device), pyro.validation_enabled(False):
        # The marginal prior uses x for its device only.
        x = model.reference.new_zeros(1, *getattr(model.encoder, "input_shape", (1,)))
        prior = model.marginal_prior(x)
        if not is_proper(prior):
            raise ValueError("the prior is flat and cannot be sampled; build the model with a proper prior")
        z = prior.expand((1,)).sample((num_data,)).squeeze(1)
        rows = max(1, _NUMBERS_AT_ONCE // (num_draws * z[0].numel()))
        for truth in tqdm(z.split(rows), desc="calibration", unit="batch", disable=not progress):
            parts.append(_infer(infer, model.decoder(truth).sample(), truth.flatten(1), num_draws))
    inclusion, ranks = (torch.cat(part) for part in zip(*parts, strict=True))
    on = z.flatten(1).cpu() != 0
    return Calibration(
        **_inclusion_scores(inclusion, on, bins),
        **_rank_test(ranks, num_draws, rank_bins),
        num_data=num_data,
        num_draws=num_draws,
    )


def _infer(infer: Callable[[Tensor], Any], x: Tensor, truth: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Return inclusion probabilities and the ranks of the true codes, shape ``(B, J)``, on the CPU."""
    posterior = infer(x)
    if hasattr(posterior, "inclusion"):
        inclusion = posterior.inclusion
    elif is_point(posterior):
        raise ValueError("the posterior is a point and has no uncertainty to calibrate; take another encoder")
    else:
        logits = inclusion_logits(posterior)
        inclusion = torch.full_like(truth, torch.nan) if logits is None else logits.sigmoid()
        if logits is not None:
            check_figure("inclusion probability", inclusion)
    draws = posterior.sample((num_draws,)).flatten(2).to(truth)
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    ranks = below + torch.floor(torch.rand_like(truth, dtype=torch.float64) * (ties + 1))
    return inclusion.flatten(1).double().cpu(), ranks.long().cpu()


def _inclusion_scores(inclusion: Tensor, on: Tensor, bins: int) -> dict[str, Any]:
    inclusion, on = inclusion.flatten(), on.flatten().double()
    if inclusion.isnan().any():
        scores = dict.fromkeys(("brier", "ece", "auroc"), math.nan)
        empty = dict.fromkeys(("bin_inclusion", "bin_frequency"), torch.full((bins,), torch.nan, dtype=torch.float64))
        return {**scores, **empty, "bin_count": torch.zeros(bins, dtype=torch.long)}
    reliability = Reliability(bins)
    reliability.add(inclusion, on)
    area = auroc(inclusion.unsqueeze(1), on.unsqueeze(1).numpy()).item() if 0 < on.mean() < 1 else math.nan
    return {"brier": reliability.brier, "ece": reliability.ece, "auroc": area, **reliability.bins()}


def _rank_test(ranks: Tensor, num_draws: int, bins: int) -> dict[str, Any]:
    from scipy.stats import chi2

    bin_of_rank = torch.arange(num_draws + 1) * bins // (num_draws + 1)
    share = torch.bincount(bin_of_rank, minlength=bins).double() / (num_draws + 1)
    counts = torch.stack([torch.bincount(bin_of_rank[column], minlength=bins) for column in ranks.T])
    expected = share * len(ranks)
    statistic = ((counts - expected).square() / expected).sum(1)
    p_values = torch.from_numpy(chi2.sf(statistic.numpy(), max(1, bins - 1)))
    return {"rank_counts": counts, "rank_share": share, "p_values": p_values}
