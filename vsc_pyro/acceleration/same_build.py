"""What the models of an ensemble may differ in, and the naming of what they may not."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Collection, Sequence

from vsc_pyro.models.vae import VAE
from vsc_pyro.training.schedules import Setting


def check_built_alike(models: Sequence[VAE]) -> None:
    """Raise `ValueError` unless the models are of the same modules and shapes, and none shares a tensor with another.

    The message names the first difference.
    """
    expected = _build(models[0])
    owners: dict[int, str] = {}
    for index, model in enumerate(models):
        build = _build(model)
        for name in dict.fromkeys((*expected, *build)):
            if (here := build.get(name, "not there")) != (there := expected.get(name, "not there")):
                raise ValueError(
                    f"models must be built alike, and {name or 'the model'} of models[{index}] is {here}, of models[0] "
                    f"{there}; train them one after the other by fit"
                )
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in own.items():
            if (owner := owners.get(id(tensor))) is not None:
                raise ValueError(
                    f"models must not share tensors, and {name} of models[{index}] is that of {owner}; build each "
                    "model of parts of its own, or take copy.deepcopy of one"
                )
        owners |= {id(tensor): f"models[{index}]" for tensor in own.values()}


def numbers_that_differ(models: Sequence[VAE]) -> list[str]:
    """The names of the numbers that a schedule could move, where not all models have the same."""
    names = []
    for prefix, module in models[0].named_modules():
        candidates = [*getattr(module, "scheduled", ())]
        for attribute, value in vars(module).items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                candidates += [f"{attribute}.{field.name}" for field in dataclasses.fields(value)]
        for name in (f"{prefix}.{candidate}".removeprefix(".") for candidate in candidates):
            with contextlib.suppress(ValueError):  # of what is no number, or not there in another model
                settings = [Setting(model, name) for model in models]
                if not settings[0].is_tensor and len({setting.get() for setting in settings}) > 1:
                    names.append(name)
    return names


def attributes_that_differ(model: VAE, first: VAE, known: Collection[str]) -> list[str]:
    """Public attributes of the model's modules that are not those of the first one's, but for the `known`, as text."""
    expected = _plain(first)
    return [
        f"{name}={value} (models[0]: {expected.get(name)})"
        for name, value in _plain(model).items()
        if value != expected.get(name) and name not in known
    ]


def _build(model: VAE) -> dict[str, str]:
    """Every module's class, and shape, type and kind of every tensor, by name."""
    build = {name: f"a {type(module).__name__}" for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        kind = "a parameter" if parameter.requires_grad else "a parameter that is not trained"
        build[name] = f"{kind} of shape {tuple(parameter.shape)} and type {parameter.dtype}"
    for name, buffer in model.named_buffers():
        build[name] = f"a buffer of shape {tuple(buffer.shape)} and type {buffer.dtype}"
    return build


def _plain(model: VAE) -> dict[str, str]:
    """Every module's public attributes that are neither tensors nor modules, by name, as text."""
    found = {}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            name = f"{prefix}.{attribute}".removeprefix(".")
            if attribute.startswith("_"):
                continue
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                found[name] = type(value).__name__
                found |= {
                    f"{name}.{field.name}": repr(getattr(value, field.name)) for field in dataclasses.fields(value)
                }
            else:
                found[name] = re.sub(" at 0x[0-9a-f]+", "", repr(value))
    return found
