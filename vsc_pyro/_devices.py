"""The device of a run or of a stream."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; ``"auto"`` is the GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: a device that this machine or this build of torch does not have.

    Example:
        >>> from vsc_pyro._devices import resolve_device
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved).cpu()  # the device meta holds no values
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device!r} is not available: {reason}; use 'auto' or 'cpu'") from error
    return resolved
