"""How a model is looked at: hard spikes, no gradient, and the caller's random state left alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vsc_pyro.distributions import centre, inclusion_logits
from vsc_pyro.seeding import seeded
from vsc_pyro.vae import VAE

F = TypeVar("F", bound=Callable[..., Any])


def looking(function: F) -> F:
    """Run in evaluation mode, without gradients, and leave mode and random state as they were."""

    @functools.wraps(function)
    def wrapper(model: VAE, *args: Any, **kwargs: Any) -> Any:
        with model.evaluating(), seeded(kwargs.get("seed", 0), model.reference.device):
            return function(model, *args, **kwargs)

    return wrapper


def inclusion_of(posterior: torch.distributions.Distribution) -> Tensor:
    logits = inclusion_logits(posterior)
    return torch.ones_like(centre(posterior)) if logits is None else logits.sigmoid()
