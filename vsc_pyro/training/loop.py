"""The epoch loop of `fit`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro.acceleration import CompiledSVI, Replay, capture_on
from vsc_pyro.acceleration.precision_trial import faster_precision
from vsc_pyro.models.precision import can_run, networks_in
from vsc_pyro.training.batches import Batches
from vsc_pyro.training.callbacks import ask_to_stop
from vsc_pyro.training.history import History, last_runs
from vsc_pyro.training.parallel import from_the_first, num_processes, rank, share
from vsc_pyro.training.plan import Plan
from vsc_pyro.training.run import Run
from vsc_pyro.training.schedules import set_values
from vsc_pyro.training.summary import summarize
from vsc_pyro.training.svi import SVI
from vsc_pyro.training.validation import is_exhausted


def train(plan: Plan, run: Run, is_compiled: bool) -> None:
    """Train until the last epoch, or until `patience` or a callback ends the run."""
    model, history, steps = plan.model, run.history, plan.batches.num_steps
    programs = model.model, model.guide, run.optimizer, plan.loss
    svi, compiled = SVI(*programs), CompiledSVI(*programs) if is_compiled else None
    first_epoch, compiled_before = len(history), history.compile_seconds
    set_values(model, plan.schedules, max(0, first_epoch * steps - 1))
    hides = not plan.progress or rank() > 0
    try:
        with tqdm(total=plan.num_steps, initial=first_epoch * steps, disable=hides, unit="step", desc="fit") as bar:
            if model in last_runs and not first_epoch and not hides:
                told = "fit: a new optimiser for a model that was trained before; resume=True continues a run"
                bar.write(told, file=bar.fp)
            if plan.precision == "auto" and not first_epoch and can_run(model, "bfloat16"):
                history.precision = _tried(plan, svi if compiled is None else compiled)
                if compiled is not None and compiled.is_eager:  # perhaps for the other precision alone
                    compiled = CompiledSVI(*programs)
                if not hides:
                    bar.write(f"fit: networks in {history.precision}, by a trial on a minibatch", file=bar.fp)
            step, stops = _step(svi, compiled, plan.batches, plan.device, bar), False
            while not (stops or _is_over(plan, history)):
                epoch = len(history)
                with plan.cooling.of_epoch(epoch, run.optimizer), networks_in(model, history.precision):
                    run.epoch(step, bar, plan.num_steps - epoch * steps)
                history.steps = min((epoch + 1) * steps, plan.num_steps)
                if compiled is not None:
                    history.compiled = not compiled.is_eager
                    history.compile_seconds = compiled_before + compiled.capture_seconds
                stops = _end_epoch(plan, run)
            run.return_to_best()
            if len(history) < plan.num_epochs and not hides:
                bar.write(_told(plan, history), file=bar.fp)
            if len(history) > first_epoch:
                last_runs[model] = history
                history.summary = summarize(model, plan.batches, plan.seed, history.steps, bar)
                _save(plan, run)
    finally:
        # Otherwise the first step of another training would add its gradients to these.
        run.optimizer.zero_grad(set_to_none=True)
        if run.has_stepped:
            last_runs[model] = history


def _tried(plan: Plan, svi: SVI) -> str:
    """Return the faster precision of a step, of one process for all."""
    x = share(plan.batches.sample[: plan.batches.full_size].to(plan.model.reference))
    return from_the_first(lambda: faster_precision(plan.model, svi, x))


def _is_over(plan: Plan, history: History) -> bool:
    is_stopped = plan.patience is not None and is_exhausted(history, plan.patience)
    return is_stopped or len(history) >= plan.num_epochs


def _told(plan: Plan, history: History) -> str:
    """Return a line about a run that ended before its last epoch."""
    line = f"fit: stopped after epoch {len(history)} of {plan.num_epochs}"
    if plan.patience is None or (best := history.best_epoch) is None:
        return line
    return f"{line}, with the weights of epoch {best}, whose validation bound is {history.validation[best - 1]:.2f}"


def _end_epoch(plan: Plan, run: Run) -> bool:
    """Validate, move the learning rate, save and call the callbacks; return True if one of these ends the run."""
    history = run.history
    if plan.held_out is not None:
        run.validate(plan.held_out)
    run.step_lr()
    # A run that is over is saved once more with its summary. An error of a callback must not lose the epoch.
    if len(history) % plan.checkpoint_every == 0 and (plan.callbacks or not _is_over(plan, history)):
        _save(plan, run)
    return ask_to_stop(plan.callbacks, history, plan.model, plan.seed)


def _save(plan: Plan, run: Run) -> None:
    if plan.checkpoint is not None and rank() == 0:
        run.save(plan.checkpoint)


def _step(
    svi: SVI, compiled: CompiledSVI | None, batches: Batches, device: torch.device, bar: tqdm
) -> Callable[[Tensor], Tensor | float]:
    """Return a function that takes a step on an entry of `Batches.sources`.

    On a GPU the captured step includes gathering its minibatch.
    """

    def minibatch(source: Tensor) -> Tensor:
        if len(source) < num_processes():
            raise ValueError(
                f"a batch of {len(source)} data cannot be shared by {num_processes()} processes; let the DataLoader "
                "or stream make larger ones"
            )
        return share(batches.gather(source))

    if compiled is None:
        return lambda source: svi.step(minibatch(source))
    capture = capture_on(device)
    replay = None if capture is None else Replay(compiled, capture, batches.gather, batches.generators)
    bar.set_description("fit, compiling")

    def step(source: Tensor) -> Tensor | float:
        if len(source) < batches.full_size:  # one smaller batch an epoch does not repay another compilation
            return svi.step(minibatch(source))
        loss = compiled.step(minibatch(source)) if replay is None else replay.step(source)
        bar.set_description("fit" if compiled.is_eager else "fit, compiled", refresh=False)
        return loss

    return step
