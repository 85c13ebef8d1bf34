"""The class `CompiledSVI`; what it does is told in `vsc_pyro.acceleration`."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from vsc_pyro._arguments import choice
from vsc_pyro._seeding import trains
from vsc_pyro.acceleration.backends import BACKENDS
from vsc_pyro.acceleration.calls import Call, Numbers
from vsc_pyro.acceleration.capture import Graph, Rehearsal, hold_against_eager, hold_against_recorded
from vsc_pyro.acceleration.recorder import NotCapturedError, first_line, record, unvalidated
from vsc_pyro.acceleration.saved_state import Memento
from vsc_pyro.acceleration.state_changes import Watch, is_fixed, kind_of
from vsc_pyro.training.optimizers import OptimizerFactory
from vsc_pyro.training.schedules import Setting
from vsc_pyro.training.svi import SVI, distinct

# Of captured graphs, after which steps of yet another kind are eager: something changes that should be a tensor.
_MAX_GRAPHS = 8


class Looked(NamedTuple):
    """What was before programs were run to see what takes part, and how they were run."""

    before: Memento
    rehearsal: Rehearsal


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` and `vsc_pyro.SVI` that compiles the step of any static Pyro program.

    Static: the same operations in every step, whatever the data and the random numbers. See `vsc_pyro.acceleration` for
    what is read anew in each step, what is not, and what happens to programs that cannot be captured. Compilation takes
    some 10 to 20 seconds for every new shape of the arguments (PyTorch keeps the result on disk for the next process).

    Args:
        model, guide, optim, loss: as of `vsc_pyro.SVI`. Pyro's own ELBOs will do as well as ours. Where `optim` is a
            function, or Pyro's, steps that meet a new parameter, such as the first, are eager.
        live: dotted names of numbers of the model that change from step to step, as `vsc_pyro.schedules`
            takes them (``"beta"``, ``"encoder.gate.temperature"``), for a `model` that is a module or a method of one.
            Buffers need not be named.
        backend: ``"inductor"``, or ``"eager"`` to run the captured operations one by one, which needs no compilation
            (nor a compiler) and is about half the gain.

    Attributes:
        capture_seconds: how long capturing and compiling have taken so far.

    Raises:
        ValueError: an `optim` that `vsc_pyro.SVI` does not take, an unknown backend, a name in `live` that leads to no
            setting.

    Example:
        >>> svi = CompiledSVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3, fused=True), TraceELBO())
        >>> svi.step(x)  # a 0-d tensor: minus the ELBO, summed over data
    """

    _fuses = True

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: torch.optim.Optimizer | OptimizerFactory | PyroOptim,
        loss: ELBO,
        *,
        live: Iterable[str] = (),
        backend: str = "inductor",
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self._elbo = loss
        self._compile = choice("backend", backend, BACKENDS)
        self._roots = list({id(root): root for program in (model, guide) for root in _modules_of(program)}.values())
        live = list(live)
        if live and not self._roots:
            raise ValueError(f"live={live!r} are names of a module's settings, and the model is no module's method")
        settings = [Setting(self._roots[0], name) for name in live]
        self._live = [setting for setting in settings if not setting.is_tensor]
        self._watch: Watch | None = None
        self._structure: tuple = ()
        self._graphs: dict[tuple, Graph] = {}
        self._numbers = Numbers()
        self._captures = True
        self._has_warned_of_kinds = False
        self.capture_seconds = 0.0

    @property
    def is_eager(self) -> bool:
        """Whether capturing has been given up, for the reason that the warning gave."""
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
        """Let the optimiser step by the gradients that `graph` put out, after the loss."""
        self.set_gradients(graph, outputs[1:])
        self._stepper(graph.parameters)

    def set_gradients(self, graph: Graph, gradients: list[Tensor]) -> None:
        """Give each parameter its gradient; those that `graph` does not reach have none."""
        remaining = iter(gradients)
        self._stepper.zero_before()
        for parameter, reached in zip(graph.parameters, graph.reached, strict=True):
            if reached:
                parameter.grad = next(remaining)

    def graphs(self) -> list[Graph]:
        """Those captured, and not yet forgotten."""
        return list(self._graphs.values())

    def graph_for(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Graph | None, list[Tensor]]:
        """The graph of a step with these arguments, captured if need be, and their tensors; None for an eager step."""
        self._check_store()
        # Handlers around a step are the caller's, and a first step that makes the optimiser may draw its parameters.
        if not self._captures or runtime._PYRO_STACK or not self._stepper.parameters:
            return None, []
        if self._watch is not None and self._watch.structure() != self._structure:
            self._watch = None
            self._graphs.clear()
        try:
            return self._find(self._numbers.call(args, kwargs, self._like()))
        except NotCapturedError as error:
            return self._give_up(str(error)), []

    def _find(self, call: Call) -> tuple[Graph | None, list[Tensor]]:
        """The graph of a call and its tensors; None where the step is to be eager."""
        looked = self._look(call) if self._watch is None else None
        if self._watch is None:
            return None, []
        try:
            key = (*call.key, *self._watch.state(), *self._mode())
            graph = self._graphs.get(key)
        except TypeError as error:
            raise NotCapturedError(f"a module's attribute is neither a tensor nor fixed ({error})") from error
        if graph is not None:
            return (graph if self._is_to_be_used(graph, call) else None), call.tensors
        if len(self._graphs) == _MAX_GRAPHS or self._numbers.are_enough(call):
            self._warn_of_kinds()
            return None, []
        looked = looked or self._look(call)
        if looked is None:
            return None, []
        try:
            graph = self._graphs[key] = self._capture(call, looked)
        except Exception as error:
            looked.before.put_back()
            if self._numbers.take_for_constants(call):
                return self._find(self._numbers.call(call.args, call.kwargs, self._like()))
            known = isinstance(error, NotCapturedError)
            raise error if known else NotCapturedError(f"capturing it fails ({first_line(error)})") from error
        self._numbers.count(call)
        return graph, call.tensors

    def _is_to_be_used(self, graph: Graph, call: Call) -> bool:
        """Whether a graph's parameters are still those of Pyro's store; where it is due, check that it is the step."""
        if graph.of_store:
            now = dict(pyro.get_param_store().named_parameters())
            if any(now.get(name) is not parameter for name, parameter in graph.of_store.items()):
                return False  # an eager step meets what is there now
        graph.steps += 1
        if self._numbers.are_new(call) or graph.is_due:
            self._check(graph, call)
        return True

    def _give_up(self, reason: str) -> None:
        self._captures = False
        self._graphs.clear()
        warnings.warn(f"CompiledSVI takes eager steps from here on: {reason}", stacklevel=5)

    def _warn_of_kinds(self) -> None:
        if not self._has_warned_of_kinds:
            self._has_warned_of_kinds = True
            warnings.warn(
                f"CompiledSVI takes eager steps of any further kind: {len(self._graphs)} graphs have been captured, of "
                "arguments or settings that differ in shape or value; pass what changes as a tensor of one shape, or "
                "name it in live=",
                stacklevel=5,
            )

    def _like(self) -> Tensor:
        """What numbers are to be like as tensors."""
        return next((p for p in self._stepper.parameters if p.is_floating_point()), torch.empty(0))

    def _mode(self) -> Iterator[Any]:
        """What a graph depends on beside arguments and modules."""
        for parameter in self._stepper.parameters:
            yield from (id(parameter), parameter.requires_grad, kind_of(parameter))
        yield from (kind_of(value) for value in vars(self._elbo).values() if is_fixed(value))
        kind = parameter.device.type
        yield torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)

    def _memento(self, call: Call) -> Memento:
        modules = () if self._watch is None else self._watch.modules
        return Memento([self.model, self.guide, self._elbo, *self._roots, *modules, call.args, call.kwargs])

    def _rehearsal(self, args: tuple, kwargs: dict[str, Any], parameters: list[Tensor]) -> Rehearsal:
        programs = functools.partial(self.loss_and_grads, self.model, self.guide)
        others = () if self._watch is None else self._watch.parameters()
        return Rehearsal(programs, args, kwargs, parameters, [*self._stepper.parameters, *others])

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.capture_seconds += time.perf_counter() - start

    def _look(self, call: Call) -> Looked | None:
        """Run loss and gradients once as they are, with whatever checks Pyro is set to, to see what takes part.

        Returns:
            None where there are parameters that the optimiser has yet to take in, by an eager step.
        """
        memento = self._memento(call)
        if memento.iterators:
            raise NotCapturedError(
                f"{memento.iterators[0]!r}, which the programs may read, is an iterator: its next value would be "
                "captured for good"
            )
        before: dict[nn.Module, dict[str, Any]] = {}

        def meet(module: nn.Module, _: object = None) -> None:
            if module not in before:
                before[module] = vars(module).copy()
                memento.visit(module, type(module).__name__)

        for root in self._roots:
            root.apply(meet)
        hook = register_module_forward_pre_hook(meet)
        rehearsal = self._rehearsal(call.args, call.kwargs, self._stepper.parameters)
        try:
            with self._timed(), rehearsal.putting_back(call.tensors):
                rehearsal.run()
        except Exception:
            memento.put_back()
            raise
        finally:
            hook.remove()
        if self._stepper.takes_what_is_met and self._are_new(rehearsal):
            memento.put_back()
            return None
        memento.put_back_values()
        if self._watch is None:
            self._watch = Watch(before, self._live)
            self._structure = self._watch.structure()
        return Looked(memento, rehearsal)

    def _of_store(self, looked: Looked) -> dict[str, Tensor]:
        """The parameters that a step has from Pyro's store, and not from a module, where it trains what it meets."""
        if not self._stepper.takes_what_is_met:
            return {}
        modules = set(map(id, self._watch.parameters()))
        return {name: parameter for name, parameter in looked.rehearsal.met.items() if id(parameter) not in modules}

    def _are_new(self, rehearsal: Rehearsal) -> bool:
        known = set(map(id, self._stepper.parameters))
        return any(id(parameter) not in known for parameter in rehearsal.met.values())

    def _capture(self, call: Call, looked: Looked) -> Graph:
        """Record, compare with an eager step, compile."""
        # Pyro's optimisers step what a step meets, and no other parameter.
        pyros = self.optim is not self._stepper
        parameters = distinct(looked.rehearsal.met.values()) if pyros else self._stepper.parameters
        like = self._like()
        live = [(setting, torch.zeros((), dtype=like.dtype, device=like.device)) for setting in self._live]
        watched = [*self._watch.parameters(), *self._watch.buffers()]
        inputs = [*self._stepper.parameters, *watched, *(tensor for _, tensor in live)]
        inputs = [t for t in distinct(inputs) if all(t is not argument for argument in call.tensors)]
        for setting, tensor in live:
            tensor.fill_(setting.get())
        memento = self._memento(call)
        traced = self._rehearsal(*call.traced, parameters)
        with self._timed(), traced.putting_back([*call.tensors, *inputs]), unvalidated(self._elbo):
            try:
                with contextlib.ExitStack() as replaced:
                    for setting, tensor in live:
                        replaced.enter_context(setting.replaced_by(tensor))
                    recorded, constants = record(traced, [*call.tensors, *inputs])
                if change := memento.difference():
                    raise NotCapturedError(f"the step {change}")
                memento.put_back_values()
                graph = Graph(
                    recorded,
                    recorded,
                    inputs + constants,
                    live,
                    parameters,
                    traced.reached,
                    self._watch.objects(),
                    self._of_store(looked),
                    returns_number=self._loss_is_function or not isinstance(looked.rehearsal.loss, Tensor),
                )
                rehearsal = self._rehearsal(call.args, call.kwargs, parameters)
                hold_against_eager(graph, call.tensors, rehearsal, memento)
                graph.run = self._compile(recorded, [*call.tensors, *graph.inputs])
                if graph.run is not recorded:
                    hold_against_recorded(graph, call.tensors, memento)
            finally:
                memento.put_back_values()
        return graph

    def _check(self, graph: Graph, call: Call) -> None:
        """Raise unless a graph in use is still the step as it is taken eagerly."""
        memento = self._memento(call)
        rehearsal = self._rehearsal(call.args, call.kwargs, graph.parameters)
        with self._timed(), rehearsal.putting_back([*call.tensors, *graph.inputs]), unvalidated(self._elbo):
            try:
                hold_against_eager(graph, call.tensors, rehearsal, memento)
                if self._stepper.takes_what_is_met and self._are_new(rehearsal):
                    raise NotCapturedError("an eager step meets a parameter that is not in the graph")
            except Exception as error:
                known = str(error) if isinstance(error, NotCapturedError) else first_line(error)
                raise NotCapturedError(
                    f"after {graph.steps} steps of a graph, {known}; those since the last comparison may have been "
                    "taken with what it was when captured"
                ) from error
            finally:
                memento.put_back()


def _modules_of(program: Callable) -> list[nn.Module]:
    """The modules that a program is, is a method of, or has at hand, also behind Pyro's handlers."""
    program = poutine.unwrap(program)
    while isinstance(program, functools.partial):
        program = poutine.unwrap(program.func)
    cells = getattr(program, "__closure__", None) or ()
    held: list[object] = []
    for cell in cells:
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            held.append(cell.cell_contents)
    return [m for m in (getattr(program, "__self__", program), *held) if isinstance(m, nn.Module)]
