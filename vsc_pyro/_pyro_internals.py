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

PARTICLES = "num_particles_vectorized"  # the name of the plate over an ELBO's vectorised particles


class Request(NamedTuple):
    """An ELBO at work, and whether the site that it asks a score for is one that only the guide has."""

    elbo: ELBO
    is_auxiliary: bool = False


def in_plate_of_particles() -> bool:
    """Whether several particles are drawn at once, by an ELBO or for importance weights."""
    return any(getattr(messenger, "name", None) == PARTICLES for messenger in runtime._PYRO_STACK)


def current_request() -> Request | None:
    """The innermost ELBO that is at work, or None."""
    site = model_trace = None
    for frame in _frames():
        if frame.f_code is Trace.compute_score_parts.__code__:
            site = frame.f_locals.get("name")
        elif frame.f_code is get_importance_trace.__code__:
            model_trace = frame.f_locals.get("model_trace")
        elif isinstance(elbo := _owner(frame), ELBO):
            return Request(elbo, site is not None and model_trace is not None and site not in model_trace)
    return None


def transformation_around(distribution: Distribution) -> TransformedDistribution | None:
    """The transformed distribution whose method called that of `distribution`, its base; or None."""
    base = distribution
    for frame in _frames():
        caller = _owner(frame)
        if caller is base:
            continue
        if isinstance(caller, TransformedDistribution):
            return caller
        if getattr(caller, "base_dist", None) is not base:
            return None
        base = caller  # such as Independent, around it
    return None


def _owner(frame: FrameType) -> object:
    """The object whose method a frame is of; None of a function."""
    # A frame that has been asked for its locals keeps them alive until it returns: functions are not asked.
    return frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None


def _frames() -> Iterator[FrameType]:
    """The stack from the caller's caller outwards."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
