r"""`survey`: how much the codes tell about the data and how much they explain, in two passes without a random draw.

* The informative latents, see `vsc_pyro.evaluation.information`, and how many of them a datum uses:
  :math:`\sum_j \gamma_j` over informative latents, averaged over data.
* The share of the data's squared deviation from their per-pixel mean that a decoded code explains,

  .. math:: R^2 = 1 - \frac{\sum_n \|x_n - \hat x_n\|^2}{\sum_n \|x_n - \bar x\|^2},
      \qquad \hat x_n = E[x | z = c_n],

  for two codes c: the posterior mean (`vsc_pyro.distributions.centre`) and the hard code (`hard_code`) with exact zeros
  where :math:`\gamma \le 1/2`. A perfect copy has 1, the per-pixel mean 0, and anything worse a negative value.
* For Bernoulli data the share of the cross-entropy explained: 1 minus the cross-entropy of the decoded code over that
  of the per-pixel mean. Neither share can reach 1 for data that are drawn from grey levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution

from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import centre, hard_code, inclusion_logits, inclusion_of, is_bernoulli, noise_scale
from vsc_pyro.distributions.families import given, values_of
from vsc_pyro.evaluation.codes import drawn_batches
from vsc_pyro.evaluation.information import Information, is_informative
from vsc_pyro.models.data_checks import as_events
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.loaded import Loaded

_ELEMENTS_AT_ONCE = 2_000_000
_ROWS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """The result of `survey`; means over data.

    Attributes:
        usage: mean inclusion probability of each latent, shape ``(J,)``, float64, on the CPU.
        information: information of each latent, in nats, shape ``(J,)``.
        r2, hard_r2: share of squared deviation explained by the posterior-mean code and by the hard code; NaN if the
            data do not vary or the likelihood has no centre.
        entropy_explained, hard_entropy_explained: share of the cross-entropy of Bernoulli data explained by the same
            two codes; NaN for other data.
        baseline: error of the per-pixel mean: squared error of a datum, or cross-entropy of a Bernoulli datum in nats.
        mean, variance: of each pixel of the data, flat, float64, on the CPU.
        residual: root mean square, over data and pixels, of the data minus the decoded mean.
        noise: root mean square over pixels of the likelihood's scale, in units of the data; NaN if it has no scale.
        prior_inclusion: mean inclusion probability under the prior; NaN if the prior has no spikes.
        has_atom: True if the posterior has spikes, point masses at zero.
        num_data: number of data.
    """

    usage: Tensor
    information: Tensor
    r2: float
    hard_r2: float
    entropy_explained: float
    hard_entropy_explained: float
    baseline: float
    mean: Tensor
    variance: Tensor
    residual: float
    noise: float
    prior_inclusion: float
    has_atom: bool
    num_data: int

    @property
    def is_informative(self) -> Tensor:
        """True for each latent that carries information, bool, shape ``(J,)``."""
        return is_informative(self.information, self.usage, self.num_data)

    @property
    def deviation(self) -> float:
        """Root mean square, over data and pixels, of the deviation from the per-pixel mean."""
        return float(self.variance.mean().sqrt())

    @property
    def used_per_datum(self) -> float:
        """Mean number of informative latents that are on for a datum."""
        return float(self.usage[self.is_informative].sum())

    def as_dict(self) -> dict[str, float]:
        """Return the main figures as plain numbers, without those that are NaN."""
        figures = {
            "latents": len(self.usage),
            "informative_latents": int(self.is_informative.sum()),
            "used_per_datum": self.used_per_datum,
            "r2": self.r2,
            "hard_r2": self.hard_r2,
            "entropy_explained": self.entropy_explained,
            "hard_entropy_explained": self.hard_entropy_explained,
        }
        return {name: float(value) for name, value in figures.items() if not math.isnan(value)}

    def __str__(self) -> str:
        used, latents = int(self.is_informative.sum()), len(self.usage)
        parts = [f"used {used} of {latents} latents, {self.used_per_datum:.1f} a datum"]
        for name, mean, hard in (
            ("R2", self.r2, self.hard_r2),
            ("entropy explained", self.entropy_explained, self.hard_entropy_explained),
        ):
            if not math.isnan(mean):
                parts.append(f"{name} {as_share(mean)} (hard code {as_share(hard)})")
        return "; ".join(parts)


def as_share(value: float) -> str:
    """Return a share of one with two digits after the point."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def survey(model: VAE, data: Dataset | Loaded, *, seed: int = 0) -> Survey:
    """Survey `model` in evaluation mode, on its device; see the module's docstring for the measures.

    The caller's random state and the model's mode are restored.

    Args:
        model: a `VAE`.
        data: data that fit the model.
        seed: of dynamic binarisation.

    Raises:
        NotImplementedError: a posterior that has neither a mean nor a median.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> from vsc_pyro.evaluation.survey import survey
        >>> _ = torch.manual_seed(0)
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(64, 9), vsc.BernoulliDecoder(9, 64), vsc.SpikeSlabPrior(9))
        >>> survey(model, vsc.datasets.load("digits").test).usage.shape
        torch.Size([9])
    """
    like = model.reference
    with model.evaluating(), seeded(seed, like.device), pyro.validation_enabled(False):
        x = data.images[:1].to(like)
        posterior = model.encoder(x)
        rows = _rows_at_once(x, posterior)
        information = Information()
        usage = total = observed = torch.zeros((), dtype=torch.float64)
        for x in _batches(data, rows, seed, like):
            posterior = model.encoder(x)
            information.locate(posterior)
            usage = usage + inclusion_of(posterior).flatten(1).cpu().double().sum(0)
            x, _ = comparable(model, x)
            total = total + x.flatten(1).nan_to_num(0.0).cpu().double().sum(0)
            observed = observed + (~x.flatten(1).isnan()).cpu().double().sum(0)
        errors = _Errors(total / observed.clamp(min=1), observed / len(data))
        for x in _batches(data, rows, seed, like):
            posterior = model.encoder(x)
            information.count(posterior)
            values, whole = comparable(model, x)
            errors.add(values, [decoded(model, code(posterior), whole) for code in (centre, hard_code)])
        prior = inclusion_logits(getattr(model.prior, "marginal", model.prior)(x))
        prior_inclusion = math.nan if prior is None else float(prior.sigmoid().mean())
    return Survey(
        usage=usage / len(data),
        information=information.nats(),
        **errors.figures(len(data)),
        prior_inclusion=prior_inclusion,
        has_atom=inclusion_logits(posterior) is not None,
        num_data=len(data),
    )


