r"""Pyro ELBOs that never wait for the device, and that combine analytic KL divergences with score functions.

Both maximise :math:`E_q[\log p(x|z)] - KL(q \| p)` for the guide q:

* `TraceELBO` samples the KL, as `pyro.infer.Trace_ELBO` does;
* `AnalyticELBO` takes it in closed form wherever `torch.distributions.kl_divergence` knows it, as
  `pyro.infer.TraceMeanField_ELBO` does. A guide site without a pathwise gradient (``gate="score"``), which Pyro's class
  does not support, gets a score-function term. Its learning signal omits the KL of the site itself, which is exact.

Pyro's classes call `.item()` on every site in every step, so the host waits for the device; these return tensors. They
work with `pyro.infer.SVI` too. With several vectorised particles, every score function has a leave-one-out baseline,
which Pyro's classes do not have.

References
    D. Wingate, T. Weber (2013), Automated variational inference in probabilistic programming.
    R. Ranganath, S. Gerrish, D. M. Blei (2014), Black box variational inference.
    T. Salimans, D. A. Knowles (2014), On using control variates with stochastic approximation for variational Bayes.
    W. Kool, H. van Hoof, M. Welling (2019), Buy 4 REINFORCE samples, get a baseline for free!
"""

from __future__ import annotations

import functools
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from pyro import poutine
from pyro.distributions import Distribution, Independent, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from vsc_pyro._seeding import trains
from vsc_pyro.distributions import (
    PARTICLES,
    CentredScoreParts,
    SpikeSlab,
    is_point,
    structure,
    why_infinite,
    why_no_point,
)
from vsc_pyro.distributions.draws import NO_TERM
from vsc_pyro.models.param_store import unwatched

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

NOT_SCORED = ScoreParts(NO_TERM, NO_TERM, NO_TERM)
_PATHWISE_IF_REPARAMETRISED = (Distribution.score_parts, SpikeSlab.score_parts)

Site = dict[str, Any]
"""A node of a Pyro trace."""


class Term(NamedTuple):
    """One site's term of the ELBO.

    Attributes:
        value: the term, shape of the site's plates.
        surrogate: the expression that is differentiated, of the same shape.
        exact_kl: True if the term is minus a KL divergence in closed form.
    """

    value: Tensor
    surrogate: Tensor
    exact_kl: bool = False


