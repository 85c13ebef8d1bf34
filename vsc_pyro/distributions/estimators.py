"""The ELBOs that estimate the gradient of a spike, by gate: all others are refused or warned of."""

from __future__ import annotations

import warnings

import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)

from vsc_pyro._pyro_internals import current_request, in_plate_of_particles
from vsc_pyro.gates import Gate

_NOT_LINEAR = (RenyiELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO)
WITHOUT_SCORES = (TraceMeanField_ELBO, *_NOT_LINEAR)
_AVERAGES = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO)


def averages_particles() -> bool:
    """Return True while an ELBO takes the gradient of a mean over particles, for which they need not be independent."""
    # Weights of particles, as for importance sampling or wake-sleep, are of independent ones.
    if not torch.is_grad_enabled() or not in_plate_of_particles():
        return False
    request = current_request()
    return request is not None and isinstance(request.elbo, _AVERAGES)


def check_estimator(gate: Gate) -> None:
    """Check that the ELBO at work, if any, has an estimator for spikes of `gate`, which it asks a score for.

    Raises:
        NotImplementedError: an ELBO that has none for score functions, and a gate that needs one.
    """
    request = current_request() if torch.is_grad_enabled() else None
    if request is None:
        return
    elbo, name = request.elbo, type(request.elbo).__name__
    if gate.reparametrized:
        if isinstance(elbo, _NOT_LINEAR) or not getattr(elbo, "is_linear", True):
            warnings.warn(
                f"{name} is not linear in log-densities, so with {gate!r} the KL part of the spikes' "
                "gradient is biased as well as the likelihood's; Trace_ELBO and TraceMeanField_ELBO keep it exact",
                stacklevel=4,
            )
    elif isinstance(elbo, WITHOUT_SCORES):
        raise NotImplementedError(
            f"{name} has no estimator for spikes drawn with gate='score' or 'disarm' and would leave them untrained, "
            "for it takes fully reparameterized guides; use Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO or those of "
            "vsc_pyro.objectives, or another gate"
        )
    elif request.has_other_sites and _leaves_out_other_sites(elbo):
        warnings.warn(
            f"{name} leaves the density of sites that only the guide has, factors included, out of the learning "
            f"signal, so that the gradient of spikes drawn with {gate!r} may be biased, as that of any discrete site; "
            "TraceGraph_ELBO and vsc_pyro.objectives.TraceELBO are unbiased",
            stacklevel=4,
        )


def check_drawn_by_guide(gate: Gate) -> None:
    """Check that spikes of `gate`, whose log-odds are trained, are not drawn by the model under one of Pyro's ELBOs.

    Raises:
        NotImplementedError: they are, and no ELBO of Pyro's scores what only the model draws.
    """
    request = current_request()
    if request is not None and request.draws_model and _is_pyros(request.elbo):
        raise NotImplementedError(
            f"{type(request.elbo).__name__} has no score function for a site that only the model has, and would leave "
            f"spikes drawn there with {gate!r} untrained; draw the site in the guide, or use those of "
            "vsc_pyro.objectives, or another gate"
        )


def _leaves_out_other_sites(elbo: ELBO) -> bool:
    return isinstance(elbo, Trace_ELBO) and _is_pyros(elbo)


def _is_pyros(elbo: ELBO) -> bool:
    # A subclass that sums its terms itself, as those of vsc_pyro.objectives do, need not inherit a fault.
    return type(elbo).loss_and_grads.__module__.startswith("pyro.")
