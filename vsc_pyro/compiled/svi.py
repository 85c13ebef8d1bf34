"""The class `CompiledSVI`; what it does is told in `vsc_pyro.compiled`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten

from vsc_pyro.arguments import choice
from vsc_pyro.compiled.backends import BACKENDS
from vsc_pyro.compiled.comparing import COMPARISONS, alike, forked, undisturbed
from vsc_pyro.compiled.recording import NotCapturedError, first_line, record, unvalidated
from vsc_pyro.compiled.watching import Watch, is_fixed, kind_of
from vsc_pyro.schedules import Setting
from vsc_pyro.seeding import trains
from vsc_pyro.svi import SVI, OptimizerFactory

# Of captured graphs, after which steps of yet another kind are eager: something changes that should be a tensor.
_MAX_GRAPHS = 8


@dataclasses.dataclass
class Graph:
    """A captured step: inputs beside the arguments' tensors, and which parameters' gradients it returns.

    `objects` are those that it stands for by their `id`, which another may get once they are gone.
    """

    run: Callable[..., Any]
    inputs: list[Tensor]
    live: list[tuple[Setting, Tensor]]
    reached: list[bool]
    objects: list[object]

    def refresh(self) -> None:
        """Read anew the settings that may have changed."""
        for setting, tensor in self.live:
            tensor.fill_(setting.get())

    def run_with(self, arguments: list[Tensor]) -> list[Tensor]:
        """The loss and the gradients, with settings as they were read last."""
        return undisturbed(self.run, [*arguments, *self.inputs])

    def __call__(self, arguments: list[Tensor]) -> list[Tensor]:
        self.refresh()
        return self.run_with(arguments)


class CompiledSVI(SVI):
    """A drop-in for `pyro.infer.SVI` and `vsc_pyro.SVI` that compiles the step of any static Pyro program.

    Static: the same operations in every step, whatever the data and the random numbers. See `vsc_pyro.compiled` for
    what is read anew in each step, what is not, and what happens to programs that cannot be captured. Compilation takes
    some 10 to 20 seconds for every new shape of the arguments (PyTorch keeps the result on disk for the next process).

    Args:
        model, guide, optim, loss: as of `vsc_pyro.SVI`. Pyro's own ELBOs will do as well as ours. Where `optim` is a
            function the first step, which makes the optimiser, is eager.
        live: dotted names of numbers of the model that change from step to step, as `vsc_pyro.schedules` takes them
            (``"beta"``, ``"encoder.gate.temperature"``), for a `model` that is a module or a method of one. Buffers
            need not be named.
        backend: ``"inductor"``, or ``"eager"`` to run the captured operations one by one, which needs no compilation
            (nor a compiler) and is about half the gain.

    Attributes:
        capture_seconds: how long capturing and compiling have taken so far.

    Raises:
        ValueError: an `optim` that is no torch optimiser nor makes one, an unknown backend, a name in `live` that leads
            to no setting.

    Example:
        >>> svi = CompiledSVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3, fused=True), TraceELBO())
        >>> svi.step(x)  # a 0-d tensor: minus the ELBO, summed over data
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: torch.optim.Optimizer | OptimizerFactory,
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
        self._captures = True
        self._has_warned_of_kinds = False
        self.capture_seconds = 0.0

    @property
    def is_eager(self) -> bool:
        """Whether capturing has been given up, for the reason that the warning gave."""
        return not self._captures

    @trains
    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data: a 0-d tensor on the device."""
        graph, arguments = self.graph_for(args, kwargs)
        if graph is None:
            return super().step(*args, **kwargs)
        outputs = graph(arguments)
        self.update(graph, outputs)
        return outputs[0]

    def update(self, graph: Graph, outputs: list[Tensor]) -> None:
        """Let the optimiser step by the gradients that `graph` put out, after the loss."""
        self.set_gradients(graph, outputs[1:])
        self.optim(())

    def set_gradients(self, graph: Graph, gradients: list[Tensor]) -> None:
        """Give each parameter its gradient, and None to those that `graph` does not reach."""
        remaining = iter(gradients)
        for parameter, reached in zip(self._parameters(), graph.reached, strict=True):
            parameter.grad = next(remaining) if reached else None

    def graphs(self) -> list[Graph]:
        """Those captured, and not yet forgotten."""
        return list(self._graphs.values())

    def graph_for(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Graph | None, list[Tensor]]:
        """The graph of a step with these arguments, captured if need be, and their tensors; None for an eager step."""
        self._check_store()
        # Handlers around a step are the caller's, and a first step that makes the optimiser may draw its parameters.
        if not self._captures or runtime._PYRO_STACK or self.optimizer is None:
            return None, []
        if self._watch is not None and self._watch.structure() != self._structure:
            self._watch = None
            self._graphs.clear()
        leaves, spec = tree_flatten((args, kwargs))
        arguments = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())
        if self._watch is None:
            self._look(args, kwargs, arguments)
        try:
            key = (spec, *map(kind_of, leaves), *_aliases(leaves, arguments), *self._watch.state(), *self._mode())
            graph = self._graphs.get(key)
        except TypeError as error:
            return self._give_up(f"an argument, or a module's attribute, is neither a tensor nor fixed ({error})"), []
        if graph is None:
            if len(self._graphs) == _MAX_GRAPHS:
                self._warn_of_kinds()
                return None, []
            start = time.perf_counter()
            try:
                graph = self._graphs[key] = self._capture(args, kwargs, arguments)
            except Exception as error:
                self._look(args, kwargs, arguments)  # which raises what is the programs' or the data's own error
                known = isinstance(error, NotCapturedError)
                return self._give_up(str(error) if known else f"capturing it fails ({first_line(error)})"), []
            finally:
                self.capture_seconds += time.perf_counter() - start
        return graph, arguments

    def _give_up(self, reason: str) -> None:
        self._captures = False
        self._graphs.clear()
        warnings.warn(f"CompiledSVI takes eager steps from here on: {reason}", stacklevel=5)

    def _warn_of_kinds(self) -> None:
        if not self._has_warned_of_kinds:
            self._has_warned_of_kinds = True
            warnings.warn(
                f"CompiledSVI takes eager steps of any further kind: {_MAX_GRAPHS} graphs have been captured, of "
                "arguments or settings that differ in shape or value; pass what changes as a tensor of one shape, or "
                "name it in live=",
                stacklevel=5,
            )

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _mode(self) -> Iterator[Any]:
        """What a graph depends on beside arguments and modules."""
        for parameter in self._parameters():
            yield from (id(parameter), parameter.requires_grad, kind_of(parameter))
        yield from (kind_of(value) for value in vars(self._elbo).values() if is_fixed(value))
        kind = parameter.device.type
        yield torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)

    def _look(self, args: tuple, kwargs: dict[str, Any], arguments: list[Tensor]) -> None:
        """Run loss and gradients once as they are, with whatever checks Pyro is set to, to see what takes part."""
        before: dict[nn.Module, dict[str, Any]] = {}
        buffers: list[tuple[Tensor, Tensor]] = []

        def meet(module: nn.Module, _: object = None) -> None:
            if module not in before:
                before[module] = vars(module).copy()
                buffers.extend((b, b.clone()) for b in module._buffers.values() if b is not None)

        for root in self._roots:
            root.apply(meet)
        hook = register_module_forward_pre_hook(meet)
        try:
            with forked(arguments):
                self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        finally:
            hook.remove()
            _put_back(buffers)
        self._watch = Watch(before, self._live)
        self._structure = self._watch.structure()
        for parameter in (*self._parameters(), *self._watch.parameters()):
            parameter.grad = None

    def _capture(self, args: tuple, kwargs: dict[str, Any], arguments: list[Tensor]) -> Graph:
        """Record, compare with an eager step, compile."""
        parameters, buffers = self._parameters(), self._watch.buffers()
        like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
        live = [(setting, torch.zeros((), dtype=like.dtype, device=like.device)) for setting in self._live]
        inputs = [*parameters, *self._watch.parameters(), *buffers, *(tensor for _, tensor in live)]
        inputs = list({id(t): t for t in inputs if all(t is not argument for argument in arguments)}.values())
        everyone = [*parameters, *self._watch.parameters()]
        copies = [(buffer, buffer.clone()) for buffer in buffers]
        reached: list[bool] = []

        def forget() -> None:
            for parameter in everyone:
                parameter.grad = None
            torch.clear_autocast_cache()  # of weights cast before

        def loss_and_gradients(*_: Tensor) -> list[Tensor]:
            forget()
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            if not isinstance(loss, Tensor):
                raise NotCapturedError(f"{type(self._elbo).__name__} returns its loss as a {type(loss).__name__}")
            reached[:] = [parameter.grad is not None for parameter in parameters]
            return [loss.detach(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]

        for setting, tensor in live:
            tensor.fill_(setting.get())
        with forked([*arguments, *inputs]), unvalidated(self._elbo), contextlib.ExitStack() as stack:
            stack.callback(_put_back, copies)
            stack.callback(forget)
            before, others = self._watch.state(), _other_random_states()
            with contextlib.ExitStack() as replaced:
                for setting, tensor in live:
                    replaced.enter_context(setting.replaced_by(tensor))
                recorded, constants = record(loss_and_gradients, [*arguments, *inputs])
            if (after := self._watch.state()) != before:
                raise NotCapturedError(f"the step changes {self._watch.difference(before, after)} in Python")
            if _other_random_states() != others:
                raise NotCapturedError("the step draws random numbers of Python's or NumPy's, not torch's")
            graph = Graph(recorded, inputs + constants, live, reached.copy(), self._watch.objects())
            self._compare(graph, arguments, loss_and_gradients, copies, 1)
            graph.run = self._compile(recorded, [*arguments, *graph.inputs])
            if graph.run is not recorded:
                self._compare(graph, arguments, loss_and_gradients, copies, COMPARISONS)
        return graph

    def _compare(
        self,
        graph: Graph,
        arguments: list[Tensor],
        eager: Callable[[], list[Tensor]],
        copies: list[tuple[Tensor, Tensor]],
        attempts: int,
    ) -> None:
        """Raise unless the graph is the step as it is taken eagerly, for random numbers other than it was made with."""
        for _ in range(attempts):
            _put_back(copies)
            with forked([*arguments, *graph.inputs]):
                got = [value.clone() for value in graph(arguments)]
            _put_back(copies)
            expected = eager()  # which leaves other random numbers for the next time
            if alike(expected, got):
                return
        raise NotCapturedError(
            "the captured step differs from an eager one; model and guide depend on something other than their "
            "arguments, parameters, buffers and torch's random numbers"
        )


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


def _other_random_states() -> tuple:
    """Of Python's and NumPy's global generators, which no graph draws from."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global generator's is what is asked for
    return random.getstate(), name, keys.tobytes(), *rest


def _aliases(leaves: list[object], arguments: list[Tensor]) -> Iterator[int]:
    """Which arguments are one and the same tensor."""
    if len(leaves) > 1:
        positions = {id(argument): position for position, argument in enumerate(arguments)}
        yield from (positions.get(id(leaf), -1) for leaf in leaves)


def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, copy in copies:
            tensor.copy_(copy)
