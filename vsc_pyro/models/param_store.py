"""Registration of a module's parameters in Pyro's parameter store, where Pyro's optimisers look for them."""

from __future__ import annotations

import collections
import contextlib
import itertools
import weakref
from collections.abc import Iterator

import pyro
import torch
from torch import nn

_is_registering = True
# Weak keys, compared by identity: a copied or unpickled model is another module and gets another name.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers: dict[str, Iterator[int]] = collections.defaultdict(lambda: itertools.count(1))


def name_in_store(module: nn.Module, kind: str = "vae") -> str:
    """Return the name of `module` in Pyro's parameter store: `kind`, and ``"vae_2"``, ``"vae_3"`` for later ones.

    The name is unique in the process, and the module keeps it for its lifetime, even if the store is cleared.
    """
    if module not in _names:
        number = next(_numbers[kind])
        _names.setdefault(module, kind if number == 1 else f"{kind}_{number}")
    return _names[module]


def register(module: nn.Module) -> None:
    """Register the trainable parameters, as ``pyro.module(name_in_store(module), module)`` does, and check them.

    Frozen parameters are skipped without Pyro's warning. Without gradients nothing is registered: drawing from a model
    leaves the store unchanged.

    Raises:
        RuntimeError: the store holds another tensor under the name of a parameter, or a parameter is not contiguous, so
            that the store would train a copy of it.
    """
    if not (_is_registering and torch.is_grad_enabled()):
        return
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
                f"would not change the model; after loading a store, call pyro.module({name!r}, model, "
                "update_module_params=True) to give the model the loaded parameters, or pyro.clear_param_store() to "
                "discard them (a handler that replaces parameters, such as poutine.lift, has the same effect)"
            )


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Switch `register` off, for steps whose optimiser holds the parameters and does not use the store.

    Registering sends a message to every handler for each parameter, in model and guide.
    """
    global _is_registering
    before, _is_registering = _is_registering, False
    try:
        yield
    finally:
        _is_registering = before