class TraceELBO(Trace_ELBO):
    """`pyro.infer.Trace_ELBO` without host-device synchronisations, and with baselines. Same arguments.

    With vectorised particles, the score function of every site without a pathwise gradient has a leave-one-out
    baseline: in every plate, the mean learning signal of the other particles is subtracted from the signal of each. The
    baseline does not depend on the particle's own draw, so it does not bias the gradient, and it removes most of the
    noise. Value and pathwise gradients equal those of Pyro's class. Latents that only the model draws get a score
    function too.

    Raises:
        ValueError: in the first step, if the divergence of a posterior from its prior is infinite or undefined (an atom
            against a density, heavier tails, values outside the prior's support); estimates from draws would be finite.

    Attributes:
        draws_codes: True if the guide's latents are drawn.
        default_draws: the number of particles if `num_draws` is not given.
        independent_draws: True if the particles have to be independent.
        weighs_divergences: True if a scale of latent sites weighs their divergence, as beta does.
        looks_for_parameters: True if gradients need parameter sites in the traces, as Pyro's classes do. A subclass
            whose own `loss_and_grads` looks for them sets it to True.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> vae = vsc.VAE(vsc.SpikeSlabEncoder(6, 2), vsc.BernoulliDecoder(2, 6), vsc.SpikeSlabPrior(2))
        >>> loss = vsc.TraceELBO().loss_and_grads(vae.model, vae.guide, torch.ones(5, 6))
        >>> loss.shape, all(parameter.grad is not None for parameter in vae.decoder.parameters())
        (torch.Size([]), True)
    """

    draws_codes: ClassVar[bool] = True
    default_draws: ClassVar[int] = 1
    independent_draws: ClassVar[bool] = False
    weighs_divergences: ClassVar[bool] = True
    looks_for_parameters: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admitted: set[tuple] = set()

    @property
    def draws_at_once(self) -> int:
        """Number of draws under one logarithm."""
        return 1

    def check_model(self, model: VAE, scheduled: Iterable[str] = ()) -> None:
        """Raise a ValueError if this objective cannot train `model` while its `scheduled` settings change."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return an estimate of minus the ELBO in nats, summed over data; under `torch.no_grad` spikes are hard."""
        with unwatched():
            return float(self._losses(model, guide, args, kwargs)[0].detach())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the ELBO in nats, summed over data, as a tensor whose gradient is the estimator's."""
        loss, surrogate = self._losses(model, guide, args, kwargs)
        return surrogate + (loss - surrogate).detach()

    @trains
    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Back-propagate minus the ELBO in nats, summed over data, and return it as a tensor on the device."""
        loss, surrogate = self._losses(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _losses(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        particles = [self._particle(*traces) for traces in self._get_traces(model, guide, args, kwargs)]
        elbo, surrogate = (functools.reduce(operator.add, parts) for parts in zip(*particles, strict=True))
        loss = elbo / -self.num_particles
        return loss, loss if surrogate is elbo else surrogate / -self.num_particles

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
        terms = self._terms(model_trace, sites, guide_sites)
        elbo = _total(term.value for term in terms.values())
        all_equal = all(term.surrogate is term.value for term in terms.values())
        surrogate = elbo if all_equal else _total(term.surrogate for term in terms.values())
        for site, parts in _scores(sites, guide_sites):
            if is_identically_zero(parts.score_function):
                continue
            name = site["name"]
            independent = evaluated_before(name, sites, guide_sites)
            signal = MultiFrameTensor(
                *(
                    ((sites | guide_sites)[other]["cond_indep_stack"], term.value.detach())
                    for other, term in terms.items()
                    if not (other == name and term.exact_kl) and other not in independent
                )
            )
            signal = torch.as_tensor(signal.sum_to(site["cond_indep_stack"]))
            if not isinstance(parts, CentredScoreParts):
                signal = _without_baseline(signal, site["cond_indep_stack"])
            surrogate = surrogate + (signal * parts.score_function).sum()
        return elbo, surrogate

    def _terms(self, model_trace: Trace, sites: dict[str, Site], guide_sites: dict[str, Site]) -> dict[str, Term]:
        """Return the term of every site."""
        terms = {}
        for name, site in sites.items():
            if site["is_observed"] or name not in guide_sites:
                log_prob = _log_prob(model_trace, name)
                terms[name] = Term(log_prob, log_prob)
            else:
                terms[name] = self._latent_term(model_trace, name, guide_sites)
        for name, site in guide_sites.items():
            if name not in sites:  # an auxiliary site of the guide
                terms[name] = Term(-site["log_prob"], -self._entropy_term(site))
        return terms

    def _latent_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        guide_site = guide_sites[name]
        self._refuse_infinite(name, model_trace, guide_sites)
        log_prior = _log_prob(model_trace, name)
        return Term(log_prior - guide_site["log_prob"], log_prior - self._entropy_term(guide_site))

    def _refuse_infinite(self, name: str, model_trace: Trace, guide_sites: dict[str, Site]) -> None:
        """Raise if the divergence is infinite, which draws would not show. Each pair of types is checked once."""
        site, guide_site = site_of(model_trace, name), guide_sites[name]
        pair = name, structure(guide_site["fn"]), structure(site["fn"])
        if pair in self._admitted or site["mask"] is False:
            return
        drawn = [other["fn"] for key, other in guide_sites.items() if key not in model_trace]
        reason = why_infinite(guide_site["fn"], site["fn"], self.draws_at_once)
        if reason := reason or why_no_point(guide_site["fn"], guide_site["value"], site["fn"], drawn):
            raise ValueError(f"at site {name!r}, {reason}")
        if not drawn or not is_point(guide_site["fn"]):  # a point may be a copy of a draw in another step
            self._admitted.add(pair)

    def _entropy_term(self, guide_site: Site) -> Tensor:
        """Return the posterior's log-density without the part whose gradient has mean zero."""
        entropy = guide_site["score_parts"].entropy_term
        return torch.zeros_like(guide_site["log_prob"]) if is_identically_zero(entropy) else entropy


