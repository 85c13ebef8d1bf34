"""Random state that belongs to one piece of work, and one piece of work at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

F = TypeVar("F", bound=Callable[..., Any])
_PATIENCE = 60.0  # seconds without a word


class _Turn:
    """Who is at work: a lock, and the name of the thread that holds it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holder = ""


_turn = _Turn()
if hasattr(os, "register_at_fork"):
    # A forked process has none of the other threads, and what one of them holds would be held for ever.
    os.register_at_fork(after_in_child=_turn.__init__)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other thread within: torch's generators, Pyro's stack of handlers and a module's mode belong to all of them.

    A thread that holds it may ask again. Others wait, for as long as a `vsc_pyro.fit` takes, and warn if that is long:
    the thread that holds it may be waiting for them.
    """
    lock = _turn.lock
    if not lock.acquire(timeout=_PATIENCE):
        warnings.warn(
            f"thread {threading.current_thread().name} has waited for {_PATIENCE:g} s for thread {_turn.holder}, which "
            "trains, evaluates or is within model.evaluating(), as one thread at a time can; if that one waits for "
            "this one, neither will go on: let it leave model.evaluating() first",
            stacklevel=3,
        )
        lock.acquire()
    _turn.holder = threading.current_thread().name
    try:
        yield
    finally:
        lock.release()


def trains(step: F) -> F:
    """Let a function that trains run alone, and with gradients: under a caller's `torch.no_grad` it trains nothing."""

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with alone(), torch.inference_mode(False):
            return step(*args, **kwargs)

    return wrapper


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device`, and no others (`torch.manual_seed` seeds every one)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of `device` seeded within, and afterwards as the caller had them."""
    with alone(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        manual_seed(seed, device)
        yield


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Random numbers of torch on the CPU, of Python and of NumPy, afterwards as the caller had them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 that of user functions
    try:
        with alone(), torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
