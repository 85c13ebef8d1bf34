"""Checks of arguments: each error names the argument, the value it got and what to pass instead."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def positive_int(name: str, value: object) -> int:
    """Return `value` as an `int` of at least 1, or raise a `ValueError` that names the argument `name`."""
    return _int_from(1, name, value)


def natural_int(name: str, value: object) -> int:
    """Return `value` as an `int` of at least 0, or raise a `ValueError` that names the argument `name`."""
    return _int_from(0, name, value)


def _int_from(least: int, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or (number := int(value)) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def positive_float(name: str, value: object) -> float:
    """Return `value` as a finite `float` above 0, or raise a `ValueError` that names the argument `name`."""
    if not _is_real(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return float(value)


def float_from_zero(name: str, value: object) -> float:
    """Return `value` as a finite `float` of at least 0, or raise a `ValueError` that names the argument `name`."""
    if not _is_real(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def yes_or_no(name: str, value: object) -> bool:
    """Return `value`, which is True or False, or raise a `ValueError` that names the argument `name`."""
    if not _is_among(value, (True, False)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def bool_or_auto(name: str, value: bool | str) -> bool | str:
    """Return `value`, which is True, False or ``"auto"``, or raise a `ValueError` that names the argument `name`."""
    if not _is_among(value, (True, False, "auto")):
        raise ValueError(f"{name} must be True, False or 'auto', got {value!r}")
    return value if value == "auto" else bool(value)


def one_of(name: str, value: T, known: Collection[T]) -> T:
    """Return the one of the few `known` values that equals `value`, or raise a `ValueError` that lists them."""
    if not _is_among(value, known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return next(one for one in known if one == value)


def _is_among(value: object, known: Collection[object]) -> bool:
    return not getattr(value, "ndim", 0) and value in known  # an array compares element by element


def takes(function: object, number: int) -> bool:
    """Return True for a function of `number` positional arguments, and for one whose signature is not known."""
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C may have none
        return True
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def sizes(name: str, value: int | Iterable[int]) -> tuple[int, ...]:
    """Return `value`, one size or several, as a tuple of integers of at least 1."""
    if not isinstance(value, Iterable) or not getattr(value, "ndim", 1):  # an array of no dimension is one number
        return (positive_int(name, value),)
    return tuple(positive_int(name, size) for size in value)


def shape(name: str, value: int | Iterable[int]) -> tuple[int, ...]:
    """Return `value`, the sizes of an array of at least one dimension, as `sizes` does."""
    found = sizes(name, value)
    if not found:
        raise ValueError(f"{name} must hold at least one size, got {value!r}; pass 1 for data of one number")
    return found


def choice(name: str, value: str, table: Mapping[str, T]) -> T:
    """Return ``table[value]``, or raise a `ValueError` that lists the known names."""
    if not isinstance(value, str) or value not in table:
        known = ", ".join(repr(key) for key in sorted(table))
        raise ValueError(f"unknown {name} {value!r}; known are {known}")
    return table[value]
