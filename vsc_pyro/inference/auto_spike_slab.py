r"""`AutoSpikeSlab`: an automatic mean-field guide for a Pyro model of one's own with spike-and-slab sites.

.. math:: q(\beta, \theta) = \prod_j [\gamma_j F_j(\beta_j) + (1 - \gamma_j)\, \delta_0(\beta_j)] \prod_k q_k(\theta_k)

for the elements :math:`\beta_j` of `SpikeSlab` sites and :math:`\theta_k` of all others. Each :math:`F_j` and
:math:`q_k` is a Normal distribution on unconstrained space, moved to the support by `torch.distributions.biject_to`: a
Normal distribution on the reals, a log-normal one on the positive numbers.

**Correlated coefficients.** A factorised posterior cannot state "one of the two". Of two nearly collinear columns of a
regression, each in doubt, it is almost certain of one, and the start and the noise of the fit decide which. Trust its
inclusion probabilities for nearly orthogonal columns; for correlated ones they are overconfident.

References
    T. J. Mitchell, J. J. Beauchamp (1988), Bayesian variable selection in linear regression (spike and slab).
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
    P. Carbonetto, M. Stephens (2012), Scalable variational inference for Bayesian variable selection in regression.
    A. Kucukelbir, D. Tran, R. Ranganath, A. Gelman, D. M. Blei (2017), Automatic differentiation variational inference.
"""

from __future__ import annotations

import contextlib
import copy
import numbers
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, cast

import pyro
import torch
from pyro.distributions import (
    Independent,
    LogNormal,
    Normal,
    TorchDistribution,
    TransformedDistribution,  # pyright: ignore[reportAttributeAccessIssue] as Pyro makes it when it is imported
    constraints,
)
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from vsc_pyro._arguments import positive_float
from vsc_pyro._pyro_internals import name_root
from vsc_pyro.distributions import SpikeSlab, is_atom_free
from vsc_pyro.distributions.atoms import is_continuous
from vsc_pyro.distributions.infinite import unwrapped
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.models.param_store import name_in_store

_HAS_SPIKES = "vsc_pyro_has_spikes"


