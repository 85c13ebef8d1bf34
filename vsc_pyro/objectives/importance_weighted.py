r"""`ImportanceWeightedELBO`: a bound from several draws of each code, with hard spikes and an unbiased gradient.

.. math:: L_K = E\Big[\log \frac1K \sum_{k=1}^K w_k\Big], \qquad w_k = \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q,

increases with K to the evidence (Burda et al., 2016). Its gradient has two parts. The pathwise part (decoder, prior,
slabs) is :math:`\sum_k \tilde w_k \nabla \log w_k` with normalised weights :math:`\tilde w_k`. Sites without a pathwise
gradient (spikes of ``gate="score"``, any discrete site) have a score function. The learning signal of draw k is the
bound minus the bound in which :math:`w_k` is replaced by the geometric mean of the other weights (VIMCO; Mnih &
Rezende, 2016). The latter does not depend on draw k, so the gradient is unbiased.

The bound is not linear in log-densities, so a relaxed gate biases both parts of the spikes' gradient, as it does under
`pyro.infer.RenyiELBO`, and a warning says so. ``gate="score"`` is unbiased.

References
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders.
    A. Mnih, D. J. Rezende (2016), Variational inference for Monte Carlo objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from vsc_pyro._arguments import positive_int
from vsc_pyro.distributions import CentredScoreParts
from vsc_pyro.objectives.elbo import Site, TraceELBO, evaluated_before, particle_dim, sample_sites

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE


class ImportanceWeightedELBO(TraceELBO):
    r"""The importance-weighted bound :math:`L_K` as a Pyro ELBO with K = `num_particles` vectorised draws.

    All latents must be in the same plates, as in a `vsc_pyro.VAE`, where each datum has its own latents. (The weights
    of a latent common to all data would not factorise over data.) Terms that depend on no latent, such as a penalty,
    are added to the bound.

    Args:
        num_particles: K, at least 2.
        max_plate_nesting: as in `pyro.infer.Trace_ELBO`, as are all other arguments.

    Raises:
        ValueError: fewer than two particles.
        NotImplementedError: in the first step: latents in different plates; scaled sites (subsampling, beta); dependent
            draws (``gate="disarm"``). `vsc_pyro.fit` raises a ValueError before training instead.

    References
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> vae = vsc.VAE(vsc.SpikeSlabEncoder(6, 2, gate="score"), vsc.BernoulliDecoder(2, 6), vsc.SpikeSlabPrior(2))
        >>> objective = vsc.ImportanceWeightedELBO(num_particles=5, max_plate_nesting=1)
        >>> objective.differentiable_loss(vae.model, vae.guide, torch.ones(3, 6)).shape
        torch.Size([])
    """

    is_linear: ClassVar[bool] = False
    default_draws: ClassVar[int] = 5
    independent_draws: ClassVar[bool] = True
    weighs_divergences: ClassVar[bool] = False

    def __init__(
        self, num_particles: int = default_draws, *args: Any, vectorize_particles: bool = True, **kwargs: Any
    ) -> None:
        if positive_int("num_particles", num_particles) < 2 or not vectorize_particles:
            raise ValueError(
                "the importance-weighted objective takes two draws or more at once, got "
                f"num_particles={num_particles}, vectorize_particles={vectorize_particles}; "
                "pass num_draws=5 to fit, say, or num_particles=5 here"
            )
        super().__init__(num_particles, *args, vectorize_particles=True, **kwargs)

    @property
    def draws_at_once(self) -> int:
        return self.num_particles

    def check_model(self, model: VAE, scheduled: Iterable[str] = ()) -> None:
        if model.beta != 1 or "beta" in scheduled:
            how = "a schedule" if "beta" in scheduled else f"beta={model.beta}"
            raise ValueError(
                f"the importance-weighted objective needs unscaled densities, and {how} scales the KL; leave "
                "beta at 1, or take objective='analytic' or 'trace'"
            )
        if common := list(getattr(model.prior, "hyperparameters", dict)()):
            raise ValueError(
                f"the importance-weighted objective needs latents of single data, and the prior's {common} are common "
                "to all data; leave hyperprior out, or take objective='analytic' or 'trace'"
            )

    def _entropy_term(self, guide_site: Site) -> Tensor:
        return guide_site["log_prob"]  # multiplied by a weight, no part of its gradient has mean zero

    def _losses(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        bound, surrogate = self._bound(model_trace, guide_trace)
        return -bound, -surrogate

    def _bound(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
        terms = self._terms(model_trace, sites, guide_sites)
        stack = _common_stack(sites, guide_sites)
        before = set.intersection(*(evaluated_before(name, sites, guide_sites) for name in guide_sites))
        weighed = [(name, term) for name, term in terms.items() if name not in before]
        _check_weighed({name: (sites | guide_sites)[name] for name, _ in weighed}, stack)
        log_weight, log_weight_surrogate = (
            MultiFrameTensor(
                *(((sites | guide_sites)[name]["cond_indep_stack"], getattr(term, field)) for name, term in weighed)
            ).sum_to(stack)
            for field in ("value", "surrogate")
        )
        dim = cast("int", particle_dim(stack))
        log_weight = torch.as_tensor(log_weight).detach()
        bound = torch.logsumexp(log_weight, dim, keepdim=True) - math.log(self.num_particles)
        surrogate = (log_weight.softmax(dim) * log_weight_surrogate).sum()
        for score in _score_functions(guide_sites):
            surrogate = surrogate + ((bound - _bound_without(log_weight, dim)) * score).sum()
        # Terms that precede all latents are equal for all particles, of which they hold the sum.
        added = [term for name, term in terms.items() if name in before]
        value = bound.sum() + sum(term.value.sum() for term in added) / self.num_particles
        return value, surrogate + sum(term.surrogate.sum() for term in added) / self.num_particles


def _score_functions(guide_sites: dict[str, Site]) -> Iterator[Tensor]:
    for site in guide_sites.values():
        parts = site["score_parts"]
        if is_identically_zero(parts.score_function):
            continue
        if isinstance(parts, CentredScoreParts):
            raise NotImplementedError(
                "the importance-weighted objective takes independent draws, and the gate draws several together; "
                "take gate='score'"
            )
        yield parts.score_function


def _bound_without(log_weight: Tensor, dim: int) -> Tensor:
    """Return, for each particle, the bound with its log-weight replaced by the mean of the other log-weights."""
    columns = log_weight.movedim(dim, -1)
    num_particles = columns.shape[-1]
    mean_of_others = (columns.sum(-1, keepdim=True) - columns) / (num_particles - 1)
    nothing = torch.full_like(columns[..., :1], -math.inf)
    before = torch.cat([nothing, columns.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([columns.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], nothing], -1)
    total = torch.logaddexp(torch.logaddexp(before, after), mean_of_others)
    return (total - math.log(num_particles)).movedim(-1, dim)


def _common_stack(sites: dict[str, Site], guide_sites: dict[str, Site]) -> tuple:
    """Return the plates that all latents of the guide share."""
    stacks = {name: site["cond_indep_stack"] for name, site in guide_sites.items()}
    if missing := [name for name, site in sites.items() if not site["is_observed"] and name not in guide_sites]:
        raise NotImplementedError(
            f"the importance-weighted objective needs a guide for every latent, got none for {missing}"
        )
    if not stacks:
        raise NotImplementedError("the importance-weighted objective needs a guide with latents; there is none")
    if len(set(stacks.values())) != 1:
        raise NotImplementedError(
            "the importance-weighted objective takes latents that share their plates, got "
            + ", ".join(f"{name!r} in {[frame.name for frame in stack]}" for name, stack in stacks.items())
            + "; train this model with 'analytic' or 'trace'"
        )
    return next(iter(stacks.values()))


def _check_weighed(sites: dict[str, Site], stack: tuple) -> None:
    for name, site in sites.items():
        if not set(stack) <= set(site["cond_indep_stack"]):
            raise NotImplementedError(
                f"site {name!r} is outside of the plates of latents that it depends on, so the importance weights do "
                "not factorise; train this model with 'analytic' or 'trace'"
            )
        if _is_scaled(site["scale"]):
            raise NotImplementedError(
                f"site {name!r} is scaled by {site['scale']}, and importance weights need unscaled densities; "
                "set beta=1, do not subsample, or train with 'analytic' or 'trace'"
            )


def _is_scaled(scale: float | Tensor) -> bool:
    if not isinstance(scale, Tensor):
        return scale != 1
    # Reading a tensor waits for the device: once, in the validated first step of a fit.
    return is_validation_enabled() and bool((scale != 1).any())