def comparable(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of data ``(B, ...)``, and rows of these values and a context; most data have no context."""
    return model.decoder.comparable(x) if hasattr(model.decoder, "comparable") else (x, x)


def decoded(model: VAE, code: Tensor, rows: Tensor) -> Distribution:
    """Return the likelihood of values alone, given codes ``(B, J)``, in the context of `rows`; see `comparable`."""
    return values_of(given(model.decoder(code), rows))


def _rows_at_once(x: Tensor, posterior: Distribution) -> int:
    """Return a number of data that bounds memory, whatever the sizes of the datum x and of its code."""
    numbers = max(x.numel(), posterior.event_shape.numel())
    return min(max(1, _ELEMENTS_AT_ONCE // numbers), _ROWS_AT_ONCE)


def _batches(data: Dataset | Loaded, rows: int, seed: int, like: Tensor) -> Iterator[Tensor]:
    """Yield the same batches in every call, binarised by `seed`, on the device of `like`."""
    generator = torch.Generator(data.images.device).manual_seed(seed)
    return (x.to(like) for x in drawn_batches(data, rows, generator))


class _Errors:
    """Sums of the squared errors and cross-entropies of the two decoded codes and of the data's mean.

    Args:
        mean: of each pixel of the data, flat.
        observed: share of the data in which each pixel is not missing.
    """

    def __init__(self, mean: Tensor, observed: Tensor) -> None:
        self._mean = mean
        self._observed = observed
        self._squares = torch.zeros_like(mean)
        self._errors = [0.0, 0.0]
        self._entropies = [0.0, 0.0]
        self._noise = math.nan

    def add(self, x: Tensor, likelihoods: list[Distribution]) -> None:
        self._squares += _deviation(x.flatten(1).cpu().double(), self._mean).square().sum(0)
        for i, likelihood in enumerate(likelihoods):
            self._errors[i] += self._squared_error(x, likelihood)
            entropy = -likelihood.log_prob(as_events(x, likelihood)).double() if is_bernoulli(likelihood) else None
            self._entropies[i] += math.nan if entropy is None else float(entropy.sum())
        scale = noise_scale(likelihoods[0])
        if scale is not None:
            self._noise = float(scale.square().mean().sqrt())

    def _squared_error(self, x: Tensor, likelihood: Distribution) -> float:
        try:
            decoded = centre(likelihood)
        except NotImplementedError:
            return math.nan
        return float(_deviation(as_events(x, likelihood), decoded).square().flatten(1).sum(1).double().sum())

    def figures(self, num_data: int) -> dict[str, Any]:
        variance, mean, observed = self._squares / num_data, self._mean, self._observed
        # Rounding leaves a tiny variance where all data are equal.
        variance = torch.where(variance > 1e-20 * mean**2, variance, torch.zeros_like(variance))
        share = mean.clamp(0, 1)
        entropy = -(observed * (torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))).sum()
        baseline = num_data * float(variance.sum())
        r2, hard_r2 = (_explained(error, baseline) for error in self._errors)
        explained, hard_explained = (_explained(each, num_data * float(entropy)) for each in self._entropies)
        return {
            "r2": r2,
            "hard_r2": hard_r2,
            "entropy_explained": explained,
            "hard_entropy_explained": hard_explained,
            "baseline": float(variance.sum()) if math.isnan(explained) else float(entropy),
            "mean": mean,
            "variance": variance / observed.clamp(min=1 / num_data),
            "residual": math.sqrt(self._errors[0] / (num_data * float(observed.sum()))),
            "noise": self._noise,
        }


def _deviation(x: Tensor, centre: Tensor) -> Tensor:
    """Return x minus its centre, 0 where x is missing."""
    return torch.where(x.isnan(), torch.zeros_like(x), x - centre)


def _explained(error: float, baseline: float) -> float:
    return 1 - error / baseline if baseline > 0 else math.nan
