"""One training step and one epoch: this library, stock Pyro, PyTorch by hand, and pythae where it is installed.

    python benchmarks/step.py

All of the same VAE, from the same weights (`contestants.py`). A step is loss, gradients and Adam's update for a
minibatch that is there. An epoch is one pass over MNIST with shuffling and binarisation: this library's by `fit` (the
second of two epochs; ``compile_seconds`` are of the first run), PyTorch's and one of stock Pyro's with images gathered
in memory, and stock Pyro's as its VAE example has it, from a torchvision `DataLoader` without and with a worker, of
which the better counts. Ratios are within rounds, to stock Pyro, to eager PyTorch and, on a GPU, to a CUDA graph of the
hand-written step; what this library compiles is replayed there as a CUDA graph as well.

``pip install pythae`` beside this library adds it to the dense setting (its binarisation is done once and for all).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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

EXAMPLE = "Pyro, its example's loader"


def steps_per_turn(setting: Setting) -> int:
    """Enough for a clock, by the work in a step on two cores."""
    return max(1, round(_SECONDS_OF_A_TURN / (0.004 + setting.flops / 1e11)))


def turn(session: measure.Session, contestant: Contestant, batches: Sequence[Tensor], repeats: int) -> measure.Run:
    """A contestant's turn: some steps on minibatches that are there."""
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
    """The second epoch of a `fit`, in which nothing is set up, as it tells itself."""
    if compile:
        check_compiler(place)

    def run() -> float:
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
            raise RuntimeError("fit did not compile, and its time would not be what the table says")
        if compile:  # of the first run; later ones find PyTorch's work on disk
            notes.setdefault(f"compile_seconds, {precision}", history.compile_seconds)
        return history.seconds[1]

    return run


def epoch_of(session: measure.Session, contestant: Contestant, batches: Callable[[], Iterable[Tensor]]) -> measure.Run:
    """A step for each minibatch, and the sum of their losses, as one would print it."""

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
    """The contestants of an epoch; of `EXAMPLE` both loaders, for `better_loader`."""
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
    """Print and record every contestant's time as a share of the better of the two loaders', round by round."""
    found = result["contestants"]
    loaders = [name for name in found if name.startswith(EXAMPLE)]
    better = min(loaders, key=lambda name: found[name]["seconds"]["median"])
    rows = []
    for name, own in found.items():
        pairs = zip(own["rounds"], found[better]["rounds"], strict=True)
        own["ratios"][EXAMPLE] = measure.summary(t / u for t, u in pairs)
        rows.append([name, measure.spread(own["ratios"][EXAMPLE])])
    measure.table(f"the same as a share of {better!r}", ["median (quartiles) of rounds", "ratio"], rows)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=40)
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options.add_argument("--parts", nargs="+", choices=("step", "epoch"), default=["step", "epoch"])
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="of a step")
    options.add_argument("--epoch-rounds", type=measure.whole, default=5)
    args = options.parse_args(argv)
    if args.quick:
        args.epoch_rounds = 1
    session = measure.Session("step", args)
    folder, (train, _) = session.mnist()
    place = Place(session.device, inductor=not args.quick)
    data = train.to(torch.empty(0, device=session.device))
    sizes = QUICK if args.quick else SETTINGS
    for name, setting in sizes.items():
        if name not in args.settings:
            continue
        generator = torch.Generator(session.device).manual_seed(0)
        batches = list(from_memory(data, setting.batch_size, generator))[:_BATCHES]
        repeats = 1 if args.quick else steps_per_turn(setting) * (10 if session.device.type == "cuda" else 1)
        about = {"setting": setting._asdict(), "baselines": [STOCK, BY_HAND, GRAPH]}
        if "step" in args.parts:
            built = session.available({key: partial(CONTESTANTS[key], setting, place) for key in args.contestants})
            session.compare(
                f"one step, {setting} ({repeats} a round)",
                {key: turn(session, contestant, batches, repeats) for key, contestant in built.items()},
                part="step",
                **about,
            )
        if "epoch" in args.parts:
            notes: dict[str, float] = {}
            contestants = epochs(session, setting, place, data, folder, notes)
            result = session.compare(
                f"one epoch of {len(data)} images, {setting}",
                contestants,
                rounds=args.epoch_rounds,
                part="epoch",
                **about,
            )
            result.update(notes)
            better_loader(result)
    return session.finish()


if __name__ == "__main__":
    main()
