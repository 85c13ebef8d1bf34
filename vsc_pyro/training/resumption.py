"""Checks of a checkpoint against the run that resumes it.

All checks come before any part of the checkpoint is used. A file may be damaged, edited or malicious; each check raises
`ValueError` with one line that continues "checkpoint FILE ...". The resumed run computes its learning rates and the
other options of the optimiser itself, and compares those of the file with them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.models.precision import PRECISIONS
from vsc_pyro.training.checkpoints import is_plain, load_checkpoint, shortened, shown
from vsc_pyro.training.history import History

_PARTS = {"optimizer": dict, "epoch": int, "history": dict, "settings": dict, "rng": dict}
# Values of settings that files of earlier versions lack.
_ADDED_SETTINGS = {"precision": "float32", "processes": 1, "warmup": 0.0, "cooldown": 0.0}
_ADDED_SETTINGS |= {"validation": None, "keeps_best": False, "optimizer": "Adam", "clip_norm": None}
_LENGTH = 160  # characters of a changed setting in an error message


def check_structure(state: dict[str, Any], has_schedule: bool, keeps_best: bool) -> None:
    """Check that all parts of a run are present, and the state of an lr_schedule only if the run has one."""
    if missing := {*_PARTS, "schedule"} - state.keys():
        raise ValueError(f"was not written by fit: it lacks {', '.join(sorted(missing))}")
    for name, kind in _PARTS.items():
        if type(state[name]) is not kind:
            raise _damaged(f"{name} must be of type {kind.__name__}", state[name])
    if (state["schedule"] is not None) != has_schedule:
        raise ValueError(
            f"was written {'without' if has_schedule else 'with'} an lr_schedule; "
            f"resume {'without' if has_schedule else 'with'} one"
        )
    if (state.get("last") is not None) != keeps_best:
        raise ValueError(
            f"was written {'without' if keeps_best else 'with'} patience, and so "
            f"{'without' if keeps_best else 'with'} the best weights beside the last; resume "
            f"{'without' if keeps_best else 'with'} it"
        )


def check_history(state: dict[str, Any], epochs: int, steps: int | None) -> History:
    """Check the history of a run, and return it; `steps` is None if not asked for."""
    epoch, saved = state["epoch"], state["history"]
    if epoch < 1:
        raise _damaged("epoch must be at least 1", epoch)
    if epoch > epochs:
        taken, name, limit = f"{shown(epoch)} epochs", "epochs", epochs
        if steps is not None:
            each = saved.get("steps_per_epoch")
            taken, name, limit = f"{epoch * each if type(each) is int else shown(each)} steps", "steps", steps
        raise ValueError(
            f"has been trained for {taken}, more than {name}={limit}; {name} includes those before the resumption"
        )
    names = {field.name for field in dataclasses.fields(History)}
    if not {"elbo", "seconds"} <= saved.keys() <= names:
        raise _damaged(f"history must have {', '.join(sorted(names))}", sorted(map(shown, saved)))
    history = History(**saved)
    _check_measures(history, epoch, 0 if state["settings"].get("validation") is None else epoch)
    for name in ("warmup_steps", "steps_per_epoch", "steps"):
        if not _is_count(value := getattr(history, name)):
            raise _damaged(f"history.{name} must be a whole number", value)
    if 0 < history.steps < epoch * history.steps_per_epoch and (epoch < epochs or (steps or 0) > history.steps):
        raise ValueError(
            f"is of a run that ended after {history.steps} steps, within an epoch of {history.steps_per_epoch}, and "
            "cannot be extended; plan the longer run from the start"
        )
    if type(history.compiled) is not bool or not _is_finite(history.compile_seconds):
        raise _damaged("history.compiled and compile_seconds must be a bool and a finite number", saved)
    if type(history.precision) is not str or history.precision not in PRECISIONS:
        raise _damaged(f"history.precision must be one of {', '.join(PRECISIONS)}", history.precision)
    summary = history.summary
    if summary is not None and not (
        type(summary) is dict and all(type(name) is str and _is_finite(value) for name, value in summary.items())
    ):
        raise _damaged("history.summary must be finite numbers by name, or None", summary)
    return history


def _check_measures(history: History, epochs: int, validated: int) -> None:
    """Check the lists of measures, of as many entries as there are epochs, or epochs with validation."""
    lengths = {"elbo": epochs, "seconds": epochs, "validation": validated, "used_latents": validated}
    for name, length in (lengths | {"expected_l0": validated}).items():
        values, is_valid = getattr(history, name), _is_count if name == "used_latents" else _is_finite
        if type(values) is not list or len(values) != length or not all(map(is_valid, values)):
            raise _damaged(f"history.{name} must be {length} finite numbers, one for each epoch", values)


class Saved(NamedTuple):
    """Choices of a saved run that the run that resumes it keeps; 0 for values that later checks refuse.

    Attributes:
        warmup_steps: number of steps of warm-up.
        cooldown: share of the run in which the learning rate falls.
        epoch: number of epochs taken.
        steps_per_epoch: number of steps in an epoch; 0 in files of earlier versions.
        lr: learning rate, which the run keeps if it depends on the number of steps.
    """

    warmup_steps: int = 0
    cooldown: float = 0.0
    epoch: int = 0
    steps_per_epoch: int = 0
    lr: float = 0.0


def saved_choices(path: Path) -> Saved:
    """Return the choices in a checkpoint."""
    state = load_checkpoint(path)
    history, settings = (found if type(found := state.get(key)) is dict else {} for key in ("history", "settings"))
    share, lr = settings.get("cooldown"), settings.get("lr")
    counts = (history.get("warmup_steps"), state.get("epoch"), history.get("steps_per_epoch"))
    warmup, epoch, steps = (count if type(count) is int and count > 0 else 0 for count in counts)
    share = share if type(share) is float and 0 <= share <= 1 else 0.0
    return Saved(warmup, share, epoch, steps, lr if type(lr) is float and lr > 0 else 0.0)


def check_arguments(saved: object, own: dict[str, Any]) -> None:
    """Check that a model that differs from that of the saved run has its arguments, if both are known.

    Args:
        saved: settings of the saved run.
        own: settings of this run.
    """
    before = saved.get("arguments") if isinstance(saved, dict) else None
    if not isinstance(before, dict) or not isinstance(saved, dict) or _same(saved.get("model"), own["model"]):
        return
    # Files of earlier versions lack some.
    if changed := _changes(before, {name: value for name, value in own["arguments"].items() if name in before}):
        raise ValueError(
            f"is of a model with {changed}; build the model with the same arguments, or train anew into another file"
        )


def check_settings(saved: dict[str, Any], own: dict[str, Any], checkpoint_format: int) -> None:
    """Check that the saved run has the settings of this run."""
    own = {name: value for name, value in own.items() if name != "arguments"}  # see `check_arguments`
    before = {"lr_schedule": own.get("lr_schedule")} | _ADDED_SETTINGS | saved
    if checkpoint_format == 1 and _gates_apart(str(before.get("model"))) == _gates_apart(own["model"]):
        before["model"] = own["model"]  # format 1 describes gates in another place
    if changed := _changes(before, own):
        raise ValueError(f"is of a run with {changed}; resume with the same settings, or train anew into another file")


def _changes(before: dict[str, Any], own: dict[str, Any]) -> str:
    """Return the entries of `own` that differ in `before` as text, the first two in full; empty if there are none."""
    changed = [_change(name, before.get(name), now) for name, now in own.items() if not _same(before.get(name), now)]
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return f"{', '.join(changed[:2])}{more}"


def _gates_apart(text: str) -> tuple[str, list[str]]:
    """Split the description of a model into one without gates, and the gates."""
    gate = r"\n *\(gate\): (\w+\(.*?\))(?=\n)|\bgate=(\w+\(.*?\)), "
    return re.sub(gate, "", text), ["".join(found) for found in re.findall(gate, text)]


def check_schedules_alike(state: dict[str, Any], own: Mapping[str, Tensor], lr_state: dict[str, Any]) -> None:
    """Check that the saved run has the schedules of this run, by their values and the scheduler's state.

    Args:
        state: the checkpoint.
        own: values of the schedules over this run, see `vsc_pyro.schedules.planned`.
        lr_state: state of this run's lr_schedule, with its arguments, after the epochs of the checkpoint; empty if
            unknown.
    """
    saved = {} if state["schedule"] is None else state["schedule"]
    if type(saved) is not dict:
        raise _damaged("schedule must be of type dict", saved)
    for name, now in plain(lr_state).items():
        if name == "_last_lr":  # compared as a setting of the optimiser and in `planned`
            continue
        # Names with an underscore may be missing, because versions of torch differ in them.
        if not (_same(saved[name], now) if name in saved else name.startswith("_")):
            raise ValueError(
                f"is of a run whose lr_schedule had {name}={shown(saved.get(name))} after as many epochs (now "
                f"{shown(now)}); resume with the same one, or train anew into another file"
            )
    before = state.get("planned", own)  # files of earlier versions lack it
    if type(before) is not dict or before.keys() != own.keys():
        raise _damaged(f"planned must have {', '.join(own) or 'nothing'}", before)
    for name, now in own.items():
        _check_planned(name, before[name], now)


def _check_planned(name: str, before: Tensor, now: Tensor) -> None:
    if not is_plain(before) or before.dtype != now.dtype or before.ndim != 2 or before.shape[1] != now.shape[1]:
        raise _damaged(f"planned {name} must be {shown(now)}", before)
    common = min(len(before), len(now))
    differs = ~torch.isclose(before[:common], now[:common], rtol=1e-6, atol=1e-12)
    for epoch, column in differs.nonzero()[:1].tolist():
        raise ValueError(
            f"is of a run whose {name} was {float(before[epoch, column]):g} in epoch {epoch + 1} (now "
            f"{float(now[epoch, column]):g}); resume with the same one, or train anew into another file. Functions are "
            f"compared by their values at the ends of the {common} epochs that both runs have, and not beyond"
        )


def check_optimizer(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, names: Sequence[str], groups: list[dict[str, Any]] | None
) -> dict[int, dict[str, Any]]:
    """Check the optimiser's state, parameter by parameter, and return copies of it.

    Args:
        state: the checkpoint.
        optimizer: the optimiser of this run.
        names: names of its parameters, in order.
        groups: its options after the epochs of the checkpoint; None if unknown.
    """
    saved = state["optimizer"]
    before, moments, own = saved.get("param_groups"), saved.get("state"), optimizer.state_dict()["param_groups"]
    is_list = type(before) is list and all(type(group) is dict for group in before)
    if not is_list or len(before) != len(own) or type(moments) is not dict:
        number = "one group" if len(own) == 1 else f"{len(own)} groups"
        raise _damaged(f"optimizer must have a state and {number} of parameters", saved)
    for one, group, now in zip(before, groups or [], own, strict=False):
        _check_group(one, group | {"params": now["params"]})
    # Files of earlier versions do not name the parameters without moments.
    idle = state.get("idle", [name for number, name in enumerate(names) if number not in moments])
    if type(idle) is not list or not all(isinstance(name, str) and name in names for name in idle):
        raise _damaged("idle must be names of parameters", idle)
    known = {number for number, name in enumerate(names) if name not in idle}
    if moments.keys() != known:
        raise _damaged(f"optimizer.state must have an entry for each of {len(known)} trained parameters", moments)
    owners = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    is_adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    check = _moments if is_adam else _check_others
    return {number: check(moments[number], *owners[number], names[number]) for number in sorted(known)}


def _check_group(saved: dict[str, Any], own: dict[str, Any]) -> None:
    for name in saved.keys() - own.keys():
        raise _damaged("optimizer.param_groups must have known keys", name)
    for name, now in plain(own).items():
        if name not in saved and now in (None, False):  # an option that the torch of the file does not have
            continue
        if not _same(saved.get(name), now):
            raise ValueError(
                f"is of a run whose optimiser had {name}={shown(saved.get(name))} after as many epochs (now "
                f"{shown(now)}); resume with the same lr, lr_schedule and optimizer, or train anew into another file"
            )


def _moments(saved: object, parameter: Tensor, group: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Check the state of a parameter under Adam or AdamW, and return a copy of it."""
    names = ["step", "exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * group["amsgrad"]]
    what = f"optimizer.state of {shortened(name)} must have {', '.join(names)}"
    if type(saved) is not dict or saved.keys() != {*names}:
        raise _damaged(what, sorted(map(shown, saved)) if type(saved) is dict else saved)
    for key, value in saved.items():
        shape, dtype = (parameter.shape, parameter.dtype) if key != "step" else ((), torch.float32)
        if not is_plain(value) or value.shape != shape or value.dtype != dtype or not value.is_contiguous():
            raise _damaged(f"{what}, {key} a contiguous tensor of {dtype} and shape {tuple(shape)}", value)
        if not torch.isfinite(value).all():
            raise _damaged(f"{what}, {key} finite", value)
    if saved["step"] < 1 or saved["step"] != saved["step"].round():
        raise _damaged(f"{what}, step a whole number of at least 1", float(saved["step"]))
    for key in names[2:]:
        if (saved[key] < 0).any():
            raise _damaged(f"{what}, {key} not negative", float(saved[key].min()))
    return {key: value.detach().clone() for key, value in saved.items()}  # tensors of a file may share memory


def _check_others(saved: object, parameter: Tensor, group: dict[str, Any], name: str) -> dict[str, Any]:
    """Check the state of a parameter under an optimiser whose entries are not known, and return a copy of it."""
    what = f"optimizer.state of {shortened(name)} must be finite numbers and tensors by name"
    if type(saved) is not dict or not all(isinstance(key, str) for key in saved):
        raise _damaged(what, saved)
    for key, value in saved.items():
        if value is None or type(value) in (bool, int) or _is_finite(value):
            continue
        # A tensor is of the parameter's shape, or a number, or has one number for a row or column as Adafactor's.
        shape = parameter.shape[: value.ndim] if is_plain(value) and value.ndim <= parameter.ndim else None
        if shape is None or not all(size in (1, own) for size, own in zip(value.shape, shape, strict=True)):
            raise _damaged(f"{what}, {shortened(key)} like a tensor of shape {tuple(parameter.shape)}", value)
        if not torch.isfinite(value).all():
            raise _damaged(f"{what}, {shortened(key)} finite", value)
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in saved.items()}


