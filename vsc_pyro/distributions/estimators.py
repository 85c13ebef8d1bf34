"""ELBOs that estimate the gradient of a spike without bias, for each gate; warnings and errors for the others."""

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
    """Return True while an ELBO takes the gradient of a mean over particles, which may then depend on each other."""
    # Importance sampling and wake-sleep weigh particles, which must then be independent.
    if not torch.is_grad_enabled() or not in_plate_of_particles():
        return False
    request = current_request()
    return request is not None and isinstance(request.elbo, _AVERAGES)


def check_estimator(gate: Gate) -> None:
    """Check that the running ELBO, if there is one, has an estimator for spikes drawn with `gate`.

    Raises:
        NotImplementedError: the gate needs a score function, and the ELBO does not support it.
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
            "because it takes fully reparameterized guides; use Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO or an "
            "objective of vsc_pyro.objectives, or another gate"
        )
    elif request.has_other_sites and _leaves_out_other_sites(elbo):
        warnings.warn(
            f"{name} leaves the density of sites that only the guide has, factors included, out of the learning "
            f"signal, so the gradient of spikes drawn with {gate!r} may be biased, like that of any discrete site; "
            "TraceGraph_ELBO and vsc_pyro.objectives.TraceELBO are unbiased",
            stacklevel=4,
        )


def check_drawn_by_guide(gate: Gate) -> None:
    """Check that no ELBO of Pyro's has the model draw spikes with `gate` whose log-odds are trained.

    Raises:
        NotImplementedError: the model draws them, and Pyro's ELBOs have no score function for sites of the model alone.
    """
    request = current_request()
    if request is not None and request.draws_model and _is_pyros(request.elbo):
        raise NotImplementedError(
            f"{type(request.elbo).__name__} has no score function for a site that only the model has, and would leave "
            f"spikes drawn there with {gate!r} untrained; draw the site in the guide, or use an objective of "
            "vsc_pyro.objectives, or another gate"
        )


def warn_of_several_scores(gate: Gate) -> None:
    """Warn that a draw is scored by several distributions, whose densities an ELBO may mix."""
    warnings.warn(
        f"a draw of {gate!r} is scored under a batch of priors at once; where their log-densities meet in a "
        "log-sum-exp, as those of an enumerated mixture do, the spikes' gradient is biased in the KL part too; "
        "gate='score' is not",
        stacklevel=3,
    )


def _leaves_out_other_sites(elbo: ELBO) -> bool:
    return isinstance(elbo, Trace_ELBO) and _is_pyros(elbo)


def _is_pyros(elbo: ELBO) -> bool:
    # A subclass with a gradient of its own, such as those of vsc_pyro.objectives, does not inherit the fault.
    return type(elbo).loss_and_grads.__module__.startswith("pyro.")  # pyright: ignore[reportAttributeAccessIssue]
