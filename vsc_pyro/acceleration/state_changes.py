"""`Watch`: what a step finds in its modules beside the values of tensors."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import torch
from torch import Tensor, nn

from vsc_pyro.training.schedules import Setting

_EVERY_MODULES = frozenset(vars(nn.Module()))  # attributes: what they hold is changed, and never replaced
_FIXED = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)


class Watch:
    """The modules that take part in a step, and what of them is not a tensor's value.

    Args:
        before: each of them, with its attributes as they were before a step.
        live: settings that a graph reads anew, and may change.
    """

    def __init__(self, before: dict[nn.Module, dict[str, Any]], live: list[Setting]) -> None:
        self.modules = modules = list(before)
        changing = {setting.slot: {s.field for s in live if s.slot == setting.slot} for setting in live}
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._objects: list[tuple[dict[str, Any], str]] = []
        self._fields: list[tuple[dict[str, Any], str, str]] = []
        for module in modules:
            for attribute, value in vars(module).items():
                if (fields := changing.get((id(module), attribute))) is None:
                    if is_fixed(value):
                        self._slots.append((vars(module), attribute))
                    elif attribute in _EVERY_MODULES or isinstance(value, Tensor):
                        continue
                    elif before[module].get(attribute) is value:
                        self._objects.append((vars(module), attribute))  # else steps make it themselves
                elif dataclasses.is_dataclass(value):
                    others = (field.name for field in dataclasses.fields(value) if field.name not in fields)
                    self._fields.extend((vars(module), attribute, name) for name in others)
        self._tensors = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name in tensors
        ] + [(vars(module), name) for module in modules for name, v in vars(module).items() if isinstance(v, Tensor)]

    def structure(self) -> tuple:
        """Which modules the modules hold, and how many attributes: where that changes, look again."""
        return tuple((len(vars(module)), *module._modules.values()) for module in self.modules)

    def state(self) -> tuple:
        """Plain attributes, and which tensors and other objects the modules hold."""
        values = [
            *[attributes[name] for attributes, name in self._slots],
            *[getattr(attributes[name], field) for attributes, name, field in self._fields],
        ]
        return (
            *values,
            *map(type, values),  # for 1, 1.0 and True are equal
            *[id(tensors[name]) for tensors, name in self._tensors],
            *[id(attributes[name]) for attributes, name in self._objects],
        )

    def objects(self) -> list[object]:
        """What is neither fixed nor a tensor, and in the state by its `id`."""
        return [attributes[name] for attributes, name in self._objects]

    def parameters(self) -> list[Tensor]:
        return [p for module in self.modules for p in module._parameters.values() if p is not None]

    def buffers(self) -> list[Tensor]:
        return [b for module in self.modules for b in module._buffers.values() if b is not None]


def is_fixed(value: object) -> bool:
    """Whether a step may take the value for a constant, and a change of it be seen by comparison."""
    if isinstance(value, tuple):
        return all(map(is_fixed, value))
    if is_frozen(value):
        return all(is_fixed(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return value is None or isinstance(value, _FIXED)


def is_frozen(value: object) -> bool:
    """Whether the value is of a frozen dataclass, whatever it holds."""
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_record and type(value).__dataclass_params__.frozen


def kind_of(leaf: object) -> tuple:
    """What a graph depends on of an argument: all of it, or all but the values of a tensor.

    Raises:
        TypeError: neither a tensor nor fixed.
    """
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    if not is_fixed(leaf):
        raise TypeError(f"a {type(leaf).__name__}")
    return type(leaf), leaf, isinstance(leaf, float) and math.copysign(1, leaf)  # 1, True and 1.0 are equal
