"""Arguments that hold distributions, as lists of tensors and back."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.distributions import Distribution, Transform

from vsc_pyro._scalars import ScalarModule
from vsc_pyro.acceleration.program_state import is_fixed, kind_of


class _Leaf(NamedTuple):
    """The place of a tensor, by its position."""

    position: int


class _Parts(NamedTuple):
    """An object of that type and its attributes."""

    cls: type
    attributes: dict[str, Any]


class _Scalars(NamedTuple):
    """A module and its buffers."""

    module: ScalarModule
    buffers: dict[str, Any]


def flatten(value: Any) -> tuple[list[Tensor], Any, tuple]:
    """Split `value` into its tensors, a skeleton without them, and a hashable key.

    Distributions and transforms are split into their attributes; tuples, lists and dictionaries into their elements.

    Returns:
        The tensors, each once; the skeleton, for `rebuild`; and the key. Values of the same structure have equal keys:
        types, names, shapes, strides, devices, and constants.
    """
    tensors: dict[int, tuple[int, Tensor]] = {}
    key: list[Any] = []

    def take_apart(part: Any) -> Any:
        if isinstance(part, Tensor):
            position, _ = tensors.setdefault(id(part), (len(tensors), part))
            key.extend((position, part.shape, part.stride(), part.dtype, part.device))
            return _Leaf(position)
        if isinstance(part, (Distribution, Transform)):
            key.extend((type(part), *vars(part)))
            return _Parts(type(part), {name: take_apart(attribute) for name, attribute in vars(part).items()})
        if isinstance(part, ScalarModule):  # a gate
            key.extend((type(part), *(kind_of(value) for value in vars(part).values() if is_fixed(value))))
            return _Scalars(part, take_apart(dict(part._buffers)))
        if type(part) in (tuple, list):
            key.extend((type(part), len(part)))
            return type(part)(map(take_apart, part))
        if type(part) is dict:
            key.extend((dict, *part))
            return {name: take_apart(element) for name, element in part.items()}
        key.extend(kind_of(part) if is_fixed(part) else (part,))
        return part

    rest = take_apart(value)
    return [tensor for _, tensor in tensors.values()], rest, tuple(key)


def rebuild(rest: Any, tensors: list[Tensor] | tuple[Tensor, ...]) -> Any:
    """Put tensors into the skeleton `rest` that `flatten` returned."""
    if isinstance(rest, _Leaf):
        return tensors[rest.position]
    if isinstance(rest, _Parts):
        new = cast(Any, rest.cls).__new__(rest.cls)
        vars(new).update({name: rebuild(attribute, tensors) for name, attribute in rest.attributes.items()})
        return new
    if isinstance(rest, _Scalars):
        module = copy.copy(rest.module)
        vars(module)["_buffers"] = rebuild(rest.buffers, tensors)
        return module
    if type(rest) in (tuple, list):
        return type(rest)(rebuild(element, tensors) for element in rest)
    if type(rest) is dict:
        return {name: rebuild(element, tensors) for name, element in rest.items()}
    return rest
