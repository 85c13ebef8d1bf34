"""`register`: a module's parameters in Pyro's parameter store, where those who train by it look for them."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator

import pyro
import torch
from torch import nn

_watched = True
# Held weakly, and by identity: a copy or an unpickled model is another one, with a name of its own.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count(1)


def name_in_store(module: nn.Module) -> str:
    """The name of `module` in Pyro's parameter store: ``"vae"`` for the first that asks, then ``"vae_2"``, ``"vae_3"``.

    A module keeps its name as long as it lives, whatever becomes of the store, and no other in the process gets it.
    """
    if module not in _names:
        number = next(_numbers)
        _names.setdefault(module, "vae" if number == 1 else f"vae_{number}")
    return _names[module]


def register(module: nn.Module) -> None:
    """What ``pyro.module(name_in_store(module), module)`` does, without its warning for frozen parameters, and checked.

    Raises:
        RuntimeError: the store holds another parameter under the name of one of these, or would copy one of them.
    """
    if not (_watched and torch.is_grad_enabled()):
        return  # without gradients nobody trains: drawing from a model leaves the store alone
    name = name_in_store(module)
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad and not parameter.is_contiguous():
            raise RuntimeError(
                f"{parameter_name} is not contiguous, and Pyro's parameter store would train a contiguous copy of it; "
                "build the model in torch's default memory format"
            )
        full_name = f"{name}$$${parameter_name}"
        if parameter.requires_grad and pyro.param(full_name, parameter) is not parameter:
            raise RuntimeError(
                f"Pyro's parameter store holds another tensor under {full_name!r} than the model does, and training "
                "would change nothing in the model; after loading a store, "
                f"pyro.module({name!r}, model, update_module_params=True) makes the loaded parameters the model's, and "
                "pyro.clear_param_store() forgets them (or a handler such as poutine.lift replaces its parameters)"
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
