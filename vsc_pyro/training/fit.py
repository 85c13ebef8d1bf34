"""`fit`: train a `VAE` by stochastic variational inference, with progress, checkpoints and exact resumption."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vsc_pyro._seeding import alone, seeded
from vsc_pyro.acceleration import CompiledSVI, Replay, capture_on, is_worth_compiling
from vsc_pyro.datasets import Dataset
from vsc_pyro.gates import Gate
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.modes import in_mode
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import Batches
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.parallel import as_the_first, check_alike, num_processes, rank, share, sum_gradients
from vsc_pyro.training.plan import Plan
from vsc_pyro.training.run import Run
from vsc_pyro.training.schedules import Schedule, check_schedules, set_values, unchanged_if_refused
from vsc_pyro.training.summary import summarize
from vsc_pyro.training.svi import SVI


def fit(
    model: VAE,
    data: Dataset | Tensor | np.ndarray | DataLoader,
    *,
    objective: str | ELBO = "auto",
    gate: str | Gate | None = None,
    num_draws: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    warmup: float = 0.0,
    cooldown: float | None = None,
    lr_schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
    compile: bool | str = "auto",
    precision: str = "float32",
) -> History:
    """Train `model` on `data` with one `vsc_pyro.SVI` and Adam (Kingma & Ba, 2015).

    Data in memory are moved to the device once and minibatches gathered there; no step waits for the device. The
    caller's random state and Pyro's parameter store are left as they were. Another thread that trains or evaluates
    waits until this is done. Gradients are taken under a caller's ``torch.no_grad()`` as well. A run of 20 epochs or
    1,000 steps whose codes explain nothing of data that a linear code would explain ends with a
    `vsc_pyro.NothingExplainedWarning`, which says what to try.

    **A `torch.utils.data.DataLoader`** serves for data larger than memory, or a pipeline of your own. Its batches are
    tensors, or tuples or lists of which the first is the data (labels are not looked at); they are trained on as they
    come, so that augmentation and binarisation are the pipeline's. N is the length of its dataset, or of a
    `SubsetRandomSampler`'s indices. Its first 1,000 data or so are looked at beforehand, and pseudo-inputs start at
    them. All are checked, batch by batch (on a GPU at the end of an epoch whether they are in the likelihood's
    support). On a GPU batches are copied from pinned memory without waiting. The order follows from `seed`, whether the
    loader has a generator (seeded within, and put back) or not, and so does what is drawn from torch's random numbers
    by transforms, in the main process or in workers. A resumed run goes on with the next epoch as if there had been no
    interruption, but for what the loader keeps to itself: random numbers of NumPy or Python in the main process, of
    ``persistent_workers``, or of a sampler that has them under another name than `generator`.

    Args:
        model: trained in place; moved to `device`.
        data: a `vsc_pyro.datasets.Dataset`, any array or tensor of shape ``(N, ...)``, or a `DataLoader`.
        objective: ``"analytic"`` (closed-form KLs), ``"trace"`` (sampled), ``"exact"`` (nothing sampled, for linear
            normal decoders), ``"importance-weighted"`` (the bound of several draws), or any `pyro.infer.ELBO`.
            ``"auto"`` is ``"exact"`` where the decoder is linear and normal, unless `gate` or `num_draws` ask for draws
            of codes, and ``"analytic"`` elsewhere.
        gate: gradient estimator of the spikes, put in the place of the encoder's own, where it stays.
        num_draws: draws of each code per step, for a named objective; None for as few as objective and gate take.
        epochs: passes over the data, those of a resumed run included; None for 50, or as many as make 2,000 steps.
        batch_size: data per step; the last batch of an epoch may be smaller. None for 200, or for the loader's own.
        lr: learning rate of Adam.
        warmup: share of the run, its first steps, in which the weight of the KL divergence rises from 0 to the model's
            beta, so that latents learn something before they are charged for it. A resumed run keeps its own.
        cooldown: share of the run, its last epochs, in which the learning rate falls in proportion, from epoch to
            epoch: a quarter of 4 epochs or fewer changes nothing. None for .25, for 0 beside an `lr_schedule`, and for
            a resumed run's own. A run that is gone on with for more epochs than it was begun with has cooled down once
            before, unlike one of so many epochs from the start; with 0 the two end in the same weights.
        lr_schedule: called with the optimiser, returns a scheduler that is stepped once an epoch.
        schedules: settings of the model that change from step to step, by name: slab warm-up, temperature, beta; see
            `vsc_pyro.schedules`. The last value stays.
        device: ``"auto"`` for the GPU where there is one.
        seed: of shuffling, binarisation and all draws. The weights at the start are the model's own: call
            ``torch.manual_seed(0)`` before its parts are built, and they are the same in every run.
        checkpoint: file to write after every `checkpoint_every` epochs and at the end, atomically; a link is written
            through, and ``~`` is the home folder.
        resume: go on from `checkpoint` where it exists; the run ends in the same weights as one of as many epochs that
            was never interrupted (on the CPU, same thread count). Settings and schedules have to be the same,
            functions among these as far as their values at the ends of epochs tell. Where it does not exist, training
            starts from the beginning.
        progress: show a bar with the running ELBO, and at the end a line that says how many latents the data use and
            how much the codes explain: `History.summary`.
        compile: take steps by a `vsc_pyro.CompiledSVI`: same random numbers, losses equal but for rounding. ``"auto"``
            does for runs of 10,000 steps or more (a resumed run goes on as it began); shorter ones would wait longer
            for the compiler than they gain. `History.compiled` and the bar say which. A last smaller batch is not
            compiled. On a GPU whole steps, minibatch and Adam included, are then replayed as a CUDA graph, where it can
            be captured; a warning says so where not (steps of several processes are never replayed).
        precision: of the networks' arithmetic, ``"float32"`` or ``"bfloat16"`` (Micikevicius et al., 2018), in training
            only. All else stays in float32: weights, optimiser, log-probabilities and divergences; so does a linear
            normal decoder, which is no network. Faster on GPUs and on CPUs with AMX. See `vsc_pyro.models.precision`,
            also for parts of your own.

    Returns:
        The history of all epochs, resumed ones included.

    Raises:
        ValueError: bad arguments, schedules or data, or a checkpoint of another run or damaged, before any training;
            the model is then as it was. Or, when it comes, a batch of a `DataLoader` that the model does not take.
        OSError: a checkpoint that cannot be written; where that can be known, before any training.
        FileExistsError: `checkpoint` exists and `resume` is not asked for; or someone else has written it during the
            run, which is then saved beside it, under a name that the message tells.
        NonFiniteLossError: a loss or weight became NaN or infinite; the last checkpoint written is left as it is.
    """
    plan = Plan(
        model,
        data,
        objective=objective,
        gate=gate,
        num_draws=num_draws,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        cooldown=cooldown,
        lr_schedule=lr_schedule,
        schedules=schedules,
        device=device,
        seed=seed,
        checkpoint=checkpoint,
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
        networks_in(model, precision),
        _gate_in_place(model.encoder, plan.gate),
        unchanged_if_refused(model, plan.schedules),
    ):
        check_schedules(model, plan.schedules, plan.epochs * plan.batches.num_steps)
        warn_of_warmup(model, plan.schedules)
        run = _begun(plan)
        with private_state(model, plan.device, plan.seed), plan.batches.seeded(plan.seed), contextlib.ExitStack() as st:
            compiled = _resumed_or_prepared(plan, run, st)
            _train(plan, run, compiled)
        return run.history


def _begun(plan: Plan) -> Run:
    """Move model and data to the device and build the optimiser; every process must agree on the settings."""
    model = plan.model
    model.to(plan.device)
    model.num_data = plan.batches.num_data
    plan.batches.to(model.reference)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient; there is nothing to train")
    optimizer = torch.optim.Adam(parameters, lr=plan.lr, fused=True)
    sum_gradients(optimizer)
    schedule = plan.lr_schedule(optimizer) if plan.lr_schedule is not None else None
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("lr_schedule must step by the epoch; ReduceLROnPlateau, which steps by a metric, does not")
    settings = plan.settings()
    for name, value in {"epochs": plan.epochs, **settings}.items():
        check_alike(name, value)
    run = Run(model, optimizer, schedule, plan.schedules, plan.batches, settings)
    run.history.warmup_steps = plan.warmup_steps
    if plan.checkpoint is not None:
        run.plan(plan.epochs)
    return run


def _resumed_or_prepared(plan: Plan, run: Run, stack: contextlib.ExitStack) -> bool:
    """Restore the run from its checkpoint, or let the model start from the data; return True if steps are compiled."""
    if plan.resumes:
        run.restore(plan.checkpoint, plan.device, plan.epochs)
    else:
        stack.enter_context(_unprepared_if_refused(plan.model, run.optimizer))
        plan.model.prepare(plan.batches.sample)
        num_steps = plan.epochs * plan.batches.num_steps
        run.history.compiled = is_worth_compiling(num_steps, plan.device) if plan.compile == "auto" else False
    if plan.compile != "auto":
        run.history.compiled = bool(plan.compile)
    check_alike("the epoch to go on from", len(run.history))
    as_the_first(plan.model)
    return run.history.compiled


def _train(plan: Plan, run: Run, is_compiled: bool) -> None:
    """Train for the epochs that are left."""
    model, epochs, steps = plan.model, plan.epochs, plan.batches.num_steps
    programs = model.model, model.guide, run.optimizer, plan.loss
    svi, compiled = SVI(*programs), CompiledSVI(*programs) if is_compiled else None
    first_epoch, compiled_before = len(run.history), run.history.compile_seconds
    set_values(model, plan.schedules, max(0, first_epoch * steps - 1))
    shown = {"disable": not plan.progress or rank() > 0, "unit": "step", "desc": "fit"}
    try:
        with tqdm(total=epochs * steps, initial=first_epoch * steps, **shown) as bar:
            step = _step(svi, compiled, plan.batches, plan.device, bar)
            for epoch in range(first_epoch, epochs):
                with plan.cooling.of_epoch(epoch, run.optimizer):
                    run.epoch(step, bar)
                if compiled is not None:
                    run.history.compiled = not compiled.is_eager
                    run.history.compile_seconds = compiled_before + compiled.capture_seconds
                if run.schedule is not None:
                    run.schedule.step()
                is_last = epoch + 1 == epochs
                if is_last:
                    run.history.summary = summarize(model, plan.batches, plan.seed, epochs, bar)
                is_due = plan.checkpoint is not None and ((epoch + 1) % plan.checkpoint_every == 0 or is_last)
                if is_due and rank() == 0:
                    run.save(plan.checkpoint)
    finally:
        model.warmup.fill_(1.0)
        # Otherwise the first step of another training would add them to its own.
        run.optimizer.zero_grad(set_to_none=True)


def warn_of_warmup(model: VAE, schedules: Mapping[str, Schedule]) -> None:
    """Warn the caller's caller of a slab warm-up that has been left half way and does not go on."""
    if float(getattr(model.encoder, "slab_weight", 1.0)) != 1 and "encoder.slab_weight" not in schedules:
        warnings.warn(
            f"encoder.slab_weight is {float(model.encoder.slab_weight):g}, left by a slab warm-up that did not "
            "end, and no schedule moves it: the encoder's slabs are trained and used in that proportion only; "
            "model.encoder.slab_weight.fill_(1.0) ends the warm-up",
            stacklevel=3,
        )


