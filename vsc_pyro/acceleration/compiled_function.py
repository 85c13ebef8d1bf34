"""`CompiledFunction`: a function of tensors and distributions, recorded, compared and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice
from vsc_pyro.acceleration.backends import BACKENDS
from vsc_pyro.acceleration.comparison import COMPARISONS, alike, forked, same, undisturbed
from vsc_pyro.acceleration.flat_arguments import flatten, rebuild
from vsc_pyro.acceleration.recorder import NotCapturedError, first_line, record

# Graphs that one function may have. More mean that the arguments hold something that should be a tensor.
_MAX_GRAPHS = 4


class CompiledFunction:
    """A function without gradients, recorded once for each kind of arguments and compiled.

    Arguments are tensors, distributions, numbers, and tuples, lists and dictionaries of these. Two calls are of the
    same kind if shapes, strides, types, devices, and all constants are equal. The function may also read tensors of
    `module`: their values are read anew in each call. Random numbers are drawn anew by the same operations, so the same
    seed returns the same results but for rounding.

    A function that cannot be captured, or that differs from its graph, is called directly from then on; one warning
    says why.

    Args:
        function: returns tensors in a list or tuple, by operations that do not depend on the values of tensors.
        module: the module whose parameters, buffers and other tensors the function may read.
        name: name of the work, for the warning.
        backend: ``"inductor"``, or ``"eager"`` to run the recorded operations one by one.

    Raises:
        ValueError: an unknown backend.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.BernoulliDecoder(2, 4), vsc.NormalPrior(2)).eval()
        >>> decode = CompiledFunction(lambda q: [model.decoder(q.sample()).mean], model, "decoding", backend="eager")
        >>> (means,) = decode(model.encoder(torch.ones(3, 4)))
        >>> means.shape
        torch.Size([3, 4])
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module, name: str, backend: str = "inductor") -> None:
        self._function = function
        self._module = module
        self._name = name
        self._compile = choice("backend", backend, BACKENDS)
        self._graphs: dict[tuple, tuple[Callable[..., Any], list[Tensor]]] = {}
        self._captures = True

    @property
    def is_eager(self) -> bool:
        """Return True if capturing has been given up, for the reason that the warning gave."""
        return not self._captures

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        if not self._captures:
            return self._function(*args)
        leaves, rest, key = flatten(args)
        key = (*key, *map(id, _tensors(self._module)))  # kept alive by the graphs that read them
        try:
            hash(key)
        except TypeError as error:
            return self._give_up(f"what an argument holds beside tensors is not fixed ({error})", args)
        try:
            if key not in self._graphs:
                if len(self._graphs) == _MAX_GRAPHS:
                    raise NotCapturedError(f"{_MAX_GRAPHS} graphs have been captured, of arguments of as many kinds")
                self._graphs[key] = self._capture(rest, leaves)
        except NotCapturedError as error:
            return self._give_up(str(error), args)
        run, constants = self._graphs[key]
        return undisturbed(run, leaves + constants)

    def _give_up(self, reason: str, args: tuple) -> Any:
        result = self._function(*args)  # its own errors need no warning
        self._captures = False
        self._graphs.clear()
        warnings.warn(f"{self._name} is not compiled: {reason}", stacklevel=3)
        return result

    def _capture(self, rest: Any, leaves: list[Tensor]) -> tuple[Callable[..., Any], list[Tensor]]:
        """Record, compare and compile; also return the tensors that the graph reads of the module."""

        # Runs on copies: a distribution keeps what it has computed, and would change in kind.
        def function(*tensors: Tensor) -> list[Tensor]:
            return list(self._function(*rebuild(rest, tensors)))

        with forked(leaves), torch.no_grad():
            with pyro.validation_enabled(False):  # its checks read values
                recorded, constants = record(function, leaves)
            own = {id(tensor) for tensor in _tensors(self._module)}
            if foreign := [tuple(constant.shape) for constant in constants if id(constant) not in own]:
                raise NotCapturedError(
                    f"it reads a tensor of shape {foreign[0]} that is neither in its arguments nor a parameter, buffer "
                    f"or attribute of a module in {type(self._module).__name__}"
                )
            inputs = leaves + constants
            self._compare(function, recorded, leaves, inputs, same)
            run = self._compile(recorded, inputs)
            if run is not recorded:
                self._compare(function, run, leaves, inputs, alike)
            return run, constants

    def _compare(
        self,
        function: Callable[..., Any],
        graph: Callable[..., Any],
        leaves: list[Tensor],
        inputs: list[Tensor],
        are_alike: Callable[[list[Tensor], list[Tensor]], bool],
    ) -> None:
        """Raise unless the graph computes the function."""
        try:
            agree = any(_agree(function, graph, leaves, inputs, are_alike) for _ in range(COMPARISONS))
        except Exception as error:
            raise NotCapturedError(f"comparing what was captured fails ({first_line(error)})") from error
        if not agree:
            raise NotCapturedError(
                "captured, it gives something else than when it is called; it depends on something other than its "
                "arguments, parameters, buffers and torch's random numbers"
            )


def _agree(
    function: Callable[..., Any],
    graph: Callable[..., Any],
    leaves: list[Tensor],
    inputs: list[Tensor],
    are_alike: Callable[[list[Tensor], list[Tensor]], bool],
) -> bool:
    """Return True if the graph computes the function, for other random numbers than it was recorded with."""
    with forked(inputs):
        got = [value.clone() for value in undisturbed(graph, inputs)]
    return are_alike(function(*leaves), got)  # and leaves other random numbers for the next time


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters, buffers and other tensors of all its modules."""
    return [
        value
        for part in module.modules()
        for held in (part._parameters, part._buffers, vars(part))
        for value in held.values()
        if isinstance(value, Tensor)
    ]
