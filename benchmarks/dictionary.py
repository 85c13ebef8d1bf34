"""Vectors per second in the training of a dictionary: 768 features, 4,096 atoms, minibatches of 4,096.

    python benchmarks/dictionary.py

A step computes loss, gradients and Adam's update for a minibatch in memory. The spike-and-slab dictionary (an encoder
of one linear layer, a linear normal decoder, the exact ELBO) is compared with a sparse autoencoder with ReLU codes and
an L1 penalty, written by hand. Vectors are random; times do not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import measure
import torch
from contestants import INCLUSION, LR, Contestant, Place, check_compiler, compiled_steps, own_store, steps_by_hand
from torch import Tensor, nn

import vsc_pyro as vsc

BY_HAND = "ReLU autoencoder, by hand"
_L1 = 1e-3


class Size(NamedTuple):
    """Sizes of the dictionary and its minibatches."""

    features: int = 768
    atoms: int = 4096
    batch_size: int = 4096


QUICK = Size(6, 8, 10)


def dictionary(size: Size, place: Place) -> vsc.VAE:
    """Return a spike-and-slab dictionary."""
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((size.features,), size.atoms, hidden=())
    decoder = vsc.NormalDecoder(size.atoms, (size.features,), hidden=())
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(size.atoms, INCLUSION)).to(place.device)


def eager(size: Size, place: Place) -> Contestant:
    model = dictionary(size, place)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    svi = vsc.SVI(model.model, model.guide, optimizer, vsc.ExactELBO())
    return Contestant(svi.step, own_store(validate=False))


def compiled(size: Size, place: Place, precision: str = "float32") -> Contestant:
    check_compiler(place)
    return compiled_steps(dictionary(size, place), vsc.ExactELBO(), place, precision)


def by_hand(size: Size, place: Place, is_compiled: bool = False) -> Contestant:
    """Return steps of fused Adam on a ReLU autoencoder of two linear layers, with squared error and L1 penalty."""
    if is_compiled:
        check_compiler(place)
    torch.manual_seed(0)
    encoder = nn.Linear(size.features, size.atoms, device=place.device)
    decoder = nn.Linear(size.atoms, size.features, device=place.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LR, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        code = encoder(x).relu()
        return (decoder(code) - x).square().sum() + _L1 * code.sum()

    if is_compiled:
        loss_of = torch.compile(loss_of, backend="inductor" if place.inductor else "aot_eager", dynamic=False)

    return steps_by_hand(loss_of, optimizer)


CONTESTANTS = {
    "vsc_pyro": eager,
    "vsc_pyro, compiled": compiled,
    "vsc_pyro, bfloat16": partial(compiled, precision="bfloat16"),
    BY_HAND: by_hand,
    f"{BY_HAND}, compiled": partial(by_hand, is_compiled=True),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = measure.parser(__doc__, rounds=20).parse_args(argv)
    session = measure.Session("dictionary", args)
    session.record["data"] = "random vectors"
    place = Place(session.device, inductor=not args.quick)
    size = QUICK if args.quick else Size()
    built = session.available({name: partial(build, size, place) for name, build in CONTESTANTS.items()})
    x = torch.randn(size.batch_size, size.features, device=session.device)
    repeats = 10 if session.device.type == "cuda" else 1
    result = session.compare(
        f"one step, {size.features} features, {size.atoms} atoms, batch {size.batch_size}",
        {name: session.timed(partial(c.step, x), repeats, c.scope) for name, c in built.items()},
        [BY_HAND],
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
