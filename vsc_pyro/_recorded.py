"""Modules that record how they were built, descriptions of them in plain values, and modules built from descriptions.

A description names a class and the arguments of its constructor. Arguments may be modules, which are described in
turn. A module that is an argument twice, such as the encoder of a model and of its prior, is described once, and
``{"same_as": path}`` stands for it elsewhere. Classes come from a registry and are never imported by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

C = TypeVar("C", bound=type[nn.Module])
_PLAIN = (bool, int, float, str, type(None))
_RECORD = "_recorded"  # name of the attribute that holds the record
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_SHOWN = 80  # characters of a file's content in an error message
_classes: dict[str, type[nn.Module]] = {}


@dataclasses.dataclass
class _Unknown:
    """The place of an argument that cannot be described."""

    kind: str


@dataclasses.dataclass
class _Record:
    """The call of a constructor.

    Attributes:
        constructor: its name.
        args, kwargs: arguments, in copies; modules are themselves.
        attributes: public attributes of plain values that the constructor set.
    """

    constructor: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bound(self, module: nn.Module) -> inspect.BoundArguments:
        return inspect.signature(type(module).__init__).bind(module, *self.args, **self.kwargs)


def _recording(constructor: Callable[..., None]) -> Callable[..., None]:
    """Decorate a constructor to record its arguments, unless the constructor of a subclass calls it."""

    @functools.wraps(constructor)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if _RECORD in vars(self):
            constructor(self, *args, **kwargs)
            return
        record = vars(self)[_RECORD] = _Record(_name(constructor), _kept(args), _kept(kwargs))
        constructor(self, *args, **kwargs)
        record.attributes = _plain_attributes(self)

    return __init__


def _name(constructor: Callable[..., None]) -> str:
    return f"{constructor.__module__}.{constructor.__qualname__}"


def _kept(value: Any) -> Any:
    """Return a copy that its owner cannot change. What cannot be described is not kept, because it may not pickle."""
    if type(value) in _PLAIN or isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.generic):
        return _kept(plain_number(value))
    if isinstance(value, np.ndarray):
        with contextlib.suppress(TypeError, ValueError):  # strings, other byte orders
            torch.as_tensor(value)
            return value.copy()
    if type(value) is list:
        return [_kept(each) for each in value]
    if type(value) in (tuple, torch.Size):
        return tuple(map(_kept, value))
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _kept(each) for name, each in value.items()}
    return _Unknown(type(value).__name__)


def plain_number(value: Any) -> Any:
    """Return a number of NumPy as one of Python; anything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the public attributes that are numbers, strings, None or tuples of these, but for the mode."""
    public = {
        name: plain_number(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }
    return {name: value for name, value in public.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


class Recorded(nn.Module):
    """Base class of modules that record the arguments of their constructor, so that `VAE.save` can describe them.

    The outermost constructor is recorded: the arguments of a subclass count, not what it passes to ``super()``.
    """

    @_recording
    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)
        if cls.__module__.startswith("vsc_pyro."):
            _classes[cls.__name__] = cls


def register(cls: C) -> C:
    """Let files name a class of your own: `VAE.save` then describes its objects, and `vsc_pyro.load` builds them.

    A file names the class, and the arguments of its constructor. These may be numbers, strings, None, tensors, tuples,
    lists and dictionaries of such values, and modules of registered classes. Call it before the file is loaded; and for
    a class that is no `VAE`, `Prior`, `vsc_pyro.gates.Gate` and no subclass of an encoder or decoder of this library,
    also before an object is built. A file may call the constructor with any arguments, so register no class whose
    constructor does anything but build a module.

    Args:
        cls: a subclass of `torch.nn.Module`; the name of the class identifies it.

    Returns:
        The class, so that `register` is a decorator too.

    Raises:
        ValueError: no module class, or another class of the same name is registered.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> @vsc.register
        ... class Shallow(torch.nn.Sequential):
        ...     def __init__(self, width):
        ...         super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, width))
        ...         self.out_features = width
        >>> encoder = vsc.SpikeSlabEncoder((1, 8, 8), latent_dim=5, trunk=Shallow(20))
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"cls must be a subclass of torch.nn.Module, got {cls!r}")
    known = _classes.get(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"cls must have a name of its own, and {cls.__name__} is that of {known.__module__}.{known.__qualname__}; "
            "rename the class"
        )
    if not issubclass(cls, Recorded):
        cls.__init__ = _recording(cls.__init__)
    _classes[cls.__name__] = cls
    return cls