def warn_of_prior(model: VAE) -> None:
    """Warn the caller's caller of an objective that is no bound, where the prior does not say so itself."""
    if getattr(model.prior, "is_bound", None) is None and not model.is_bound:
        warnings.warn(
            f"the prior, {type(model.prior).__name__}, depends on the data, or returns a distribution for each datum: "
            "what is trained is no bound on the evidence; give it an attribute is_bound = True if its distribution is "
            "the same for all data, or if what it learns from a datum is charged, and False if neither is the case",
            stacklevel=3,
        )


def _step(
    svi: SVI, compiled: CompiledSVI | None, batches: Batches, device: torch.device, bar: tqdm
) -> Callable[[Tensor], Tensor | float]:
    """A step on what `Batches.sources` gives: compiled if it is to be, and on a GPU captured from the gathering on."""

    def minibatch(source: Tensor) -> Tensor:
        if len(source) < num_processes():
            raise ValueError(
                f"a batch of {len(source)} data cannot be shared by {num_processes()} processes; let the DataLoader "
                "give larger ones"
            )
        return share(batches.gather(source))

    if compiled is None:
        return lambda source: svi.step(minibatch(source))
    capture = capture_on(device)
    replay = None if capture is None else Replay(compiled, capture, batches.gather, batches.generators)
    bar.set_description("fit, compiling")

    def step(source: Tensor) -> Tensor | float:
        if len(source) < batches.full_size:  # one smaller batch an epoch would not repay a compilation of its own
            return svi.step(minibatch(source))
        loss = compiled.step(minibatch(source)) if replay is None else replay.step(source)
        bar.set_description("fit" if compiled.is_eager else "fit, compiled", refresh=False)
        return loss

    return step


@contextlib.contextmanager
def _unprepared_if_refused(model: VAE, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put back what `VAE.prepare` sets where an error comes before the first step has been taken."""
    before = copy.deepcopy(model.state_dict())
    try:
        yield
    except Exception:
        if not optimizer.state:
            model.load_state_dict(before)
        raise


@contextlib.contextmanager
def _gate_in_place(encoder: nn.Module, gate: Gate | None) -> Iterator[None]:
    """Give `encoder` that gate, and the one it had back if training is refused before it has begun."""
    before = gate_of(encoder)
    if gate is not None:
        encoder.gate = gate
    try:
        yield
    except Exception as error:
        if gate is not None and not isinstance(error, NonFiniteLossError):
            encoder.gate = before
        raise


@contextlib.contextmanager
def private_state(model: VAE, device: torch.device, seed: int) -> Iterator[None]:
    """Training mode, random numbers from `seed` and a parameter store of its own within; without, all as it was."""
    # Under a caller's no_grad nothing would be trained.
    with seeded(seed, device), pyro.get_param_store().scope(), torch.inference_mode(False), in_mode(model, True):
        yield
