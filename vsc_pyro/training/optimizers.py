"""Updates of parameters: the optimiser of `fit`, and in `SVI` one for all parameters or Pyro's with one for each."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.optim.lr_scheduler import LRScheduler

from vsc_pyro._seeding import seeded

OptimizerFactory = Callable[[list[Tensor]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

# Optimisers that update each parameter by its own gradient and state alone; those with one kernel for all parameters.
_PER_PARAMETER = (Adam, AdamW, SGD, Adagrad, RMSprop, Adadelta, Adamax, NAdam, RAdam)
_FUSED = (Adam, AdamW, SGD, Adagrad)


def make_optimizer(
    make: OptimizerFactory | None, parameters: list[Tensor], lr: float, weight_decay: float | None
) -> Optimizer:
    """Return the optimiser of a run: ``make(parameters)``, or Adam, which is AdamW with a `weight_decay`.

    Raises:
        ValueError: `make` returns anything but a torch optimiser of exactly these parameters that has a learning rate
            and steps by dense gradients alone.
    """
    if make is None and weight_decay is None:
        return Adam(parameters, lr=lr, fused=True)
    if make is None:
        return AdamW(parameters, lr=lr, weight_decay=cast("float", weight_decay), fused=True)
    made = make(list(parameters))
    if not isinstance(made, Optimizer):
        raise ValueError(
            "optimizer must be a function from a list of parameters to a torch optimiser, such as "
            f"functools.partial(torch.optim.SGD, lr=0.1), and it returned {type(made).__name__}"
        )
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    if {*map(id, held)} != {*map(id, parameters)}:
        raise ValueError(
            f"optimizer must hold the {len(parameters)} parameters that it gets and no others, got {len(held)}; call "
            "requires_grad_(False) of parameters that are to stay"
        )
    for rate in (group.get("lr") for group in made.param_groups):
        if not isinstance(rate, (numbers.Real, Tensor)):
            raise ValueError(
                f"optimizer must have a learning rate lr, which fit lowers at the end, and {type(made).__name__} has "
                f"{rate!r}; set it, or take another, such as torch.optim.AdamW"
            )
    _check_step(made)
    return made


def _check_step(optimizer: Optimizer) -> None:
    """Raise `ValueError` if a copy of the optimiser, without its hooks, cannot take a step by gradients of 1."""
    trial = object.__new__(type(optimizer))
    hooks = {"_optimizer_step_pre_hooks": {}, "_optimizer_step_post_hooks": {}}
    try:
        vars(trial).update(copy.deepcopy(vars(optimizer) | hooks))
    except Exception:  # an object of the caller's that is not copied may work
        return
    parameters = [parameter for group in trial.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        with seeded(0, parameters[0].device):
            trial.step()
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            raise FloatingPointError("parameters become NaN or infinite")
    except (AttributeError, LookupError):  # what the copy lacks, such as slots or state by id, the original may have
        return
    except Exception as error:
        raise ValueError(
            f"optimizer must step by dense gradients alone, and a step of {type(optimizer).__name__} by gradients of 1 "
            f"fails ({error}); change its options, or take another, such as torch.optim.AdamW"
        ) from error


def make_scheduler(make: SchedulerFactory | None, optimizer: Optimizer) -> LRScheduler | None:
    """Return the scheduler of a run, ``make(optimizer)``, or None.

    Raises:
        ValueError: `make` returns anything but a torch scheduler of this optimiser.
    """
    if make is None:
        return None
    made = make(optimizer)
    if not isinstance(made, LRScheduler) or made.optimizer is not optimizer:
        other = " of another optimiser" if isinstance(made, LRScheduler) else ""
        raise ValueError(
            "lr_schedule must be a function from the optimiser to a torch scheduler of it, such as "
            "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10), and it returned "
            f"{type(made).__name__}{other}"
        )
    return made


class ClipNorm:
    """A hook before an optimiser's step that scales gradients so that their joint norm is at most `norm`.

    It consists of tensor operations alone, so a CUDA graph can contain it.
    """

    is_capturable: ClassVar[bool] = True

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def __call__(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            parameter.grad = parameter.grad.clone()  # gradients of a compiled step may share memory
        torch.nn.utils.clip_grad_norm_(parameters, self.norm)


class OneOptimizer(PyroOptim):
    """One torch optimiser for all parameters, with the interface of a `PyroOptim`.

    Args:
        optimizer: a torch optimiser, or a function from a list of parameters to one. With a function, parameters of
            later steps join the optimiser: in its group if it has only one, otherwise in new groups.
    """

    def __init__(self, optimizer: Optimizer | OptimizerFactory) -> None:
        super().__init__(type(optimizer), {})
        self.make = None if isinstance(optimizer, Optimizer) else optimizer
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else None

    @property
    def needs_parameters(self) -> bool:
        """True if a call needs the parameters of the step."""
        return self.make is not None

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of the optimiser."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def zero_before(self) -> None:
        """Clear the gradients of the last step."""
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        """Add new parameters of `params` to the optimiser, and update all parameters."""
        known = set(map(id, self.parameters))
        new = [parameter for parameter in params if id(parameter) not in known]
        if self.make is not None and (new or self.optimizer is None):
            self._add(self.make(new), new)
        cast("Optimizer", self.optimizer).step()

    def _add(self, made: Optimizer, new: list[Tensor]) -> None:
        if self.optimizer is None:
            self.optimizer = made
        elif len(self.optimizer.param_groups) == len(made.param_groups) == 1:
            self.optimizer.param_groups[0]["params"].extend(new)  # a schedule of the group applies to all
        else:
            for group in made.param_groups:
                self.optimizer.add_param_group(group)


class PyrosOptimizers:
    """The optimisers of a `pyro.optim.PyroOptim`, which has one for each parameter, stepped together if possible.

    If their class updates each parameter by its own gradient and state alone, and nothing is clipped, one joint
    optimiser updates all parameters with equal options. It works on the states of Pyro's optimisers, so their
    `get_state`, schedules and learning rates continue. Otherwise Pyro's own call makes the update.

    Args:
        optim: an optimiser of `pyro.optim`.
        fused: on a CPU, use torch's fused kernel for all parameters, equal up to rounding. Without it the result is
            equal to the last bit.
    """

    needs_parameters = True

    def __init__(self, optim: PyroOptim, fused: bool) -> None:
        self._optim = optim
        self._fused = fused
        self._parameters: dict[int, Tensor] = {}
        self._joint: dict[tuple[int, ...], Optimizer] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that have been updated."""
        return list(self._parameters.values())

    def zero_before(self) -> None:
        """Do nothing: Pyro zeroes gradients after a step."""

    def __call__(self, params: list[Tensor]) -> None:
        """Update `params` and no others, and zero their gradients, as Pyro does."""
        self._parameters |= {id(parameter): parameter for parameter in params}
        own = self._optimizers(params)
        if own is None:
            self._optim(params)
        else:
            self._step_together(params, own)
        zero_grads(params)

    def _optimizers(self, params: list[Tensor]) -> list[Optimizer] | None:
        """Return Pyro's optimiser of each parameter; None if one is missing or they cannot be stepped together."""
        made, clip = self._optim.optim_objs, self._optim.grad_clip
        if type(self._optim).__call__ not in (PyroOptim.__call__, PyroLRScheduler.__call__):
            return None
        if any(parameter not in made or clip[parameter] is not None for parameter in params):
            return None
        own = [getattr(made[parameter], "optimizer", made[parameter]) for parameter in params]
        return own if all(type(optimizer) in _PER_PARAMETER for optimizer in own) else None

    def _step_together(self, params: list[Tensor], own: list[Optimizer]) -> None:
        alike: dict[tuple, list[int]] = {}
        for position, optimizer in enumerate(own):
            options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
            alike.setdefault((type(optimizer), params[position].device, *options.items()), []).append(position)
        for positions in alike.values():
            chosen = [(params[position], own[position]) for position in positions]
            joint = self._joint.get(key := tuple(id(parameter) for parameter, _ in chosen))
            if joint is None:
                joint = self._joint[key] = _joint(chosen, self._fused)
            options = chosen[0][1].param_groups[0]
            joint.param_groups[0].update(
                {name: value for name, value in options.items() if name not in ("params", "fused")}
            )
            for parameter, optimizer in chosen:
                joint.state[parameter] = optimizer.state[parameter]
            joint.step()


def _joint(chosen: list[tuple[Tensor, Optimizer]], fused: bool) -> Optimizer:
    """Return one optimiser that replaces those of several parameters."""
    params, own = zip(*chosen, strict=True)
    cls, options = type(own[0]), own[0].param_groups[0]
    settings = {"lr": options["lr"]}
    if "fused" in options:
        # On a GPU some states of Pyro's optimisers are on the CPU, which the fused kernel refuses.
        on_cpu = all(parameter.device.type == "cpu" and parameter.is_floating_point() for parameter in params)
        free = cls in _FUSED and on_cpu and not options["foreach"] and not options["differentiable"]
        settings["fused"] = True if fused and free else options["fused"]
    return cls(params, **settings)
