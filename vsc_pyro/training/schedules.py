"""Schedules: settings of a model that change from step to step, such as slab warm-up, temperature or beta.

A schedule is a function from the number of steps taken to a number. Its value must depend on the step alone: then a
resumed run continues with the values of an uninterrupted one. `vsc_pyro.fit` takes schedules by the dotted name of a
scalar buffer: ``fit(..., schedules={"encoder.slab_weight": Ramp(0, 1, hold=3_000, length=1_000)})``.

Before a run that is saved or resumed, `planned` and `rehearse_lr` call all schedules for the whole run. A checkpoint
holds their values, so a resumed run can refuse a schedule that differs from that of the first run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vsc_pyro._arguments import natural_int, positive_int, takes
from vsc_pyro._scalars import ScalarModule
from vsc_pyro._seeding import own_random_numbers
from vsc_pyro.training.history import NonFiniteLossError

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

T = TypeVar("T")
Schedule = Callable[[int], float]
_TRIALS = 8  # steps, evenly over a run, at which a schedule is tried before the run starts


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A linear ramp: `start` for `hold` steps, then linear over `length` steps, and `stop` from then on.

    Args:
        start: value of the first steps.
        stop: value of the last steps.
        hold: number of steps at `start`.
        length: number of steps from `start` to `stop`.

    Raises:
        ValueError: an end that is not finite, or a negative number of steps.

    Example:
        >>> import vsc_pyro as vsc
        >>> ramp = vsc.Ramp(0, 1, hold=2, length=4)
        >>> [ramp(step) for step in range(8)]
        [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
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
    """Return the slab warm-up of Tonolini et al. (2020), scaled to a run of `num_steps`, for `fit`'s `schedules`.

    The published run has 70,000 steps. Its slab is the standard one for 15,000 steps and moves to the encoder's in the
    next 5,000. `vsc_pyro.SpikeSlabEncoder` has the formula. For other lengths pass
    ``{"encoder.slab_weight": Ramp(0, 1, hold=..., length=...)}``.

    Example:
        >>> from vsc_pyro.training.schedules import slab_warmup
        >>> slab_warmup(7_000)
        {'encoder.slab_weight': Ramp(start=0.0, stop=1.0, hold=1500, length=500)}
    """
    num_steps = positive_int("num_steps", num_steps)
    return {"encoder.slab_weight": Ramp(0.0, 1.0, num_steps * 15 // 70, num_steps * 5 // 70)}


def check_warmup(warmup: float, loss: ELBO, schedules: Mapping[str, Schedule] | None) -> float:
    """Return `warmup` as a float, if the objective `loss` can weight its KL divergence and no schedule moves beta.

    Raises:
        ValueError: a share outside [0, 1), a schedule of beta as well, or an objective that ignores the weight.
    """
    if isinstance(warmup, bool) or not isinstance(warmup, numbers.Real) or not 0 <= warmup < 1:
        raise ValueError(f"warmup must be a share of the run, from 0 to below 1, got {warmup!r}")
    if warmup and "beta" in (schedules or {}):
        raise ValueError(f"warmup={warmup!r} and schedules['beta'] both set the weight of the divergence; pass one")
    if warmup and not getattr(loss, "weighs_divergences", True):
        raise ValueError(
            f"{type(loss).__name__} takes densities without weights, and so no warmup={warmup!r}; pass warmup=0"
        )
    return float(warmup)


@dataclasses.dataclass(frozen=True)
class Cooldown:
    r"""A learning rate that stays constant and falls linearly over the last `share` of `epochs`.

    In epoch :math:`e = 0, \dots, E - 1` the rate is multiplied by :math:`\min(1, (E - e) / (\mathrm{share}\, E))`.
    A quarter of 8 epochs halves the rate of the last one; a quarter of 4 epochs changes nothing. A run can be extended
    from a checkpoint written before the fall, as if the longer run had been planned from the start.

    Raises:
        ValueError: a share outside [0, 1].

    References:
        S. Hu et al. (2024), MiniCPM (there called warm-up, stable, decay).

    Example:
        >>> from vsc_pyro.training.schedules import Cooldown
        >>> [Cooldown(0.5, epochs=4).factor(epoch) for epoch in range(4)]
        [1.0, 1.0, 1.0, 0.5]
    """

    share: float
    epochs: int

    def __post_init__(self) -> None:
        share = self.share
        if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 <= share <= 1:
            raise ValueError(f"cooldown must be a share of the run, from 0 to 1, got {share!r}")
        object.__setattr__(self, "share", float(share))  # a checkpoint holds a float

    def factor(self, epoch: int) -> float:
        """Return the factor of the learning rate in that epoch, counted from 0."""
        return min(1.0, (self.epochs - epoch) / (self.share * self.epochs)) if self.share else 1.0

    @contextlib.contextmanager
    def of_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within the context, `optimizer` steps at the rate of that epoch."""
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * self.factor(epoch)
        try:
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def check_schedules(model: nn.Module, schedules: Mapping[str, Schedule], num_steps: int) -> None:
    """Try the schedules at a few steps of a run of `num_steps`, and leave the model at step 0.

    Warns of a `Ramp` longer than the run, which would end on the way.

    Raises:
        ValueError: a name that leads to no setting, a schedule that is no function, or a value out of range.
    """
    for name, schedule in schedules.items():
        if not takes(schedule, 1):
            raise ValueError(f"schedules[{name!r}] must be a function of the step, such as a Ramp, got {schedule!r}")
        if isinstance(schedule, Ramp) and num_steps < schedule.hold + schedule.length:
            warnings.warn(
                f"schedules[{name!r}] reaches {schedule.stop:g} after {schedule.hold + schedule.length} steps, and "
                f"this run has {num_steps}: it ends at {schedule(num_steps - 1):g}; train longer or ramp sooner",
                stacklevel=3,
            )
    for share in range(_TRIALS, -1, -1):
        set_values(model, schedules, (num_steps - 1) * share // _TRIALS)


def set_values(model: nn.Module, schedules: Mapping[str, Schedule], step: int) -> None:
    """Set every scheduled buffer to its value at `step`.

    Raises:
        ValueError: a name that leads to no buffer of one number, or a value out of range.
    """
    for name, schedule in schedules.items():
        owner, buffer, value = _owner(model, name), scheduled_buffer(model, name), _value(name, schedule, step)
        if isinstance(owner, ScalarModule):
            owner.check_scalar(name.rpartition(".")[2], value)
        buffer.fill_(value)


def _value(name: str, schedule: Schedule, step: int) -> float:
    value = schedule(step)
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"schedules[{name!r}] must return finite numbers, got {value!r} at step {step}")
    return value


