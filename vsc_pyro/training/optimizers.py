"""How `SVI` steps parameters: by one torch optimiser for all of them, or by Pyro's, which has one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

OptimizerFactory = Callable[[list[Tensor]], Optimizer]

# Classes that step every parameter by its own gradient and state alone, and those with one kernel for all of them.
_PER_PARAMETER = (Adam, AdamW, SGD, Adagrad, RMSprop, Adadelta, Adamax, NAdam, RAdam)
_FUSED = (Adam, AdamW, SGD, Adagrad)


class OneOptimizer(PyroOptim):
    """A torch optimiser where Pyro wants one of its own, which would be one torch optimiser for each tensor.

    Args:
        optimizer: a torch optimiser, or a function from a list of parameters to one. The latter's takes in whatever
            parameters later steps meet: into its group where it has one, else in groups as the function makes them.
    """

    def __init__(self, optimizer: Optimizer | OptimizerFactory) -> None:
        self.make = None if isinstance(optimizer, Optimizer) else optimizer
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer if self.make is None else None

    @property
    def takes_what_is_met(self) -> bool:
        """Whether it takes in the parameters that steps meet."""
        return self.make is not None

    @property
    def parameters(self) -> list[Tensor]:
        """Those that it steps."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def zero_before(self) -> None:
        """Take off the gradients of the last step, which stay until the next."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take in what is new of the parameters that a step has met, and step all."""
        if self.make is not None:
            known = set(map(id, self.parameters))
            if (new := [parameter for parameter in params if id(parameter) not in known]) or self.optimizer is None:
                self._take_in(new)
        self.optimizer.step()

    def _take_in(self, new: list[Tensor]) -> None:
        made = self.make(new)
        if self.optimizer is None:
            self.optimizer = made
        elif len(self.optimizer.param_groups) == len(made.param_groups) == 1:
            self.optimizer.param_groups[0]["params"].extend(new)  # a schedule goes on for all alike
        else:
            for group in made.param_groups:
                self.optimizer.add_param_group(group)


class PyrosOptimizers:
    """The torch optimisers of a `pyro.optim.PyroOptim`, stepped together where that is the same.

    It is where their class is known to step every parameter by its own gradient and state alone, and nothing is
    clipped: then parameters of equal options are stepped by one optimiser. It works on the states of Pyro's, whose
    `get_state`, schedules and learning rates go on as without it. Anything else is Pyro's own call.

    Args:
        optim: of Pyro.
        fused: on a CPU, take torch's one kernel for all parameters where there is one: equal but for rounding, and
            without it to the last bit.
    """

    takes_what_is_met = True

    def __init__(self, optim: PyroOptim, fused: bool) -> None:
        self._optim = optim
        self._fused = fused
        self._parameters: dict[int, Tensor] = {}
        self._joint: dict[tuple[int, ...], Optimizer] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """Those that it has stepped."""
        return list(self._parameters.values())

    def zero_before(self) -> None:
        """Do nothing, for Pyro zeroes gradients after a step."""

    def __call__(self, params: list[Tensor]) -> None:
        """Step the parameters that a step has met, and no others, and zero their gradients, as Pyro does."""
        self._parameters |= {id(parameter): parameter for parameter in params}
        own = self._optimizers(params)
        if own is None:
            self._optim(params)
        else:
            self._step_together(params, own)
        zero_grads(params)

    def _optimizers(self, params: list[Tensor]) -> list[Optimizer] | None:
        """Pyro's, one for each parameter; None where it has none yet, or they are not to be stepped together."""
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
                joint = self._joint[key] = _joint(*zip(*chosen, strict=True), self._fused)
            options = chosen[0][1].param_groups[0]
            joint.param_groups[0].update(
                {name: value for name, value in options.items() if name not in ("params", "fused")}
            )
            for parameter, optimizer in chosen:
                joint.state[parameter] = optimizer.state[parameter]
            joint.step()


def _joint(params: tuple[Tensor, ...], own: tuple[Optimizer, ...], fused: bool) -> Optimizer:
    """One optimiser in the place of those of each parameter."""
    cls, options = type(own[0]), own[0].param_groups[0]
    settings = {"lr": options["lr"]}
    if "fused" in options:
        # On a GPU the states of Pyro's are partly elsewhere than the parameters, and no kernel takes them.
        on_cpu = all(parameter.device.type == "cpu" and parameter.is_floating_point() for parameter in params)
        free = cls in _FUSED and on_cpu and not options["foreach"] and not options["differentiable"]
        settings["fused"] = True if fused and free else options["fused"]
    return cls(params, **settings)