def check_random_state(
    saved: dict[str, Any], device: torch.device, generators: Sequence[torch.Generator]
) -> dict[str, Any]:
    """Check states of generators by setting them in new generators. States of another kind of device are not used."""
    if saved.keys() != {"device", "data", "cpu", "cuda"} or type(saved["device"]) is not str:
        raise _damaged("rng must have device, data, cpu and cuda", sorted(map(shown, saved)))
    if saved["device"] != device.type:
        if saved["device"] not in ("cpu", "cuda", "mps", "xpu"):
            raise _damaged("rng.device must be a kind of device", saved["device"])
        return saved
    expected = {"data": list(generators), "cpu": [torch.default_generator]}
    if device.type == "cuda":
        expected["cuda"] = [torch.Generator(device)]
    elif saved["cuda"] is not None:
        raise _damaged("rng.cuda must be None on another device", saved["cuda"])
    for name, owners in expected.items():
        value, lengths = saved[name], [len(owner.get_state()) for owner in owners]
        if not is_plain(value) or value.dtype != torch.uint8 or value.shape != (sum(lengths),):
            raise _damaged(f"rng.{name} must be {sum(lengths)} bytes", value)
        for owner, part in zip(owners, value.split(lengths), strict=True):
            try:
                torch.Generator(owner.device).set_state(part.clone())
            except RuntimeError as error:
                raise _damaged(f"rng.{name} must be the state of a generator", value) from error
    return saved


