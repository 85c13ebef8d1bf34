"""`Plan`: the arguments of `fit`, checked and completed before anything changes."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from vsc_pyro._arguments import (
    bool_or_auto,
    choice,
    float_from_zero,
    natural_int,
    positive_float,
    positive_int,
    takes,
    yes_or_no,
)
from vsc_pyro._files import check_writable, destination
from vsc_pyro._recorded import arguments_of
from vsc_pyro.datasets import Dataset
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.precision import PRECISIONS
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives import check_objective, exact_if_linear, get_objective
from vsc_pyro.training.batches import Batches, get_batches
from vsc_pyro.training.callbacks import Callback
from vsc_pyro.training.defaults import checked_lr, chosen_lr, chosen_warmup, or_default
from vsc_pyro.training.optimizers import OptimizerFactory, SchedulerFactory
from vsc_pyro.training.parallel import num_processes, rank
from vsc_pyro.training.resumption import Saved, plain, saved_choices
from vsc_pyro.training.schedules import Cooldown, Ramp, Schedule
from vsc_pyro.training.streams import KINDS, StreamBatches, check_kind, is_stream
from vsc_pyro.training.validation import Validation, held_out

_EPOCHS, _STEPS = 50, 2000
Data = Dataset | Tensor | np.ndarray | DataLoader | Iterable[Any]


@dataclasses.dataclass
class Plan:
    """The arguments of `vsc_pyro.fit`, checked before anything changes, and the choices that follow from them.

    Attributes:
        num_steps: number of steps, including those before a resumption.
        num_epochs: number of epochs in which these are taken; the last one may be shorter.
        asked_steps: the argument `steps`; None for a run of `epochs`.
        batches: the source of minibatches.
        held_out: the validation data; None without.
        loss: the objective as an ELBO.
        learning_rate: at the start; a resumed run keeps a default that depends on the number of steps.
        warmup_steps: number of steps in which the weight of the KL divergence rises; a resumed run keeps its own.
        cooling: the learning rate's fall at the end.

    Raises:
        ValueError: as `vsc_pyro.fit`.
    """

    model: VAE
    data: dataclasses.InitVar[Data]
    objective: str | ELBO
    gate: Gate | None
    num_draws: int | None
    epochs: dataclasses.InitVar[int | None]
    steps: dataclasses.InitVar[int | None]
    batch_size: dataclasses.InitVar[int | None]
    lr: dataclasses.InitVar[float | None]
    warmup: float | None
    cooldown: float | None
    lr_schedule: SchedulerFactory | None
    optimizer: OptimizerFactory | None
    weight_decay: float | None
    clip_norm: float | None
    schedules: dict[str, Schedule]
    validation: dataclasses.InitVar[float | Data | None]
    patience: int | None
    callbacks: list[Callback]
    device: torch.device
    seed: int
    checkpoint: Path | None
    checkpoint_every: int
    resume: bool
    progress: bool
    compile: bool | str
    precision: str
    num_steps: int = dataclasses.field(init=False)
    num_epochs: int = dataclasses.field(init=False)
    asked_steps: int | None = dataclasses.field(init=False)
    batches: Batches = dataclasses.field(init=False)
    held_out: Validation | None = dataclasses.field(init=False)
    loss: ELBO = dataclasses.field(init=False)
    learning_rate: float = dataclasses.field(init=False)
    warmup_steps: int = dataclasses.field(init=False)
    cooling: Cooldown = dataclasses.field(init=False)

    def __post_init__(
        self,
        data: Data,
        epochs: int | None,
        steps: int | None,
        batch_size: int | None,
        lr: float | None,
        validation: float | Data | None,
    ) -> None:
        epochs = None if epochs is None else positive_int("epochs", epochs)
        steps = None if steps is None else positive_int("steps", steps)
        self.asked_steps = steps
        if epochs is not None and steps is not None:
            raise ValueError(f"epochs={epochs} and steps={steps} both set the length of the run; pass one")
        self.checkpoint_every = positive_int("checkpoint_every", self.checkpoint_every)
        lr = checked_lr(lr)
        self._check_update(lr)
        self.seed = natural_int("seed", self.seed)
        self.compile, self.progress = bool_or_auto("compile", self.compile), yes_or_no("progress", self.progress)
        choice("precision", self.precision, PRECISIONS | {"auto": None})
        data, self.held_out = held_out(self.model, data, validation, steps, self.seed)
        self._check_patience()
        self.batches = self._get_batches(data, steps, batch_size)
        self.batches.check(self.model)
        per_epoch = self.batches.num_steps
        if steps is None:
            steps = per_epoch * (default_epochs(per_epoch) if epochs is None else epochs)
        self.num_steps, self.num_epochs = steps, -(-steps // per_epoch)
        self._choose_objective()
        self._choose_rates(lr)
        check_batch_norm(self.model, self.batches)
        self._check_processes()

    def _check_update(self, lr: float | None) -> None:
        """Check the arguments of the optimiser and of its scheduler."""
        if self.optimizer is not None:
            if not takes(self.optimizer, 1):
                raise ValueError(
                    "optimizer must be a function from a list of parameters to a torch optimiser, such as "
                    f"functools.partial(torch.optim.SGD, lr=0.1), got {self.optimizer!r}"
                )
            for name, value in {"lr": lr, "weight_decay": self.weight_decay}.items():
                if value is not None:
                    raise ValueError(
                        f"{name}={value!r} is an option of Adam; with optimizer=, let that function set it"
                    )
        if self.lr_schedule is not None and not takes(self.lr_schedule, 1):
            raise ValueError(
                "lr_schedule must be a function from the optimiser to a torch scheduler, such as "
                f"functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10), got {self.lr_schedule!r}"
            )
        if self.weight_decay is not None:
            self.weight_decay = float_from_zero("weight_decay", self.weight_decay) or None
        self.clip_norm = None if self.clip_norm is None else positive_float("clip_norm", self.clip_norm)

    def _check_patience(self) -> None:
        if self.patience is not None:
            self.patience = positive_int("patience", self.patience)
            if self.held_out is None:
                raise ValueError(
                    f"patience={self.patience} counts epochs without a better validation bound, and there is none; "
                    "pass validation=0.1 or data"
                )

    @property
    def first_precision(self) -> str:
        """The precision before the first step; ``"auto"`` is decided by a trial."""
        return "float32" if self.precision == "auto" else self.precision

    @property
    def resumed(self) -> Path | None:
        """The checkpoint to resume from; None for a new run."""
        path = self.checkpoint
        return path if self.resume and path is not None and path.is_file() else None

    def _get_batches(self, data: Any, steps: int | None, batch_size: int | None) -> Batches:
        if not is_stream(data, steps):
            check_kind(data)
            return get_batches(data, batch_size, self.seed, or_default(self.model, "batch_size", None))
        if steps is None:
            raise ValueError(
                f"steps must be the number of batches to train on, because a {type(data).__name__} is a stream "
                f"without epochs, got None; pass steps=, or data in memory ({KINDS})"
            )
        if batch_size is not None:
            raise ValueError(f"batch_size={batch_size} is for data in memory, and a stream has its own; leave it out")
        saved = Saved() if (path := self.resumed) is None else saved_choices(path)
        return StreamBatches(data, steps, self.seed, saved.epoch * saved.steps_per_epoch, saved.steps_per_epoch)

    def _choose_objective(self) -> None:
        objective = self.objective
        if objective == "auto":
            draws = self.gate is not None or self.num_draws is not None
            objective = "analytic" if draws else or_default(self.model, "objective", None)
        if objective == "auto":
            objective = exact_if_linear(self.model, self.batches.sample[:2].to(self.model.reference))
        gate = self.gate or gate_of(self.model.encoder)
        self.loss = get_objective(objective, self.num_draws, (gate or Gate()).draws_at_once)
        check_objective(self.loss, self.model, gate, self.schedules)

    def _choose_rates(self, lr: float | None) -> None:
        """Choose the rise of the KL divergence's weight and the fall of the learning rate."""
        self.warmup = warmup = chosen_warmup(self.model, self.warmup, self.loss, self.schedules)
        self.warmup_steps = int(warmup * self.num_steps)
        saved = None if (path := self.resumed) is None else saved_choices(path)
        self.learning_rate = chosen_lr(self.model, lr, self.num_steps, saved.lr if saved else 0.0)
        cooldown = self.cooldown
        if cooldown is not None and Cooldown(cooldown, self.num_epochs).share and self.lr_schedule is not None:
            raise ValueError(f"cooldown={cooldown!r} and lr_schedule both set the learning rate; pass one")
        if saved is not None:
            self.warmup_steps, cooldown = saved.warmup_steps, saved.cooldown if cooldown is None else cooldown
        share = or_default(self.model, "cooldown", cooldown) if self.lr_schedule is None else 0.0
        self.cooling = Cooldown(share, self.num_epochs)
        self.schedules = with_warmup(self.schedules, self.warmup_steps)

    def _check_processes(self) -> None:
        batches = self.batches
        if batches.smallest is not None and batches.smallest < num_processes():
            raise ValueError(
                f"batch_size={batches.batch_size} leaves a last batch of {batches.smallest} of {batches.num_data} "
                f"data, and there are {num_processes()} processes to share it; choose another batch_size"
            )

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must have in common with this run."""
        loss: Any = self.loss
        model = self.model
        alpha = getattr(loss, "alpha", None)
        return {
            "objective": f"{type(loss).__name__}(num_particles={loss.num_particles})"
            + ("" if alpha is None else f"(alpha={alpha})")
            + (f"({loss.describe()})" if hasattr(loss, "describe") else ""),
            "batch_size": self.batches.batch_size,
            "lr": self.learning_rate if self.optimizer is None else None,
            "clip_norm": self.clip_norm,
            "warmup": self.warmup,
            "cooldown": float(self.cooling.share),
            "seed": self.seed,
            "data": self.batches.describe(),
            "validation": None if self.held_out is None else self.held_out.describe(),
            "keeps_best": self.patience is not None,
            "arguments": {} if type(model).__init__ is VAE.__init__ else plain(arguments_of(model)),
            "model": _without_addresses(repr(model)),
            "schedules": _without_addresses(repr({n: s for n, s in self.schedules.items() if n != "warmup"})),
            "precision": self.precision,
            "processes": num_processes(),
        }


def checked_path(checkpoint: str | os.PathLike | None, resume: bool) -> Path | None:
    """Return the file that a run is saved to, or None, after checks that the run may write it.

    Raises:
        ValueError, OSError, FileExistsError: as `vsc_pyro.fit`.
    """
    if yes_or_no("resume", resume) and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=, the file to resume from")
    if checkpoint is None:
        return None
    path = destination(checkpoint, "checkpoint")
    if path.exists() and not resume:
        raise FileExistsError(
            f"checkpoint {path} exists; pass resume=True to continue that run, or another name, or delete it"
        )
    if rank() == 0:
        check_writable(path)
    return path


def chosen_gate(encoder: nn.Module, gate: str | Gate | None) -> Gate | None:
    """Return a gate to train `encoder` with, a copy of a `Gate` object; None to keep the encoder's own.

    Raises:
        ValueError: an unknown name, or an encoder that draws no spikes.
    """
    if gate is None:
        return None
    if gate_of(encoder) is None:
        raise ValueError(f"gate={gate!r} is for spikes, and {type(encoder).__name__} draws none; leave it out")
    named: Any = getattr(encoder, "get_gate", get_gate)
    with torch.inference_mode(False):
        return copy.deepcopy(named(gate))


def default_epochs(num_steps: int) -> int:
    """Return the default number of epochs of `num_steps` minibatches: 50, or more to reach 2,000 steps."""
    return max(_EPOCHS, -(-_STEPS // num_steps))


def with_warmup(schedules: Mapping[str, Schedule] | None, num_steps: int) -> dict[str, Schedule]:
    """Add a schedule that raises the weight of the KL divergence over `num_steps` steps.

    Raises:
        ValueError: `schedules` that are no mapping.
    """
    if schedules is not None and not isinstance(schedules, Mapping):
        raise ValueError(
            "schedules must map dotted names of settings to functions of the step, such as "
            f"{{'beta': Ramp(0, 1, length=1000)}}, got {schedules!r}"
        )
    return dict(schedules or {}) | ({"warmup": Ramp(0, 1, length=num_steps)} if num_steps else {})


def check_batch_norm(model: VAE, batches: Batches) -> None:
    """Raise `ValueError` if a model with batch normalisation would train on a batch of one datum."""
    has_batch_norm = any(isinstance(m, _BatchNorm) for m in model.modules())
    if has_batch_norm and batches.smallest is not None and batches.smallest // num_processes() == 1:
        size = "one" if batches.smallest == 1 else batches.smallest
        each = "" if num_processes() == 1 else f", and so one datum for some of {num_processes()} processes"
        raise ValueError(
            f"batch_size={batches.batch_size} leaves a last batch of {size} of the {batches.num_data} "
            f"data{each}, and batch normalisation of one datum is undefined; choose another batch_size"
        )


def _without_addresses(text: str) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", text)
