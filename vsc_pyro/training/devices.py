"""Where to train."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"``: the GPU where there is one, else the CPU; anything else as torch takes it.

    Raises:
        ValueError: a device that this machine or this build of torch does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available: {error}; use 'auto' or 'cpu'") from error
    return resolved
