"""Random state that belongs to one piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device`, and no others (`torch.manual_seed` seeds every one)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of `device` seeded within, and afterwards as the caller had them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        manual_seed(seed, device)
        yield
