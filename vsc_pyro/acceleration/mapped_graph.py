"""One model's step recorded, and the same step of many models at once.

`StepRecorder` captures a step as `CompiledSVI` does, and returns the graph instead of running it. `record_stacked` maps
that graph over a new first dimension of all its tensors (`torch.func.vmap`), and records the result. So products of
small matrices become batched ones, and each operation is called once for all models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]

from vsc_pyro._seeding import seeded
from vsc_pyro.acceleration.compiled_svi import CompiledSVI
from vsc_pyro.acceleration.recorder import NotCapturedError, record
from vsc_pyro.models.vae import VAE


class Recording(NamedTuple):
    """A recorded step.

    Attributes:
        graph: maps x and `inputs` to the loss and the gradients of the parameters that are reached.
        inputs: the tensors read beside x: parameters, buffers, and others that the programs hold.
        reached: for each parameter, True if it has a gradient.
    """

    graph: torch.fx.GraphModule
    inputs: list[Tensor]
    reached: list[bool]

    def difference(self, other: Recording) -> str | None:
        """Return the first operation in which two graphs differ, or another difference; None if they are the same."""
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
        model: a `vsc_pyro.VAE`.
        parameters: the tensors whose gradients are recorded.
        loss: a `pyro.infer.ELBO`.
    """

    def __init__(self, model: VAE, parameters: list[Tensor], loss: ELBO) -> None:
        # The optimiser names the parameters; it never steps.
        super().__init__(model.model, model.guide, torch.optim.SGD(parameters), loss, backend="eager")

    def record(self, x: Tensor) -> Recording:
        """Record a step of data x; raise `NotCapturedError` if that cannot be done."""
        with pyro.get_param_store().scope():  # each of several models registers itself
            graph, _ = self.graph_for((x,), {})
        if graph is None:
            raise NotCapturedError("it is taken within a Pyro handler")
        return Recording(graph.recorded, graph.inputs, graph.reached)

    def _give_up(self, reason: str) -> None:
        raise NotCapturedError(reason)


def record_stacked(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """Record a graph for many models: `inputs` and outputs get a first dimension, along which random numbers differ.

    Returns:
        The graph, and the tensors that it reads beside the inputs.
    """

    def one(*tensors: Any) -> tuple[Tensor, ...]:
        return tuple(_OfMany(graph, tensors[0]).run(*tensors))

    step = torch.func.vmap(one, randomness="different")
    # Recording runs a step: it must neither update the inputs nor draw the caller's random numbers.
    with seeded(0, inputs[0].device):
        return record(lambda *tensors: list(step(*tensors)), [tensor.clone() for tensor in inputs])


class _OfMany(torch.fx.Interpreter):
    """Runs a graph under `vmap` so that every tensor has the mapped dimension, also tensors made of nothing.

    Values with the dimension, such as random numbers that differ, cannot be written into a tensor without it.
    """

    def __init__(self, graph: torch.fx.GraphModule, like: Tensor) -> None:
        super().__init__(graph)
        self._like = like

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        made = super().call_function(target, args, kwargs)
        if not isinstance(made, Tensor) or is_batchedtensor(made):
            return made
        return self._like.new_empty(made.shape, dtype=made.dtype, device=made.device).copy_(made)
