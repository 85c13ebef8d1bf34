"""Checks of what a user passes in: each error names the argument, the value it got and what would do."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def positive_int(name: str, value: int) -> int:
    """Return `value` as an `int` of at least 1, or raise `ValueError` naming the argument `name`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def natural_int(name: str, value: int) -> int:
    """Return `value` as an `int` of at least 0, or raise `ValueError` naming the argument `name`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    return int(value)


def positive_float(name: str, value: float) -> float:
    """Return `value` as a finite `float` above 0, or raise `ValueError` naming the argument `name`."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return float(value)


def bool_or_auto(name: str, value: bool | str) -> bool | str:
    """Return `value`, True, False or ``"auto"``, or raise `ValueError` naming the argument `name`."""
    if value not in (True, False, "auto"):
        raise ValueError(f"{name} must be True, False or 'auto', got {value!r}")
    return value if value == "auto" else bool(value)


def sizes(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """Return `value`, one size or a sequence of sizes, as a tuple of whole numbers of at least 1."""
    values = (value,) if isinstance(value, numbers.Integral) else tuple(value)
    return tuple(positive_int(name, v) for v in values)


def choice(name: str, value: str, table: Mapping[str, T]) -> T:
    """Return `table[value]`, or raise `ValueError` listing the known names."""
    if value not in table:
        known = ", ".join(repr(key) for key in sorted(table))
        raise ValueError(f"unknown {name} {value!r}; known are {known}")
    return table[value]
