"""Seconds of a training step of a dictionary: 768 dimensions, 4,096 features, minibatches of 1,024.

    python benchmarks/dictionary.py

A step computes loss, gradients and Adam's update for a minibatch in memory. `vsc_pyro.SparseDictionary` in several
settings is compared with a TopK sparse autoencoder, written by hand, in the same precision. The TopK autoencoder has
five matrix products in a step. Ours has nine with three heads and seven with a scale of each latent; an update adds
two products and their gradients. Vectors are random; times do not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import measure
import torch
from contestants import LR, Contestant, Place, check_compiler, compiled_steps, own_store, steps_by_hand
from torch import Tensor, nn

import vsc_pyro as vsc
from vsc_pyro.models.precision import run_network

BY_HAND = "TopK autoencoder, by hand"
OURS = {
    "three heads": {"scale": "amortised", "refine_steps": 0},
    "scale per latent": {"scale": "per-latent", "refine_steps": 0},
    "refined once": {},
}
MODES = {"": {}, ", compiled": {"compile": True}, ", compiled, bfloat16": {"compile": True, "precision": "bfloat16"}}


class Size(NamedTuple):
    """Sizes of the dictionary and its minibatches."""

    dim: int = 768
    features: int = 4096
    batch_size: int = 1024
    active: int = 32


QUICK = Size(6, 8, 10, 2)


def ours(
    size: Size, place: Place, options: dict[str, Any], compile: bool = False, precision: str = "float32"
) -> Contestant:
    torch.manual_seed(0)
    model = vsc.SparseDictionary(size.dim, size.features, expected_active=size.active, **options).to(place.device)
    if compile:
        check_compiler(place)
        return compiled_steps(model, vsc.ExactELBO(), place, precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    svi = vsc.SVI(model.model, model.guide, optimizer, vsc.ExactELBO())
    return Contestant(svi.step, own_store(validate=False))


def by_hand(size: Size, place: Place, compile: bool = False, precision: str = "float32") -> Contestant:
    """Return steps of fused Adam on a TopK autoencoder of two linear layers, with squared error."""
    torch.manual_seed(0)
    encoder = nn.Linear(size.dim, size.features, device=place.device)
    decoder = nn.Linear(size.features, size.dim, device=place.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        values, places = run_network(encoder, x - decoder.bias, precision).topk(size.active, dim=-1)
        code = torch.zeros(len(x), size.features, device=x.device).scatter(-1, places, values.relu())
        return (run_network(decoder, code, precision) - x).square().sum()

    if compile:
        check_compiler(place)
        loss_of = torch.compile(loss_of, backend="inductor" if place.inductor else "aot_eager", dynamic=False)
    return steps_by_hand(loss_of, optimizer)


def contestants() -> dict[str, Any]:
    return {f"{BY_HAND}{mode}": partial(by_hand, **how) for mode, how in MODES.items()} | {
        f"{name}{mode}": partial(ours, options=options, **how)
        for name, options in OURS.items()
        for mode, how in MODES.items()
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = measure.parser(__doc__, rounds=20).parse_args(argv)
    session = measure.Session("dictionary", args)
    session.record["data"] = "random vectors"
    place = Place(session.device, inductor=not args.quick)
    size = QUICK if args.quick else Size()
    built = session.available({name: partial(build, size, place) for name, build in contestants().items()})
    x = torch.randn(size.batch_size, size.dim, device=session.device)
    repeats = 10 if session.device.type == "cuda" else 1
    result = session.compare(
        f"one step, {size.dim} dimensions, {size.features} features, batch {size.batch_size}",
        {name: session.timed(partial(c.step, x), repeats, c.scope) for name, c in built.items()},
        [f"{BY_HAND}{mode}" for mode in MODES],
        size=size._asdict(),
    )
    rows = []
    for name, found in result["contestants"].items():
        found["vectors_per_second"] = measure.summary(size.batch_size / seconds for seconds in found["rounds"])
        rows.append([name, measure.spread(found["vectors_per_second"], 1e-3)])
    measure.table("vectors per second", ["median (quartiles) of rounds", "thousands"], rows)
    return session.finish()


if __name__ == "__main__":
    main()
