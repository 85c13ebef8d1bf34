"""`Run`: the state of a fit, which takes epochs, is saved to a checkpoint and is restored from one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._seeding import manual_seed
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import Batches, checksum
from vsc_pyro.training.checkpoints import check_weights, is_plain, load_checkpoint, load_weights, save_checkpoint
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.losses import Losses, Reading
from vsc_pyro.training.parallel import check_alike, common_seed, num_processes, own_seed
from vsc_pyro.training.resumption import (
    check_arguments,
    check_history,
    check_optimizer,
    check_random_state,
    check_schedules_alike,
    check_settings,
    check_structure,
    plain,
)
from vsc_pyro.training.saving import check_described, described
from vsc_pyro.training.schedules import Schedule, planned, rehearse_lr, set_values, step_lr
from vsc_pyro.training.validation import Validation, bounds_after_warmup, record

# Losses stay on the device. Reading them this often is cheap, and stops a diverged run early.
_STEPS_BETWEEN_READS = 50


class Run:
    """The state that changes in the course of a run: model, optimiser, scheduler, batches and history.

    Attributes:
        has_stepped: True after the first step in this process.
        best: the weights of the best validation bound, if the run keeps them.
    """

    def __init__(
        self,
        model: VAE,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None,
        schedules: dict[str, Schedule],
        batches: Batches,
        settings: dict[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.schedules = schedules
        self.batches = batches
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.settings: dict[str, Any] = {
            **settings,
            "trained": [names[id(p)] for group in optimizer.param_groups for p in group["params"]],
            "optimizer": type(optimizer).__name__,
            "lr_schedule": None if schedule is None else type(schedule).__name__,
        }
        self.has_stepped = False
        self.best: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None  # the weights of the last epoch, once the best ones are back
        self.history = History()
        self._planned: dict[str, Tensor] = {}
        self._finite = {name: torch.isfinite(b) for name, b in model.named_buffers() if is_plain(b)}
        self._written: tuple[int, int] | None = None
        self._is_described: bool | None = None  # None before the first checkpoint

    def epoch(self, take_step: Callable[[Tensor], Tensor | float], bar: tqdm, limit: int | None = None) -> None:
        """Take the steps of an epoch, at most `limit`; `take_step` takes one on an entry of `Batches.sources`."""
        start = time.perf_counter()
        losses = Losses()
        device = self.model.reference.device
        first = len(self.history) * self.batches.num_steps
        for step, source in enumerate(self._sources(device, limit), start=1):
            set_values(self.model, self.schedules, first + step - 1)
            # Pyro's checks wait for the device several times a step, so only the first step of a run is checked.
            with pyro.validation_enabled(not self.history and step == 1):
                loss = take_step(source)
            self.has_stepped = True
            losses.add(torch.as_tensor(loss, device=device), len(source))
            if step % _STEPS_BETWEEN_READS == 0:
                # Several processes must stop at the same step, so they wait for the losses.
                self._report(losses.read(wait=num_processes() > 1), bar)
        self._report(losses.read(wait=True), bar)
        self._stop_if_weights_not_finite()
        self.history.elbo.append(-losses.mean())
        self.history.seconds.append(time.perf_counter() - start)

    def validate(self, validation: Validation) -> None:
        """Measure the model on validation data, and keep its weights if they are the best of a run that keeps them."""
        record(self.history, validation.measure(self.model))
        if self.settings["keeps_best"] and self.history.best_epoch == len(self.history):
            self.best = copy.deepcopy(self.model.state_dict())

    def step_lr(self) -> None:
        """Advance the lr_schedule by the last epoch."""
        step_lr(self.schedule, bounds_after_warmup(self.history)[-1:])

    def return_to_best(self) -> None:
        """Return the model, with its scheduled settings, to the epoch of the best validation bound, if it is kept."""
        if self.best is not None and (epoch := self.history.best_epoch) is not None:
            self._last = copy.deepcopy(self.model.state_dict())
            load_weights(self.model, {"model": self.best})
            set_values(self.model, self.schedules, min(epoch * self.history.steps_per_epoch, self.history.steps) - 1)

    def _sources(self, device: torch.device, limit: int | None) -> Iterator[Tensor]:
        """Yield the next epoch's entries of `Batches.sources`, the same in all processes."""
        epoch = len(self.history)
        sources = iter(self.batches.sources(epoch, limit))
        if num_processes() > 1:
            # A loader draws its order and the seeds of its workers from torch's global generator with the first batch.
            manual_seed(common_seed(self.settings["seed"], epoch), device)
            first = list(itertools.islice(sources, 1))
            check_alike(f"the first minibatch of epoch {epoch + 1}", [checksum(source) for source in first])
            manual_seed(own_seed(self.settings["seed"], epoch), device)
            yield from first
        yield from sources

    def _report(self, arrived: Iterator[Reading], bar: tqdm) -> None:
        for values, num_data, offset in arrived:
            self._stop_if_not_finite(values, offset)
            bar.update(len(values))
            shown = {"objective": f"{-float(values.sum()) / num_data:.2f}"}
            if self.history.validation:
                shown["validation"] = f"{self.history.validation[-1]:.2f}"
            bar.set_postfix(shown, refresh=False)

    def _stop_if_not_finite(self, losses: Tensor, offset: int) -> None:
        finite = torch.isfinite(losses)
        if not finite.all():
            step = offset + int(finite.logical_not().nonzero()[0, 0]) + 1
            raise NonFiniteLossError(
                f"the loss became {float(losses[step - offset - 1])} at step {step} of epoch {len(self.history) + 1}; "
                "the last checkpoint, if one was written, is untouched; try a lower lr, or look for outliers in data"
            )

    def _stop_if_weights_not_finite(self) -> None:
        parameters = dict(self.model.named_parameters())
        finite = torch.stack([torch.isfinite(p).all() for p in parameters.values()]).tolist()
        for name in (name for name, good in zip(parameters, finite, strict=True) if not good):
            raise NonFiniteLossError(
                f"{name} became NaN or infinite in epoch {len(self.history) + 1}; "
                "the last checkpoint, if one was written, is untouched; try a lower lr"
            )

    def foresee(self, epochs: int) -> None:
        """Compute the values of all schedules over a run that is saved or resumed."""
        rehearsal = rehearse_lr(self.schedule, self.optimizer, [None] * epochs)
        rates = None if self.schedule is None or rehearsal is None else rehearsal.rates
        self._planned = planned(rates, self.schedules, epochs, self.batches.num_steps)

    def save(self, path: Path) -> None:
        """Write a checkpoint to `path`.

        If another process has written `path` during the run, write to a new file beside it and raise `FileExistsError`.
        """
        self._stop_if_buffers_not_finite()
        if _identity(path) not in (None, self._written):
            beside = path.with_name(f"{path.stem}-{secrets.token_hex(4)}{path.suffix}")
            self._save(beside)
            raise FileExistsError(
                f"checkpoint {path} was written by someone else during this run, which has been saved to {beside} "
                f"after {len(self.history)} epochs instead; continue with checkpoint={str(beside)!r} and resume=True"
            )
        self._save(path)
        self._written = _identity(path)

    def _stop_if_buffers_not_finite(self) -> None:
        for name, buffer in self.model.named_buffers():
            before = self._finite.get(name)  # a mask may hold -inf
            if before is None or not is_plain(buffer) or before.shape != buffer.shape:
                continue
            if (before.to(buffer.device) & ~torch.isfinite(buffer)).any():
                raise NonFiniteLossError(
                    f"the buffer {name} became NaN or infinite by epoch {len(self.history)}, and a checkpoint with it "
                    "could not be resumed; the last one, if one was written, is untouched; look for outliers in data"
                )

    def _save(self, path: Path) -> None:
        device = self.model.reference.device
        optimizer = self.optimizer.state_dict()
        last = self._last or self.model.state_dict()
        save_checkpoint(
            path,
            {
                "model": self.best or last,
                "last": last if self.best else None,
                **self._description(),
                "optimizer": {"state": optimizer["state"], "param_groups": plain(optimizer["param_groups"])},
                # An optimiser has no state for parameters without a gradient.
                "idle": [n for i, n in enumerate(self.settings["trained"]) if i not in optimizer["state"]],
                "schedule": None if self.schedule is None else plain(self.schedule.state_dict()),
                "planned": self._planned,
                "epoch": len(self.history),
                "history": dataclasses.asdict(self.history),
                "settings": self.settings,
                "rng": {
                    "device": device.type,
                    "data": self.batches.random_state(),
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                },
            },
        )

    def _description(self) -> dict[str, Any]:
        """Return what `vsc_pyro.load` builds the model from; nothing for a model that cannot be described."""
        if self._is_described is False:
            return {}
        try:
            with networks_in(self.model, "float32"):  # the precision is part of the run
                config, tensors = described(self.model)
                text = json.dumps(config)
                if self._is_described is None:
                    check_described(self.model, text, {"model": self.model.state_dict(), **tensors})
        except ValueError:
            self._is_described = False
            return {}
        self._is_described = True
        return {"config": text, **tensors}

    def restore(self, path: Path, device: torch.device, epochs: int, steps: int | None) -> None:
        """Restore the run in that checkpoint. Nothing changes before all of it has been checked."""
        self._written = _identity(path)
        state = load_checkpoint(path)
        try:
            check_arguments(state.get("settings"), self.settings)
        except ValueError as error:
            raise ValueError(f"checkpoint {path} {error}") from error
        check_weights(self.model, state, path)
        last = state if state.get("last") is None else {"model": state["last"]}
        check_weights(self.model, last, path)
        try:
            check_structure(state, self.schedule is not None, self.settings["keeps_best"])
            history = check_history(state, epochs, steps)
            check_settings(state["settings"], self.settings, state["format"])
            bounds = bounds_after_warmup(history)
            rehearsal = rehearse_lr(self.schedule, self.optimizer, bounds)
            groups, scheduler = (None, {}) if rehearsal is None else (rehearsal.groups, rehearsal.scheduler)
            check_schedules_alike(state, self._planned, scheduler)
            moments = check_optimizer(state, self.optimizer, self.settings["trained"], groups)
            rng = check_random_state(state["rng"], device, self.batches.generators)
        except ValueError as error:
            raise ValueError(f"checkpoint {path} {error}") from error
        load_weights(self.model, last, path)
        step_lr(self.schedule, bounds)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.history = history
        if self.settings["keeps_best"]:
            self.best = dict(state["model"])
        self._restore_random_state(rng, device)

    def _restore_random_state(self, rng: dict[str, Any], device: torch.device) -> None:
        if rng["device"] != device.type:
            # A state of one kind of device means nothing to another; a seed keeps the resumed run reproducible.
            warnings.warn(
                f"resuming on {device.type} a run of {rng['device']}: its random numbers differ from here on from "
                "those of an uninterrupted run",
                stacklevel=2,
            )
            seed = self.settings["seed"] + len(self.history)
            for generator in self.batches.generators:
                generator.manual_seed(seed)
            manual_seed(seed, device)
            return
        self.batches.set_random_state(rng["data"])
        torch.set_rng_state(rng["cpu"])
        if rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], device)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the inode and the time of the last change of a file, or None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
