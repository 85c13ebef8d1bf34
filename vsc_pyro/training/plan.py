"""`Plan`: the arguments of a fit, checked and completed before anything changes."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from vsc_pyro._arguments import bool_or_auto, natural_int, positive_float, positive_int
from vsc_pyro._files import check_writable, destination
from vsc_pyro.datasets import Dataset
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.vae import VAE
from vsc_pyro.objectives import check_objective, exact_if_linear, get_objective
from vsc_pyro.training.batches import Batches, get_batches
from vsc_pyro.training.devices import resolve_device
from vsc_pyro.training.parallel import num_processes, rank
from vsc_pyro.training.resumption import saved_shares
from vsc_pyro.training.schedules import Cooldown, Ramp, Schedule, check_warmup

_EPOCHS, _STEPS, _COOLDOWN = 50, 2000, 0.25


@dataclasses.dataclass
class Plan:
    """A fit that is going to work, as far as can be known beforehand. Fields are the arguments of `vsc_pyro.fit`.

    Attributes:
        batches: the source of minibatches.
        loss: the objective as an ELBO.
        warmup_steps: number of steps in which the weight of the divergence rises; a resumed run keeps its own.
        cooling: the fall of the learning rate.

    Raises:
        ValueError, OSError, FileExistsError: as `vsc_pyro.fit`.
    """

    model: VAE
    data: dataclasses.InitVar[Dataset | Tensor | np.ndarray | DataLoader]
    objective: str | ELBO
    gate: str | Gate | None
    num_draws: int | None
    epochs: int | None
    batch_size: int | None
    lr: float
    warmup: float
    cooldown: float | None
    lr_schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None
    schedules: Mapping[str, Schedule] | None
    device: str | torch.device
    seed: int
    checkpoint: str | os.PathLike | None
    checkpoint_every: int
    resume: bool
    progress: bool
    compile: bool | str
    precision: str
    batches: Batches = dataclasses.field(init=False)
    loss: ELBO = dataclasses.field(init=False)
    warmup_steps: int = dataclasses.field(init=False)
    cooling: Cooldown = dataclasses.field(init=False)

    def __post_init__(self, data: Dataset | Tensor | np.ndarray | DataLoader) -> None:
        self._check_numbers()
        self._check_checkpoint()
        self.device = resolve_device(self.device)
        self._check_gate()
        self.batches = get_batches(data, self.batch_size, self.seed)
        self.batches.check(self.model)
        self.epochs = default_epochs(self.batches.num_steps) if self.epochs is None else self.epochs
        self._choose_objective()
        self._choose_rates()
        check_batch_norm(self.model, self.batches)
        self._check_processes()

    @property
    def resumes(self) -> bool:
        """Return True if there is a run to resume."""
        return bool(self.resume) and Path(self.checkpoint).is_file()

    def _check_numbers(self) -> None:
        if self.epochs is not None:
            self.epochs = positive_int("epochs", self.epochs)
        self.checkpoint_every = positive_int("checkpoint_every", self.checkpoint_every)
        self.lr = positive_float("lr", self.lr)
        self.seed = natural_int("seed", self.seed)
        self.compile = bool_or_auto("compile", self.compile)

    def _check_checkpoint(self) -> None:
        if self.checkpoint is None:
            if self.resume:
                raise ValueError("resume=True needs checkpoint=, the file to go on from")
            return
        self.checkpoint = destination(self.checkpoint, "checkpoint")
        if self.checkpoint.exists() and not self.resume:
            raise FileExistsError(
                f"checkpoint {self.checkpoint} exists; pass resume=True to go on with that run, or another name, or "
                "delete it"
            )
        if rank() == 0:
            check_writable(self.checkpoint)

    def _check_gate(self) -> None:
        if self.gate is None:
            return
        encoder = self.model.encoder
        if gate_of(encoder) is None:
            raise ValueError(f"gate={self.gate!r} is for spikes, and {type(encoder).__name__} draws none; leave it out")
        self.gate = copy.deepcopy(getattr(encoder, "get_gate", get_gate)(self.gate))

    def _choose_objective(self) -> None:
        objective = self.objective
        if objective == "auto":
            draws = self.gate is not None or self.num_draws is not None
            x = self.batches.sample[:2].to(self.model.reference)
            objective = "analytic" if draws else exact_if_linear(self.model, x)
        gate = self.gate or gate_of(self.model.encoder)
        self.loss = get_objective(objective, self.num_draws, (gate or Gate()).draws_at_once)
        check_objective(self.loss, self.model, gate, self.schedules or ())

    def _choose_rates(self) -> None:
        """Settle how the weight of the divergence rises and how the learning rate falls."""
        self.warmup = check_warmup(self.warmup, self.loss, self.schedules)
        self.warmup_steps = int(self.warmup * self.epochs * self.batches.num_steps)
        cooldown = self.cooldown
        if cooldown is not None and Cooldown(cooldown, self.epochs).share and self.lr_schedule is not None:
            raise ValueError(f"cooldown={cooldown!r} and lr_schedule both set the learning rate; pass one")
        if self.resumes:
            self.warmup_steps, saved = saved_shares(self.checkpoint)
            cooldown = saved if cooldown is None else cooldown
        self.cooling = Cooldown(default_cooldown(cooldown) if self.lr_schedule is None else 0.0, self.epochs)
        self.schedules = with_warmup(self.schedules, self.warmup_steps)

    def _check_processes(self) -> None:
        batches = self.batches
        if batches.smallest is not None and batches.smallest < num_processes():
            raise ValueError(
                f"batch_size={batches.batch_size} leaves a last batch of {batches.smallest} of {batches.num_data} "
                f"data, and there are {num_processes()} processes to share it; choose another batch_size"
            )

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with this one."""
        loss, model = self.loss, self.model
        return {
            "objective": f"{type(loss).__name__}(num_particles={loss.num_particles})"
            + (f"(alpha={loss.alpha})" if hasattr(loss, "alpha") else ""),
            "batch_size": self.batches.batch_size,
            "lr": self.lr,
            "warmup": self.warmup,
            "cooldown": float(self.cooling.share),
            "seed": self.seed,
            "data": self.batches.describe(),
            "model": _without_addresses(repr(model)),
            "schedules": _without_addresses(repr({n: s for n, s in self.schedules.items() if n != "warmup"})),
            "precision": self.precision,
            "trained": [name for name, p in model.named_parameters() if p.requires_grad],
            "processes": num_processes(),
        }


