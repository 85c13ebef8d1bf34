"""The class `CompiledSVI`; `vsc_pyro.acceleration` describes what it captures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten

from vsc_pyro._arguments import choice
from vsc_pyro._seeding import trains
from vsc_pyro.acceleration.backends import BACKENDS
from vsc_pyro.acceleration.comparison import COMPARISONS, alike, forked, same, tolerance_of, undisturbed
from vsc_pyro.acceleration.program_state import ModuleState, Snapshot, is_fixed, kind_of
from vsc_pyro.acceleration.recorder import Journal, NotCapturedError, as_tensor, first_line, record, unread
from vsc_pyro.training.optimizers import OptimizerFactory
from vsc_pyro.training.svi import SVI, Meeting, distinct

# Steps of a graph before it is compared with an eager step again: in neighbouring pairs, because whatever alternates
# would otherwise be met at the same phase each time.
_CHECKS = (1, 10, 11, 100, 101, 1009, 1010)
_STEPS_BETWEEN_CHECKS = 1999
# Graphs that one program may have. More mean that something changes that should be a tensor.
_MAX_GRAPHS = 8
_MAX_GRAPHS_OF_NUMBERS = 2


@dataclasses.dataclass
class Graph:
    """A captured step.

    Attributes:
        recorded: the graph as recorded.
        run: the graph as compiled.
        inputs: the tensors that it reads beside the arguments.
        parameters: those that the optimiser has, or that the step met.
        reached: for each parameter, True if it has a gradient.
        alive: the objects that the graph's key refers to by their `id`.
        of_store: parameters by their names in Pyro's store, where they must still be.
        returns_number: True if an eager step returns its loss as a number.
        steps: number of steps so far.
    """

    recorded: torch.fx.GraphModule
    run: Callable[..., Any]
    inputs: list[Tensor]
    parameters: list[Tensor]
    reached: list[bool]
    alive: list[object]
    of_store: dict[str, Tensor]
    returns_number: bool = False
    steps: int = 0

    @property
    def is_due(self) -> bool:
        """Return True if this step is to be compared with an eager one."""
        return self.steps in _CHECKS or self.steps % _STEPS_BETWEEN_CHECKS == 0

    def __call__(self, arguments: list[Tensor]) -> list[Tensor]:
        """Return the loss and the gradients."""
        return undisturbed(self.run, [*arguments, *self.inputs])


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` and `vsc_pyro.SVI` that compiles the step of any static Pyro program.

    A program is static if it does the same tensor operations in every step. `vsc_pyro.acceleration` says what a step
    reads anew and what happens to programs that cannot be captured. Compilation takes some 10 to 20 seconds for every
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
        leaves, spec = tree_flatten((args, kwargs))
        tensors = distinct(leaf for leaf in leaves if isinstance(leaf, Tensor))
        try:
            return self._find(leaves, (spec, *_aliases(leaves, tensors)), args, kwargs, tensors), tensors
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
        if len(self._graphs) < _MAX_GRAPHS and few_of_numbers:
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
        first = _Trial(self, args, kwargs, self._stepper.parameters)
        with first.undone(tensors), self._journal() as journal, self._meeting_modules(journal) as met:
            first.run()  # with Pyro's checks, if they are on
        if self._stepper.takes_what_is_met and self._has_new(first):
            return None
        self._watch(met)
        # Pyro's optimisers step the parameters that a step meets, and no others.
        pyros = self.optim is not self._stepper
        parameters = distinct(first.met.values()) if pyros else self._stepper.parameters
        trial = _Trial(self, args, kwargs, parameters)
        inputs = distinct([*self._stepper.parameters, *(t for t in self._modules.tensors() if t is not None)])
        inputs = [tensor for tensor in inputs if all(tensor is not argument for argument in tensors)]
        try:
            with trial.undone([*tensors, *inputs]):
                snapshot = self._snapshot(args, kwargs)
                with self._journal():
                    recorded, constants = record(trial, [*tensors, *inputs])
                graph = self._graph(recorded, [*inputs, *constants], trial, first)
                self._compare(graph, tensors, trial, snapshot, is_new=True)
                graph.run = self._compile(recorded, [*tensors, *graph.inputs])
                if graph.run is not recorded:
                    self._compare_compiled(graph, tensors)
        except NotCapturedError:
            raise
        except Exception as error:
            raise NotCapturedError(f"capturing it fails ({first_line(error)})") from error
        return graph

    def _graph(self, recorded: torch.fx.GraphModule, inputs: list[Tensor], trial: _Trial, first: _Trial) -> Graph:
        of_store: dict[str, Tensor] = {}
        if self._stepper.takes_what_is_met:
            of_modules = set(map(id, self._modules.tensors()))
            of_store = {name: parameter for name, parameter in first.met.items() if id(parameter) not in of_modules}
        returns_number = self._loss_is_function or not isinstance(first.loss, Tensor)
        alive = self._modules.objects()
        return Graph(recorded, recorded, inputs, trial.parameters, trial.reached, alive, of_store, returns_number)

    @contextlib.contextmanager
    def _meeting_modules(self, journal: Journal) -> Iterator[dict[nn.Module, dict[str, Any]]]:
        """Collect the modules that are called within, and the attributes that they had before."""
        met: dict[nn.Module, dict[str, Any]] = {}

        def meet(module: nn.Module, _: object = None) -> None:
            if module not in met:
                met[module] = vars(module).copy()
                journal.keep(*module.buffers(recurse=False))

        for module in _parts(self._roots):
            meet(module)
        hook = register_module_forward_pre_hook(meet)
        try:
            yield met
        finally:
            hook.remove()

    def _watch(self, met: dict[nn.Module, dict[str, Any]]) -> None:
        """Key graphs by the state of these modules from here on; graphs of other modules are forgotten."""
        if set(met) != set(self._modules.modules):
            self._graphs.clear()
        if not self._graphs:
            self._modules = ModuleState(met, met)

    def _has_new(self, trial: _Trial) -> bool:
        known = set(map(id, self._stepper.parameters))
        return any(id(parameter) not in known for parameter in trial.met.values())

    def _journal(self) -> Journal:
        journal = Journal()
        journal.keep(*(buffer for module in self._modules.modules for buffer in module.buffers(recurse=False)))
        return journal

    def _snapshot(self, args: tuple, kwargs: dict[str, Any]) -> Snapshot:
        return Snapshot([self.model, self.guide, self._elbo, *self._modules.modules, args, kwargs])

    def _compare(
        self, graph: Graph, tensors: list[Tensor], trial: _Trial, snapshot: Snapshot, is_new: bool = False
    ) -> None:
        """Raise unless the recorded graph computes the eager step, for the random numbers that come next."""
        inputs = [*tensors, *graph.inputs]
        got = self._outputs(functools.partial(undisturbed, graph.recorded), inputs)
        expected = self._outputs(trial, inputs)
        if change := snapshot.change():
            raise NotCapturedError(f"the step changes {change!r} in Python (trying it out may have moved it on)")
        agree = trial.reached == graph.reached and same(expected, got)
        if agree and not is_new:
            return
        # The same random numbers again: whatever differs to the last bit on a CPU follows something out of sight.
        again = self._outputs(trial, inputs)
        repeats = all(map(torch.equal, *(map(torch.nan_to_num, outputs) for outputs in (expected, again))))
        on_cpu = all(output.device.type == "cpu" for output in got)
        if agree and (repeats or not on_cpu):
            return
        # A gradient that is zero in truth is all rounding: on a GPU that need not be the same twice.
        rounding = torch.finfo(got[0].dtype).eps
        if repeats or on_cpu or trial.reached != graph.reached or not same(expected, got, rounding):
            raise NotCapturedError(
                "the captured step differs from an eager one; model and guide depend on something other than their "
                "arguments, parameters, buffers and torch's random numbers (trying them out may have moved it on)"
            )

    def _compare_compiled(self, graph: Graph, tensors: list[Tensor]) -> None:
        """Raise unless the compiled graph computes what the recorded one does, but for rounding."""
        inputs = [*tensors, *graph.inputs]
        tolerance = tolerance_of(graph.recorded)
        for _ in range(COMPARISONS):
            got = self._outputs(functools.partial(undisturbed, graph.run), inputs)
            expected = self._outputs(functools.partial(undisturbed, graph.recorded), inputs)
            if alike(expected, got, tolerance):
                return
            torch.rand((), device=got[0].device)  # other random numbers for the next time
        raise NotCapturedError("compiled, it gives something else than as it was recorded")

    def _outputs(self, step: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Return the loss and the gradients of a step that is undone."""
        with forked(inputs), self._journal():
            return [value.clone() for value in step(inputs)]

    def _check(self, graph: Graph, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Raise unless a graph in use still computes the eager step."""
        trial = _Trial(self, args, kwargs, graph.parameters)
        with trial.undone([*tensors, *graph.inputs]):
            try:
                self._compare(graph, tensors, trial, self._snapshot(args, kwargs))
                if self._stepper.takes_what_is_met and self._has_new(trial):
                    raise NotCapturedError("an eager step meets a parameter that is not in the graph")
            except Exception as error:
                known = str(error) if isinstance(error, NotCapturedError) else first_line(error)
                raise NotCapturedError(
                    f"after {graph.steps} steps of a graph, {known}; the steps after the last comparison may have been "
                    "taken with the state at the time of the capture"
                ) from error


class _Trial:
    """The loss and gradients of an eager step, without an update.

    Args:
        svi: the step's.
        args, kwargs: the programs' arguments.
        parameters: those whose gradients are asked for.

    Attributes:
        loss: the last loss, as the ELBO returned it.
        met: the parameters that the programs met, by name.
        reached: for each of `parameters`, True if it had a gradient.
    """

    def __init__(self, svi: CompiledSVI, args: tuple, kwargs: dict[str, Any], parameters: list[Tensor]) -> None:
        self._loss_and_grads = functools.partial(svi.loss_and_grads, svi.model, svi.guide, *args, **kwargs)
        self.parameters = parameters
        others = (t for t in svi._modules.tensors() if isinstance(t, nn.Parameter))
        self._everyone = distinct([*parameters, *svi._stepper.parameters, *others])
        self.loss: Any = None
        self.met: dict[str, Tensor] = {}
        self.reached: list[bool] = []

    def run(self) -> None:
        self._forget()
        with Meeting(self._everyone) as meeting:
            self.loss = self._loss_and_grads()
        self.met = meeting.kept()
        self.reached = [parameter.grad is not None for parameter in self.parameters]

    def __call__(self, *_: Any) -> list[Tensor]:
        """Return the loss and the gradients that there are."""
        with unread():
            self.run()
        return [as_tensor(self.loss), *(p.grad for p in self.parameters if p.grad is not None)]

    def _forget(self) -> None:
        for parameter in self._everyone:
            parameter.grad = None
        torch.clear_autocast_cache()  # of weights that autocast has cast

    @contextlib.contextmanager
    def undone(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Restore gradients and random numbers afterwards."""
        before = [(tensor, tensor.grad) for tensor in self._everyone]
        try:
            with forked(tensors):
                yield
        finally:
            self._forget()
            for tensor, gradient in before:
                tensor.grad = gradient


def _module_of(program: Callable) -> nn.Module | None:
    """Return the module that a program is, or is a method of, also behind Pyro's handlers."""
    program = poutine.unwrap(program)
    while isinstance(program, functools.partial):
        program = poutine.unwrap(program.func)
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def _parts(roots: list[nn.Module]) -> list[nn.Module]:
    return distinct(module for root in roots for module in root.modules())


def _aliases(leaves: list[Any], tensors: list[Tensor]) -> tuple[int, ...]:
    """Return which tensor each leaf of the arguments is: one tensor may be passed twice."""
    positions = {id(tensor): position for position, tensor in enumerate(tensors)}
    return tuple(positions.get(id(leaf), -1) for leaf in leaves) if len(leaves) > 1 else ()


def _without_numbers(arguments: tuple, leaves: list[Any]) -> tuple:
    numbers = {len(arguments) - len(leaves) + i for i, leaf in enumerate(leaves) if type(leaf) in (int, float)}
    return tuple(None if position in numbers else part for position, part in enumerate(arguments))
