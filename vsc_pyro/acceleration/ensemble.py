"""`Ensemble`: the tensors of several models, stacked, and their common step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro import validation_enabled
from pyro.infer import ELBO
from torch import Tensor

from vsc_pyro._seeding import seeded
from vsc_pyro.acceleration import BACKENDS
from vsc_pyro.acceleration.comparison import COMPARISONS, alike, undisturbed
from vsc_pyro.acceleration.mapped_graph import Recording, StepRecorder, record_stacked
from vsc_pyro.acceleration.recorder import NotCapturedError, first_line
from vsc_pyro.acceleration.same_build import attributes_that_differ
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.schedules import Schedule, scheduled_buffer, set_values


class Ensemble:
    """The tensors of several models, each stacked, and their common step.

    Args:
        models: built alike, on one device, in the mode to train in.
        loss: the objective of all.
        lr: learning rate of Adam.
        schedules: schedules of all models, by the name of the buffer.

    Attributes:
        is_compiled: True if the step of full minibatches is compiled.

    Raises:
        ValueError: a name in `schedules` that leads to no setting.
    """

    def __init__(self, models: Sequence[VAE], loss: ELBO, lr: float, schedules: Mapping[str, Schedule]) -> None:
        self._models = models
        self._lr = lr
        self._schedules = schedules
        self._scheduled: dict[str, Tensor] = {}
        self._steps = 0
        self.is_compiled = False
        self._names = [name for name, p in models[0].named_parameters() if p.requires_grad]
        if not self._names:
            raise ValueError("the models have no parameter that requires a gradient; there is nothing to train")
        self._recorders = [
            StepRecorder(model, [p for p in model.parameters() if p.requires_grad], loss) for model in models
        ]
        self._recordings: list[Recording] = []
        self._stacked: list[Tensor] = []
        self._graphs: dict[int, tuple] = {}
        self.optimizer: torch.optim.Optimizer  # made with the first recording

    def record(self, x: Tensor, compile: bool) -> None:
        """Record the step for minibatches like x; raise `ValueError` if models differ or cannot be stacked."""
        try:
            if not self._recordings:
                self._recordings = self._record_all(x)
                self._stack()
            first = self._recordings[0]
            one = first if not self._graphs else self._recorders[0].record(x)
            own = {id(tensor): i for i, tensor in enumerate(first.inputs)}
            if not all(id(tensor) in own for tensor in one.inputs):
                raise NotCapturedError("a step makes tensors once and for all for each size of a minibatch")
            inputs = [self._stacked[own[id(tensor)]] for tensor in one.inputs]
            xs = x.expand(len(self._models), *x.shape).contiguous()
            graph, others = record_stacked(one.graph, [xs, *inputs])
        except NotCapturedError as error:
            raise ValueError(
                f"these models cannot be trained together: {error}; train them one after the other by fit"
            ) from error
        run = self._compiled(graph, [xs, *inputs, *others]) if compile else graph
        reached = [p for p, is_reached in zip(self._parameters, one.reached, strict=True) if is_reached]
        self._graphs[len(x)] = run, [*inputs, *others], reached

    def _compiled(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """Compile the common step; return the recorded one, with a warning, if that fails or differs."""
        try:
            run = BACKENDS["inductor"](graph, inputs)
            for seed in range(COMPARISONS):
                outputs = []
                for way in (graph, run):
                    with seeded(seed, inputs[0].device):
                        outputs.append(undisturbed(way, [tensor.clone() for tensor in inputs]))
                if alike(*outputs):
                    self.is_compiled = True
                    return run
            reason = "compiled, it gives something else than as it was recorded"
        except NotCapturedError as error:
            reason = str(error)
        except Exception as error:
            reason = f"running it fails ({first_line(error)})"
        warnings.warn(f"the step of these models is not compiled: {reason}", stacklevel=4)
        return graph

    def _record_all(self, x: Tensor) -> list[Recording]:
        with validation_enabled(True):  # as in the first step of a fit
            recordings = [recorder.record(x) for recorder in self._recorders]
        first, *others = recordings
        for index, other in enumerate(others, start=1):
            if difference := other.difference(first):
                told = attributes_that_differ(self._models[index], self._models[0])
                raise ValueError(
                    f"models must be built alike, and the step of models[{index}] is not that of models[0]: "
                    f"{', '.join(told) or difference}; only weights and buffers may differ; train them one after the "
                    "other by fit"
                )
        return recordings

    def _stack(self) -> None:
        each = zip(*(recording.inputs for recording in self._recordings), strict=True)
        self._stacked = [torch.stack([tensor.detach() for tensor in same]) for same in each]
        self._parameters = self._stacked[: len(self._names)]
        self.optimizer = torch.optim.Adam(self._parameters, lr=self._lr, fused=True)
        first = self._recordings[0]
        positions = {id(tensor): position for position, tensor in enumerate(first.inputs)}
        for name in self._schedules:
            self._scheduled[name] = self._stacked[positions[id(scheduled_buffer(self._models[0], name))]]

    def step(self, xs: Tensor) -> Tensor:
        """Take one gradient step of every model; xs of shape ``(K, B, ...)``. Returns the losses, shape ``(K,)``."""
        set_values(self._models[0], self._schedules, self._steps)
        for name, stacked in self._scheduled.items():
            stacked.fill_(scheduled_buffer(self._models[0], name))
        self._steps += 1
        run, inputs, reached = self._graphs[xs.shape[1]]
        losses, *gradients = undisturbed(run, [xs, *inputs])
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return losses

    def finite_weights(self) -> Iterator[tuple[str, list[bool]]]:
        """Yield for each parameter its name, and for each model whether it is finite there."""
        finite = [parameter.isfinite().unsqueeze(-1).flatten(1).all(1) for parameter in self._parameters]
        yield from zip(self._names, torch.stack(finite).tolist(), strict=True)

    def hand_back(self) -> None:
        """Copy weights, buffers and the last scheduled values into the models."""
        with torch.no_grad():
            for index, recording in enumerate(self._recordings):
                for tensor, stacked in zip(recording.inputs, self._stacked, strict=True):
                    tensor.copy_(stacked[index])
        for model in self._models:
            set_values(model, self._schedules, max(0, self._steps - 1))