class _Slabs(Messenger):
    """Replace latent `SpikeSlab` sites by their slabs, which have a bijection to unconstrained space."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        prior = unwrapped(msg["fn"])
        if isinstance(prior, SpikeSlab):
            msg["fn"] = Independent(prior.slab, msg["fn"].event_dim)
            msg["infer"][_HAS_SPIKES] = True
        elif is_continuous(prior) and not is_atom_free(prior):
            name = msg["name"]
            raise ValueError(
                f"the site {name!r} has an atom and is no SpikeSlab, got {type(prior).__name__}; hide it, "
                f"AutoSpikeSlab(pyro.poutine.block(model, hide=[{name!r}])), and guide it by hand"
            )


class AutoSpikeSlab(AutoNormal):
    r"""Automatic guide: `SpikeSlab` sites get spike-and-slab posteriors, all others Normal ones on unconstrained space.

    Use it as Pyro's `AutoNormal`, with any ELBO that takes its gate. Plates, subsampling and `AutoGuideList` work as
    there, and so do `pyro.poutine.scale` and `mask`, which apply to the guide only if they are put around it.
    Parameters have names of their own in Pyro's store, so several guides can live in one process.

    The default gate is unbiased if the log-likelihood is at most quadratic in each coefficient, as in linear regression
    and factor analysis with Gaussian noise. ``gate="score"`` is unbiased for every model and noisy; give the ELBO tens
    of vectorised particles then. The guide has no auxiliary sites, which would bias its gradient under `Trace_ELBO`.

    Args:
        model: a Pyro program with at least one latent `SpikeSlab` site. Discrete sites have to be hidden,
            ``pyro.poutine.block(model, hide=[...])``, and enumerated or guided by hand.
        gate: gradient estimator of the spikes: a name or a `vsc_pyro.gates.Gate`, which is copied.
        initial_inclusion: inclusion probability of every coefficient at the start, strictly between 0 and 1.
        init_loc_fn: where the other sites and the slabs start, as in Pyro's automatic guides.
        init_scale: standard deviation at the start, on unconstrained space.
        create_plates: as in Pyro's automatic guides.

    Raises:
        ValueError: an inclusion or scale out of range, an unknown gate; in the first call, a discrete site, another
            site with an atom (a mixture of spike-and-slabs), or a model without a latent `SpikeSlab` site.
        RuntimeError: a result asked for before the first call.

    Example:
        >>> import functools, pyro, pyro.distributions as dist, torch, vsc_pyro as vsc
        >>> def model(x, y):
        ...     prior = vsc.SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=0.2)
        ...     weights = pyro.sample("weights", prior.to_event(1))
        ...     noise = pyro.sample("noise", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(x @ weights, noise), obs=y)
        >>> x = torch.randn(50, 3)
        >>> y = x[:, 0] + 0.1 * torch.randn(50)
        >>> guide = vsc.AutoSpikeSlab(model)
        >>> svi = vsc.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.05), vsc.AnalyticELBO())
        >>> losses = [svi.step(x, y) for _ in range(300)]
        >>> (guide.inclusion()["weights"] > 0.5).tolist()
        [True, False, False]
    """

    def __init__(
        self,
        model: Callable,
        *,
        gate: str | Gate = "reinmax",
        initial_inclusion: float = 0.5,
        init_loc_fn: Callable = init_to_feasible,
        init_scale: float = 0.1,
        create_plates: Callable | None = None,
    ) -> None:
        if not isinstance(initial_inclusion, numbers.Real) or not 0 < initial_inclusion < 1:
            raise ValueError(f"initial_inclusion must lie strictly between 0 and 1, got {initial_inclusion!r}")
        init_scale = positive_float("init_scale", init_scale)
        super().__init__(_Slabs()(model), init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates)
        name_root(self, name_in_store(self, "auto_spike_slab"))
        self.gate = copy.deepcopy(get_gate(gate))
        self.initial_inclusion = initial_inclusion

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.logits = PyroModule()
        start = torch.logit(torch.tensor(self.initial_inclusion))
        sites = [name for name, site in self._sites() if _has_spikes(site)]
        if not sites:
            raise ValueError("the model has no latent SpikeSlab site; use pyro.infer.autoguide.AutoNormal for it")
        for name in sites:
            loc = self._parameter(self.locs, name)
            logits = torch.full_like(loc, float(start)).detach()
            deep_setattr(self.logits, name, PyroParam(logits, constraints.real, self._event_dims[name]))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latent sites of the model, by name, given the arguments of the model."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        draws = {}
        for name, site in self._sites():
            with contextlib.ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(plates[frame.name])
                draws[name] = pyro.sample(name, self._posterior(name, site))
        return draws

    def inclusion(self) -> dict[str, Tensor]:
        r"""Return the posterior inclusion probabilities :math:`P(\beta \neq 0)` of each `SpikeSlab` site, by name."""
        found = {name: self._parameter(self.logits, name) for name, site in self._sites() if _has_spikes(site)}
        return {name: logits.detach().sigmoid() for name, logits in found.items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return posterior quantiles of each latent site, by name; the arguments of the model are not used.

        Args:
            quantiles: probabilities between 0 and 1.

        Returns:
            For each site the shape ``(len(quantiles), *site)``. Those of a coefficient are exact zeros between
            the slab's share below zero and its share above.
        """
        found = {}
        if not ((torch.as_tensor(quantiles) >= 0) & (torch.as_tensor(quantiles) <= 1)).all():
            raise ValueError(f"quantiles must lie between 0 and 1, got {quantiles!r}")
        for name, site in self._sites():
            loc, scale = self._get_loc_and_scale(name)
            q = torch.as_tensor(quantiles).to(loc).reshape(-1, *(1 for _ in loc.shape))
            to_support, is_atom = biject_to(site["fn"].support), None
            if _has_spikes(site):
                posterior = cast("SpikeSlab", unwrapped(self._posterior(name, site)))
                off = 1 - posterior.probs
                below = (posterior.cdf(torch.zeros_like(loc)) - off).clamp(min=0)
                is_atom = (q >= below) & (q <= below + off)
                q = (torch.where(q < below, q, q - off) / posterior.probs).clamp(0, 1)
            value = to_support(Normal(loc, scale).icdf(q))
            found[name] = value if is_atom is None else value.masked_fill(is_atom, 0)
        return found

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the posterior median of each latent site, by name; 0 for a coefficient that is more likely off."""
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    def _posterior(self, name: str, site: Any) -> TorchDistribution:
        loc, scale = self._get_loc_and_scale(name)
        support, event_dim = site["fn"].support, self._event_dims[name]
        if not _has_spikes(site):
            return _moved(loc, scale, support, event_dim)
        slab = _moved(loc, scale, _of_scalars(support), 0)
        return SpikeSlab(slab, logits=self._parameter(self.logits, name), gate=self.gate).to_event(event_dim)

    def _sites(self) -> Iterator[tuple[str, Any]]:
        if self.prototype_trace is None:
            raise RuntimeError("the guide has no parameters before its first call; train it, or call it like the model")
        return self.prototype_trace.iter_stochastic_nodes()

    @staticmethod
    def _parameter(parameters: PyroModule, name: str) -> Tensor:
        return attrgetter(name)(parameters)


def _moved(loc: Tensor, scale: Tensor, support: constraints.Constraint, event_dim: int) -> TorchDistribution:
    """Return a Normal distribution that `biject_to` moves to the support, of a class that divergences know if any."""
    bounds = _of_scalars(support)
    if bounds is constraints.real:
        return Normal(loc, scale).to_event(event_dim)
    if isinstance(bounds, (constraints.greater_than, constraints.greater_than_eq)) and bounds.lower_bound == 0:
        return LogNormal(loc, scale).to_event(event_dim)
    return TransformedDistribution(Normal(loc, scale).to_event(event_dim), biject_to(support))


def _of_scalars(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _has_spikes(site: Any) -> bool:
    return _HAS_SPIKES in site["infer"]
