r"""Objectives: Pyro ELBOs that never wait for the device, and that take analytic KLs together with score functions.

With q the guide and f the learning signal, both maximise :math:`E_q[\log p(x|z)] - KL(q \| p)`:

* `TraceELBO` samples the KL, as `pyro.infer.Trace_ELBO` does;
* `AnalyticELBO` takes it in closed form wherever `torch.distributions.kl_divergence` knows it, as
  `pyro.infer.TraceMeanField_ELBO` does. Where a guide site has no pathwise gradient (``gate="score"``), for which
  Pyro's class has no answer, the score-function term is added, with a signal from which the site's own KL, known
  exactly, is left out.

Pyro's classes call `.item()` on every site in every step, which makes the host wait for the device; these return
tensors. Each works with `pyro.infer.SVI` too. With several vectorised particles they give score functions of any site
a leave-one-out baseline, which Pyro's do not have.

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
from typing import Any, ClassVar, NamedTuple

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
from torch import Tensor, nn
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
from vsc_pyro.models.param_store import unwatched

_NOTHING_SCORED = ScoreParts(0, 0, 0)
_SCORES_NOTHING_PATHWISE = (Distribution.score_parts, SpikeSlab.score_parts)


class Term(NamedTuple):
    """One site's share of the ELBO, of the shape of its plates: its value, and what is differentiated."""

    value: Tensor
    surrogate: Tensor
    exact_kl: bool = False


class TraceELBO(Trace_ELBO):
    """`pyro.infer.Trace_ELBO` without its host-device synchronisations, and with baselines. Same arguments.

    Sites without a pathwise gradient, whatever their distribution, get a leave-one-out baseline where particles are
    vectorised: from each particle's learning signal, in every plate, that of the others is taken off, on average. It is
    independent of the draw, so nothing is biased, and takes off most of the score function's noise. Value and pathwise
    gradients are those of Pyro's class. Latents that the guide leaves to the model get their score function, too.

    Raises:
        ValueError: in the first step: a latent whose posterior is known to have an infinite divergence from its prior,
            or none (an atom against a density, heavier tails, values outside of the prior's support), which draws
            would not show.

    Attributes:
        draws_codes: whether the guide's latents are drawn.
        default_draws: how many particles there are where nobody says.
        independent_draws: whether these have to be independent of one another.
        weighs_divergences: whether a scale of latent sites weighs their divergence, as beta does.
        looks_for_parameters: whether there is no gradient without sites of parameters in the traces, as in Pyro's. A
            subclass whose own `loss_and_grads` looks for them sets it to True.
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
        """How many draws one logarithm is taken over."""
        return 1

    def check_model(self, model: nn.Module, scheduled: Iterable[str] = ()) -> None:
        """Raise a ValueError if this objective cannot train that `vsc_pyro.VAE`, whose `scheduled` settings change."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimate of minus the ELBO, summed over data; as Pyro's, of soft spikes unless gradients are switched off."""
        with unwatched():
            return float(self._losses(model, guide, args, kwargs)[0].detach())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the ELBO, summed over data, as a tensor whose gradient is this estimator's."""
        loss, surrogate = self._losses(model, guide, args, kwargs)
        return surrogate + (loss - surrogate).detach()

    @trains
    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Back-propagate minus the ELBO, summed over data, and return it as a tensor on the device."""
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
        alike = all(term.surrogate is term.value for term in terms.values())
        surrogate = elbo if alike else _total(term.surrogate for term in terms.values())
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
                signal = _less_that_of_other_particles(signal, site["cond_indep_stack"])
            surrogate = surrogate + (signal * parts.score_function).sum()
        return elbo, surrogate

    def _terms(self, model_trace: Trace, sites: dict[str, dict], guide_sites: dict[str, dict]) -> dict[str, Term]:
        """Every site's share of the ELBO."""
        terms = {}
        for name, site in sites.items():
            if site["is_observed"] or name not in guide_sites:  # the latter: drawn from the prior itself
                terms[name] = Term(*2 * (_log_prob(model_trace, name),))
            else:
                terms[name] = self._latent_term(model_trace, name, guide_sites)
        for name, site in guide_sites.items():
            if name not in sites:  # an auxiliary site of the guide
                terms[name] = Term(-site["log_prob"], -self._entropy_term(site))
        return terms

    def _latent_term(self, model_trace: Trace, name: str, guide_sites: dict[str, dict]) -> Term:
        guide_site = guide_sites[name]
        self._refuse_infinite(name, model_trace, guide_sites)
        log_prior = _log_prob(model_trace, name)
        return Term(log_prior - guide_site["log_prob"], log_prior - self._entropy_term(guide_site))

    def _refuse_infinite(self, name: str, model_trace: Trace, guide_sites: dict[str, dict]) -> None:
        """Raise where draws would make a finite number of an infinite divergence; once for each pair of types."""
        site, guide_site = model_trace.nodes[name], guide_sites[name]
        pair = name, structure(guide_site["fn"]), structure(site["fn"])
        if pair in self._admitted or site["mask"] is False:
            return
        drawn = [other["fn"] for key, other in guide_sites.items() if key not in model_trace]
        reason = why_infinite(guide_site["fn"], site["fn"], self.draws_at_once)
        if reason := reason or why_no_point(guide_site["fn"], guide_site["value"], site["fn"], drawn):
            raise ValueError(f"at site {name!r}, {reason}")
        if not drawn or not is_point(guide_site["fn"]):  # else it may be a copy at another step
            self._admitted.add(pair)

    def _entropy_term(self, guide_site: dict) -> Tensor:
        """The posterior's log-density, less what of its gradient has a mean of zero."""
        entropy = guide_site["score_parts"].entropy_term
        return torch.zeros_like(guide_site["log_prob"]) if is_identically_zero(entropy) else entropy