@contextlib.contextmanager
def unchanged_if_refused(model: VAE, schedules: Mapping[str, Schedule]) -> Iterator[None]:
    """Restore the scheduled settings and `num_data` of `model` if an error ends the run, except a diverged loss."""
    values = {name: float(scheduled_buffer(model, name)) for name in schedules}
    num_data = model.num_data
    try:
        yield
    except Exception as error:
        if not isinstance(error, NonFiniteLossError):
            model.num_data = num_data
            for name, value in values.items():  # by name: a move to another device replaces buffers
                scheduled_buffer(model, name).fill_(value)
        raise


class Rehearsal(NamedTuple):
    """An `lr_schedule` followed over some epochs.

    Attributes:
        rates: learning rate of each group of parameters, for each epoch.
        groups: the options of each group after these epochs.
        scheduler: the state of the scheduler after these epochs.
    """

    rates: list[list[float]]
    groups: list[dict[str, Any]]
    scheduler: dict[str, Any]


def rehearse_lr(
    schedule: LRScheduler | None, optimizer: torch.optim.Optimizer, bounds: Sequence[float | None]
) -> Rehearsal | None:
    """Follow a copy of the scheduler `schedule`, with an optimiser of a single number for each group.

    Neither `schedule` nor `optimizer` takes a step. Return None, with a warning, if the rates cannot be foreseen.

    Args:
        bounds: one for each epoch, see `step_lr`.

    Raises:
        ValueError: a scheduler that fails before the end.
    """

    def rehearse() -> Rehearsal:
        groups = [
            {"params": [torch.zeros(1, requires_grad=True)]}
            | {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        trial = torch.optim.Optimizer(groups, optimizer.defaults)
        copied = _copied(schedule, {id(optimizer): trial})
        rates = []
        for bound in bounds:
            rates.append([float(group["lr"]) for group in trial.param_groups])
            try:
                step_lr(copied, [bound])
            except Exception as error:
                raise ValueError(
                    f"lr_schedule cannot last for epochs={len(bounds)}, after {len(rates)} it fails ({error}); make it "
                    "longer"
                ) from error
        return Rehearsal(rates, trial.state_dict()["param_groups"], copied.state_dict() if copied else {})

    return _foreseen("lr_schedule", rehearse, lambda rehearsal: rehearsal.rates)


class _NotCopiedError(Exception):
    """An object that refuses to be copied."""


def _copied(schedule: T, memo: dict[int, Any]) -> T:
    try:
        return copy.deepcopy(schedule, memo)
    except Exception as error:  # an object of the caller's may raise anything
        raise _NotCopiedError(f"{type(error).__name__}: {error}") from error


def _foreseen(name: str, rehearse: Callable[[], T], values: Callable[[T], Any] = lambda found: found) -> T | None:
    """Return the outcome of `rehearse`, which calls a copy of a schedule; None, with a warning, if it proves nothing.

    An object with a state is copied, so a rehearsal does not use the state up. `copy.deepcopy` leaves functions as they
    are. Two rehearsals from the same random numbers tell whether a function has a state: then their values differ.
    """
    try:
        with own_random_numbers():
            first = rehearse()
        with own_random_numbers():
            second = rehearse()
    except _NotCopiedError as error:
        reason = f"cannot be copied ({error}), so its values are not known before the run"
    else:
        if values(first) == values(second):
            return first
        reason = "is no function of the step alone: called twice with the same steps, it returned different values"
    warnings.warn(
        f"{name} {reason}; a resumed run does not compare it: resume with the same one, or pass a function whose value "
        "depends on its argument only",
        stacklevel=6,
    )
    return None


def check_plateau(schedule: LRScheduler | None, is_validated: bool) -> None:
    """Raise `ValueError` if `schedule` is a `ReduceLROnPlateau` that cannot step by a validation bound."""
    if not isinstance(schedule, ReduceLROnPlateau):
        return
    if not is_validated:
        raise ValueError(
            "lr_schedule returns a ReduceLROnPlateau, which steps by the validation bound, and there is none; pass "
            "validation=0.1 or data"
        )
    if schedule.mode != "max" or schedule.threshold_mode != "abs":
        raise ValueError(
            "lr_schedule must return a ReduceLROnPlateau with mode='max' and threshold_mode='abs', because a bound "
            f"rises and may be negative, got mode={schedule.mode!r} and threshold_mode={schedule.threshold_mode!r}"
        )


def step_lr(schedule: LRScheduler | None, bounds: Sequence[float | None]) -> None:
    """Advance `schedule` by an epoch for each of `bounds`.

    Args:
        bounds: validation bounds, by which a `ReduceLROnPlateau` steps; it ignores an epoch of None.
    """
    with warnings.catch_warnings():
        # torch warns if the optimiser has not taken a step between two steps of the scheduler.
        warnings.filterwarnings("ignore", r"(Detected call of `lr_scheduler|Seems like `optimizer).step\(\)` ")
        for bound in bounds:
            if isinstance(schedule, ReduceLROnPlateau):
                if bound is not None:
                    schedule.step(bound)
            elif schedule is not None:
                schedule.step()


def planned(
    rates: list[list[float]] | None, schedules: Mapping[str, Schedule], epochs: int, steps: int
) -> dict[str, Tensor]:
    """Return the values that all schedules take over a run of `epochs` epochs of `steps` steps.

    Args:
        rates: learning rates of each epoch, or None.
        schedules: those of `vsc_pyro.fit`.

    Returns:
        Tensors (float64) by name: ``"lr_schedule"`` of shape ``(epochs, groups)``, and ``"schedules['beta']"`` of
        shape ``(epochs, 2)``, the values at the first and the last step of each epoch. Schedules that cannot be
        foreseen are left out.
    """
    rows = {} if rates is None else {"lr_schedule": rates}
    ends = [(epoch * steps, (epoch + 1) * steps - 1) for epoch in range(epochs)]

    def rehearse(name: str, schedule: Schedule) -> list[list[float]]:
        copied = _copied(schedule, {})
        return [[float(_value(name, copied, step)) for step in pair] for pair in ends]

    for name, schedule in schedules.items():
        if (values := _foreseen(f"schedules[{name!r}]", functools.partial(rehearse, name, schedule))) is not None:
            rows[f"schedules[{name!r}]"] = values
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def scheduled_buffer(model: nn.Module, name: str) -> Tensor:
    """Return the buffer of `model` that has that dotted name, such as ``"encoder.gate.temperature"``.

    Raises:
        ValueError: a name that leads to no buffer of one floating-point number.
    """
    owner, last = _owner(model, name), name.rpartition(".")[2]
    try:
        value = getattr(owner, last)
    except AttributeError as error:
        raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
    is_buffer = last in getattr(owner, "_buffers", {}) and isinstance(value, Tensor)
    if not (is_buffer and value.numel() == 1 and value.is_floating_point()):
        raise ValueError(
            f"schedules names {name!r}, which cannot be scheduled; known to work are 'beta', 'encoder.slab_weight' and "
            "settings of a gate such as 'encoder.gate.temperature'; to schedule a number of your own module, make it "
            "a buffer: self.register_buffer(name, torch.tensor(value))"
        )
    return value


def _owner(model: nn.Module, name: str) -> Any:
    """Return the object that a dotted name without its last part leads to."""
    try:
        return functools.reduce(getattr, name.split(".")[:-1], model)
    except AttributeError as error:
        raise ValueError(f"schedules names {name!r}, and the model has no such setting: {error}") from error
