"""Checkpoints: dictionaries of tensors and numbers, written atomically and read without running code."""

from __future__ import annotations

import io
import os
import pickle
import reprlib
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vsc_pyro._files import expanded, replacing

FORMAT = 2
_READABLE = (1, 2)  # format 1 describes gates in another way, see `resumption.check_settings`
# Bytes of a checkpoint without its tensors. Unpickling them can take far more time and memory than tensors do.
_STRUCTURE_LIMIT = 8 * 2**20
_SHOWN = 80  # characters of a file's content in an error message


def save_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write `state` (dictionaries, lists, numbers, strings, tensors) to `path` atomically.

    If the process is killed, the file is the old checkpoint or the new one, never a part of one.

    Raises:
        ValueError: `path` is a folder, device or pipe, or `state` is no dict.
        OSError: a full disk, or a path that cannot be written; the message names it.

    Example:
        >>> import os, tempfile, torch
        >>> import vsc_pyro as vsc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "state.pt")
        ...     vsc.save_checkpoint(path, {"model": {"weight": torch.ones(2)}})
        ...     vsc.load_checkpoint(path)["model"]
        {'weight': tensor([1., 1.])}
    """
    if not isinstance(state, dict):
        raise ValueError(f"state must be a dict, got a {type(state).__name__}; pass {{'model': model.state_dict()}}")
    content = io.BytesIO()  # torch, writing to a file, hides the errors of the disk and depends on the file's name
    torch.save({"format": FORMAT, **state}, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint from `path` to `device`.

    Only tensors and plain containers are unpickled (``weights_only=True``), so a file cannot run code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a `device` that is none; a file that is truncated, corrupt, of another format, or would run code.
    """
    path = expanded(path)
    try:
        device = torch.device(device)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"device must be a torch device such as 'cpu', got {shown(device)}") from error
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        _check_archive(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} was not read: it is damaged, or holds more than tensors and plain values and could run "
            "code; use only checkpoints that vsc_pyro wrote, or train again"
        ) from error
    except Exception as error:  # a damaged file can raise anything in the parser
        reason = shortened(str(error).partition("\n")[0])
        raise ValueError(
            f"{path} is no checkpoint, or is truncated or corrupt; if it was one, train again ({reason})"
        ) from error
    if type(state) is not dict or type(state.get("format")) is not int or state["format"] not in _READABLE:
        raise ValueError(f"{path} is not a vsc_pyro checkpoint of format {FORMAT}; train again with this version")
    return state


def _check_archive(path: Path) -> None:
    """Raise unless the file is an undamaged archive of torch, no smaller than its content."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise pickle.UnpicklingError("a bare pickle")
    if start != b"PK\x03\x04":  # torch recognises an archive by these bytes
        raise zipfile.BadZipFile("not an archive")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise zipfile.BadZipFile("members that unpack to more than the file, which torch never writes")
        for member in members:
            if member.filename.endswith(".pkl") and member.file_size > _STRUCTURE_LIMIT:
                raise zipfile.BadZipFile(
                    f"{member.file_size} bytes of structure beside the tensors, more than {_STRUCTURE_LIMIT}"
                )
        if damaged := archive.testzip():  # torch writes checksums but does not verify them
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


class _Shown(reprlib.Repr):
    """Represent values in one line, however large, nested or repeated they are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 2, _SHOWN
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 4

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 64 else f"an int of {x.bit_length()} bits"

    def repr_Tensor(self, x: Tensor, level: int) -> str:  # noqa: N802
        size = "" if x.is_nested else f" and shape {tuple(x.shape)}"
        return f"a tensor of {x.dtype}{size}" + ("" if x.layout == torch.strided else f" and layout {x.layout}")

    def repr_instance(self, x: object, level: int) -> str:
        plain = x is None or isinstance(x, (bool, float))
        return repr(x) if plain else self.repr_dict(x, level) if isinstance(x, dict) else type(x).__name__


