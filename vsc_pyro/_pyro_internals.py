"""All that Pyro keeps to itself and this library reads: the one file to look at when Pyro changes.

A distribution is not told which ELBO asks for its score, nor for which site. Some ELBOs have no use for a score
function and would leave spikes untrained without a word, so the answer is read off the call stack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import runtime
from pyro.poutine.trace_struct import Trace
from torch.distributions import Distribution, TransformedDistribution

_ASKS = "_get_trace"  # the method of every ELBO that runs the programs and scores their sites
_USES_BASE = ("__call__", "rsample", "log_prob", "_refuse_transformation")
PARTICLES = "num_particles_vectorized"  # the name of the plate over an ELBO's vectorised particles


class Request(NamedTuple):
    """An ELBO at work.

    Attributes:
        elbo: the ELBO.
        has_other_sites: whether the guide has sites that the model has not, factors included; False while it is drawn.
        draws_model: whether the model is being run, after the guide.
    """

    elbo: ELBO
    has_other_sites: bool = False
    draws_model: bool = False


def in_plate_of_particles() -> bool:
    """Return True while several particles are drawn at once, by an ELBO or for importance weights."""
    return any(getattr(messenger, "name", None) == PARTICLES for messenger in runtime._PYRO_STACK)


def current_request() -> Request | None:
    """The innermost ELBO that is at work, or None."""
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
    """The transformed distribution whose method called that of `distribution`, its base; or None."""
    base = distribution
    for frame in _frames():
        # A frame that has been asked for its locals keeps them alive until it returns: few are asked.
        caller = frame.f_locals.get("self") if frame.f_code.co_name in _USES_BASE else None
        if caller is base:
            continue
        if isinstance(caller, TransformedDistribution):
            return caller
        if all(getattr(caller, name, None) is not base for name in ("base_dist", "component_distribution")):
            return None
        base = caller  # such as Independent, around it
    return None


def _samples(trace: Trace) -> set[str]:
    return {name for name, site in trace.nodes.items() if site["type"] == "sample"}


def _frames() -> Iterator[FrameType]:
    """The stack from the caller's caller outwards."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