class AnalyticELBO(TraceELBO):
    """`pyro.infer.TraceMeanField_ELBO` with score functions and without host-device synchronisations. Same arguments.

    The KL divergence at a site is sampled, with one warning, in two cases: the pair has no closed form, or the prior
    may depend on a latent that the guide draws after the site. (Pyro's class takes the closed form in the second case
    too, which is wrong.) To avoid it, draw latents in the guide in the order of the model.

    Raises:
        ValueError: as `TraceELBO`.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> vae = vsc.VAE(vsc.SpikeSlabEncoder(6, 2), vsc.BernoulliDecoder(2, 6), vsc.SpikeSlabPrior(2))
        >>> loss = vsc.AnalyticELBO().differentiable_loss(vae.model, vae.guide, torch.ones(5, 6))
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sampled: set[str] = set()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        # Pyro would evaluate the density of every prior, which a closed form does not need.
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_trace = prune_subsample_sites(guide_trace)
        for name, site in sample_sites(guide_trace).items():
            if name in model_trace and name not in self._sampled and _is_pathwise(site["fn"]):
                site["score_parts"] = NOT_SCORED  # nor is the posterior's density needed
        guide_trace.compute_score_parts()
        return prune_subsample_sites(model_trace), guide_trace

    def _latent_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        guide_site = guide_sites[name]
        posterior, prior = guide_site["fn"], site_of(model_trace, name)["fn"]
        if is_point(posterior):  # the prior is scored at its value, and a Delta may have a log-density
            return self._sampled_term(model_trace, name, guide_sites)
        if not _prior_comes_first(name, sample_sites(model_trace), guide_sites):
            if name not in self._sampled:
                warnings.warn(
                    f"Failed to verify mean field restriction on the guide at site {name!r}: its prior may depend on "
                    "what the guide draws after it, so its KL divergence is sampled; draw latents in the model's order",
                    stacklevel=2,
                )
            return self._sampled_term(model_trace, name, guide_sites)
        try:
            kl = kl_divergence(posterior, prior)
        except NotImplementedError:
            return self._open_term(model_trace, name, guide_sites)
        term = -scale_and_mask(kl, guide_site["scale"], guide_site["mask"])
        return Term(term, term, exact_kl=True)

    def _open_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        """Return the term of a pair without closed form."""
        sampled_before = name in self._sampled
        term = self._sampled_term(model_trace, name, guide_sites)
        if not sampled_before:
            warnings.warn(f"the KL divergence at site {name!r} has no closed form and is sampled", stacklevel=2)
        return term

    def _sampled_term(self, model_trace: Trace, name: str, guide_sites: dict[str, Site]) -> Term:
        self._sampled.add(name)
        guide_site = guide_sites[name]
        if "log_prob" not in guide_site:
            parts = guide_site["fn"].score_parts(guide_site["value"])
            guide_site["score_parts"] = parts.scale_and_mask(guide_site["scale"], guide_site["mask"])
            guide_site["log_prob"] = guide_site["score_parts"].log_prob
        return super()._latent_term(model_trace, name, guide_sites)


def sample_sites(trace: Trace) -> dict[str, Site]:
    """Return the sample sites of a trace by name."""
    nodes = cast("dict[str, Site]", trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def site_of(trace: Trace, name: str) -> Site:
    """Return the site `name` of a trace."""
    return cast("Site", trace.nodes[name])


def particle_dim(stack: Iterable[CondIndepStackFrame]) -> int | None:
    """Return the dimension of the plate over particles, counted from the right, or None without such a plate."""
    return next((frame.dim for frame in stack if frame.name == PARTICLES), None)


def evaluated_before(name: str, sites: dict[str, Site], guide_sites: dict[str, Site]) -> set[str]:
    """Return the sites whose terms cannot depend on the draw at site `name`.

    Such a term, for example a penalty common to all data, would only add noise to the learning signal of the draw. A
    draw may change all later draws of the guide, and every site of the model from the first of these on.
    """
    if _has_factor(guide_sites):
        return set()  # the factor may depend on all draws
    before_in_guide = set(itertools.takewhile(lambda other: other != name, guide_sites))
    changed = {name, *guide_sites} - before_in_guide
    before_in_model = set(itertools.takewhile(lambda other: other not in changed, sites))
    return before_in_model | (before_in_guide - sites.keys())


def _prior_comes_first(name: str, sites: dict[str, Site], guide_sites: dict[str, Site]) -> bool:
    """Return True if the prior at site `name` cannot depend on the draw there, which a closed divergence assumes."""
    before = set(itertools.takewhile(lambda other: other != name, sites))
    return not _has_factor(guide_sites) and before <= evaluated_before(name, sites, guide_sites)


def _has_factor(guide_sites: dict[str, Site]) -> bool:
    return any(site["is_observed"] and not site["infer"].get("_deterministic") for site in guide_sites.values())


def _scores(sites: dict[str, Site], guide_sites: dict[str, Site]) -> Iterator[tuple[Site, ScoreParts]]:
    """Yield the latent sites with their score parts: those of the guide, and those that only the model draws."""
    for site in guide_sites.values():
        yield site, site["score_parts"]
    for name, site in sites.items():
        if not site["is_observed"] and name not in guide_sites:
            yield site, site["fn"].score_parts(site["value"]).scale_and_mask(site["scale"], site["mask"])


def _is_pathwise(posterior: Distribution) -> bool:
    """Return True if the gradient of a draw is known to be entirely pathwise, without a score-function term."""
    while isinstance(posterior, (Independent, MaskedDistribution)):
        posterior = cast("Distribution", posterior.base_dist)
    # A distribution that overrides score_parts, such as one drawn by rejection, may have both terms.
    return posterior.has_rsample and type(posterior).score_parts in _PATHWISE_IF_REPARAMETRISED


def _total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, (term.sum() for term in terms))


def _log_prob(trace: Trace, name: str) -> Tensor:
    trace.compute_log_prob(lambda other, _: other == name)  # computes nothing if the site has its log_prob
    return site_of(trace, name)["log_prob"]


def _without_baseline(signal: Tensor, stack: Iterable[CondIndepStackFrame]) -> Tensor:
    """Return the signal of each particle minus the mean signal of the other particles."""
    dim = particle_dim(stack)
    if dim is None or signal.dim() < -dim or signal.shape[dim] == 1:
        return signal
    return (signal - signal.mean(dim, keepdim=True)) * signal.shape[dim] / (signal.shape[dim] - 1)