def shown(value: object) -> str:
    """Describe any value of a file in a few words."""
    return shortened(_Shown().repr(value))


def shortened(text: str, length: int = _SHOWN) -> str:
    """Return the first `length` characters of `text` on one line."""
    text = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return text if len(text) <= length else text[:length] + "..."


def check_weights(model: nn.Module, state: dict[str, Any], path: str | os.PathLike = "") -> None:
    """Check that the weights ``state["model"]`` fit `model`. Nothing changes.

    Raises:
        ValueError: weights that are missing, of another architecture or type, or not finite where those of `model` are;
            the message names the first difference.
    """
    if "model" not in state:
        names = shortened(", ".join(sorted(name if isinstance(name, str) else shown(name) for name in state)))
        raise ValueError(f"checkpoint {path} holds no weights: it has {names}, not 'model'")
    check_tensors(model.state_dict(), _completed(model, state["model"]), path)


def check_tensors(own: dict[str, Any], saved: Any, path: str | os.PathLike = "") -> None:
    """Check that the tensors `saved`, by name, fit `own`, as `check_weights` does for weights."""
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        raise ValueError(f"checkpoint {path} is damaged: weights must be tensors by name, got {shown(saved)}")
    for name in sorted(own.keys() | saved.keys()):
        here, there = (_kind(weights, name) for weights in (own, saved))
        if here != there:
            raise ValueError(
                f"checkpoint {path} is of another architecture: {shortened(name)} is {there} there and {here} in this "
                "model; build the model with the settings it was trained with"
            )
        if isinstance(own[name], Tensor) and not _can_take(own[name], saved[name]):
            raise ValueError(
                f"checkpoint {path} is damaged: {name} is {shown(saved[name])}, with entries that are not finite or no "
                f"{own[name].dtype}; train again"
            )


def _completed(model: nn.Module, saved: Any) -> Any:
    """Complete weights by the `added_buffers` of modules, which files of earlier versions lack."""
    if not isinstance(saved, dict):
        return saved
    added = {
        f"{prefix}.{name}": torch.full_like(getattr(module, name), value)
        for prefix, module in model.named_modules()
        for name, value in getattr(module, "added_buffers", {}).items()
    }
    return {**added, **saved}


def _kind(weights: dict[str, Any], name: str) -> object:
    if name not in weights:
        return "absent"
    return tuple(weights[name].shape) if is_plain(weights[name]) else type(weights[name]).__name__


def is_plain(value: object) -> bool:
    """Return True for a dense tensor of numbers: not sparse, quantised or without memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_quantized or value.is_meta or value.is_nested)


def _can_take(own: Tensor, saved: Tensor) -> bool:
    """Return True if `own` can take the values of `saved`, possibly of another precision."""
    if saved.dtype != own.dtype and not (saved.is_floating_point() and own.is_floating_point()):
        return False
    odd = ~torch.isfinite(saved.to(own.device, own.dtype)) & torch.isfinite(own)  # a mask may hold -inf
    return not odd.any()


def load_weights(model: nn.Module, state: dict[str, Any] | str | os.PathLike, path: str | os.PathLike = "") -> None:
    """Load the weights of a checkpoint into `model`, in place.

    Args:
        model: built as the model that the checkpoint is of.
        state: the file, or what `load_checkpoint` returned, with the weights ``state["model"]``.
        path: the file of a loaded checkpoint, for messages.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint` and `check_weights`, before anything changes.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be the module to load weights into, got {shown(model)}; it is the first argument")
    if not isinstance(state, dict):
        state, path = load_checkpoint(state), state
    check_weights(model, state, path)
    # torch obeys the metadata of a state_dict, for example to replace parameters. Those of a file are not trusted.
    weights: Any = OrderedDict(state["model"])
    weights._metadata = cast("Any", model.state_dict())._metadata
    model.load_state_dict(weights)
