"""`fit` trains a `VAE` by stochastic variational inference, with progress, checkpoints and exact resumption."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._devices import resolve_device
from vsc_pyro._seeding import alone
from vsc_pyro.acceleration import is_worth_compiling
from vsc_pyro.datasets import Dataset
from vsc_pyro.gates import Gate
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.training.callbacks import Callback, checked_callbacks
from vsc_pyro.training.contexts import ended_warmup, gate_in_place, private_state, unprepared_if_refused
from vsc_pyro.training.history import History
from vsc_pyro.training.loop import train
from vsc_pyro.training.optimizers import (
    ClipNorm,
    OptimizerFactory,
    SchedulerFactory,
    make_optimizer,
    make_scheduler,
)
from vsc_pyro.training.parallel import as_the_first, check_alike, rank, sum_gradients
from vsc_pyro.training.plan import Plan, checked_path, chosen_gate, with_warmup
from vsc_pyro.training.run import Run
from vsc_pyro.training.schedules import Schedule, check_plateau, check_schedules, unchanged_if_refused


def fit(
    model: VAE,
    data: Dataset | Tensor | np.ndarray | DataLoader | Iterable[Any],
    *,
    objective: str | ELBO = "auto",
    gate: str | Gate | None = None,
    num_draws: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    warmup: float | None = None,
    cooldown: float | None = None,
    lr_schedule: SchedulerFactory | None = None,
    optimizer: OptimizerFactory | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    validation: float | Dataset | Tensor | np.ndarray | DataLoader | None = None,
    patience: int | None = None,
    callbacks: Iterable[Callback] = (),
    device: str | torch.device = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
    compile: bool | str = "auto",
    precision: str = "float32",
) -> History:
    r"""Train `model` on `data` by stochastic variational inference, by default with Adam (Kingma & Ba, 2015).

    By default the objective is the evidence lower bound, with the weight :math:`\beta` of `vsc_pyro.VAE`:

    .. math:: \sum_i E_{q(z|x_i)}[\log p(x_i|z)] - \beta\, \mathrm{KL}(q(z|x_i) \,\|\, p(z)).

    Each step takes one gradient step on it with a minibatch. Data in memory move to the device once. No step waits
    for the device, except the first one of a run and those of several processes. The caller's random state and Pyro's
    parameter store do not change. Gradients are on, and autocast is off, under a caller's ``torch.no_grad()``,
    ``torch.inference_mode()`` and ``torch.autocast()`` too. One thread trains or evaluates at a time; other threads
    wait. Every call begins with a new optimiser, also for a model that has been trained; `resume` continues a run with
    its own.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder, decoder = vsc.SpikeSlabEncoder(64, latent_dim=8), vsc.BernoulliDecoder(8, 64)
        >>> model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(8, inclusion=0.2))
        >>> images = torch.rand(100, 64).round()
        >>> history = vsc.fit(model, images, epochs=3, batch_size=50, device="cpu", progress=False)
        >>> len(history.elbo)
        3

    **Model and data**

    Args:
        model: trained in place, and moved to `device`.
        data: a `vsc_pyro.datasets.Dataset`, an array or tensor of shape ``(N, ...)``, a `DataLoader`, or a stream: an
            iterator or iterable of tensors or arrays of shape ``(B, ...)`` (see below).

    **Objective**

    Args:
        objective: ``"analytic"`` (KL divergences in closed form), ``"trace"`` (sampled), ``"exact"`` (nothing sampled,
            linear normal decoders only), ``"nested"`` (the mean of that for prefixes of the code),
            ``"importance-weighted"`` (the bound of several draws), or a `pyro.infer.ELBO`. ``"auto"`` is the
            model's default if it has one, else ``"exact"`` for a linear normal decoder, and ``"analytic"`` for all
            other models and with `gate` or `num_draws`.
        gate: gradient estimator of the spikes, a name or a `vsc_pyro.gates.Gate`. It replaces the gate of the encoder,
            for good. None keeps the encoder's gate.
        num_draws: draws of each code per step, for an objective that is a name. None for the smallest number that the
            objective and the gate allow.

    **Steps and rates**

    A model may declare defaults of its own for `objective`, `batch_size`, `lr`, `warmup` and `cooldown`, see
    `VAE.training_defaults`.

    Args:
        epochs: number of passes over the data, including those before a resumption. None for 50, or more if 50 make
            fewer than 2,000 steps.
        steps: number of steps, in place of `epochs`, including those before a resumption. A stream needs it.
        batch_size: data per step; the last batch of an epoch may be smaller. None for 200, or the model's default. A
            `DataLoader` or stream has its own.
        lr: learning rate of Adam. None for 1e-3, or the model's default. With `optimizer`, that function sets it.
        warmup: share of the run, in [0, 1), in which the weight of the KL divergence rises linearly from 0 to the
            model's `beta`. Latents then learn something before they cost anything. None for 0, or the model's
            default, or 0 with a schedule of `beta`. A resumed run keeps its own.
        cooldown: share of the run, in [0, 1], at the end, in which the learning rate falls linearly, epoch by epoch.
            None for .25, or the model's default; 0 with an `lr_schedule`; the saved share in a resumed run. A finished
            run that is resumed for more epochs has already cooled down once; it equals one longer run only with
            ``cooldown=0``. A run that `patience` ends before its last epochs does not cool down.
        lr_schedule: function from the optimiser to a torch scheduler, which is stepped once an epoch. A
            `ReduceLROnPlateau` steps by the validation bound, not in the epochs of the warm-up, and needs
            ``mode="max", threshold_mode="abs"``.
        optimizer: function from the list of parameters to a torch optimiser of all of them, such as
            ``functools.partial(torch.optim.SGD, lr=1e-4)``, in place of Adam. It sets all options; `lr` and
            `weight_decay` must be None, and the model's default of `lr` has no effect. A copy takes a trial step:
            optimisers that need a closure, such as LBFGS, or sparse gradients are refused. On a GPU only Adam and AdamW
            with ``fused=True`` are replayed as part of a CUDA graph; a warning says so of others.
        weight_decay: decay of all weights by ``lr * weight_decay`` in each step, apart from their gradients: AdamW
            (Loshchilov & Hutter, 2019). None or 0 for none.
        clip_norm: largest joint norm of the gradients of a step, which are scaled down to it. Gradients are those of
            the loss summed over the data of a batch, so they grow with `batch_size`.
        schedules: settings of the model that change from step to step, such as slab warm-up, temperature or beta: a
            function from the step to a number for each dotted name of a buffer, see `vsc_pyro.schedules`. The function
            must depend on the step alone. The last value remains after the run.

    **Validation and early stopping**

    Args:
        validation: data that are not trained on: a share of `data` in (0, 1), drawn by `seed`, for data in memory; or
            data in memory or a `DataLoader` (see below). After each epoch (of a stream: each hundredth of the run)
            `History.validation` gains their bound: the ELBO with hard spikes and one draw of each code, at a weight of
            1 of the KL divergence whatever `beta` and `warmup` are. It changes no random number of the run, whose
            weights are those of a run without validation.
        patience: number of epochs in a row without a better validation bound after which the run ends (Prechelt, 1998).
            Epochs of the warm-up do not count; those of other `schedules` do. The model ends with the weights of
            `History.best_epoch`, also if the run reaches its last epoch. A checkpoint holds these as the model's
            weights, beside the last ones. A resumed run may have another `patience`.
        callbacks: functions of (history, model) that are called after each epoch and after its checkpoint is written,
            in the first of several processes. One that returns True ends the run; `resume` continues it. During a call
            the model is in evaluation mode, without gradients; the random numbers of the run do not change. Epochs
            before a resumption are not called again.

    **Device and speed**

    Args:
        device: ``"auto"``: the GPU, else the CPU. Or any torch device.
        compile: True takes steps with `vsc_pyro.CompiledSVI`: the same random numbers, and losses equal up to rounding.
            ``"auto"`` compiles runs of 5,000 steps or more; shorter runs do not repay the compilation. A resumed run
            keeps its own choice. A smaller last batch is not compiled. On a GPU the whole step, with minibatch and
            Adam, is replayed as a CUDA graph, except with several processes; a warning says if a step cannot be
            captured. `History.compiled` records the result.
        precision: arithmetic of the networks in training, ``"float32"`` or ``"bfloat16"`` (Micikevicius et al., 2018).
            Weights, optimiser, log-probabilities, divergences and linear normal decoders stay in float32. ``"auto"``
            times both on a minibatch before the first step, and takes bfloat16 if it saves a tenth of loss and
            gradients. `History.precision` and the progress bar say which it is; a resumed run keeps it. The run is that
            of ``precision=history.precision``, but another machine may choose otherwise. A model that cannot run in
            bfloat16 is trained as by ``"float32"``, which keeps a model's own type.

    **Random numbers, checkpoints and progress**

    Args:
        seed: seed of shuffling, binarisation and all draws. It does not affect the initial weights: call
            ``torch.manual_seed(0)`` before you build the parts of the model.
        checkpoint: file that is written, atomically, every `checkpoint_every` epochs and at the end. ``~`` is the home
            folder, and a link is followed.
        checkpoint_every: number of epochs between two checkpoints.
        resume: True continues the run in `checkpoint`, or starts a new one if the file does not exist. On a CPU with
            the same number of threads, the weights at the end equal those of an uninterrupted run. Settings and
            schedules must be those of the first run; functions are compared by their values at the ends of epochs.
        progress: True shows a bar with the running objective, and at the end `History.summary` as a line: how many
            latents are used, which means that they carry information, and how much the codes explain.

    Returns:
        The history of all epochs, including those before a resumption.

    Raises:
        ValueError: a bad argument, schedule or datum, or a checkpoint that is damaged or of another run. It is raised
            before training, and the model is unchanged. A bad batch of a `DataLoader` or stream raises it in training.
        OSError: a checkpoint that cannot be written; raised before training if this can be known.
        FileExistsError: `checkpoint` exists and `resume` is False; or another process wrote it during the run. Then the
            run is saved to a new file beside it, which the message names.
        NonFiniteLossError: a loss or a weight became NaN or infinite. The last checkpoint is untouched.

    Warns:
        NothingExplainedWarning: the codes explain nothing after 20 epochs or 1,000 steps, although a linear code would.
            The message says what to try.

    **DataLoader.** Use one for data larger than memory or for your own augmentation and binarisation. Its batches are
    tensors, or tuples or lists whose first entry is the data; labels are ignored. N is the length of its dataset, or
    the number of indices of a `SubsetRandomSampler`. About 1,000 data are read before training, to check the model and
    to initialise its parts. During training every batch is checked; on a GPU the support of the likelihood is checked
    at the end of the epoch. Batches are copied to a GPU from pinned memory, without waiting.

    Batch order and torch-based transforms depend on `seed`, in the main process and in workers; the state of the
    loader's own generator is restored. A resumed run continues with the next epoch. It differs from an uninterrupted
    run only by state that stays in the loader: random numbers of NumPy and Python in the main process,
    ``persistent_workers``, and a sampler's random numbers outside its attribute `generator`.

    **DataLoader of validation data.** Batches are those of a loader to train on, and labels are ignored. It is read
    once before training and once an epoch, with random numbers of torch and of its own generators that depend on `seed`
    alone, so it may shuffle, draw a sample or have an `IterableDataset` without length: every pass reads the same data
    in the same order. A loader whose second pass begins with other data is refused. Resumption compares a checksum of
    the data in their order.

    **Stream.** Any other iterable is a stream of batches, in the form of a loader's, without length: ``steps=`` says
    how many are drawn, and no more are. An epoch is a hundredth of the run, see `History.steps_per_epoch`. N is the
    stream's attribute `num_data`, or the number of data in the run. The first 1,000 data are read before training, and
    trained on. An iterable starts anew when it ends; an iterator that ends early raises `ValueError`. A resumed run
    calls ``stream.start_at(step)`` for an iterator from batch `step` (from 0) on; without that method it draws and
    skips the batches of the first run, which repeats a stream that is deterministic or draws from torch on the CPU. An
    iterator cannot start anew: it goes on with its next data, and a warning says so.

    References:
        D. P. Kingma, J. Ba (2015), Adam: a method for stochastic optimization.
        I. Loshchilov, F. Hutter (2019), Decoupled weight decay regularization.
        P. Micikevicius et al. (2018), Mixed precision training.
        L. Prechelt (1998), Early stopping - but when?
    """
    check_is_vae(model)
    check_can_train(model)
    plan = Plan(
        model,
        data,
        objective=objective,
        gate=chosen_gate(model.encoder, gate),
        num_draws=num_draws,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        cooldown=cooldown,
        lr_schedule=lr_schedule,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedules=with_warmup(schedules, 0),
        validation=validation,
        patience=patience,
        callbacks=checked_callbacks(callbacks),
        device=resolve_device(device),
        seed=seed,
        checkpoint=checked_path(checkpoint, resume),
        checkpoint_every=checkpoint_every,
        resume=resume,
        progress=progress,
        compile=compile,
        precision=precision,
    )
    warn_of_prior(model)
    with (
        alone(),
        torch.inference_mode(False),
        networks_in(model, plan.first_precision),
        gate_in_place(model.encoder, plan.gate),
        unchanged_if_refused(model, plan.schedules),
        ended_warmup(model),
    ):
        check_schedules(model, plan.schedules, plan.num_steps)
        warn_of_warmup(model, plan.schedules)
        run = _build_run(plan)
        with private_state(model, plan.device, plan.seed), plan.batches.seeded(plan.seed), contextlib.ExitStack() as st:
            is_compiled = _resume_or_prepare(plan, run, st)
            train(plan, run, is_compiled)
        return run.history


def _build_run(plan: Plan) -> Run:
    """Move model and data to the device, build the optimiser, and check that all processes have the same settings."""
    model = plan.model
    model.to(plan.device)
    model.num_data = plan.batches.num_data
    plan.batches.to(model.reference)
    if plan.held_out is not None:
        plan.held_out.to(model.reference)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient; there is nothing to train")
    optimizer = make_optimizer(plan.optimizer, [*parameters], plan.learning_rate, plan.weight_decay)
    sum_gradients(optimizer)
    if plan.clip_norm is not None:
        optimizer.register_step_pre_hook(ClipNorm(plan.clip_norm))
    schedule = make_scheduler(plan.lr_schedule, optimizer)
    check_plateau(schedule, plan.held_out is not None)
    run = Run(model, optimizer, schedule, plan.schedules, plan.batches, plan.settings())
    for name, value in {"epochs": plan.num_epochs, **run.settings}.items():
        check_alike(name, value)
    run.history.warmup_steps, run.history.steps_per_epoch = plan.warmup_steps, plan.batches.num_steps
    if plan.checkpoint is not None:
        run.foresee(plan.num_epochs)
    return run


def _resume_or_prepare(plan: Plan, run: Run, stack: contextlib.ExitStack) -> bool:
    """Restore the run from its checkpoint, or initialise the model from the data; return True to compile steps."""
    if (path := plan.resumed) is not None:
        run.restore(path, plan.device, plan.num_epochs, plan.asked_steps)
    else:
        if plan.resume and plan.progress and rank() == 0:
            tqdm.write(f"no checkpoint at {plan.checkpoint}: a new run starts", file=sys.stderr)
        stack.enter_context(unprepared_if_refused(run))
        plan.model.prepare(plan.batches.sample)
        run.history.compiled = is_worth_compiling(plan.num_steps, plan.device) if plan.compile == "auto" else False
    if plan.compile != "auto":
        run.history.compiled = bool(plan.compile)
    if plan.precision != "auto":
        run.history.precision = plan.precision
    check_alike("the epoch to resume from", len(run.history))
    as_the_first(plan.model)
    return run.history.compiled


def check_can_train(model: VAE) -> None:
    """Raise `ValueError` if the tensors of `model` were made under `torch.inference_mode`, which autograd refuses."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "model was built under torch.inference_mode, and its tensors cannot be trained; build it outside (fit "
            "itself may be called under that mode)"
        )


def warn_of_warmup(model: VAE, schedules: Mapping[str, Schedule]) -> None:
    """Warn the user of an unfinished slab warm-up that no schedule continues."""
    if float(getattr(model.encoder, "slab_weight", 1.0)) != 1 and "encoder.slab_weight" not in schedules:
        warnings.warn(
            f"encoder.slab_weight is {float(model.encoder.slab_weight):g}, left by a slab warm-up that did not "
            "end, and no schedule moves it: the slabs stay a mixture of the encoder's and the standard one; "
            "model.encoder.slab_weight.fill_(1.0) ends the warm-up",
            stacklevel=3,
        )


def warn_of_prior(model: VAE) -> None:
    """Warn the user of an objective that is no bound, unless the prior declares `is_bound`."""
    if getattr(model.prior, "is_bound", None) is None and not model.is_bound:
        warnings.warn(
            f"the prior, {type(model.prior).__name__}, depends on the data, or returns a distribution for each datum: "
            "the objective is no bound on the evidence; give the prior an attribute is_bound = True if its "
            "distribution is the same for all data, or if the objective charges for what it learns from a datum, and "
            "is_bound = False otherwise",
            stacklevel=3,
        )
