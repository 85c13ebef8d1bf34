"""Schedules: settings of a model that change from step to step, such as slab warm-up, temperature or beta.

A schedule is any function from the number of steps taken to a number. `vsc_pyro.fit` is given some by the dotted name
of what they set: ``fit(..., schedules={"encoder.slab_weight": Ramp(0, 1, hold=3_000, length=1_000)})``. What is set is
a function of the step alone, so a resumed run goes on where it was. Learning rates, of torch's schedulers, are planned
here as well: what they will be is known before a run starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vsc_pyro.arguments import natural_int, positive_int
from vsc_pyro.history import NonFiniteLossError

Schedule = Callable[[int], float]
LRSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
_TRIED = 8  # steps, evenly over a run, at which a schedule is tried before it starts


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


def slab_warmup(num_steps: int = 70_000) -> dict[str, Schedule]:
    """Slab warm-up for `fit`'s `schedules`, in the proportions of Tonolini et al. (2020), over a run of `num_steps`.

    Of their 70,000 steps the slab was the prior's for 15,000 and moved to the encoder's in the 5,000 that followed.
    `vsc_pyro.SpikeSlabEncoder` says what it does. For steps of your own: ``{"encoder.slab_weight": Ramp(0, 1, hold=...,
    length=...)}``.
    """
    num_steps = positive_int("num_steps", num_steps)
    return {"encoder.slab_weight": Ramp(0.0, 1.0, num_steps * 15 // 70, num_steps * 5 // 70)}


def check_schedules(model: nn.Module, schedules: Mapping[str, Schedule], num_steps: int) -> None:
    """Try schedules out over a run of `num_steps`, and leave the model at step 0.

    Warns where a `Ramp` is longer than the run: the model would be left on the way.

    Raises:
        ValueError: a name that leads to no setting, a schedule that is no function, or a value that it cannot take.
    """
    for name, schedule in schedules.items():
        if not callable(schedule):
            raise ValueError(f"schedules[{name!r}] must be a function of the step, such as a Ramp, got {schedule!r}")
        if isinstance(schedule, Ramp) and num_steps < schedule.hold + schedule.length:
            warnings.warn(
                f"schedules[{name!r}] reaches {schedule.stop:g} after {schedule.hold + schedule.length} steps, and "
                f"this run has {num_steps}: it ends at {schedule(num_steps - 1):g}; train longer or ramp sooner",
                stacklevel=3,
            )
    for share in range(_TRIED, -1, -1):
        set_values(model, schedules, (num_steps - 1) * share // _TRIED)


def set_values(model: nn.Module, schedules: Mapping[str, Schedule], step: int) -> None:
    """Set every scheduled value to what it is at `step`.

    A name leads through attributes to a buffer of one number, to a number that its module lists in `scheduled`, or into
    a frozen dataclass, as a gate is (``"encoder.gate.temperature"``), which is then replaced.

    Raises:
        ValueError: a name that leads to no such thing, or a value that it cannot take.
    """
    for name, schedule in schedules.items():
        Setting(model, name).set(_value(name, schedule, step))


def _value(name: str, schedule: Schedule, step: int) -> float:
    value = schedule(step)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"schedules[{name!r}] must give finite numbers, got {value!r} at step {step}")
    return value


@contextlib.contextmanager
def unchanged_if_refused(model: nn.Module, schedules: Mapping[str, Schedule] | None) -> Iterator[None]:
    """Put back what a run sets of `model` beside its weights where an error, but for a diverged loss, ends it."""
    settings = [Setting(model, name) for name in schedules or ()]
    values = [value.item() if isinstance(value, Tensor) else value for value in (s.get() for s in settings)]
    num_data = model.num_data
    try:
        yield
    except Exception as error:
        if not isinstance(error, NonFiniteLossError):
            model.num_data = num_data
            for setting, value in zip(settings, values, strict=True):
                setting.set(value)
        raise


def rehearse_lr(
    lr_schedule: LRSchedule | None, defaults: Mapping[str, Any], epochs: int
) -> tuple[list[float], dict[str, Any], dict[str, Any]]:
    """Learning rates of each of so many epochs of Adam; then the state of its one group and that of the scheduler.

    The optimiser is one of its own, of a single number and these `defaults`, and takes no step.

    Raises:
        ValueError: a schedule that fails before the end.
    """
    optimizer, rates = torch.optim.Adam([torch.zeros(1, requires_grad=True)], **defaults), []
    schedule = None if lr_schedule is None else lr_schedule(optimizer)
    for _ in range(epochs):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        try:
            step_lr(schedule)
        except Exception as error:
            raise ValueError(
                f"lr_schedule cannot last for epochs={epochs}, after {len(rates)} it fails ({error}); make it longer"
            ) from error
    return rates, optimizer.state_dict()["param_groups"][0], {} if schedule is None else schedule.state_dict()


def step_lr(schedule: torch.optim.lr_scheduler.LRScheduler | None, times: int = 1) -> None:
    """Go on by so many epochs, whether or not the optimiser has taken a step in them, of which torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
        for _ in range(times if schedule is not None else 0):
            schedule.step()


