"""Schedules: settings of a model that change from step to step, such as slab warm-up, temperature or beta.

A schedule is any function from the number of steps taken to a number. `vsc_pyro.fit` is given some by the dotted name
of what they set: ``fit(..., schedules={"encoder.slab_weight": Ramp(0, 1, hold=15_000, length=5_000)})``. What is set is
a function of the step alone, so a resumed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vsc_pyro.arguments import natural_int

Schedule = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Ramp:
    """Linear from `start` to `stop`: `hold` steps at the one, `length` steps between, and at the other from then on.

    The slab warm-up of Tonolini et al. (2020) is ``Ramp(0, 1, hold=15_000, length=5_000)``.

    Raises:
        ValueError: an end that is not finite, or a negative number of steps.
    """

    start: float
    stop: float
    hold: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        natural_int("hold", self.hold)
        natural_int("length", self.length)

    def __call__(self, step: int) -> float:
        if step < self.hold:
            return float(self.start)
        if step >= self.hold + self.length:
            return float(self.stop)
        return self.start + (self.stop - self.start) * (step - self.hold) / self.length


def slab_warmup(hold: int = 15_000, length: int = 5_000) -> dict[str, Schedule]:
    """Slab warm-up for `fit`'s `schedules`: the slab is the prior's for `hold` steps, and then moves to the encoder's.

    The steps of Tonolini et al. (2020), out of 70,000, are the default; `SpikeSlabEncoder` says what it does.
    """
    return {"encoder.slab_weight": Ramp(0.0, 1.0, hold, length)}


def set_values(model: nn.Module, schedules: Mapping[str, Schedule], step: int) -> None:
    """Set every scheduled value to what it is at `step`.

    A name leads through attributes to a number or a tensor of one number that is not a parameter. Where it ends in a
    frozen dataclass, as a gate is (``"encoder.gate.temperature"``), that is replaced.

    Raises:
        ValueError: a name that leads to no such thing.
    """
    for name, schedule in schedules.items():
        *path, last = name.split(".")
        owners: list[object] = [model]
        try:
            for part in path:
                owners.append(getattr(owners[-1], part))
            current = getattr(owners[-1], last)
        except AttributeError as error:
            raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
        value = schedule(step)
        if isinstance(current, Tensor) and not isinstance(current, nn.Parameter) and current.numel() == 1:
            current.fill_(value)
        elif not isinstance(current, numbers.Real) or isinstance(current, bool):
            raise ValueError(
                f"schedules names {name!r}, which is no number to set but {type(current).__name__}; "
                "known to work are 'beta', 'encoder.slab_weight' and settings of a gate, 'encoder.gate.temperature'"
            )
        elif dataclasses.is_dataclass(owners[-1]):
            setattr(owners[-2], path[-1], dataclasses.replace(owners[-1], **{last: value}))
        else:
            setattr(owners[-1], last, value)
