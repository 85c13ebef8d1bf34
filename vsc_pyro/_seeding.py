"""Random state, and a lock: torch's generators are shared by all threads, so one thread at a time may use them."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")
_PATIENCE = 60.0  # seconds of waiting before a warning


class _Turn:
    """A lock and the name of the thread that holds it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holder = ""


_turn = _Turn()
if hasattr(os, "register_at_fork"):
    # A fork copies the lock but not the thread that holds it, so the child would wait for ever.
    os.register_at_fork(after_in_child=_turn.__init__)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other threads out of the block: they share torch's generators, Pyro's handlers and every module's mode.

    The lock is reentrant. Other threads wait until the block ends, which may be as long as a call of `vsc_pyro.fit`.
    They warn after a minute, because the thread that holds the lock may be waiting for them.
    """
    lock = _turn.lock
    if not lock.acquire(timeout=_PATIENCE):
        warnings.warn(
            f"thread {threading.current_thread().name} has waited for {_PATIENCE:g} s for thread {_turn.holder}, which "
            "trains, evaluates or is inside model.evaluating(); only one thread at a time can. If that thread waits "
            "for this one, both wait for ever: let it leave model.evaluating() first",
            stacklevel=3,
        )
        lock.acquire()
    _turn.holder = threading.current_thread().name
    try:
        yield
    finally:
        lock.release()


def trains(step: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that trains: it runs alone (see `alone`) and with gradients.

    A caller's `torch.no_grad` or `torch.inference_mode`, under which nothing would be trained, is suspended.
    """

    @functools.wraps(step)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with alone(), torch.inference_mode(False):  # switches gradients on as well
            return step(*args, **kwargs)

    return wrapper


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device` only; `torch.manual_seed` seeds those of all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` in the block, and restore the caller's state after it."""
    with alone(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        manual_seed(seed, device)
        yield


@contextlib.contextmanager
def generators_seeded(generators: Sequence[torch.Generator], seed: int) -> Iterator[None]:
    """Seed these generators in the block, and restore their states after it."""
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Restore the state of torch's CPU generator, of Python's and of NumPy's after the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 user functions may draw from it
    try:
        with alone(), torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
