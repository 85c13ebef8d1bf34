"""`Memento`: the state that programs keep in Python, compared after a step, and put back."""

from __future__ import annotations

import array
import collections
import contextvars
import dataclasses
import functools
import gc
import io
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from vsc_pyro.acceleration.state_changes import is_fixed, is_frozen

# What changes within their objects are caches, or out of reach. Modules and containers are looked into whosever.
_LIBRARIES = {"torch", "pyro", "numpy", "vsc_pyro", "scipy", "pandas", "matplotlib", "sklearn", "torchvision", "PIL"}
_RANDOM = "draws random numbers of Python's or NumPy's, not torch's"
_MAX_COPIED = 2**24  # bytes of a tensor that is not trained
_MAX_DEPTH = 20  # of values that are compared with one another


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What held some state, how a change of it is told, how it is read and written, and the state."""

    holder: Any
    told: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    state: Any


class Memento:
    """The state of all that `roots` reach, as it is now.

    That is: attributes of modules, tensors and other objects, elements of lists, dictionaries, sets and arrays,
    variables of closures and contexts, globals that functions name, also of modules that they import, attributes of
    their classes, what cached functions have returned, tensors, generators of random numbers, and Pyro's parameter
    store. Out of reach are what the objects of other libraries hold, globals that are looked up by a string
    (``globals()["n"]``, `getattr`, `importlib`), and what is not in Python.

    Attributes:
        iterators: the names of those that are reached, such as Python's generators: they cannot be put back.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.iterators: list[str] = []
        self._kept: list[_Kept] = []
        self._values: list[tuple[Tensor | torch.Generator, Tensor]] = []
        self._seen: dict[int, Any] = {}
        self._keep(None, _RANDOM, lambda _: random.getstate(), lambda _, state: random.setstate(state))
        self._keep(None, _RANDOM, lambda _: _legacy_state(np.random), lambda _, state: np.random.set_state(state))  # noqa: NPY002
        self._keep(pyro.get_param_store(), "changes {!r} in Pyro's parameter store", _parameters, _put_parameters)
        for root in roots:
            self.visit(root, type(root).__name__)

    def visit(self, value: Any, name: str) -> None:
        """Take in all that `value` reaches; `name` is for messages."""
        pending = [(value, name)]
        while pending:
            value, name = pending.pop()
            # The methods of a fixed record may still read what changes.
            if id(value) not in self._seen and (is_frozen(value) or not is_fixed(value)):
                self._seen[id(value)] = value  # kept, for another would get its id
                pending.extend(self._take_in(value, name))

    def difference(self) -> str | None:
        """What a step does that would explain the first difference from then; None if there is none."""
        for kept in self._kept:
            now = kept.read(kept.holder)
            if not _same(kept.state, now):
                return kept.told.format(_changed_key(kept.state, now))
        return None

    def put_back(self) -> None:
        """Let all be as it was then."""
        for kept in self._kept:
            if not _identical(kept.state, kept.read(kept.holder)):
                kept.write(kept.holder, kept.state)
        self.put_back_values()

    @torch.no_grad()
    def put_back_values(self) -> None:
        """Let tensors and torch's generators, which a captured step reads and changes itself, be as they were then."""
        for holder, value in self._values:
            if isinstance(holder, Tensor):
                holder.copy_(value)
            else:
                holder.set_state(value)

    def _keep(self, holder: Any, told: str, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> Any:
        self._kept.append(_Kept(holder, told, read, write, state := read(holder)))
        return state

    def _take_in(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        """Keep the state of one thing; then what it leads to, with names."""
        changes = f"changes {name!r} in Python"
        for cls, read, write in _LEAVES:
            if isinstance(value, cls):
                self._keep(value, changes if cls is np.ndarray else _RANDOM, read, write)
                return
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() <= _MAX_COPIED or value.requires_grad or value.is_inference():
                self._values.append((value, value.detach().clone()))
            else:  # data: a copy would be another data set
                self._keep(value, f"changes {name!r}, too large to be put back,", _version, lambda *_: None)
            yield from _named(self._keep(vars(value), _ATTRIBUTE, _tensor_attributes, _put_tensor_attributes), name)
        elif isinstance(value, torch.Generator):
            self._values.append((value, value.get_state()))
        elif isinstance(value, (tuple, functools.partial, types.MethodType, staticmethod, classmethod, property)):
            yield from ((part, name) for part in _parts(value))
        elif isinstance(value, contextvars.ContextVar):
            yield self._keep(value, f"changes {value.name!r} in Python", _context, _put_context), name
        elif isinstance(value, functools._lru_cache_wrapper):
            yield value.__wrapped__, name
            # Its cache is its own, and may grow; the objects in it may be changed.
            for part in gc.get_referents(value):
                yield from ((held, name) for held in (part.values() if isinstance(part, dict) else (part,)))
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            if not _is_librarys(value.__module__):
                yield from _named(self._keep(value, _ATTRIBUTE, _class_attributes, _put_class_attributes), name)
                yield from ((base, name) for base in value.__mro__[1:-1])
        elif isinstance(value, Iterator) and (not hasattr(value, "__dict__") or _is_librarys(type(value).__module__)):
            if not isinstance(value, io.IOBase):
                self.iterators.append(name)
        elif not isinstance(value, types.ModuleType):
            for cls, read, write in _CONTAINERS:
                if isinstance(value, cls):
                    yield from _named(self._keep(value, _ATTRIBUTE if cls is dict else changes, read, write), name)
            if isinstance(value, nn.Module) or not _is_librarys(type(value).__module__):
                yield from self._object(value, name)

    def _object(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        if hasattr(value, "__dict__"):
            yield from _named(self._keep(vars(value), _ATTRIBUTE, dict, _put_items), name)
        slots = [slot for cls in type(value).__mro__ for slot in _slots(cls)]
        if slots:
            yield from _named(self._keep(value, _ATTRIBUTE, functools.partial(_slot_values, slots), _put_slots), name)
        yield type(value), type(value).__name__

    def _function(self, function: types.FunctionType) -> Iterator[tuple[Any, str]]:
        yield from _named(self._keep(function, _ATTRIBUTE, _variables, _put_variables), function.__name__)
        yield from ((default, function.__name__) for default in function.__defaults__ or ())
        if _is_librarys(function.__module__):
            return
        yield vars(function), function.__name__
        yield function.__kwdefaults__ or {}, function.__name__
        names = frozenset(_names(function.__code__))
        for space in _spaces(function, names):
            read, write = functools.partial(_some_items, names), functools.partial(_put_some_items, names)
            yield from _named(self._keep(space, _ATTRIBUTE, read, write), function.__name__)


_ATTRIBUTE = "changes {!r} in Python"


def _is_librarys(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _named(state: Any, name: str) -> Iterator[tuple[Any, str]]:
    """The parts of a container's state, each with the name that it goes by."""
    if isinstance(state, dict):
        return ((part, key if isinstance(key, str) else name) for key, part in state.items())
    return ((part, name) for part in state)


def _parts(value: Any) -> tuple:
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, property):
        return value.fget, value.fset
    return value if isinstance(value, tuple) else (getattr(value, "__self__", None), value.__func__)


def _spaces(function: types.FunctionType, names: frozenset[str]) -> list[dict[str, Any]]:
    """Globals, and the variables of modules that the function may reach by these names, or import as it runs."""
    package = function.__globals__.get("__package__")
    imported = (sys.modules.get(f"{package}.{name}" if relative else name) for name in names for relative in (0, 1))
    held = function.__globals__
    modules: dict[int, types.ModuleType] = {}
    pending = [*(held.get(name) for name in names), *imported]
    while pending:
        module = pending.pop()
        if isinstance(module, types.ModuleType) and id(module) not in modules and not _is_librarys(module.__name__):
            modules[id(module)] = module
            pending.extend(vars(module).get(name) for name in names)
    return [held, *(vars(module) for module in modules.values() if vars(module) is not held)]


def _names(code: types.CodeType) -> Iterator[str]:
    """Those that a function's code, and the functions within it, may look up among globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


# How state is read and written ----------------------------------------------------------------------------------------


def _tensor_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    # Pyro hangs weak references at parameters, new ones whenever it meets them.
    return {name: value for name, value in attributes.items() if not isinstance(value, weakref.ref)}


def _put_tensor_attributes(attributes: dict[str, Any], state: dict[str, Any]) -> None:
    for name in _tensor_attributes(attributes):
        del attributes[name]
    attributes.update(state)


def _version(tensor: Tensor) -> int:
    return tensor._version


def _put_items(holder: Any, state: dict) -> None:
    holder.clear()
    holder.update(state)


def _put_elements(holder: Any, state: Any) -> None:
    holder[:] = state


def _put_deque(holder: collections.deque, state: list) -> None:
    holder.clear()
    holder.extend(state)


def _some_items(names: frozenset[str], space: dict[str, Any]) -> dict[str, Any]:
    return {name: space[name] for name in sorted(names) if name in space}


def _put_some_items(names: frozenset[str], space: dict[str, Any], state: dict[str, Any]) -> None:
    for name in names - state.keys():
        space.pop(name, None)
    space.update(state)


def _variables(function: types.FunctionType) -> dict[str, Any]:
    """What a closure has of variables; those without a value yet are not there."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _put_variables(function: types.FunctionType, state: dict[str, Any]) -> None:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in state:
            cell.cell_contents = state[name]
        else:
            del cell.cell_contents


def _class_attributes(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("__") or callable(value)}


def _put_class_attributes(cls: type, state: dict[str, Any]) -> None:
    for name in _class_attributes(cls).keys() - state.keys():
        delattr(cls, name)
    for name, value in state.items():
        if vars(cls).get(name) is not value:
            setattr(cls, name, value)


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else slots
    return tuple(slot for slot in slots if slot not in ("__dict__", "__weakref__"))


def _slot_values(slots: list[str], value: Any) -> dict[str, Any]:
    return {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}


def _put_slots(value: Any, state: dict[str, Any]) -> None:
    for slot, own in state.items():
        object.__setattr__(value, slot, own)


def _context(variable: contextvars.ContextVar) -> Any:
    try:
        return variable.get()
    except LookupError:
        return None


def _put_context(variable: contextvars.ContextVar, state: Any) -> None:
    if state is not None:
        variable.set(state)


def _parameters(store: Any) -> dict[str, Tensor]:
    return dict(store.named_parameters())


def _put_parameters(store: Any, state: dict[str, Tensor]) -> None:
    for name in list(store.keys() - state.keys()):
        del store[name]
    store.set_state({"params": state, "constraints": {}})


def _legacy_state(generator: Any) -> tuple:
    name, keys, *rest = generator.get_state()
    return name, tuple(keys.tolist()), *rest


_CONTAINERS = (
    (dict, dict, _put_items),
    (list, list, _put_elements),
    ((bytearray, array.array), lambda holder: holder[:], _put_elements),
    (collections.deque, list, _put_deque),
    (set, set, _put_items),
)
_LEAVES = (
    (random.Random, random.Random.getstate, random.Random.setstate),
    (np.random.RandomState, _legacy_state, np.random.RandomState.set_state),
    (
        np.random.Generator,
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
    ),
    (np.ndarray, np.copy, np.copyto),
)


# Comparison -----------------------------------------------------------------------------------------------------------


def _same(then: Any, now: Any, depth: int = 0) -> bool:
    """Whether two states are the same, where steps may make objects anew, but not tensors."""
    if then is now or depth > _MAX_DEPTH:
        return True
    if type(then) is not type(now):
        return False
    if isinstance(then, (np.ndarray, np.generic)):
        return np.array_equal(then, now) or bool(np.all((then == now) | ((then != then) & (now != now))))
    if isinstance(then, Tensor):
        return False
    if isinstance(then, dict):
        return then.keys() == now.keys() and all(_same(then[key], now[key], depth + 1) for key in then)
    if isinstance(then, (list, tuple, collections.deque)):
        if all(type(one) is int for one in then):  # as the state of a generator, which is long
            return then == now
        return len(then) == len(now) and all(_same(one, other, depth + 1) for one, other in zip(then, now, strict=True))
    if is_fixed(then) or isinstance(then, (set, bytearray, array.array)):
        return then == now or then != then
    if isinstance(then, types.FunctionType):
        return then.__code__ is now.__code__
    if not hasattr(then, "__dict__") or isinstance(then, type) or _is_librarys(type(then).__module__):
        return True
    return _same(vars(then), vars(now), depth + 1)


def _identical(then: Any, now: Any) -> bool:
    if isinstance(then, dict):
        return list(then) == list(now) and all(then[key] is now[key] for key in then)
    if isinstance(then, list):
        return len(then) == len(now) and all(one is other for one, other in zip(then, now, strict=True))
    return _same(then, now)


def _changed_key(then: Any, now: Any) -> Any:
    if not isinstance(then, dict):
        return ""
    return next(key for key in (*then, *now) if not (key in then and key in now and _same(then[key], now[key], 1)))
