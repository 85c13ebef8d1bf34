r"""`ExactELBO`: the evidence lower bound of a linear model without sampling, so its gradient has no noise.

For :math:`p(x|z) = N(x; b + Dz, \sigma^2)` and a posterior with independent coordinates of mean m and variance v,

.. math::
    E_q[\log p(x|z)] - KL(q \| p)
    = \log p(x|m) - \frac12 \sum_j v_j \sum_d \frac{D_{jd}^2}{\sigma_d^2} - KL(q \| p).

A spike-and-slab has :math:`m = \gamma\mu` and :math:`v = \gamma\sigma^2 + \gamma(1 - \gamma)\mu^2`. No spike is drawn,
so the gate has no effect.

References
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import Distribution, Independent

from vsc_pyro.distributions import LinearNormal, has_mean, is_point
from vsc_pyro.distributions.linear_normal import as_linear
from vsc_pyro.objectives.elbo import NOT_SCORED, AnalyticELBO, Site, Term, sample_sites, site_of

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

_REMEDY = "use 'analytic', which draws codes"


class ExactELBO(AnalyticELBO):
    """The ELBO of codes under a linear `vsc_pyro.NormalDecoder` (``hidden=()``) in closed form: no code is drawn.

    The model runs at the mean of the posterior; the expected log-density of the data and the KL divergence are added in
    closed form. The gradient does not depend on the random state. The posterior may be any distribution of independent
    coordinates with mean and variance. Latent sites before the codes, such as the inclusion of a prior with a
    `hyperprior`, are drawn and contribute noise.

    Without noise, a latent that the divergence switches off before its atom has learnt anything stays off. To avoid
    this, let the weight of the divergence rise: ``fit(..., schedules={"beta": vsc_pyro.Ramp(0.1, 1, length=1000)})``.

    Args:
        latent: name of the site of the codes, the last latent site of model and guide.
        max_plate_nesting: as in `pyro.infer.ELBO`, as are all other arguments.

    Raises:
        ValueError: more than one particle, because all would be equal. In the first step: a posterior without mean or
            variance, or with dependent coordinates; a divergence without closed form; an observed site that is not a
            `vsc_pyro.distributions.LinearNormal` of the codes; a latent site after the codes.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> vae = vsc.VAE(vsc.SpikeSlabEncoder(6, 2), vsc.NormalDecoder(2, 6, hidden=()), vsc.SpikeSlabPrior(2))
        >>> objective, x = vsc.ExactELBO(max_plate_nesting=1), torch.ones(5, 6)
        >>> objective.loss(vae.model, vae.guide, x) == objective.loss(vae.model, vae.guide, x)
        True
    """

    draws_codes: ClassVar[bool] = False
    name: ClassVar[str] = "exact"

    def __init__(self, *args: Any, latent: str = "z", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_particles > 1:
            raise ValueError(
                f"objective={self.name!r} draws no codes, and num_draws (num_particles) = {self.num_particles} would "
                "average equal numbers; leave it at 1"
            )
        self.latent = latent

    def check_model(self, model: VAE, scheduled: Iterable[str] = ()) -> None:
        if model.missing is not None:
            raise ValueError(f"objective={self.name!r} leaves no values out, got a model with missing=True; {_REMEDY}")
        if not getattr(model.decoder, "is_linear", True):
            raise ValueError(
                f"objective={self.name!r} needs a linear NormalDecoder (hidden=()) of the codes {self.latent!r} "
                f"themselves, got {type(model.decoder).__name__} with hidden layers; {_REMEDY}"
            )

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        at_the_mean = _AtTheMean(self.latent, self.name)
        guide_trace = poutine.trace(at_the_mean(guide)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        self._take_expectations(model_trace, guide_trace, at_the_mean.variance)
        guide_trace.compute_score_parts()
        return model_trace, guide_trace

    def _take_expectations(self, model_trace: Trace, guide_trace: Trace, variance: Tensor | None) -> None:
        """Set the log-density of every site after the codes to its expectation over the codes."""
        after, after_in_guide = (_sites_after(self.latent, trace) for trace in (model_trace, guide_trace))
        drawn = [*after_in_guide, *(name for name, site in after.items() if not site["is_observed"])]
        if drawn:
            raise ValueError(
                f"objective={self.name!r} has no expectation over {drawn[0]!r}, a latent site that comes after "
                f"{self.latent!r}; {_REMEDY}"
            )
        codes = site_of(guide_trace, self.latent)
        codes["score_parts"] = NOT_SCORED
        for name, site in after.items():
            found = as_linear(site["fn"])
            if found is None or found[0].code is not codes["value"]:
                raise ValueError(
                    f"objective={self.name!r} needs a linear NormalDecoder (hidden=()) of the codes {self.latent!r} "
                    f"themselves, which the observed site {name!r}, {_name(site['fn'])}, does not come from; {_REMEDY}"
                )
            linear, values = found
            expected = self._expected(linear, values(site["value"]), cast("Tensor", variance))
            site["log_prob"] = scale_and_mask(expected, site["scale"], site["mask"])
            if is_validation_enabled():
                check_site_shape(cast("Any", site), cast("int", self.max_plate_nesting))

    def _expected(self, likelihood: LinearNormal, value: Tensor, variance: Tensor) -> Tensor:
        return likelihood.expected_log_prob(value, variance)

    def _open_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        if name != self.latent:
            return super()._open_term(model_trace, name, guide_sites)
        raise ValueError(
            f"objective={self.name!r} needs a KL divergence in closed form at site {name!r}, and there is none of "
            f"{_name(guide_sites[name]['fn'])} from {_name(site_of(model_trace, name)['fn'])}; {_REMEDY}"
        )


class _AtTheMean(Messenger):
    """Set the value of a latent site to the mean of its distribution, and store the variance."""

    def __init__(self, latent: str, objective: str) -> None:
        super().__init__()
        self.latent, self.objective = latent, objective
        self.variance: Tensor | None = None

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] == self.latent:
            msg["value"], self.variance = _moments(self.latent, msg["fn"], self.objective)
            msg["done"] = True


def _moments(name: str, posterior: Distribution, objective: str) -> tuple[Tensor, Tensor]:
    base = posterior.base_dist if isinstance(posterior, Independent) else posterior
    if base.event_shape and not is_point(base):
        raise ValueError(
            f"objective={objective!r} needs a posterior of independent coordinates at site {name!r}, got "
            f"{_name(posterior)}; build it with .to_event(), or {_REMEDY}"
        )
    if has_mean(posterior):
        with contextlib.suppress(NotImplementedError):
            return posterior.mean, posterior.variance
    raise ValueError(
        f"objective={objective!r} needs a posterior with a mean and a variance at site {name!r}, got "
        f"{_name(posterior)}; take a Normal or Laplace posterior or slab"
    )


def _sites_after(latent: str, trace: Trace) -> dict[str, Site]:
    sites = sample_sites(trace)
    if latent not in sites:
        raise ValueError(
            f"model and guide have no common latent site {latent!r}; name the codes' site, ExactELBO(latent=...)"
        )
    names = list(sites)
    return {name: sites[name] for name in names[names.index(latent) + 1 :]}


def _name(distribution: Distribution) -> str:
    return type(distribution.base_dist if isinstance(distribution, Independent) else distribution).__name__
