"""Python state of programs: the part that a captured step is keyed by, and the changes that no graph can repeat."""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import inspect
import types
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_FIXED = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)
_LIBRARIES = {"torch", "pyro", "numpy", "vsc_pyro", "scipy", "pandas", "matplotlib", "sklearn", "torchvision", "PIL"}
_EVERY_MODULES = frozenset(vars(nn.Module()))


def is_fixed(value: object) -> bool:
    """Return True if `value` is a constant of plain Python: a number, flag, text, type or tuple of these."""
    return value is None or isinstance(value, _FIXED) or (isinstance(value, tuple) and all(map(is_fixed, value)))


def kind_of(value: object) -> tuple:
    """Return the part of a graph's key that stands for one argument: all of it, but for the values of a tensor.

    Raises:
        TypeError: an argument that is neither a tensor nor a constant.
    """
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if not is_fixed(value):
        raise TypeError(f"a {type(value).__name__}")
    return type(value), repr(value)  # 1, True and 1.0 are equal, and so are 0.0 and -0.0


class ModuleState:
    """The state of modules beside the values of their tensors: plain attributes, modes, and which parts they hold.

    Args:
        modules: those that take part in a step.
        before: their attributes before a step has run; what the step itself makes anew is no state.
    """

    def __init__(self, modules: Iterable[nn.Module], before: dict[nn.Module, dict[str, Any]]) -> None:
        self.modules = list(modules)
        self._values: list[tuple[dict[str, Any], str]] = []
        self._objects: list[tuple[dict[str, Any], str]] = []
        for module in self.modules:
            for name, value in vars(module).items():
                if is_fixed(value):
                    self._values.append((vars(module), name))
                elif name not in _EVERY_MODULES and before.get(module, {}).get(name) is value:
                    self._objects.append((vars(module), name))

    def key(self) -> tuple:
        """Return a hashable key; a graph is valid for equal keys."""
        values = [attributes.get(name) for attributes, name in self._values]
        return (
            *values,
            *map(type, values),  # 1, True and 1.0 are equal
            *[len(vars(module)) for module in self.modules],
            *[id(part) for module in self.modules for part in module._modules.values()],
            *[id(tensor) for tensor in self.tensors()],
            *[id(attributes.get(name)) for attributes, name in self._objects],
        )

    def tensors(self) -> list[Tensor | None]:
        """Return the parameters and buffers of all modules."""
        return [t for m in self.modules for held in (m._parameters, m._buffers) for t in held.values()]

    def objects(self) -> list[object]:
        """Return all that the key holds by its `id`, which must be kept alive as long as the key is used."""
        others = [attributes.get(name) for attributes, name in self._objects]
        return [*self.modules, *self.tensors(), *others, *(p for m in self.modules for p in m._modules.values())]


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, with a copy of the dictionary of its buffers, for `restore_attributes`."""
    return {**vars(module), "_buffers": dict(module._buffers)}


def restore_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Restore the buffers, tensors and constants among a module's attributes."""
    module._buffers.update(attributes["_buffers"])
    for name, value in attributes.items():
        if is_fixed(value) or isinstance(value, Tensor):
            vars(module)[name] = value


class Snapshot:
    """The Python state that `roots` reach, to be compared with what it is after a step.

    That is: attributes, elements of containers, variables that functions name, and which tensors these hold. The values
    of tensors are a graph's own. Objects of other libraries are opaque.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self._roots = list(roots)
        self._leaves = self._walk()

    def change(self) -> str | None:
        """Return the name of something that has changed in the meantime, or None."""
        now = self._walk()
        for path in (*self._leaves, *now):
            if self._leaves.get(path) != now.get(path):
                return next((part for part in reversed(path) if isinstance(part, str)), "it")
        return None

    def _walk(self) -> dict[tuple, Any]:
        leaves: dict[tuple, Any] = {}
        seen: dict[int, Any] = {}
        pending: list[tuple[tuple, Any]] = [((type(root).__name__,), root) for root in self._roots]
        while pending:
            path, value = pending.pop()
            if is_fixed(value):
                leaves[path] = type(value), repr(value)
            elif isinstance(value, Tensor):
                leaves[path] = id(value)
            elif isinstance(value, np.ndarray):
                leaves[path] = value.shape, _checksum(value)
            elif id(value) not in seen:
                seen[id(value)] = value  # kept alive: another object would get its id
                parts = _parts(value)
                leaves[path] = type(value), len(parts)
                pending.extend(((*path, name), part) for name, part in parts.items())
        return leaves


def _parts(value: Any) -> dict[Any, Any]:
    """Return the parts of a value by name or position; none of what is a library's own."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return dict(enumerate(value))
    if isinstance(value, (set, frozenset)):
        return dict(enumerate(sorted(map(repr, value))))
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, **value.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, value.__name__: value.__func__}
    if isinstance(value, (types.ModuleType, type(None))) or _is_of_library(value):
        return {}
    if isinstance(value, types.FunctionType):
        return {**_variables(value), **vars(value), value.__name__: value.__defaults__}
    if isinstance(value, type):
        return {name: part for name, part in vars(value).items() if not (name.startswith("__") or callable(part))}
    slots = {name: getattr(value, name) for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **slots, "class": type(value)}


def _variables(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables outside of a function that it, or a function within it, names."""
    names, codes = set(), [function.__code__]
    for code in codes:
        names.update(code.co_names)
        codes.extend(part for part in code.co_consts if isinstance(part, types.CodeType))
    variables = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    with contextlib.suppress(ValueError):  # a variable without a value yet
        variables |= inspect.getclosurevars(function).nonlocals
    return variables


def _checksum(array: np.ndarray) -> int | bytes:
    try:
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    except TypeError:  # of objects
        return array.tobytes()


def _is_of_library(value: Any) -> bool:
    # Modules hold a user's parts, whoever's class they are of.
    owner = value if isinstance(value, (type, types.FunctionType)) else type(value)
    return not isinstance(value, nn.Module) and (owner.__module__ or "").partition(".")[0] in _LIBRARIES


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
