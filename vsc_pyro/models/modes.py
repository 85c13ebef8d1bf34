"""Temporary states of a module: training or evaluation mode (`in_mode`), and copies of its tensors (`on_copies`)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Set `module` to training or evaluation mode, and restore the mode of each submodule on leaving."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, before in modes:
            part.training = before


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context in which a caller's `torch.autocast` does not apply."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    # The outermost autocast clears the cache of cast weights when it ends, and this one may last for a whole run.
    return torch.autocast(device.type, enabled=False, cache_enabled=False)


@contextlib.contextmanager
def on_copies(module: nn.Module) -> Iterator[None]:
    """Let `module` work on copies of its tensors and attributes, and restore the originals on leaving.

    Submodules stay the same objects, so that references to them from elsewhere see the copies, too.
    """
    parts = list(module.modules())
    own = [dict(vars(part)) for part in parts]
    memo: dict[int, Any] = {id(part): part for part in parts}
    for leaf in tree_leaves(own):
        if isinstance(leaf, Tensor) and not leaf.is_leaf:  # deepcopy refuses tensors that are not leaves of a graph
            memo[id(leaf)] = leaf.detach().clone()
    copies = [{name: _copied(value, memo) for name, value in attributes.items()} for attributes in own]
    try:
        for part, attributes in zip(parts, copies, strict=True):
            vars(part).update(attributes)
        yield
    finally:
        for part, attributes in zip(parts, own, strict=True):
            vars(part).clear()
            vars(part).update(attributes)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # locks and open files cannot be copied; the module keeps its own
        return value