class AnalyticELBO(TraceELBO):
    """`pyro.infer.TraceMeanField_ELBO` that also takes score functions, and never synchronises. Same arguments.

    The KL divergence at a site is sampled, and a warning says so once, where guide and prior have no closed form, and
    where the prior may depend on what the guide draws after the site: latents of the guide should come in the model's
    order. (Pyro's class takes the closed form there too, which is wrong.)

    Raises:
        ValueError: as `TraceELBO`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sampled: set[str] = set()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        # Pyro would evaluate every prior's density, which a closed form has no use for.
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_trace = prune_subsample_sites(guide_trace)
        for name, site in sample_sites(guide_trace).items():
            if name in model_trace and name not in self._sampled and _is_pathwise(site["fn"]):
                site["score_parts"] = _NOTHING_SCORED  # nor the posterior's
        guide_trace.compute_score_parts()
        return prune_subsample_sites(model_trace), guide_trace

    def _latent_term(self, model_trace: Trace, name: str, guide_sites: dict[str, dict]) -> Term:
        guide_site = guide_sites[name]
        posterior, prior = guide_site["fn"], model_trace.nodes[name]["fn"]
        if is_point(posterior):  # scored at its value, which its own log-density may be part of
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

    def _open_term(self, model_trace: Trace, name: str, guide_sites: dict[str, dict]) -> Term:
        """The term of a pair without closed form."""
        sampled_before = name in self._sampled
        term = self._sampled_term(model_trace, name, guide_sites)
        if not sampled_before:
            warnings.warn(f"the KL divergence at site {name!r} has no closed form and is sampled", stacklevel=2)
        return term

    def _sampled_term(self, model_trace: Trace, name: str, guide_sites: dict[str, dict]) -> Term:
        self._sampled.add(name)
        guide_site = guide_sites[name]
        if "log_prob" not in guide_site:  # what there was no use for, and now is
            parts = guide_site["fn"].score_parts(guide_site["value"])
            guide_site["score_parts"] = parts.scale_and_mask(guide_site["scale"], guide_site["mask"])
            guide_site["log_prob"] = guide_site["score_parts"].log_prob
        return super()._latent_term(model_trace, name, guide_sites)


def sample_sites(trace: Trace) -> dict[str, dict]:
    """The sites of a trace that are distributions', by name."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def particle_dim(stack: Iterable[CondIndepStackFrame]) -> int | None:
    """The dimension, counted from the right, of the plate over particles; None where there is none."""
    return next((frame.dim for frame in stack if frame.name == PARTICLES), None)


def evaluated_before(name: str, sites: dict[str, dict], guide_sites: dict[str, dict]) -> set[str]:
    """Sites whose terms cannot depend on the draw at site `name`, of the guide or of the model alone.

    They would only add noise to its learning signal: a penalty on all data, say, to that of every datum. A draw may
    change whatever the guide draws after it, and so everything in the model from the first of these on.
    """
    if _has_factor(guide_sites):
        return set()  # part of the density of all that it was drawn with
    before_in_guide = set(itertools.takewhile(lambda other: other != name, guide_sites))
    changed = {name, *guide_sites} - before_in_guide
    before_in_model = set(itertools.takewhile(lambda other: other not in changed, sites))
    return before_in_model | (before_in_guide - sites.keys())


def _prior_comes_first(name: str, sites: dict[str, dict], guide_sites: dict[str, dict]) -> bool:
    """Whether the prior at site `name` cannot depend on the draw there, as a closed divergence takes for granted."""
    before = set(itertools.takewhile(lambda other: other != name, sites))
    return not _has_factor(guide_sites) and before <= evaluated_before(name, sites, guide_sites)


def _has_factor(guide_sites: dict[str, dict]) -> bool:
    return any(site["is_observed"] and not site["infer"].get("_deterministic") for site in guide_sites.values())


def _scores(sites: dict[str, dict], guide_sites: dict[str, dict]) -> Iterator[tuple[dict, ScoreParts]]:
    """Sites that a score-function term is due to: of the guide, and latents that it leaves to the model."""
    for site in guide_sites.values():
        yield site, site["score_parts"]
    for name, site in sites.items():
        if not site["is_observed"] and name not in guide_sites:
            yield site, site["fn"].score_parts(site["value"]).scale_and_mask(site["scale"], site["mask"])


def _is_pathwise(posterior: Distribution) -> bool:
    """Whether a draw's gradient is known to be pathwise altogether, with no part that a score adds."""
    while isinstance(posterior, (Independent, MaskedDistribution)):
        posterior = posterior.base_dist
    # A distribution with score parts of its own, such as one drawn by rejection, may have both.
    return posterior.has_rsample and type(posterior).score_parts in _SCORES_NOTHING_PATHWISE


def _total(shares: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, (share.sum() for share in shares))


def _log_prob(trace: Trace, name: str) -> Tensor:
    trace.compute_log_prob(lambda other, _: other == name)  # where it has not been computed
    return trace.nodes[name]["log_prob"]


def _less_that_of_other_particles(signal: Tensor, stack: Iterable[CondIndepStackFrame]) -> Tensor:
    """The signal of each particle minus the mean of all others': what they have in common teaches a draw nothing."""
    dim = particle_dim(stack)
    if dim is None or signal.dim() < -dim or signal.shape[dim] == 1:
        return signal
    return (signal - signal.mean(dim, keepdim=True)) * signal.shape[dim] / (signal.shape[dim] - 1)
