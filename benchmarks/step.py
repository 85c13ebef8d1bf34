"""Time of a training step and of an epoch: this library, stock Pyro, PyTorch by hand, and pythae if it is installed.

    python benchmarks/step.py

All train the same VAE from the same weights (`contestants.py`). A step computes loss, gradients and Adam's update for a
minibatch in memory. An epoch is one pass over MNIST with shuffling and binarisation. This library runs it by `fit` (the
second of two epochs is timed; ``compile_seconds`` are those of the first run). PyTorch and stock Pyro gather images in
memory. Stock Pyro also runs as in its VAE example, from a torchvision `DataLoader` with no and with one worker; the
faster of the two counts. Ratios are within rounds: to stock Pyro, to eager PyTorch, and on a GPU to a CUDA graph of the
hand-written step. Steps that this library compiles are also replayed as CUDA graphs there.

``pip install pythae`` adds pythae to the dense setting. It binarises the data once, not in each epoch. ``--jax
PYTHON``, on a CPU, adds NumPyro and JAX by hand, in processes of that interpreter; their losses are compared with the
hand-written one first. Processor seconds are those of all threads of a contestant's process.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax_contestants
import measure
import torch
from contestants import (
    BY_HAND,
    CONTESTANTS,
    GRAPH,
    LR,
    STOCK,
    Contestant,
    Place,
    Setting,
    check_compiler,
    library_model,
    pythae_trainer,
    pytorch,
    pytorch_graph,
    stock_pyro,
)
from loading import by_hand, from_loader, from_memory, mnist_loader
from torch import Tensor

import vsc_pyro as vsc
from vsc_pyro import Dataset
from vsc_pyro._files import expanded

SETTINGS = {
    "default": Setting(),
    "large": Setting(latent_dim=200, hidden=3000, batch_size=500),
    "dense": Setting(dense=True),
}
QUICK = {
    "default": Setting(latent_dim=3, hidden=8, batch_size=20),
    "dense": Setting(latent_dim=3, hidden=8, batch_size=20, dense=True),
}
_SECONDS_OF_A_TURN = 0.1
_BATCHES = 8
_BASELINES = (STOCK, BY_HAND, GRAPH, jax_contestants.NUMPYRO, jax_contestants.BY_HAND)

EXAMPLE = "Pyro, its example's loader"


def steps_per_turn(setting: Setting) -> int:
    """Return a number of steps that a clock can time, from the work in a step on two cores."""
    return max(1, round(_SECONDS_OF_A_TURN / (0.004 + setting.flops / 1e11)))


def turn(session: measure.Session, contestant: Contestant, batches: Sequence[Tensor], repeats: int) -> measure.Run:
    """Return a contestant's turn: steps on minibatches in memory."""
    supply = itertools.cycle(batches)
    return session.timed(lambda: contestant.step(next(supply)), repeats, contestant.scope)


# Epochs ---------------------------------------------------------------------------------------------------------------


def fit_epoch(
    setting: Setting,
    place: Place,
    data: Dataset,
    notes: dict[str, float],
    compile: bool = False,
    precision: str = "float32",
) -> measure.Run:
    """Return a run of two epochs by `fit` that is timed by `History.seconds` of the second, which sets nothing up."""
    if compile:
        check_compiler(place)

    def run() -> measure.Timing:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "whole steps are not replayed")
            history = vsc.fit(
                library_model(setting, place),
                data,
                epochs=2,
                batch_size=setting.batch_size,
                lr=LR,
                device=place.device,
                compile=compile,
                precision=precision,
                progress=False,
            )
        if history.compiled != compile:
            raise RuntimeError("fit did not compile; its time would have the wrong name in the table")
        if compile:  # later runs find compiled code in PyTorch's cache on disk
            notes.setdefault(f"compile_seconds, {precision}", history.compile_seconds)
        return measure.Timing(history.seconds[1])

    return run


def epoch_of(session: measure.Session, contestant: Contestant, batches: Callable[[], Iterable[Tensor]]) -> measure.Run:
    """Return a pass with a step for each minibatch and the sum of the losses."""

    def run() -> None:
        total = torch.zeros((), device=session.device)
        for x in batches():
            total += contestant.step(x)

    return session.timed(run, scope=contestant.scope)


def pythae_epoch(session: measure.Session, setting: Setting, place: Place, images: Tensor) -> measure.Run:
    trainer = pythae_trainer(setting, place, torch.bernoulli(images.cpu()))
    return session.timed(partial(trainer.train_step, 1))