def arguments_of(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of the constructor by name, with defaults; empty for a module that has no record."""
    record = vars(module).get(_RECORD)
    if record is None:
        return {}
    bound = record.bound(module)
    bound.apply_defaults()
    _, *arguments = bound.arguments.items()
    return dict(arguments)


class Description:
    """Describes modules in values of JSON; tensors are held apart.

    Attributes:
        tensors: tensors among the arguments, by the path of the argument.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._paths: dict[int, str] = {}

    def of(self, module: nn.Module, path: str) -> dict[str, Any]:
        """Describe a module, which later descriptions refer to by `path`.

        Raises:
            ValueError: a module or an argument that cannot be described; the message names it and the remedy.
        """
        if id(module) in self._paths:
            return {"same_as": self._paths[id(module)]}
        self._paths[id(module)] = path
        record = _checked_record(module, path)
        bound = record.bound(module)
        # Parameters without a name are passed by position.
        is_named = not any(parameter.kind in _BY_POSITION for parameter in bound.signature.parameters.values())
        args, kwargs = ((), _flat(bound)) if is_named else (record.args, record.kwargs)
        described: dict[str, Any] = {"class": type(module).__name__}
        if args:
            described["positional"] = [self._value(each, f"{path}.{at}") for at, each in enumerate(args)]
        described["arguments"] = {
            name: self._value(_current(module, name, value), f"{path}.{name}") for name, value in kwargs.items()
        }
        now = _plain_attributes(module)
        changed = {name: now[name] for name, value in record.attributes.items() if now.get(name, value) != value}
        if changed:
            described["attributes"] = {name: self._value(value, f"{path}.{name}") for name, value in changed.items()}
        return described

    def _value(self, value: Any, path: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}  # JSON has no such numbers
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (Tensor, np.ndarray)):
            self.tensors[path] = torch.as_tensor(value)
            return {"tensor" if isinstance(value, Tensor) else "array": path}
        if isinstance(value, nn.Module):
            return self.of(value, path)
        if isinstance(value, tuple):
            return [self._value(each, f"{path}.{at}") for at, each in enumerate(value)]
        if isinstance(value, list):
            return {"list": [self._value(each, f"{path}.{at}") for at, each in enumerate(value)]}
        if isinstance(value, dict):
            return {"dict": {name: self._value(each, f"{path}.{name}") for name, each in value.items()}}
        kind = value.kind if isinstance(value, _Unknown) else type(value).__name__
        raise ValueError(
            f"{path} is a {kind}, which a file cannot hold; pass numbers, strings, tensors or modules, or build "
            "what needs it in the constructor of a class of your own, and call vsc_pyro.register(MyClass)"
        )


def _checked_record(module: nn.Module, path: str) -> _Record:
    cls = type(module)
    if _classes.get(cls.__name__) is not cls:
        raise ValueError(
            f"{path} is a {cls.__name__}, a class that files cannot name; call vsc_pyro.register({cls.__name__}) "
            "before you build it"
        )
    record = vars(module).get(_RECORD)
    if record is None or record.constructor != _name(cls.__init__):
        raise ValueError(
            f"{path} is a {cls.__name__} whose arguments are not recorded; call vsc_pyro.register({cls.__name__}) "
            "before you build it, and build it anew"
        )
    return record


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return arguments by name, and those of ``**kwargs`` by their own names."""
    _, *arguments = bound.arguments.items()
    flat: dict[str, Any] = {}
    for name, value in arguments:
        is_rest = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        flat.update(value if is_rest else {name: value})
    return flat


def _current(module: nn.Module, name: str, value: Any) -> Any:
    """Return the part that has replaced an argument, if the module keeps it under the argument's name."""
    part = module._modules.get(name)
    return value if part is None or not isinstance(value, nn.Module) else part


class Builder:
    """Builds modules from the values of a `Description`, which may be damaged or malicious.

    Args:
        tensors: those of the description.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._built: dict[str, nn.Module] = {}

    def build(self, described: object, path: str) -> nn.Module:
        """Build a module.

        Raises:
            ValueError: an unknown class, arguments that its constructor refuses, or a damaged description.
        """
        if not isinstance(described, dict) or not described.keys() & {"class", "same_as"}:
            raise ValueError(f"{path} must be a module with a class and arguments, got {_short(described)}")
        if "same_as" in described:
            known = described["same_as"]
            if not isinstance(known, str) or known not in self._built:
                raise ValueError(f"{path} is said to be the same as {_short(known)}, which is not there")
            return self._built[known]
        name = described["class"]
        if not isinstance(name, str) or name not in _classes:
            raise ValueError(
                f"{path} is of the unknown class {_short(name)}; if it is yours, import it and call "
                "vsc_pyro.register(MyClass) before you load"
            )
        args = [self._value(each, f"{path}.{at}") for at, each in enumerate(_entry(described, "positional", list))]
        kwargs, attributes = (
            {name: self._value(value, f"{path}.{name}") for name, value in _entry(described, key, dict).items()}
            for key in ("arguments", "attributes")
        )
        try:
            module = _classes[name](*args, **kwargs)
        except Exception as error:  # a damaged argument can raise anything in a constructor
            reason = _short(str(error).partition("\n")[0], 4 * _SHOWN)
            raise ValueError(f"{path}, a {name}, cannot be built with the arguments in the file: {reason}") from error
        if unknown := attributes.keys() - _plain_attributes(module).keys():
            raise ValueError(f"{path}, a {name}, has no attribute {_short(min(unknown))}")
        vars(module).update(attributes)
        self._built[path] = module
        return module

    def _value(self, value: Any, path: str) -> Any:
        if type(value) is list:
            return tuple(self._value(each, f"{path}.{at}") for at, each in enumerate(value))
        if type(value) is not dict:
            return value
        if value.keys() & {"class", "same_as"}:
            return self.build(value, path)
        ((kind, content),) = value.items() if len(value) == 1 else [("", None)]
        if kind == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if kind == "tensor" and isinstance(content, str) and content in self._tensors:
            return self._tensors[content]
        if kind == "array" and isinstance(content, str) and content in self._tensors:
            return self._tensors[content].numpy()
        if kind == "list" and type(content) is list:
            return [self._value(each, f"{path}.{at}") for at, each in enumerate(content)]
        if kind == "dict" and type(content) is dict:
            return {name: self._value(each, f"{path}.{name}") for name, each in content.items()}
        raise ValueError(f"{path} is no value: {_short(value)}")


def _entry(described: dict[str, Any], key: str, kind: type) -> Any:
    value = described.get(key, kind())
    if type(value) is not kind:
        raise ValueError(f"{key} of a {_short(described['class'])} must be a {kind.__name__}, got {_short(value)}")
    return value


def _short(value: object, length: int = _SHOWN) -> str:
    text = value if isinstance(value, str) else f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return text if len(text) <= length else text[:length] + "..."
