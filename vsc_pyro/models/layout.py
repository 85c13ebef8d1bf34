"""The layout of a model: its modules, the shapes of its tensors, and its settings, as text to be compared."""

from __future__ import annotations

import contextlib
import re
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from vsc_pyro._recorded import plain_number


def layout(model: nn.Module) -> dict[str, str]:
    """Return every module's class, and the shape, type and kind of every tensor, by name."""
    build = {name: f"a {type(module).__name__}" for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        kind = "a parameter" if parameter.requires_grad else "a parameter that is not trained"
        build[name] = f"{kind} of shape {tuple(parameter.shape)} and type {parameter.dtype}"
    for name, buffer in model.named_buffers():
        build[name] = f"a buffer of shape {tuple(buffer.shape)} and type {buffer.dtype}"
    return build


def public_attributes(model: nn.Module) -> dict[str, str]:
    """Return as text every module's public attributes that are neither tensors nor modules, by name."""
    return {
        f"{prefix}.{attribute}".removeprefix("."): re.sub(" at 0x[0-9a-f]+", "", _text(value))
        for prefix, module in model.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
    }


def _text(value: object) -> str:
    if isinstance(value, torch.Size):
        value = tuple(value)
    text = repr(plain_number(value))
    if isinstance(value, (Tensor, np.ndarray)):  # their text leaves out digits, and the middle of long ones
        with contextlib.suppress(TypeError, RuntimeError):  # sparse, on another device, objects
            values = np.ascontiguousarray(value.detach() if isinstance(value, Tensor) else value)
            text += f" of checksum {zlib.crc32(values.data.cast('B')):08x}"
    return text
