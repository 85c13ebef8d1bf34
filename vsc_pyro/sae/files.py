"""The files of a sparse autoencoder, read as text and tensors that cannot run code, and written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from vsc_pyro._files import replacing
from vsc_pyro.training.checkpoints import shortened

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
POSTERIOR = "posterior.safetensors"
# Bytes of a cfg.json. Parsing can take far more memory than the text.
_CFG_LIMIT = 8 * 2**20


def safetensors_torch() -> ModuleType:
    """Import `safetensors.torch`, or raise an `ImportError` that says how to install it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "the files of sparse autoencoders need the package safetensors; run: pip install 'vsc-pyro[sae]'"
        ) from error
    return safetensors.torch


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name atomically."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors_torch().save_file(own, temporary)


def write_cfg(path: Path, cfg: Mapping[str, Any]) -> None:
    """Write a ``cfg.json`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated or corrupt.
    """
    load_file = safetensors_torch().load_file
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a sparse autoencoder is a folder with {CFG} and {WEIGHTS}")
    try:
        return load_file(path)
    except Exception as error:  # a damaged file can raise anything in the parser
        raise ValueError(f"{path} is truncated or corrupt; export again ({_reason(error)})") from error


def read_cfg(path: Path) -> dict[str, Any]:
    """Read a ``cfg.json``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is too large, or not an object of JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a sparse autoencoder is a folder with {CFG} and {WEIGHTS}")
    if path.stat().st_size > _CFG_LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {_CFG_LIMIT} of a plausible {CFG}")
    try:
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON; export again ({_reason(error)})") from error
    if type(cfg) is not dict:
        raise ValueError(f"{path} must be an object with names and values, got {type(cfg).__name__}; export again")
    return cfg


def _reason(error: Exception) -> str:
    return shortened(str(error).partition("\n")[0])