def epochs(
    session: measure.Session, setting: Setting, place: Place, data: Dataset, folder: Path, notes: dict[str, float]
) -> dict[str, measure.Run]:
    """Return the contestants of an epoch; `EXAMPLE` runs with both loaders, for `better_loader`."""
    memory = partial(by_hand, data, setting.batch_size)

    fit = partial(fit_epoch, setting, place, data, notes)

    def walk(build: Callable[[Setting, Place], Contestant]) -> measure.Run:
        return epoch_of(session, build(setting, place), memory)

    def example(workers: int) -> measure.Run:
        loader = mnist_loader(folder, setting.batch_size, workers, place.device)
        return epoch_of(session, stock_pyro(setting, place), partial(from_loader, loader, place.device))

    return session.available(
        {
            "vsc_pyro": fit,
            **({"vsc_pyro, compiled": partial(fit, compile=True)} if place.inductor else {}),
            **({"vsc_pyro, bfloat16": partial(fit, compile=True, precision="bfloat16")} if place.inductor else {}),
            STOCK: partial(walk, stock_pyro),
            f"{EXAMPLE}, 0 workers": partial(example, 0),
            f"{EXAMPLE}, 1 worker": partial(example, 1),
            BY_HAND: partial(walk, pytorch),
            "PyTorch, compiled": partial(walk, partial(pytorch, compiled=True)),
            GRAPH: partial(walk, pytorch_graph),
            "pythae": partial(pythae_epoch, session, setting, place, data.images),
        }
    )


def better_loader(result: dict[str, Any]) -> None:
    """Print and record the ratio of each contestant's time to that of the faster loader, round by round."""
    found = result["contestants"]
    loaders = [name for name in found if name.startswith(EXAMPLE)]
    better = min(loaders, key=lambda name: found[name]["seconds"]["median"])
    rows = []
    for name, own in found.items():
        pairs = zip(own["rounds"], found[better]["rounds"], strict=True)
        own["ratios"][EXAMPLE] = measure.summary(t / u for t, u in pairs)
        rows.append([name, measure.spread(own["ratios"][EXAMPLE])])
    measure.table(f"ratios to {better!r}", ["median (quartiles) of rounds", "ratio"], rows)


def compare_steps(
    session: measure.Session,
    setting: Setting,
    place: Place,
    data: Dataset,
    contestants: Sequence[str],
    workers: Mapping[str, jax_contestants.Worker],
) -> None:
    """Compare the times of a step."""
    generator = torch.Generator(session.device).manual_seed(0)
    batches = list(from_memory(data, setting.batch_size, generator))[:_BATCHES]
    repeats = 1 if session.quick else steps_per_turn(setting) * (10 if session.device.type == "cuda" else 1)
    built = session.available({name: partial(CONTESTANTS[name], setting, place) for name in contestants})
    session.compare(
        f"one step, {setting} ({repeats} a round)",
        {name: turn(session, contestant, batches, repeats) for name, contestant in built.items()}
        | {name: worker.timed("steps", repeats) for name, worker in workers.items()},
        _BASELINES,
        part="step",
        setting=setting._asdict(),
    )


def compare_epochs(
    session: measure.Session,
    setting: Setting,
    place: Place,
    data: Dataset,
    folder: Path,
    rounds: int,
    contestants: Sequence[str],
    workers: Mapping[str, jax_contestants.Worker],
) -> None:
    """Compare the times of an epoch; the example's loaders belong to stock Pyro."""
    notes: dict[str, float] = {}
    result = session.compare(
        f"one epoch of {len(data)} images, {setting}",
        {
            name: run
            for name, run in epochs(session, setting, place, data, folder, notes).items()
            if (STOCK if name.startswith(EXAMPLE) else name) in contestants
        }
        | {name: worker.timed("epoch") for name, worker in workers.items()},
        _BASELINES,
        rounds=rounds,
        part="epoch",
        setting=setting._asdict(),
    )
    result.update(notes)
    if STOCK in contestants:
        better_loader(result)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=40)
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options.add_argument("--parts", nargs="+", choices=("step", "epoch"), default=["step", "epoch"])
    options.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="default: all"
    )
    options.add_argument("--epoch-rounds", type=measure.whole, default=5)
    options.add_argument("--jax", type=expanded, metavar="PYTHON", help="interpreter that has NumPyro and optax")
    args = options.parse_args(argv)
    if args.quick:
        args.epoch_rounds = 1
    session = measure.Session("step", args)
    folder, (train, _) = session.mnist()
    place = Place(session.device, inductor=not args.quick)
    data = train.to(torch.empty(0, device=session.device))
    for name, setting in (QUICK if args.quick else SETTINGS).items():
        if name not in args.settings:
            continue
        with jax_contestants.workers(session, args.jax, setting, data.images) as workers:
            if "step" in args.parts:
                compare_steps(session, setting, place, data, args.contestants, workers)
            if "epoch" in args.parts:
                compare_epochs(session, setting, place, data, folder, args.epoch_rounds, args.contestants, workers)
    return session.finish()


if __name__ == "__main__":
    main()