def planned(
    lr_schedule: LRSchedule | None,
    defaults: Mapping[str, Any],
    schedules: Mapping[str, Schedule],
    epochs: int,
    steps: int,
) -> dict[str, Tensor]:
    """What every schedule is going to give over a run, of `steps` in each epoch.

    Returns:
        By name, ``"lr_schedule"`` or ``"schedules['beta']"``, shape ``(epochs, 1)``, or ``(epochs, 2)`` for the first
        and the last step of each epoch; float64.
    """
    rows = {}
    if lr_schedule is not None:
        rows["lr_schedule"] = [[rate] for rate in rehearse_lr(lr_schedule, defaults, epochs)[0]]
    for name, schedule in schedules.items():
        rows[f"schedules[{name!r}]"] = [
            [float(_value(name, schedule, step)) for step in (epoch * steps, (epoch + 1) * steps - 1)]
            for epoch in range(epochs)
        ]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


class Setting:
    """A setting of `model` by its dotted name, as `set_values` takes it.

    Attributes:
        is_tensor: whether it is a buffer, which a captured step reads as it stands.

    Raises:
        ValueError: a name that leads to nothing that can be scheduled.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        *self._path, self._last = name.split(".")
        self._model = model
        try:
            owner, current = self._owners()[-1], self.get()
        except AttributeError as error:
            raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
        self.is_tensor = self._last in getattr(owner, "_buffers", {})
        is_number = isinstance(current, numbers.Real) and not isinstance(current, bool)
        if not (
            (self.is_tensor and current.numel() == 1 and current.is_floating_point())
            or self._last in getattr(owner, "scheduled", ())
            or (dataclasses.is_dataclass(owner) and is_number)
        ):
            raise ValueError(
                f"schedules names {name!r}, which cannot be scheduled; known to work are 'beta', "
                "'encoder.slab_weight' and settings of a gate such as 'encoder.gate.temperature'"
            )

    @property
    def slot(self) -> tuple[int, str]:
        """The module, as its `id`, and its attribute that the setting is, or is a field of."""
        owners = self._owners()
        if dataclasses.is_dataclass(owners[-1]):
            return id(owners[-2]), self._path[-1]
        return id(owners[-1]), self._last

    @property
    def field(self) -> str:
        """The last part of the name."""
        return self._last

    def _owners(self) -> list[object]:
        owners: list[object] = [self._model]
        for part in self._path:
            owners.append(getattr(owners[-1], part))
        return owners

    def get(self) -> float | Tensor:
        """The value as it stands."""
        return getattr(self._owners()[-1], self._last)

    def set(self, value: float | Tensor) -> None:
        """Put a number there; `ValueError` if its owner does not take it."""
        owners = self._owners()
        if self.is_tensor:
            self.get().fill_(value)
        elif dataclasses.is_dataclass(owners[-1]):
            setattr(owners[-2], self._path[-1], dataclasses.replace(owners[-1], **{self._last: value}))
        else:
            setattr(owners[-1], self._last, value)

    @contextlib.contextmanager
    def replaced_by(self, tensor: Tensor) -> Iterator[None]:
        """Let the model read a number of its own from `tensor`, for as long as a step of it is being captured."""
        owners, before = self._owners(), self.get()
        self.set(tensor)
        try:
            yield
        finally:
            if dataclasses.is_dataclass(owners[-1]):
                setattr(owners[-2], self._path[-1], owners[-1])
            else:
                setattr(owners[-1], self._last, before)
