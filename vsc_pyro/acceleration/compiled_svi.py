"""The class `CompiledSVI`; `vsc_pyro.acceleration` describes what it captures."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_structure

from vsc_pyro._arguments import choice
from vsc_pyro._seeding import trains
from vsc_pyro.acceleration.backends import BACKENDS
from vsc_pyro.acceleration.capture import Graph, Trial, journal_of
from vsc_pyro.acceleration.program_state import (
    ModuleState,
    Snapshot,
    attributes_of,
    is_fixed,
    kind_of,
    restore_attributes,
)
from vsc_pyro.acceleration.recorder import Journal, NotCapturedError, first_line, record
from vsc_pyro.training.optimizers import OptimizerFactory
from vsc_pyro.training.svi import SVI, distinct

# Graphs of one program at a time, and captures in all. More mean that something changes that should be a tensor.
_MAX_GRAPHS = 8
_MAX_CAPTURES = 16
_MAX_GRAPHS_OF_NUMBERS = 2


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` and `vsc_pyro.SVI` that compiles the step of any static Pyro program.

    A program is static if it does the same tensor operations in every step. `vsc_pyro.acceleration` says what a step
    reads anew and what happens to programs that cannot be captured. Compilation takes some 8 to 20 seconds for every
    new shape of the arguments; PyTorch keeps the result on disk for the next process.

    Args:
        model, guide, optim, loss: as for `vsc_pyro.SVI`; Pyro's own ELBOs work too. If `optim` is a function or one of
            Pyro's, steps that meet a new parameter, such as the first, are eager.
        backend: ``"inductor"``, or ``"eager"`` to run the captured operations one by one. That needs no compiler, and
            gains about half.

    Attributes:
        capture_seconds: time spent on capturing and compiling so far.

    Raises:
        ValueError: an `optim` that `vsc_pyro.SVI` does not take, or an unknown backend.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> vae = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.BernoulliDecoder(2, 4), vsc.NormalPrior(2))
        >>> adam = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
        >>> svi = vsc.CompiledSVI(vae.model, vae.guide, adam, vsc.TraceELBO(), backend="eager")
        >>> svi.step(torch.ones(8, 4)).shape  # minus the ELBO, summed over data
        torch.Size([])
    """

    _fuses: ClassVar[bool] = True

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: torch.optim.Optimizer | OptimizerFactory | PyroOptim,
        loss: ELBO,
        *,
        backend: str = "inductor",
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self._elbo = loss
        self._compile = choice("backend", backend, BACKENDS)
        self._roots = distinct(root for root in map(_module_of, (model, guide)) if root is not None)
        self._modules = ModuleState(_parts(self._roots), {})
        self._graphs: dict[tuple, Graph] = {}
        self._captures = True
        self._num_captures = 0
        self._has_warned_of_kinds = False
        self.capture_seconds = 0.0

    @property
    def is_eager(self) -> bool:
        """Return True if capturing has been given up, for the reason that the warning gave."""
        return not self._captures

    @trains
    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data, as an eager step does (ours: a 0-d tensor)."""
        graph, arguments = self.graph_for(args, kwargs)
        if graph is None:
            return super().step(*args, **kwargs)
        outputs = graph(arguments)
        self.update(graph, outputs)
        return outputs[0].item() if graph.returns_number else outputs[0]

    def update(self, graph: Graph, outputs: list[Tensor]) -> None:
        """Let the optimiser step by the gradients that `graph` returned after the loss."""
        self.set_gradients(graph, outputs[1:])
        self._stepper(graph.parameters)

    def set_gradients(self, graph: Graph, gradients: list[Tensor]) -> None:
        """Set the gradient of each parameter; those that `graph` does not reach get None."""
        remaining = iter(gradients)
        self._stepper.zero_before()
        for parameter, reached in zip(graph.parameters, graph.reached, strict=True):
            if reached:
                parameter.grad = next(remaining)

    def graphs(self) -> list[Graph]:
        """Return the graphs that are kept."""
        return list(self._graphs.values())

    def graph_for(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Graph | None, list[Tensor]]:
        """Return the graph of a step with these arguments, captured if need be, and their tensors.

        The graph is None if the step is to be eager.
        """
        self._check_store()
        # Handlers around a step are the caller's, and a first step that makes the optimiser may draw its parameters.
        if not self._captures or runtime._PYRO_STACK or not self._stepper.parameters:
            return None, []
        leaves = tree_leaves((args, kwargs))
        tensors = distinct(leaf for leaf in leaves if isinstance(leaf, Tensor))
        structure = (*_nesting(args, kwargs), *_aliases(leaves, tensors))
        try:
            return self._find(leaves, structure, args, kwargs, tensors), tensors
        except NotCapturedError as error:
            return self._give_up(str(error)), []

    def _find(
        self, leaves: list[Any], structure: tuple, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Graph | None:
        try:
            own = (*structure, *map(kind_of, leaves))
        except TypeError as error:
            raise NotCapturedError(f"an argument, or a part of one, is neither a tensor nor fixed ({error})") from error
        graph = self._graphs.get(self._key(own))
        if graph is not None:
            return graph if self._is_valid(graph, args, kwargs, tensors) else None
        if self._are_enough(own, leaves):
            return None
        with self._timed():
            graph = self._capture(args, kwargs, tensors)
        if graph is not None:
            self._graphs[self._key(own)] = graph
        return graph

    def _key(self, arguments: tuple) -> tuple:
        """Return all that a graph depends on beside the values of tensors."""
        parameters = self._stepper.parameters
        device = parameters[0].device.type
        return (
            arguments,
            *self._modules.key(),
            *((id(p), p.requires_grad, *kind_of(p)) for p in parameters),
            *(value for value in vars(self._elbo).values() if is_fixed(value)),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )

    def _are_enough(self, arguments: tuple, leaves: list[Any]) -> bool:
        """Return True, with one warning, if there are to be no more graphs."""
        tensors_alone = _without_numbers(arguments, leaves)
        of_numbers = [key[0] for key in self._graphs if _without_numbers(key[0], leaves) == tensors_alone]
        few_of_numbers = len(set(of_numbers) - {arguments}) < _MAX_GRAPHS_OF_NUMBERS
        if len(self._graphs) < _MAX_GRAPHS and few_of_numbers and self._num_captures < _MAX_CAPTURES:
            return False
        if not self._has_warned_of_kinds:
            self._has_warned_of_kinds = True
            warnings.warn(
                f"CompiledSVI takes eager steps of any further kind: {len(self._graphs)} graphs have been captured, of "
                "arguments or settings that differ in shape or value; pass what changes as a tensor of one shape, or "
                "make it a buffer of a module",
                stacklevel=6,
            )
        return True

    def _is_valid(self, graph: Graph, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
        """Return False if the store holds other parameters than the graph; compare it with an eager step when due."""
        if graph.of_store:
            now = dict(pyro.get_param_store().named_parameters())
            if any(now.get(name) is not parameter for name, parameter in graph.of_store.items()):
                return False
        graph.steps += 1
        if graph.is_due:
            with self._timed():
                self._check(graph, args, kwargs, tensors)
        return True

    def _give_up(self, reason: str) -> None:
        self._captures = False
        self._graphs.clear()
        warnings.warn(f"CompiledSVI takes eager steps from here on: {reason}", stacklevel=5)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.capture_seconds += time.perf_counter() - start

    def _capture(self, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> Graph | None:
        """Record a step, compare it with eager ones, and compile it.

        Returns:
            None if the programs have parameters that the optimiser must first take in, by an eager step.
        """
        first = self._trial(args, kwargs, self._stepper.parameters)
        met: dict[nn.Module, dict[str, Any]] = {}
        try:
            with first.undone(tensors), journal_of(self._buffers()) as journal, self._meeting_modules(journal, met):
                first.run()  # with Pyro's checks, if they are on
                is_finite = first.is_finite()
            if self._stepper.needs_parameters and self._has_new(first):
                first.delete_made()
                return None
            self._num_captures += 1
            self._watch(met)
            return self._compiled_graph(first, is_finite, args, kwargs, tensors)
        finally:
            for module, attributes in met.items():
                restore_attributes(module, attributes)

    def _compiled_graph(
        self, first: Trial, is_finite: bool, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Graph:
        """Return the graph of a step whose first trial has run; `is_finite` says whether its results were."""
        # Pyro's optimisers step the parameters that a step meets, and no others.
        pyros = self.optim is not self._stepper
        parameters = distinct(first.met.values()) if pyros else self._stepper.parameters
        trial = self._trial(args, kwargs, parameters)
        inputs = distinct([*self._stepper.parameters, *(t for t in self._modules.tensors() if t is not None)])
        inputs = [tensor for tensor in inputs if all(tensor is not argument for argument in tensors)]
        try:
            with trial.undone([*tensors, *inputs]):
                snapshot = self._snapshot(args, kwargs)
                with journal_of(self._buffers()):
                    recorded, constants = record(trial, [*tensors, *inputs])
                graph = self._graph(recorded, [*inputs, *constants], trial, first)
                graph.compare(tensors, trial, snapshot, self._buffers(), is_new=True)
                if is_finite and not trial.is_finite():
                    raise NotCapturedError("it looks at the value of a tensor, by item(), float() or the like")
                graph.run = self._compile(recorded, [*tensors, *graph.inputs])
                if graph.run is not recorded:
                    graph.compare_compiled(tensors, self._buffers())
        except NotCapturedError:
            raise
        except Exception as error:
            raise NotCapturedError(f"capturing it fails ({first_line(error)})") from error
        return graph

    def _trial(self, args: tuple, kwargs: dict[str, Any], parameters: list[Tensor]) -> Trial:
        loss_and_grads = functools.partial(self.loss_and_grads, self.model, self.guide, *args, **kwargs)
        others = (tensor for tensor in self._modules.tensors() if isinstance(tensor, nn.Parameter))
        return Trial(loss_and_grads, parameters, [*self._stepper.parameters, *others])

    def _graph(self, recorded: torch.fx.GraphModule, inputs: list[Tensor], trial: Trial, first: Trial) -> Graph:
        of_store: dict[str, Tensor] = {}
        if self._stepper.needs_parameters:
            of_modules = set(map(id, self._modules.tensors()))
            of_store = {name: parameter for name, parameter in first.met.items() if id(parameter) not in of_modules}
        returns_number = self._loss_is_function or not isinstance(first.loss, Tensor)
        alive = self._modules.objects()
        return Graph(recorded, recorded, inputs, trial.parameters, trial.reached, alive, of_store, returns_number)

    @contextlib.contextmanager
    def _meeting_modules(self, journal: Journal, met: dict[nn.Module, dict[str, Any]]) -> Iterator[None]:
        """Collect in `met` the modules that are called within, and the attributes that they had before."""

        def meet(module: nn.Module, _: object = None) -> None:
            if module not in met:
                met[module] = attributes_of(module)
                journal.keep(*module.buffers(recurse=False))

        for module in _parts(self._roots):
            meet(module)
        hook = register_module_forward_pre_hook(meet)
        try:
            yield
        finally:
            hook.remove()

    def _watch(self, met: dict[nn.Module, dict[str, Any]]) -> None:
        """Key graphs by the state of these modules too from here on; if there are new ones, graphs are forgotten."""
        if not set(met) <= set(self._modules.modules):
            self._graphs.clear()
        if not self._graphs:
            self._modules = ModuleState(dict.fromkeys((*self._modules.modules, *met)), met)

    def _has_new(self, trial: Trial) -> bool:
        known = set(map(id, self._stepper.parameters))
        return any(id(parameter) not in known for parameter in trial.met.values())

    def _buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules.modules for buffer in module.buffers(recurse=False)]

    def _snapshot(self, args: tuple, kwargs: dict[str, Any]) -> Snapshot:
        return Snapshot([self.model, self.guide, self._elbo, *self._modules.modules, args, kwargs])

    def _check(self, graph: Graph, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Raise unless a graph in use still computes the eager step."""
        trial = self._trial(args, kwargs, graph.parameters)
        held = {module: attributes_of(module) for module in self._modules.modules}
        with trial.undone([*tensors, *graph.inputs]):
            try:
                graph.compare(tensors, trial, self._snapshot(args, kwargs), self._buffers())
                if self._stepper.needs_parameters and self._has_new(trial):
                    raise NotCapturedError("an eager step meets a parameter that is not in the graph")
            except Exception as error:
                known = str(error) if isinstance(error, NotCapturedError) else first_line(error)
                raise NotCapturedError(
                    f"after {graph.steps} steps of a graph, {known}; the steps after the last comparison may have been "
                    "taken with the state at the time of the capture"
                ) from error
            finally:
                for module, attributes in held.items():
                    restore_attributes(module, attributes)


