"""`register`: a module's parameters in Pyro's parameter store, where those who train by it look for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyro
import torch
from torch import nn

_watched = True


def register(name: str, module: nn.Module) -> None:
    """What ``pyro.module(name, module)`` does, minus its warning for frozen parameters and plus a check.

    Of two models under one name Pyro's `SVI` would step the first one's parameters and leave the second untrained.

    Raises:
        RuntimeError: the store holds another module under that name, or a parameter that it would copy.
    """
    if not (_watched and torch.is_grad_enabled()):
        return  # without gradients nobody trains: drawing from a model leaves the store alone
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad and not parameter.is_contiguous():
            raise RuntimeError(
                f"{parameter_name} is not contiguous, and Pyro's parameter store would train a contiguous copy of it; "
                "build the model in torch's default memory format"
            )
        if parameter.requires_grad and pyro.param(f"{name}$$${parameter_name}", parameter) is not parameter:
            raise RuntimeError(
                f"Pyro's parameter store holds another model under the name {name!r}, and training this one would "
                "change nothing; wrap each model's training in `with pyro.get_param_store().scope():`, "
                "or call pyro.clear_param_store() first (or a handler such as poutine.lift replaces its parameters)"
            )


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Let `register` do nothing within: for steps of an optimiser that has its parameters, and no use for the store.

    Registering is a message to every handler for each parameter, in model and guide, a seventh of an eager step's
    bookkeeping.
    """
    global _watched
    before, _watched = _watched, False
    try:
        yield
    finally:
        _watched = before
