"""Several models in one step (`vsc_pyro.fit_ensemble`) against one model at a time: seconds per model and step.

    python benchmarks/ensemble.py

A step computes loss, gradients and Adam's update of each model, for its own minibatch in memory. Sizes go from 64-64-10
(pixels, hidden units, latents) with batches of 100, as for the bundled digits, to 784-400-50 with batches of 200, as
for MNIST. Ratios are within rounds, to the steps of one model, eager and compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import measure
import torch
from contestants import INCLUSION, LR, Place, check_compiler, own_store

import vsc_pyro as vsc
from vsc_pyro import CompiledSVI
from vsc_pyro.acceleration.ensemble import Ensemble

EAGER, COMPILED = "one model, eager", "one model, compiled"
COUNTS = (1, 2, 4, 8, 16)
_SECONDS_OF_A_TURN = 0.1


class Size(NamedTuple):
    """Sizes of a model and its minibatches."""

    side: int
    hidden: int
    latent_dim: int
    batch_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.side, self.side


SIZES = {"digits": Size(8, 64, 10, 100), "middle": Size(8, 200, 50, 200), "mnist": Size(28, 400, 50, 200)}
QUICK = {"digits": Size(8, 8, 3, 10)}


def build(size: Size, seed: int, place: Place) -> vsc.VAE:
    torch.manual_seed(seed)
    encoder = vsc.SpikeSlabEncoder(size.shape, size.latent_dim, size.hidden)
    decoder = vsc.BernoulliDecoder(size.latent_dim, size.shape, size.hidden)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(size.latent_dim, INCLUSION)).to(place.device)


def repeats(size: Size, num_models: int) -> int:
    """Return a number of steps that a clock can time, from the work in a step on one or two cores."""
    work = size.batch_size * size.hidden * (10 * size.side**2 + 24 * size.latent_dim)
    return max(1, round(_SECONDS_OF_A_TURN / num_models / (0.002 + work / 1e11)))


def alone(session: measure.Session, size: Size, place: Place, compiled: bool) -> measure.Run:
    """Return a contestant: steps of one model."""
    model = build(size, 0, place)
    programs = model.model, model.guide, torch.optim.Adam(model.parameters(), LR, fused=True), vsc.AnalyticELBO()
    svi = vsc.SVI(*programs)
    if compiled:
        check_compiler(place)
        svi = CompiledSVI(*programs, backend="inductor" if place.inductor else "eager")
    x = torch.rand(size.batch_size, *size.shape, device=place.device).round()
    return session.timed(lambda: svi.step(x), repeats(size, 1), own_store(validate=False))


def together(session: measure.Session, size: Size, place: Place, num_models: int, compiled: bool = True) -> measure.Run:
    """Return a contestant: steps of `num_models` models at once; it returns seconds per model."""
    if compiled:
        check_compiler(place)
    ensemble = Ensemble([build(size, seed, place) for seed in range(num_models)], vsc.AnalyticELBO(), LR, {})
    xs = torch.rand(num_models, size.batch_size, *size.shape, device=place.device).round()
    ensemble.record(xs[0], compile=compiled and place.inductor)
    run = session.timed(lambda: ensemble.step(xs), repeats(size, num_models))
    return lambda: measure.Timing(*(seconds / num_models for seconds in run()))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=30)
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument(
        "--counts", nargs="+", type=measure.whole, default=list(COUNTS), help="numbers of models in an ensemble"
    )
    args = options.parse_args(argv)
    session = measure.Session("ensemble", args)
    session.record["data"] = "random pixels"  # times do not depend on the data
    place = Place(session.device, inductor=not args.quick)
    for name, size in (QUICK if args.quick else SIZES).items():
        if name not in args.sizes:
            continue
        builders = {
            EAGER: functools.partial(alone, session, size, place, False),
            COMPILED: functools.partial(alone, session, size, place, True),
        }
        for count in args.counts:
            builders[f"ensemble of {count}"] = functools.partial(together, session, size, place, count)
        builders[f"ensemble of {count}, not compiled"] = functools.partial(together, session, size, place, count, False)
        session.compare(
            f"one model's step, {size.side**2}-{size.hidden}-{size.latent_dim}, batch {size.batch_size}",
            session.available(builders),
            [EAGER, COMPILED],
            size=size._asdict(),
        )
    return session.finish()


if __name__ == "__main__":
    main()
