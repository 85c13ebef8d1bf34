"""Schedules: settings of a model that change from step to step, such as slab warm-up, temperature or beta.

A schedule is any function from the number of steps taken to a number. `vsc_pyro.fit` takes schedules by the dotted name
of a buffer: ``fit(..., schedules={"encoder.slab_weight": Ramp(0, 1, hold=3_000, length=1_000)})``. The value depends on
the step alone, so a resumed run continues where it stopped. This module also plans the learning rates of torch's
schedulers, so that all rates of a run are known before it starts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import numbers
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._scalars import ScalarModule
from vsc_pyro._seeding import own_random_numbers
from vsc_pyro.training.history import NonFiniteLossError

Schedule = Callable[[int], float]
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

    Of their 70,000 steps the slab was the standard one for 15,000 and moved to the encoder's in the next 5,000.
    `vsc_pyro.SpikeSlabEncoder` says what it does. For steps of your own: ``{"encoder.slab_weight": Ramp(0, 1, hold=...,
    length=...)}``.
    """
    num_steps = positive_int("num_steps", num_steps)
    return {"encoder.slab_weight": Ramp(0.0, 1.0, num_steps * 15 // 70, num_steps * 5 // 70)}


def check_warmup(warmup: float, loss: ELBO, schedules: Mapping[str, Schedule] | None) -> float:
    """Return the share of a run, its first steps, in which the weight of the KL divergence rises from 0.

    Args:
        warmup: that share, from 0 to below 1.
        loss: the objective.
        schedules: of the run.

    Raises:
        ValueError: a share outside [0, 1), or one beside a schedule of beta or an objective of unscaled densities.
    """
    if isinstance(warmup, bool) or not isinstance(warmup, numbers.Real) or not 0 <= warmup < 1:
        raise ValueError(f"warmup must be a share of the run, from 0 to below 1, got {warmup!r}")
    if warmup and "beta" in (schedules or {}):
        raise ValueError(f"warmup={warmup!r} and schedules['beta'] both set the weight of the divergence; pass one")
    if warmup and not getattr(loss, "weighs_divergences", True):
        raise ValueError(f"{type(loss).__name__} is of unscaled densities and takes no warmup={warmup!r}; pass 0")
    return float(warmup)


@dataclasses.dataclass(frozen=True)
class Cooldown:
    """The learning rate of a run: as it is, and over the last `share` of the epochs falling in proportion.

    In epoch e, counted from 0, of E it is multiplied by min(1, (E - e) / (share E)): a quarter of 8 epochs halves that
    of the last, a quarter of 4 changes nothing. From a checkpoint of before the fall a longer run goes on as if it had
    been planned (S. Hu et al., 2024, MiniCPM, who call it warm-up, stable, decay).

    Raises:
        ValueError: a share outside [0, 1].
    """

    share: float
    epochs: int

    def __post_init__(self) -> None:
        share = self.share
        if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 <= share <= 1:
            raise ValueError(f"cooldown must be a share of the run, from 0 to 1, got {share!r}")
        object.__setattr__(self, "share", float(share))  # of the bits that a checkpoint has

    def factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in that epoch."""
        return min(1.0, (self.epochs - epoch) / (self.share * self.epochs)) if self.share else 1.0

    @contextlib.contextmanager
    def of_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Let `optimizer` step at the rate of that epoch within."""
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self.factor(epoch)
        try:
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


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
    """Set every scheduled buffer to its value at `step`.

    Raises:
        ValueError: a name that leads to no buffer of one number, or a value that it cannot take.
    """
    for name, schedule in schedules.items():
        buffer, value = scheduled_buffer(model, name), _value(name, schedule, step)
        owner = _owner(model, name)
        if isinstance(owner, ScalarModule):
            owner.check_scalar(name.rpartition(".")[2], value)
        buffer.fill_(value)


def _value(name: str, schedule: Schedule, step: int) -> float:
    value = schedule(step)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"schedules[{name!r}] must give finite numbers, got {value!r} at step {step}")
    return value


@contextlib.contextmanager
def unchanged_if_refused(model: nn.Module, schedules: Mapping[str, Schedule] | None) -> Iterator[None]:
    """Restore the settings of `model` if an error ends the run within, unless that is a diverged loss."""
    buffers = [scheduled_buffer(model, name) for name in schedules or ()]
    values = [float(buffer) for buffer in buffers]
    num_data = model.num_data
    try:
        yield
    except Exception as error:
        if not isinstance(error, NonFiniteLossError):
            model.num_data = num_data
            for buffer, value in zip(buffers, values, strict=True):
                buffer.fill_(value)
        raise


Rehearsed = tuple[list[float], dict[str, Any], dict[str, Any]]


def rehearse_lr(
    schedule: torch.optim.lr_scheduler.LRScheduler | None, optimizer: torch.optim.Optimizer, epochs: int
) -> Rehearsed | None:
    """Learning rates of each of so many epochs of Adam; then the state of its one group and that of the scheduler.

    The optimiser is one of its own, of a single number, and takes no step, and the scheduler is a copy: neither what
    they remember nor random numbers are used up. None, with a warning, for one that cannot be copied.

    Raises:
        ValueError: a schedule that fails before the end, or that alters the parts of Adam's state.
    """
    trial, rates = torch.optim.Adam([torch.zeros(1, requires_grad=True)], **optimizer.defaults), []
    _check_one_group(optimizer)
    with own_random_numbers():
        if not (copied := _copied("lr_schedule", schedule, {id(optimizer): trial})):
            return None
        (schedule,) = copied
        trial.param_groups[0] |= {key: v for key, v in optimizer.param_groups[0].items() if key != "params"}
        for _ in range(epochs):
            rates.append(float(trial.param_groups[0]["lr"]))
            try:
                step_lr(schedule)
            except Exception as error:
                raise ValueError(
                    f"lr_schedule cannot last for epochs={epochs}, after {len(rates)} it fails ({error}); make it "
                    "longer"
                ) from error
            _check_one_group(trial)
    return rates, trial.state_dict()["param_groups"][0], {} if schedule is None else schedule.state_dict()


def _check_one_group(optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.param_groups
    if len(groups) != 1 or groups[0]["amsgrad"] != optimizer.defaults["amsgrad"]:
        got = f"{len(groups)} groups" if len(groups) != 1 else f"amsgrad={groups[0]['amsgrad']}"
        raise ValueError(
            "with checkpoint=, lr_schedule must leave Adam one group of parameters and its amsgrad, got "
            f"{got}: it could not be resumed; set no more than rates and momenta, or train without checkpoint="
        )


def _copied(name: str, schedule: Any, memo: dict[int, Any]) -> tuple[Any] | None:
    """A copy that can be called without using up what `schedule` remembers; None, with a warning, if it has none."""
    try:
        copied = _copy(schedule, memo)
        for part in (copied, *getattr(copied, "_schedulers", ())):
            if isinstance(part, torch.optim.lr_scheduler.LambdaLR | torch.optim.lr_scheduler.MultiplicativeLR):
                part.lr_lambdas = [_copy(function, memo) for function in part.lr_lambdas]
    except Exception as error:  # whatever an object of the caller's says
        warnings.warn(
            f"{name} cannot be copied ({type(error).__name__}: {error}), so what it is going to give is not known "
            "before the run; a resumed run does not compare it: resume with the same one",
            stacklevel=5,
        )
        return None
    return (copied,)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, for a function one with variables of its own, which `copy.deepcopy` leaves as it is."""
    if not isinstance(value, types.FunctionType):
        return copy.deepcopy(value, memo)
    if id(value) not in memo:
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        defaults = copy.deepcopy(value.__defaults__, memo)
        memo[id(value)] = copied = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, defaults, cells
        )
        copied.__kwdefaults__ = copy.deepcopy(value.__kwdefaults__, memo)
        for cell, own in zip(cells, value.__closure__ or (), strict=True):
            cell.cell_contents = _copy(own.cell_contents, memo)
    return memo[id(value)]


def step_lr(schedule: torch.optim.lr_scheduler.LRScheduler | None, times: int = 1) -> None:
    """Go on by so many epochs, whether or not the optimiser has taken a step in them, of which torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(Detected call of `lr_scheduler|Seems like `optimizer).step\(\)` ")
        for _ in range(times if schedule is not None else 0):
            schedule.step()


def planned(rates: list[float] | None, schedules: Mapping[str, Schedule], epochs: int, steps: int) -> dict[str, Tensor]:
    """What every schedule is going to give over a run, of `steps` in each epoch; `rates` are the learning rate's.

    Returns:
        By name, ``"lr_schedule"`` or ``"schedules['beta']"``, shape ``(epochs, 1)``, or ``(epochs, 2)`` for the first
        and the last step of each epoch; float64. Without those that cannot be copied, see `rehearse_lr`.
    """
    rows = {} if rates is None else {"lr_schedule": [[rate] for rate in rates]}
    with own_random_numbers():
        for name, schedule in schedules.items():
            if copied := _copied(f"schedules[{name!r}]", schedule, {}):
                rows[f"schedules[{name!r}]"] = [
                    [float(_value(name, copied[0], step)) for step in (epoch * steps, (epoch + 1) * steps - 1)]
                    for epoch in range(epochs)
                ]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def scheduled_buffer(model: nn.Module, name: str) -> Tensor:
    """Return the buffer that a schedule of that dotted name moves, such as ``"encoder.gate.temperature"``.

    Raises:
        ValueError: a name that leads to no buffer of one floating-point number.
    """
    value = _owner(model, name)
    last = name.rpartition(".")[2]
    try:
        value = getattr(value, last)
    except AttributeError as error:
        raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
    is_buffer = last in getattr(_owner(model, name), "_buffers", {}) and isinstance(value, Tensor)
    if not (is_buffer and value.numel() == 1 and value.is_floating_point()):
        raise ValueError(
            f"schedules names {name!r}, which cannot be scheduled; known to work are 'beta', 'encoder.slab_weight' and "
            "settings of a gate such as 'encoder.gate.temperature'; a number of your own module can be scheduled once "
            "it is a buffer: self.register_buffer(name, torch.tensor(value))"
        )
    return value


def _owner(model: nn.Module, name: str) -> Any:
    """Return the object whose attribute the last part of a dotted name is."""
    try:
        return functools.reduce(getattr, name.split(".")[:-1], model)
    except AttributeError as error:
        raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
