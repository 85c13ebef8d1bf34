"""`fit_ensemble`: several small models of one build, trained together in one step.

A small model's step is short of arithmetic: most of its time goes into calling one small operation after another. Here
the step of one model is recorded (`vsc_pyro.acceleration`) and mapped over all models (`torch.func.vmap`), so that each
operation is called once for all of them; then it is compiled. This pays for small models, and not for models whose
matrix products fill the processor: train those one after the other. ``benchmarks/ensemble.py`` measures both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._arguments import bool_or_auto, natural_int, positive_int
from vsc_pyro._devices import resolve_device
from vsc_pyro._seeding import seeded
from vsc_pyro.acceleration import is_worth_compiling, missing_compiler
from vsc_pyro.acceleration.ensemble import Ensemble
from vsc_pyro.acceleration.same_build import check_built_alike
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.gates import Gate
from vsc_pyro.models.data_checks import check_resolved
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.objectives import check_objective, exact_if_linear, get_objective
from vsc_pyro.training.batches import Batches, get_batches
from vsc_pyro.training.contexts import private_state
from vsc_pyro.training.defaults import checked_lr, chosen_lr, chosen_warmup, or_default
from vsc_pyro.training.fit import check_can_train, warn_of_prior, warn_of_warmup
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.parallel import num_processes
from vsc_pyro.training.plan import check_batch_norm, default_epochs, with_warmup
from vsc_pyro.training.schedules import Cooldown, Schedule, check_schedules, set_values
from vsc_pyro.training.summary import summarize

# Reading losses waits for the device: rarely enough not to matter, often enough to stop a diverged run in seconds.
_STEPS_BETWEEN_LOOKS = 50


def fit_ensemble(
    models: Sequence[VAE],
    data: Dataset | Tensor | np.ndarray,
    *,
    objective: str | ELBO = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: float | None = None,
    cooldown: float | None = None,
    seeds: Sequence[int] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
    compile: bool | str = "auto",
) -> list[History]:
    """Train all `models` on `data` in one common step, each model as `vsc_pyro.fit` would train it.

    The models must be built alike: the same operations in a step, on tensors of the same shapes. They may differ in
    weights and in buffers: beta, a gate's temperature, the inclusion of a `SpikeSlabPrior` that does not learn it. Any
    other difference is refused, and the message names it. To train models with different numbers of latents or
    different encoders, call `fit` for each.

    Each model has a seed of its own. It determines the minibatches, their order and binarisation, and the
    pseudo-inputs: they equal those of ``fit(..., seed=)``. The noise of codes is drawn for all models at once from the
    first seed, and differs from the noise that `fit` draws. A model that draws none ends in `fit`'s weights, but for
    rounding. Models with equal weights and seeds have independent noise.

    Not offered are separate learning rates, other optimisers, weight decay, clipping, validation, early stopping,
    callbacks, several draws, other gates than each model's own, bfloat16, and checkpoints: an interrupted run leaves
    the models in their last state. Save the result with ``torch.save`` of a model's ``state_dict()``.

    Args:
        models: trained in place; moved to `device`.
        data: a `vsc_pyro.datasets.Dataset`, or any array or tensor of shape ``(N, ...)``; held in memory.
        objective, epochs, batch_size, lr, warmup, cooldown, device, progress: as for `fit`, with the defaults of the
            first model. The bar shows the lowest and the highest objective of the models.
        seeds: one for each model; None for 0, 1, 2, ... As in `fit`, they do not determine the initial weights.
        schedules: as for `fit`, the same for all models; a schedule overrides buffers that differ.
        compile: compile the common step, which takes some 10 seconds; False runs its operations one by one. ``"auto"``
            compiles for runs of 5,000 steps or more. A last smaller batch is not compiled.

    Returns:
        The histories, in the order of the models. `seconds` are those of an epoch of all models; the time for
        recording and compiling before the first epoch is in `compile_seconds`.

    Raises:
        ValueError: bad arguments or data; models that are not built alike, or share a tensor; a step that cannot be
            recorded, or not be mapped over models. All before any training.
        NonFiniteLossError: a model's loss or weight became NaN or infinite; the message names the model. The others
            keep what they have learned.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> def build(beta):
        ...     return vsc.VAE(vsc.NormalEncoder(4, 2), vsc.BernoulliDecoder(2, 4), vsc.NormalPrior(2), beta=beta)
        >>> models = [build(1.0), build(4.0)]
        >>> histories = vsc.fit_ensemble(models, torch.rand(20, 4), epochs=1, progress=False, compile=False)
        >>> [len(history) for history in histories]
        [1, 1]
    """
    if isinstance(models, (VAE, str)) or not isinstance(models, Iterable):
        raise ValueError(f"models must be a list of VAEs, got a {type(models).__name__}")
    models, epochs = list(models), None if epochs is None else positive_int("epochs", epochs)
    seeds = _one_for_each(seeds, len(models))
    lr, schedules = checked_lr(lr), with_warmup(schedules, 0)
    device, compile = resolve_device(device), bool_or_auto("compile", compile)
    _check_place(data, device, compile)
    for model in models:
        check_is_vae(model)
        check_can_train(model)
    check_built_alike(models)
    data = as_dataset(data)
    models[0].check_data(data.images)
    check_resolved(data.images, models[0].reference.dtype)
    loss = _objective_of_all(models, objective, data)
    warn_of_prior(models[0])
    data = data.to(models[0].reference.to(device))  # once for all models
    batch_size = or_default(models[0], "batch_size", batch_size)
    batches = [get_batches(data, batch_size, seed) for seed in seeds]
    check_batch_norm(models[0], batches[0])
    num_steps = batches[0].num_steps
    epochs = default_epochs(num_steps) if epochs is None else epochs
    lr = chosen_lr(models[0], lr, epochs * num_steps)
    cooling = Cooldown(or_default(models[0], "cooldown", cooldown), epochs)
    warmup = chosen_warmup(models[0], warmup, loss, schedules)
    schedules = with_warmup(schedules, int(warmup * epochs * num_steps))
    before = [_Before(model) for model in models]
    check_schedules(models[0], schedules, epochs * num_steps)
    for model in models:
        warn_of_warmup(model, schedules)
    with contextlib.ExitStack() as stack:
        stack.callback(_end_warmup, models)
        shown = {"disable": not progress, "unit": "step", "desc": "fit_ensemble, preparing"}
        bar = stack.enter_context(tqdm(total=epochs * num_steps, **shown))
        for model, own, seed in reversed(list(zip(models, batches, seeds, strict=True))):  # the first seed comes last
            stack.enter_context(_prepared(model, own, seed, data, device, schedules))
        compiled = is_worth_compiling(epochs * num_steps, device) if compile == "auto" else bool(compile)
        start = time.perf_counter()
        ensemble = _recorded(models, loss, lr, schedules, data, batches[0], seeds, compiled, before)
        seconds = time.perf_counter() - start
        histories = [History(compiled=ensemble.is_compiled, compile_seconds=seconds) for _ in models]
        bar.set_description("fit_ensemble" + (", compiled" if ensemble.is_compiled else ""))
        stack.callback(ensemble.hand_back)
        for epoch in range(epochs):
            with cooling.of_epoch(epoch, ensemble.optimizer):
                _epoch(ensemble, batches, seeds, histories, bar)
    for model, own, seed, history in zip(models, batches, seeds, histories, strict=True):
        history.summary = summarize(model, own, seed, epochs * num_steps, bar)
    return histories


def _check_place(data: Dataset | Tensor | np.ndarray, device: torch.device, compile: bool | str) -> None:
    if num_processes() > 1:
        raise ValueError(f"fit_ensemble trains in one process, and here are {num_processes()}; take fit")
    if isinstance(data, DataLoader):
        raise ValueError("data must be in memory, for each model draws its own minibatches, got a DataLoader; take fit")
    if compile is True and (missing := missing_compiler(device)):
        raise ValueError(f"compile=True, and {missing}; compile=False needs none")


def _objective_of_all(models: list[VAE], objective: str | ELBO, data: Dataset) -> ELBO:
    if objective == "auto":
        objective = or_default(models[0], "objective", None)
    if objective == "auto":
        objective = exact_if_linear(models[0], data.images[:2].to(models[0].reference))
    draws_at_once = (gate_of(models[0].encoder) or Gate()).draws_at_once
    loss = get_objective(objective, draws_at_once=draws_at_once)
    for model in models:
        check_objective(loss, model, getattr(model.encoder, "gate", None))
    return loss


@contextlib.contextmanager
def _prepared(
    model: VAE, batches: Batches, seed: int, data: Dataset, device: torch.device, schedules: Mapping[str, Schedule]
) -> Iterator[None]:
    """Put a model and its minibatches on the device, in the state in which a fit starts."""
    model.to(device)
    with private_state(model, device, seed):
        batches.to(data.images)
        with batches.seeded(seed):
            model.num_data = len(data)
            set_values(model, schedules, 0)
            yield


def _recorded(
    models: list[VAE],
    loss: ELBO,
    lr: float,
    schedules: Mapping[str, Schedule],
    data: Dataset,
    batches: Batches,
    seeds: list[int],
    compiled: bool,
    before: list[_Before],
) -> Ensemble:
    """Return the ensemble with its step recorded for full and for last minibatches; models stay as they were if not."""
    device = data.images.device
    try:
        for model, seed in zip(models, seeds, strict=True):
            with seeded(seed, device):
                model.prepare(data.images)
        ensemble = Ensemble(models, loss, lr, schedules)
        for size in dict.fromkeys((batches.full_size, batches.smallest or batches.full_size)):
            generator = torch.Generator(device).manual_seed(seeds[0])
            x = data.draw(torch.arange(size, device=device), generator)
            ensemble.record(x, compiled and size == batches.full_size)
    except ValueError:
        for state in before:
            state.put_back()
        raise
    return ensemble


def _end_warmup(models: list[VAE]) -> None:
    for model in models:
        model.warmup.fill_(1.0)


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
    if seeds is not None and not isinstance(seeds, Iterable):
        raise ValueError(f"seeds must be one for each of the {num_models} models, got {seeds!r}")
    seeds = list(range(num_models)) if seeds is None else [natural_int("seeds", seed) for seed in seeds]
    if len(seeds) != num_models:
        raise ValueError(f"seeds must be one for each of the {num_models} models, got {len(seeds)}")
    return seeds


def _epoch(ensemble: Ensemble, batches: list[Batches], seeds: list[int], histories: list[History], bar: tqdm) -> None:
    """Take one pass over the data, of every model in its own order."""
    start, number = time.perf_counter(), len(histories[0]) + 1
    losses: list[Tensor] = []
    seen: list[int] = []
    looked = 0

    def look() -> None:
        recent = torch.stack(losses[looked:]).double()  # (steps, models)
        _stop_if_not_finite(recent.isfinite().cpu(), seeds, looked, number)
        objectives = -recent.sum(0) / sum(seen[looked:])
        bar.update(len(recent))
        bar.set_postfix(objectives=f"{float(objectives.min()):.2f} to {float(objectives.max()):.2f}", refresh=False)

    for step, xs in enumerate(zip(*(own.epoch(number - 1) for own in batches), strict=True), start=1):
        losses.append(ensemble.step(torch.stack(xs)))
        seen.append(len(xs[0]))
        if step % _STEPS_BETWEEN_LOOKS == 0:
            look()
            looked = step
    if looked < len(losses):
        look()
    for name, finite in ensemble.finite_weights():
        if not all(finite):
            _stop(finite, seeds, f"{name} became NaN or infinite in epoch {number}")
    means = -torch.stack(losses).double().sum(0) / sum(seen)
    for history, elbo in zip(histories, means.tolist(), strict=True):
        history.elbo.append(elbo)
        history.seconds.append(time.perf_counter() - start)


def _stop_if_not_finite(finite: Tensor, seeds: list[int], looked: int, epoch: int) -> None:
    """Raise if a loss is not finite; `finite` has a row for each step after the first `looked`."""
    if not finite.all():
        step = int(finite.all(1).logical_not().nonzero()[0, 0])
        where = f"at step {looked + step + 1} of epoch {epoch}"
        _stop(finite[step].tolist(), seeds, f"the loss became NaN or infinite {where}")


def _stop(finite: list[bool], seeds: list[int], what: str) -> NoReturn:
    model = finite.index(False)
    raise NonFiniteLossError(
        f"models[{model}], of seed {seeds[model]}: {what}; the other models keep what they "
        "have learned; try a lower lr, or leave that model out"
    )