def default_epochs(num_steps: int) -> int:
    """Return the default number of passes over data of `num_steps` minibatches: 50, or more to make 2,000 steps."""
    return max(_EPOCHS, -(-_STEPS // num_steps))


def default_cooldown(cooldown: float | None) -> float:
    """Return the share of a run in which the learning rate falls: a quarter by default."""
    return _COOLDOWN if cooldown is None else cooldown


def with_warmup(schedules: Mapping[str, Schedule] | None, num_steps: int) -> dict[str, Schedule]:
    """Add to the schedules of a run the rise of the divergence's weight over `num_steps` steps."""
    return dict(schedules or {}) | ({"warmup": Ramp(0, 1, length=num_steps)} if num_steps else {})


def check_batch_norm(model: VAE, batches: Batches) -> None:
    """Raise `ValueError` if batch normalisation would meet a last batch of one datum."""
    has_batch_norm = any(isinstance(m, _BatchNorm) for m in model.modules())
    if has_batch_norm and batches.smallest is not None and batches.smallest // num_processes() == 1:
        size = "one" if batches.smallest == 1 else batches.smallest
        each = "" if num_processes() == 1 else f", that is of one for some of {num_processes()} processes"
        raise ValueError(
            f"batch_size={batches.batch_size} leaves a last batch of {size} of the {batches.num_data} "
            f"data{each}, and batch normalisation of one datum is undefined; choose another batch_size"
        )


def _without_addresses(text: str) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", text)