def plain(value: Any) -> Any:
    """Convert containers, numbers, strings and tensors to the Python types that a checkpoint may hold."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):  # a learning rate may be a number of NumPy
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float, str, Tensor)) else type(value).__name__


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def _same(saved: Any, own: object) -> bool:
    """Return True if the value `saved` of a file equals `own`. Types come first, because `saved` may be huge."""
    if isinstance(own, float):
        number = type(saved) is float or (type(saved) is int and saved.bit_length() < 64)
        return number and (
            saved == own
            or (math.isnan(saved) and math.isnan(own))
            or math.isclose(saved, own, rel_tol=1e-6, abs_tol=1e-12)
        )
    if isinstance(own, (list, tuple)):
        return type(saved) in (list, tuple) and len(saved) == len(own) and all(map(_same, saved, own))
    if isinstance(own, Mapping):
        return isinstance(saved, dict) and saved.keys() == own.keys() and all(_same(saved[k], own[k]) for k in own)
    if isinstance(own, Tensor):
        is_like = isinstance(saved, Tensor) and is_plain(saved) and saved.shape == own.shape
        return is_like and torch.allclose(saved.to(own), own, rtol=1e-6, atol=1e-12)
    return type(saved) is type(own) and saved == own


def _change(name: str, before: object, now: object) -> str:
    lines = [_lines(value) for value in (before, now)]
    if all(lines):
        known = [set(part) for part in lines]
        parts = ["; ".join(line for line in lines[i] if line not in known[1 - i]) for i in (0, 1)]
        return f"{name}={shortened(parts[0], _LENGTH)} (now {shortened(parts[1], _LENGTH)})"
    return f"{name}={shown(before)} (now {shown(now)})"


def _lines(value: object) -> list[str]:
    """Return the lines of a text or the entries of a list of names; none for other values."""
    if isinstance(value, str):
        return [line.strip() for line in value.splitlines()]
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else []


def _damaged(expected: str, value: object) -> ValueError:
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        value = ", ".join(value[:9])
    return ValueError(f"is damaged: {expected}, got {shown(value)}; train again")
