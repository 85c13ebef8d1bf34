"""`Replay`: a whole step of a `CompiledSVI`, from indices of data to new weights, captured once as a CUDA graph.

On a GPU, launching the kernels of a compiled step from Python takes longer than running them. A CUDA graph is launched
as one, and reads and writes the same memory every time. So all that changes from step to step is copied there first:

=====================================  =================================================================================
a step reads                           the graph has it
=====================================  =================================================================================
indices (or the minibatch itself)      in one tensor, into which those of a step are copied
the learning rate                      in a tensor that is filled before every replay
random numbers                         drawn anew from the same generators, whose states advance as without a graph
parameters, buffers, Adam's state      in their own memory, changed in place
options and hooks, the graph's key     as constants: where one has changed, the step is captured again
=====================================  =================================================================================

No step waits for the device. All that the trial steps of a capture change is restored, and two replays are compared
with two steps without the graph before it is used. If a step cannot be captured, or differs, one warning says why, and
steps are those of `CompiledSVI.step` from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from vsc_pyro._seeding import trains
from vsc_pyro.acceleration.comparison import alike
from vsc_pyro.acceleration.compiled_svi import CompiledSVI, Graph
from vsc_pyro.acceleration.program_state import kind_of
from vsc_pyro.acceleration.recorder import NotCapturedError, first_line
from vsc_pyro.training.parallel import num_processes

Recorded = tuple[Callable[[], object], list[Tensor]]
Capture = Callable[[Callable[[], list[Tensor]], list[torch.Generator]], Recorded]
"""Captures a function that draws from these generators; returns a function that replays it, and its output tensors."""

# Steps before the capture, in which kernels are loaded and tuned and Adam makes its state.
_WARM_UPS = 3
# The loss of a second step depends on the first one's update and on fresh random numbers.
_COMPARED = 2


def by_cuda_graph(
    whole: Callable[[], list[Tensor]], generators: list[torch.Generator], *, device: torch.device
) -> Recorded:
    """Capture by `torch.cuda.CUDAGraph`, after a few calls on a stream of its own, as its documentation asks."""
    # The current stream is entered so that it is restored on leaving, even if the capture fails.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                whole()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Later versions register generators themselves, and warn if they are registered.
        if TorchVersion(torch.__version__) < "2.14":
            for generator in generators:
                if generator.device.type == "cuda":  # a DataLoader's is not, and no step draws from it
                    graph.register_generator_state(generator)
        # A DataLoader's thread may pin memory meanwhile, which in the mode "global" would be an error.
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = whole()
        except Exception:
            # Before torch 2.14 a capture that fails leaves generators capturing, and no draw would be possible.
            for generator in (torch.cuda.default_generators[torch.cuda.current_device()], *generators):
                if generator.device.type == "cuda":
                    generator.graphsafe_set_state(generator.clone_state())
            raise
    return graph.replay, outputs


def capture_on(device: torch.device) -> Capture | None:
    """Return the function that captures whole steps on a device, or None if they are not captured there."""
    # With several processes a hook of the optimiser sums gradients and waits for the others.
    if device.type != "cuda" or num_processes() > 1:
        return None
    return functools.partial(by_cuda_graph, device=device)


@dataclasses.dataclass
class _WholeStep:
    """A captured step.

    Attributes:
        graph: the loss and the gradients that it computes.
        options: the constants of its update.
        groups: the optimiser's groups of parameters, and `lrs` the tensors that hold their learning rates.
        memory: addresses of all tensors that it reads or writes.
        replay: runs it.
        outputs: the loss and the gradients, overwritten by every replay.
    """

    graph: Graph
    options: tuple
    groups: list[dict[str, Any]]
    lrs: list[Tensor]
    memory: tuple[int, ...] = ()
    replay: Callable[[], object] = lambda: None
    outputs: list[Tensor] = dataclasses.field(default_factory=list)

    def refresh(self) -> None:
        """Copy the learning rates to where the graph reads them."""
        for group, lr in zip(self.groups, self.lrs, strict=True):
            lr.fill_(group["lr"])


class Replay:
    """Whole steps of a `CompiledSVI`, replayed.

    Args:
        svi: a `CompiledSVI` whose optimiser is a fused `torch.optim.Adam` or `AdamW`.
        capture: see `capture_on`.
        gather: makes a minibatch of the tensor that `step` gets, as `Dataset.draw` does of indices; None if the tensor
            is the minibatch.
        generators: the generators that `gather` draws from beside torch's own.

    Example:
        >>> if (capture := capture_on(torch.device("cpu"))) is not None:  # on a CUDA device
        ...     replay = Replay(svi, capture, data.draw)
        ...     loss = replay.step(indices)
    """

    def __init__(
        self,
        svi: CompiledSVI,
        capture: Capture,
        gather: Callable[[Tensor], Tensor] | None = None,
        generators: Iterable[torch.Generator] = (),
    ) -> None:
        self._svi = svi
        self._capture = capture
        self._gather = gather or (lambda x: x)
        self._generators = list(generators)
        self._inputs: tuple[Tensor, Tensor] | None = None  # the source and the minibatch in the memory of the graph
        self._steps: list[_WholeStep] = []
        self._replays = True

    @property
    def is_replaying(self) -> bool:
        """Return True unless capturing has been given up, by this object or by the `CompiledSVI`."""
        return self._replays and not self._svi.is_eager

    @trains
    def step(self, source: Tensor) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data: a 0-d tensor on the device."""
        if self._inputs is None:
            own = source.clone()
            before = _RandomState(self._all_generators(source.device))
            self._inputs = own, self._gather(own)
            before.put_back()
        own, x = self._inputs
        # Minibatches of another shape than the first, such as an epoch's last, are steps without the graph.
        whole = self._whole_step(own, x) if self._replays and kind_of(source) == kind_of(own) else None
        if whole is None:
            return self._svi.step(self._gather(source))
        own.copy_(source)
        whole.refresh()
        whole.replay()
        loss, *gradients = whole.outputs
        self._svi.set_gradients(whole.graph, gradients)
        return loss.clone()  # the next replay writes into the same memory

    def _whole_step(self, source: Tensor, x: Tensor) -> _WholeStep | None:
        """Return the captured step of a minibatch like the first one, or None for a step without a graph."""
        graph, _ = self._svi.graph_for((x,), {})
        if graph is None:
            return None
        if (optimizer := self._svi.optimizer) is None:
            return self._give_up("the optimisers are Pyro's, one for each parameter; pass a torch optimiser")
        options, groups = _options(optimizer), optimizer.param_groups
        for whole in self._steps:
            same = whole.graph is graph and whole.groups is groups and whole.options == options
            if same and whole.memory == _memory(graph, optimizer):
                return whole
        # Graphs that would not be found again go first, to free memory of the device.
        known = self._svi.graphs()
        self._steps = [
            whole for whole in self._steps if whole.graph is not graph and any(whole.graph is other for other in known)
        ]
        start = time.perf_counter()
        try:
            whole = self._record(graph, optimizer, source)
        except NotCapturedError as error:
            return self._give_up(str(error))
        except Exception as error:  # CUDA, the allocator, and whatever waits for the device raise errors of many kinds
            return self._give_up(f"capturing it fails ({first_line(error)})")
        finally:
            self._svi.capture_seconds += time.perf_counter() - start
        self._steps.append(whole)
        return whole

    def _give_up(self, reason: str) -> None:
        self._replays = False
        self._steps.clear()
        warnings.warn(
            f"whole steps are not replayed as CUDA graphs from here on, and launched in parts: {reason}", stacklevel=5
        )

    def _all_generators(self, device: torch.device) -> list[torch.Generator]:
        devices = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
        return [torch.default_generator, *devices, *self._generators]

    def _record(self, graph: Graph, optimizer: torch.optim.Optimizer, source: Tensor) -> _WholeStep:
        if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) or not all(
            group["fused"] for group in optimizer.param_groups
        ):
            raise NotCapturedError(f"the optimiser is no Adam with fused=True, but {type(optimizer).__name__}")
        if any(not getattr(hook, "is_capturable", False) for hook in _hooks(optimizer)):
            raise NotCapturedError("the optimiser has hooks, and a graph would not run them")

        def step() -> list[Tensor]:
            outputs = graph([self._gather(source)])
            self._svi.update(graph, outputs)
            return outputs

        device = source.device
        # Adam's kernel reads the learning rate as a float32.
        lrs = [torch.zeros((), dtype=torch.float32, device=device) for _ in optimizer.param_groups]
        whole = _WholeStep(graph, _options(optimizer), optimizer.param_groups, lrs)
        whole.refresh()
        before = _Before(graph.inputs, optimizer, self._all_generators(device))
        try:
            with _capturable(optimizer, lrs):
                whole.replay, whole.outputs = self._capture(step, self._generators)
                before.put_back()
                expected = [[output.clone() for output in step()] for _ in range(_COMPARED)]
            before.put_back()
            for one in expected:
                whole.replay()
                if not alike(one, whole.outputs):
                    raise NotCapturedError("a replayed step differs from one without a graph")
        finally:
            before.put_back()
        whole.memory = _memory(graph, optimizer)
        return whole


