"""`Evaluation`: the figures that `vsc_pyro.evaluate` returns, and the table that prints them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from vsc_pyro.evaluation.survey import as_share

SEE_WORDS = "words: docs/glossary.md, or print(vsc_pyro.glossary.text())"
_Row = tuple[str, str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    r"""Means over data, in nats per datum where they are log-probabilities; the result of `vsc_pyro.evaluate`.

    Attributes:
        elbo: evidence lower bound with hard spikes, `reconstruction` minus `kl`; NaN if there is none, see `no_bound`.
            A latent variable common to all data (a learned inclusion's posterior) is held at its mean, so the bound is
            that of the model with this inclusion.
        objective: objective of training at beta = 1 with hard spikes, without the penalty and without divergences
            common to all data. It equals `elbo` unless the objective is no bound: for points, and for priors that
            depend on the datum, see `vsc_pyro.VAE.is_bound`. (For pseudo-inputs assigned without charge, `elbo` is that
            of the mixture, sampled.)
        reconstruction: :math:`E_q[\log p(x|z)]`.
        kl: :math:`KL(q \| p)`, in closed form if `kl_is_exact`, else sampled.
        iwae: importance-weighted bound of `num_draws` draws; NaN if there is none.
        relaxation_gap: objective as trained minus objective with hard spikes; exactly 0 for gates that draw hard
            spikes. NaN if there is none, see `no_gap`.
        expected_l0: latents on per datum, :math:`\sum_j \gamma_j`; for a point, the number of nonzero latents.
        hard_l0: latents per datum with :math:`\gamma_j > 1/2`.
        hard_l0_odds: latents per datum whose posterior odds of being on exceed the prior's (for a mixture, the odds of
            its mean probability). NaN if a spike-and-slab posterior meets a prior without odds for each latent.
        hoyer: sparsity of a drawn code, from 0 (all latents equal) to 1 (one latent on).
        active_units: number of latents whose posterior mean (`centre`) has a variance over data above 0.01.
        used_latents: number of latents that are on (:math:`\gamma_j > 1/2`) for at least one datum.
        usage: mean inclusion probability of each latent, shape ``(J,)``, on the CPU.
        num_draws, num_data, binarize: the protocol.
        reference: true posterior behind `evidence`, `gap` and `inclusion_error`: ``"exact"``, ``"gibbs"``, or None, and
            then the three are NaN.
        no_bound: reason why there is no bound, or None.
        no_gap: reason why there is no relaxation gap, or None.
        evidence: mean :math:`\log p(x)`, from the ``"exact"`` reference only.
        gap: `evidence` minus `elbo`.
        inclusion_error: mean of :math:`|\gamma_j - P(z_j \neq 0 | x)|` over data and latents; NaN for posteriors
            without spikes.
        used_per_datum: latents that a datum uses: the sum of :math:`\gamma_j` over informative latents.
        informative_latents: number of latents that carry information about the data, see
            `vsc_pyro.evaluation.information`.
        information: information of each latent, in nats, shape ``(J,)``, on the CPU.
        r2: share of the data's squared deviation from their per-pixel mean that the decoded posterior-mean code
            explains; NaN if the data do not vary or the likelihood has no mean.
        hard_r2: `r2` of the hard code: a latent is at its slab's centre if :math:`\gamma_j > 1/2`, else 0.
        entropy_explained, hard_entropy_explained: share of the cross-entropy of Bernoulli data that the two codes
            explain; NaN for other data.
        baseline: error of the per-pixel mean for a datum: squared error, or cross-entropy in nats for Bernoulli data.
        advice: problems of the model and remedies, a line each, see `vsc_pyro.evaluation.advice`.
    """

    elbo: float
    objective: float
    reconstruction: float
    kl: float
    kl_is_exact: bool
    iwae: float
    relaxation_gap: float
    expected_l0: float
    hard_l0: float
    hard_l0_odds: float
    hoyer: float
    active_units: int
    used_latents: int
    usage: Tensor
    num_draws: int
    num_data: int
    binarize: str | None
    reference: str | None = None
    no_bound: str | None = None
    no_gap: str | None = None
    evidence: float = math.nan
    gap: float = math.nan
    inclusion_error: float = math.nan
    used_per_datum: float = math.nan
    informative_latents: int = 0
    information: Tensor | None = None
    r2: float = math.nan
    hard_r2: float = math.nan
    entropy_explained: float = math.nan
    hard_entropy_explained: float = math.nan
    baseline: float = math.nan
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, strings and lists, ready for JSON; NaN becomes None."""
        return plain(vars(self))

    def __str__(self) -> str:
        lines = [f"{self.num_data} data, binarisation: {self.binarize or 'none'}"]
        lines += [line(*row) for row in self._works()]
        lines += ["bounds, in nats:", *(line(f"  {name}", *rest) for name, *rest in self._bounds())]
        lines += ["other counts:", *(line(f"  {name}", *rest) for name, *rest in self._counts())]
        lines += [f"advice: {advice}" for advice in self.advice]
        return "\n".join([*lines, SEE_WORDS])

    def _works(self) -> list[_Row]:
        used = f"{self.informative_latents} of {len(self.usage)}"
        if math.isnan(self.used_per_datum):  # not surveyed
            used = "unknown"
        rows = [
            ("latents a datum uses", f"{self.used_per_datum:.2f}", "on, of those that carry information"),
            ("latents used", used, "carry information about the data"),
        ]
        unit = "squared error a datum, R2 0"
        for name, mean, hard in (
            ("R2", self.r2, self.hard_r2),
            ("entropy explained", self.entropy_explained, self.hard_entropy_explained),
        ):
            if not math.isnan(mean):
                rows.append((name, as_share(mean), "posterior-mean code"))
                rows.append((f"{name.split()[0]}, hard code", as_share(hard), "exact zeros"))
                unit = unit if name == "R2" else "nats a datum, entropy explained 0"
        return [*rows, ("mean alone", f"{self.baseline:.4g}", unit)]

    def _bounds(self) -> list[_Row]:
        kl = "closed form" if self.kl_is_exact else "sampled"
        none = f"none: {self.no_bound}" if self.no_bound else ""
        no_gap = f"none: {self.no_gap}" if self.no_gap else "objective as trained minus hard"
        rows = [
            ("ELBO", f"{self.elbo:.2f}", none or "hard spikes"),
            ("reconstruction", f"{self.reconstruction:.2f}", ""),
            ("KL", f"{self.kl:.2f}", kl),
            (f"bound of {self.num_draws} draws", f"{self.iwae:.2f}", none or "importance-weighted"),
        ]
        if self.objective != self.elbo and not math.isnan(self.objective):
            rows.append(("objective", f"{self.objective:.2f}", "what was trained; NOT a bound"))
        rows.append(("relaxation gap", f"{self.relaxation_gap:.2f}", no_gap))
        if not math.isnan(self.evidence):
            rows.append(("evidence", f"{self.evidence:.2f}", f"exact; {self.gap:.2f} above the ELBO"))
        return rows

    def _counts(self) -> list[_Row]:
        rows = [
            ("expected L0", f"{self.expected_l0:.2f}", f"of {len(self.usage)} latents, unused ones too"),
            ("hard L0", f"{self.hard_l0:.2f}", f"by 1/2; {self.hard_l0_odds:.2f} by prior odds"),
            ("Hoyer", f"{self.hoyer:.3f}", "standardised codes"),
            ("active units", f"{self.active_units}", f"{self.used_latents} latents ever on"),
        ]
        if not math.isnan(self.inclusion_error):
            error = f"{self.inclusion_error:.4f}"
            rows.append(("inclusion error", error, f"mean distance, {self.reference} posterior"))
        return rows


def plain(value: Any) -> Any:
    """Return `value` ready for JSON: tensors and tuples as lists, NaN as None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def line(name: str, value: str, note: str) -> str:
    """Return a line of a printed table."""
    return f"{name:<22}{value:>10}  {note}".rstrip()
