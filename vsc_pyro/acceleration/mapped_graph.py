"""One model's step recorded, and the same step of many models at once: what is to be trained together, stacked.

`StepRecorder` captures a step as `CompiledSVI` does, and hands the graph out instead of running it. `record_stacked`
maps that graph over a first dimension that all of its tensors have been given (`torch.func.vmap`), into a graph again:
the products of small matrices become batched ones, and every operation is called once for all models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from vsc_pyro._seeding import seeded
from vsc_pyro.acceleration.compiled_svi import CompiledSVI
from vsc_pyro.acceleration.recorder import NotCapturedError, record


class Recording(NamedTuple):
    """A step as recorded.

    Attributes:
        graph: x and `inputs` -> the loss, and the gradients of the parameters that are reached.
        inputs: the tensors read beside x: parameters, buffers, `numbers`, and whatever else the programs hold.
        numbers: those of the inputs that stand for live numbers, in the order of their names.
        reached: which of the parameters have a gradient.
    """

    graph: torch.fx.GraphModule
    inputs: list[Tensor]
    numbers: list[Tensor]
    reached: list[bool]

    def difference(self, other: Recording) -> str | None:
        """The first operation that two graphs differ in, or what else they do; None if they are the same."""
        lines, expected = self.graph.code.splitlines(), other.graph.code.splitlines()
        for line, there in zip(lines, expected, strict=False):
            if line != there:
                return f"{line.split(';')[0].strip()} (there {there.split(';')[0].strip()})"
        if len(lines) != len(expected):
            return f"{len(lines)} operations (there {len(expected)})"
        for node in self.graph.graph.nodes:
            if node.op == "get_attr" and not torch.equal(
                getattr(self.graph, node.target), getattr(other.graph, node.target)
            ):
                return "a tensor that is made of other numbers"
        if [tensor.shape for tensor in self.inputs] != [tensor.shape for tensor in other.inputs]:
            return "a tensor of another shape"
        return None


class StepRecorder(CompiledSVI):
    """Records the steps of a model, and takes none.

    Args:
        model: has programs `model` and `guide`.
        parameters: the tensors whose gradients are recorded.
        loss: a `pyro.infer.ELBO`.
        live: see `CompiledSVI`.
    """

    def __init__(self, model: nn.Module, parameters: list[Tensor], loss: ELBO, live: Iterable[str]) -> None:
        # The optimiser says what the parameters are; it never steps.
        super().__init__(model.model, model.guide, torch.optim.SGD(parameters), loss, live=live, backend="eager")

    def record(self, x: Tensor) -> Recording:
        """A step of data x; `NotCapturedError` where there is no graph of it."""
        with pyro.get_param_store().scope():  # it is one of several models, each of which registers itself
            graph, _ = self.graph_for((x,), {})
        if graph is None:
            raise NotCapturedError("it is taken within a Pyro handler")
        return Recording(graph.run, graph.inputs, [tensor for _, tensor in graph.live], graph.reached)

    def _give_up(self, reason: str) -> None:
        raise NotCapturedError(reason)


def record_stacked(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """A recorded graph of many: its `inputs` and outputs have a first dimension more, and random numbers differ in it.

    Returns:
        The graph, and the tensors that it takes beside the inputs.
    """
    step = torch.func.vmap(lambda *tensors: tuple(_OfMany(graph, tensors[0]).run(*tensors)), randomness="different")
    # Recording takes a step, which is not to update the inputs themselves, nor to draw the caller's random numbers.
    with seeded(0, inputs[0].device):
        return record(lambda *tensors: list(step(*tensors)), [tensor.clone() for tensor in inputs])


class _OfMany(torch.fx.Interpreter):
    """Runs a graph under `vmap` so that every tensor has its dimension, those too that are made of nothing.

    Into a tensor without it, nothing that has it can be written in place, and no random numbers that differ.
    """

    def __init__(self, graph: torch.fx.GraphModule, like: Tensor) -> None:
        super().__init__(graph)
        self._like = like

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        made = super().call_function(target, args, kwargs)
        if not isinstance(made, Tensor) or torch._C._functorch.is_batchedtensor(made):
            return made
        return self._like.new_empty(made.shape, dtype=made.dtype, device=made.device).copy_(made)
