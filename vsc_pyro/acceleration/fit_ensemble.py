"""`fit_ensemble`: several small models of one build, trained together in one step.

A small model's step is short of arithmetic: most of it is calling one small operation after another. Here the step of
one model is recorded (`vsc_pyro.acceleration`) and mapped over all of them (`torch.func.vmap`), so that each operation
is called once for all, and compiled in that form. Milliseconds for each model and step, on one thread of a Xeon
(``benchmarks/ensemble.py``), pixels-hidden-latents:

=======================================  ===================  ====================  =====================
..                                       64-64-10, batch 100  64-200-50, batch 200  784-400-50, batch 200
=======================================  ===================  ====================  =====================
one model, eager                         2.18                 3.74                  12.7
one model, compiled                      0.46                 1.53                  8.4
each of 2 together, compiled             0.22                 1.12                  7.6
each of 8 together, compiled             0.15                 1.05                  7.6
each of 16 together, compiled            0.14                 1.10                  7.8
each of 16 together, not compiled        0.34                 1.88                  10.7
=======================================  ===================  ====================  =====================

So it pays for small models, a third of whose time is left, and not for those whose matrix products fill the processor:
train these one after the other. On a GPU nothing has been measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._arguments import bool_or_auto, natural_int, positive_float, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.acceleration import is_worth_compiling, missing_compiler
from vsc_pyro.acceleration.ensemble import Ensemble
from vsc_pyro.acceleration.same_build import check_built_alike
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.gates import Gate
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives import check_objective, exact_if_linear, get_objective
from vsc_pyro.training.batches import Batches, get_batches
from vsc_pyro.training.devices import resolve_device
from vsc_pyro.training.fit import private_state, warn_of_prior, warn_of_warmup
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.parallel import num_processes
from vsc_pyro.training.plan import check_batch_norm, default_cooldown, default_epochs, with_warmup
from vsc_pyro.training.schedules import Cooldown, Schedule, check_schedules, check_warmup, set_values
from vsc_pyro.training.summary import summarize

# Losses stay on the device, and looking at them waits for it: often enough to stop a diverged run within seconds.
_STEPS_BETWEEN_LOOKS = 50


def fit_ensemble(
    models: Sequence[VAE],
    data: Dataset | Tensor | np.ndarray,
    *,
    objective: str | ELBO = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    warmup: float = 0.0,
    cooldown: float | None = None,
    seeds: Sequence[int] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
    compile: bool | str = "auto",
) -> list[History]:
    """Train all `models` on `data`, each as `vsc_pyro.fit` would, in one step for all of them.

    The models must be built alike: the same operations in a step, on tensors of the same shapes. They may differ in
    weights, in buffers (the inclusion of a `SpikeSlabPrior` that does not learn it) and in the numbers that a schedule
    can move (beta, a gate's temperature); any other difference is refused, and told. To train one with another number
    of latents, or another encoder, call `fit`.

    Each model has a seed of its own, from which its minibatches are drawn, order and binarisation, and its pseudo-
    inputs if it has some: the very ones that ``fit(..., seed=)`` draws. The noise of codes is drawn for all models at
    once, from the first seed, and is not the noise that `fit` draws; a model that draws none ends in `fit`'s weights,
    but for rounding. Models of equal weights and seeds have independent noise.

    Other settings of `fit` are not offered: one learning rate for all, as few draws as the objective takes, each
    model's own gate, float32. There are no checkpoints: a run that is broken off leaves the models as they are at that
    moment. Save what comes out by `torch.save` of a model's ``state_dict()``.

    Args:
        models: trained in place; moved to `device`.
        data: a `vsc_pyro.datasets.Dataset`, or any array or tensor of shape ``(N, ...)``; held in memory.
        objective, epochs, batch_size, lr, warmup, cooldown, device, progress: as of `fit`. The bar shows the least and
            the greatest objective of the models.
        seeds: one for each model; None for 0, 1, 2, ... As of `fit`, none of them settles the weights at the start.
        schedules: of all models alike, as of `fit`; they come before numbers that differ.
        compile: compile the common step, which takes some 10 seconds; False runs its operations one by one, which for
            small models takes twice as long, and a seventh of eager steps. ``"auto"`` compiles for runs of 10,000
            steps or more. A last smaller batch is not compiled. Recording takes about 0.3 seconds for each model.

    Returns:
        The histories, in the order of the models; `seconds` are those of the epoch of all of them, without
        what recording and compiling took before the first, which is in `compile_seconds`.

    Raises:
        ValueError: bad arguments or data; models that are not built alike, or share a tensor; a step that cannot be
            recorded, or not be mapped over models. All of that before any training.
        NonFiniteLossError: a model's loss or weight became NaN or infinite; the message says which model's. The others
            keep what they have learned.
    """
    models, lr = list(models), positive_float("lr", lr)
    epochs = None if epochs is None else positive_int("epochs", epochs)
    seeds = _one_for_each(seeds, len(models))
    compile = bool_or_auto("compile", compile)
    if num_processes() > 1:
        raise ValueError(f"fit_ensemble trains in one process, and here are {num_processes()}; take fit")
    if isinstance(data, DataLoader):
        raise ValueError("data must be in memory, for each model draws its own minibatches, got a DataLoader; take fit")
    device = resolve_device(device)
    if compile is True and (missing := missing_compiler(device)):
        raise ValueError(f"compile=True, and {missing}; compile=False needs none")
    check_built_alike(models)
    data = as_dataset(data)
    models[0].check_data(data.images)
    if objective == "auto":
        objective = exact_if_linear(models[0], data.images[:2].to(models[0].reference))
    draws_at_once = (gate_of(models[0].encoder) or Gate()).draws_at_once
    loss = get_objective(objective, draws_at_once=draws_at_once)
    for model in models:
        check_objective(loss, model, getattr(model.encoder, "gate", None))
    warn_of_prior(models[0])
    data = data.to(models[0].reference.to(device))  # once for all models
    batches = [get_batches(data, batch_size, seed) for seed in seeds]
    check_batch_norm(models[0], batches[0])
    num_steps = batches[0].num_steps
    epochs = default_epochs(num_steps) if epochs is None else epochs
    cooling = Cooldown(default_cooldown(cooldown), epochs)
    share = check_warmup(warmup, loss, schedules)
    schedules = with_warmup(schedules, int(share * epochs * num_steps))
    before = [_Before(model) for model in models]
    check_schedules(models[0], schedules, epochs * num_steps)
    for model in models:
        warn_of_warmup(model, schedules)
        model.to(device)
    with contextlib.ExitStack() as stack:
        for model, own, seed in reversed(list(zip(models, batches, seeds, strict=True))):  # the first seed comes last
            stack.enter_context(private_state(model, device, seed))
            own.to(data.images)
            stack.enter_context(own.seeded(seed))
            model.num_data = len(data)
            set_values(model, schedules, 0)
        bar = stack.enter_context(
            tqdm(total=epochs * num_steps, disable=not progress, unit="step", desc="fit_ensemble, preparing")
        )
        if compile == "auto":
            compile = is_worth_compiling(epochs * num_steps, device)
        start = time.perf_counter()
        try:
            for model, seed in zip(models, seeds, strict=True):
                with seeded(seed, device):
                    model.prepare(data.images)
            ensemble = Ensemble(models, loss, lr, schedules)
            for size in dict.fromkeys((batches[0].full_size, batches[0].smallest)):
                generator = torch.Generator(device).manual_seed(seeds[0])
                x = data.draw(torch.arange(size, device=device), generator)
                ensemble.record(x, compile and size == batches[0].full_size)
        except ValueError:
            for state in before:
                state.put_back()
            raise
        seconds = time.perf_counter() - start
        bar.set_description("fit_ensemble" + (", compiled" if ensemble.is_compiled else ""))
        for model in models:
            stack.callback(setattr, model, "warmup", 1.0)  # after what follows
        stack.callback(ensemble.hand_back)
        histories = [History(compiled=ensemble.is_compiled, compile_seconds=seconds) for _ in models]
        for epoch in range(epochs):
            with cooling.of_epoch(epoch, ensemble.optimizer):
                _epoch(ensemble, batches, seeds, histories, bar)
    for model, own, seed, history in zip(models, batches, seeds, histories, strict=True):
        history.summary = summarize(model, own, seed, epochs, bar)
    return histories


class _Before:
    """Copies of a model's tensors, buffers and scheduled values included, before a run that may be refused."""

    def __init__(self, model: VAE) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, copy in self._copies:
            tensor.copy_(copy)


def _one_for_each(seeds: Sequence[int] | None, num_models: int) -> list[int]:
    if not num_models:
        raise ValueError("models must hold at least one model, got none")
    seeds = list(range(num_models)) if seeds is None else [natural_int("seeds", seed) for seed in seeds]
    if len(seeds) != num_models:
        raise ValueError(f"seeds must be one for each of the {num_models} models, got {len(seeds)}")
    return seeds


def _epoch(ensemble: Ensemble, batches: list[Batches], seeds: list[int], histories: list[History], bar: tqdm) -> None:
    """One pass over the data, of every model in its own order."""
    start = time.perf_counter()
    number = len(histories[0])
    losses: list[Tensor] = []
    seen: list[int] = []
    looked = 0

    def stop(which: list[bool], what: str) -> None:
        model = which.index(False)
        raise NonFiniteLossError(
            f"models[{model}], of seed {seeds[model]}: {what}; the other models keep what they "
            "have learned; try a lower lr, or leave that model out"
        )

    def look() -> None:
        recent = torch.stack(losses[looked:]).double()  # (steps, models)
        finite = recent.isfinite().cpu()
        if not finite.all():
            step = int(finite.all(1).logical_not().nonzero()[0, 0])
            stop(
                finite[step].tolist(),
                f"the loss became NaN or infinite at step {looked + step + 1} of epoch {number + 1}",
            )
        objectives = -recent.sum(0) / sum(seen[looked:])
        bar.update(len(recent))
        bar.set_postfix(objectives=f"{float(objectives.min()):.2f} to {float(objectives.max()):.2f}", refresh=False)

    for step, xs in enumerate(zip(*(own.epoch(number) for own in batches), strict=True), start=1):
        losses.append(ensemble.step(torch.stack(xs)))
        seen.append(len(xs[0]))
        if step % _STEPS_BETWEEN_LOOKS == 0:
            look()
            looked = step
    if looked < len(losses):
        look()
    for name, finite in ensemble.finite_weights():
        if not all(finite):
            stop(finite, f"{name} became NaN or infinite in epoch {number + 1}")
    means = -torch.stack(losses).double().sum(0) / sum(seen)
    for history, elbo in zip(histories, means.tolist(), strict=True):
        history.elbo.append(elbo)
        history.seconds.append(time.perf_counter() - start)
