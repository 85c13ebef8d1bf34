"""Checkpoints: plain dictionaries of tensors and numbers, written atomically and read without executing anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vsc_pyro.files import replacing

FORMAT = 1


def save_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write `state` (dictionaries, lists, numbers, strings, tensors) to `path`, whole or not at all.

    A process that is killed at any moment leaves the old checkpoint or the new one, see `vsc_pyro.files.replacing`.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain containers are unpickled (`weights_only=True`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated or corrupt file, one that asks to run code, or one of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums that it writes
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} was not read: it is damaged, or holds more than tensors and plain values and could run "
            "code; use only checkpoints that vsc_pyro wrote, or train again"
        ) from error
    except Exception as error:  # a damaged file fails in the parser in many ways; all mean the same to the user
        raise ValueError(f"checkpoint {path} is truncated or corrupt; delete it and train again ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a vsc_pyro checkpoint of format {FORMAT}; train again with this version")
    return state


def check_weights(model: nn.Module, state: dict[str, Any], path: str | os.PathLike = "") -> None:
    """Check that ``state["model"]`` fits `model`, and change nothing.

    Raises:
        ValueError: no weights there, or of another architecture; the message names the first that differs.
    """
    if "model" not in state:
        raise ValueError(f"checkpoint {path} holds no weights: it has {', '.join(sorted(state))}, not 'model'")
    own, saved = model.state_dict(), state["model"]
    for name in sorted(own.keys() | saved.keys()):
        here = tuple(own[name].shape) if name in own else "absent"
        there = tuple(saved[name].shape) if name in saved else "absent"
        if here != there:
            raise ValueError(
                f"checkpoint {path} is of another architecture: {name} is {there} there and {here} in this model; "
                "build the model with the settings it was trained with"
            )


def load_weights(model: nn.Module, state: dict[str, Any], path: str | os.PathLike = "") -> None:
    """Load ``state["model"]`` into `model`, in place; raises as `check_weights` does, before anything is changed."""
    check_weights(model, state, path)
    model.load_state_dict(state["model"])
