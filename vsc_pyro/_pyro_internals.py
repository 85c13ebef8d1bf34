"""The private parts of Pyro that this library reads: the one file to look at when Pyro changes.

Pyro tells a distribution neither which ELBO asks for its score nor whether a `TransformedDistribution` asks for its
density. Both matter: some ELBOs would leave spikes untrained, and a transformation would multiply the mass of an atom
by a Jacobian, all without a warning. No public hook of Pyro or torch tells, so this module reads the call stack.

It also names automatic guides, whose names Pyro takes from their class.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple, cast

from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.nn import PyroModule
from pyro.poutine import runtime
from pyro.poutine.trace_struct import Trace
from torch.distributions import Distribution, TransformedDistribution

_ASKS = "_get_trace"  # the method by which every ELBO runs the programs and scores their sites
_USES_BASE = ("__call__", "rsample", "log_prob", "_refuse_transformation")
PARTICLES = "num_particles_vectorized"  # the name of the plate over an ELBO's vectorised particles


class Request(NamedTuple):
    """An ELBO at work.

    Attributes:
        elbo: the ELBO.
        has_other_sites: True if the guide has sites, factors included, that the model lacks; False while it runs.
        draws_model: True while the model runs, after the guide.
    """

    elbo: ELBO
    has_other_sites: bool = False
    draws_model: bool = False


def in_plate_of_particles() -> bool:
    """Return True while several particles are drawn at once, by an ELBO or for importance weights."""
    return any(getattr(messenger, "name", None) == PARTICLES for messenger in runtime._PYRO_STACK)


def current_request() -> Request | None:
    """Return the innermost ELBO at work, or None."""
    guide_trace = model_trace = None
    for frame in _frames():
        if frame.f_code is get_importance_trace.__code__:
            guide_trace, model_trace = (frame.f_locals.get(name) for name in ("guide_trace", "model_trace"))
        elif frame.f_code.co_name == _ASKS and isinstance(elbo := frame.f_locals.get("self"), ELBO):
            if guide_trace is None or model_trace is None:
                return Request(elbo, draws_model=guide_trace is not None)
            return Request(elbo, has_other_sites=bool(_samples(guide_trace) - _samples(model_trace)))
    return None


def transformation_around(distribution: Distribution) -> TransformedDistribution | None:
    """Return the transformed distribution whose method has called a method of `distribution`, its base; or None."""
    base = distribution
    for frame in _frames():
        # A frame keeps its locals alive from the first request until it returns, so only few frames are asked.
        caller = frame.f_locals.get("self") if frame.f_code.co_name in _USES_BASE else None
        if caller is base:
            continue
        if isinstance(caller, TransformedDistribution):
            return caller
        if all(getattr(caller, name, None) is not base for name in ("base_dist", "component_distribution")):
            return None
        base = caller  # such as Independent, around it
    return None


def name_root(module: PyroModule, name: str) -> None:
    """Name a `PyroModule` whose base class chooses the name itself, before it has submodules.

    Pyro gives every automatic guide of one class the same names in its parameter store, so that a second guide would
    silently take the parameters of the first.
    """
    module._pyro_name = name


def _samples(trace: Trace) -> set[str]:
    return {name for name, site in cast("dict[str, dict]", trace.nodes).items() if site["type"] == "sample"}


def _frames() -> Iterator[FrameType]:
    """Yield the frames of the call stack from the caller's caller outwards."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