def _options(optimizer: torch.optim.Optimizer) -> tuple:
    """Return the constants of a captured update."""
    changing = {"params", "lr", "initial_lr"}
    groups = optimizer.param_groups
    return *_hooks(optimizer), *(value for group in groups for name, value in group.items() if name not in changing)


def _hooks(optimizer: torch.optim.Optimizer) -> tuple[Callable[..., Any], ...]:
    return (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values())


def _memory(graph: Graph, optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    """Return the addresses of all tensors that the graph reads or writes; if one has moved, the graph is stale."""
    moments = [moment for state in optimizer.state.values() for moment in state.values()]
    return tuple(tensor.data_ptr() for tensor in (*graph.inputs, *moments))


class _RandomState:
    """The states of generators, to be restored."""

    def __init__(self, generators: list[torch.Generator]) -> None:
        self._states = [(generator, generator.get_state()) for generator in generators]

    def put_back(self) -> None:
        for generator, state in self._states:
            generator.set_state(state.clone())


class _Before:
    """Tensors, Adam's state and random states before the trial steps of a capture, to be restored in place."""

    def __init__(
        self, tensors: list[Tensor], optimizer: torch.optim.Optimizer, generators: list[torch.Generator]
    ) -> None:
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._state = optimizer.state
        self._moments = {
            parameter: {name: moment.clone() for name, moment in moments.items()}
            for parameter, moments in optimizer.state.items()
        }
        self._random = _RandomState(generators)

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, copy in self._copies:
            tensor.copy_(copy)
        for parameter, moments in self._state.items():
            for name, moment in moments.items():
                if (copy := self._moments.get(parameter, {}).get(name)) is None:
                    moment.zero_()  # Adam starts from zeros
                else:
                    moment.copy_(copy)
        self._random.put_back()


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer, lrs: list[Tensor]) -> Iterator[None]:
    """Let `optimizer` be captured within, reading its learning rates from memory; schedules continue to set numbers."""
    before = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group.update(lr=lr, capturable=True)
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            group.update(own)
