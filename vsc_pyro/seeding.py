"""Random state that belongs to one piece of work, and one piece of work at a time."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
_lock = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other thread within: torch's generators, Pyro's stack of handlers and a module's mode belong to all of them.

    A thread that holds it may ask again. Others wait, for as long as a `vsc_pyro.fit` takes.
    """
    with _lock:
        yield


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