def _module_of(program: Callable) -> nn.Module | None:
    """Return the module that a program is, or is a method of, also behind Pyro's handlers."""
    program = poutine.unwrap(program)
    while isinstance(program, functools.partial):
        program = poutine.unwrap(program.func)
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def _parts(roots: list[nn.Module]) -> list[nn.Module]:
    return distinct(module for root in roots for module in root.modules())


def _nesting(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Return a key for how arguments are nested."""
    flat = all(not isinstance(argument, (tuple, list, dict)) for argument in (*args, *kwargs.values()))
    return len(args), *(kwargs if flat else (str(tree_structure((args, kwargs))),))


def _aliases(leaves: list[Any], tensors: list[Tensor]) -> tuple[int, ...]:
    """Return which tensor each leaf of the arguments is: one tensor may be passed twice."""
    positions = {id(tensor): position for position, tensor in enumerate(tensors)}
    return tuple(positions.get(id(leaf), -1) for leaf in leaves) if len(leaves) > 1 else ()


def _without_numbers(arguments: tuple, leaves: list[Any]) -> tuple:
    numbers = {len(arguments) - len(leaves) + i for i, leaf in enumerate(leaves) if type(leaf) in (int, float)}
    return tuple(None if position in numbers else part for position, part in enumerate(arguments))
