"""Draws per second of the importance-weighted bound.

    python benchmarks/evaluation.py

`vsc_pyro.evaluate`, which also measures sparsity, and `vsc_pyro.bounds`, which returns the bound of each datum, are
compared with the same bound written by hand, for a model of MNIST, 784-400-50. A draw is one code of one image: drawn,
decoded and weighed. The compiled contestant captures its work in each call and reuses the code that the first call
compiled; the time of the first call is reported separately. Times do not depend on the weights, so that the model is
not trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import measure
import torch
from contestants import INCLUSION, HandWritten, Place, Setting, check_compiler, hand_written, library_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

import vsc_pyro as vsc

BY_HAND = "by hand"
COMPILED = "vsc_pyro.bounds, compiled"
_ROWS_AT_ONCE, _DRAWS_AT_ONCE = 200, 20


def bounds_by_hand(net: HandWritten, images: Tensor, num_draws: int) -> Tensor:
    """Return the importance-weighted bound of each image, shape ``(N,)``, in bounded memory."""
    with torch.no_grad():
        return torch.cat([_bounds_of(net, x, num_draws) for x in images.split(_ROWS_AT_ONCE)])


def _bounds_of(net: HandWritten, x: Tensor, num_draws: int) -> Tensor:
    loc, scale, logits = net.posterior(x)
    log_on, log_off = logsigmoid(logits), logsigmoid(-logits)
    total = x.new_full((len(x),), -math.inf)
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        shape = (min(_DRAWS_AT_ONCE, num_draws - start), *loc.shape)
        noise = torch.randn(shape, device=x.device)
        slab = loc + noise * scale
        on = torch.rand(shape, device=x.device) < torch.sigmoid(logits)
        # The constants of the two normal densities cancel.
        ratio_on = math.log(INCLUSION) - log_on + 0.5 * (noise.square() - slab.square()) + scale.log()
        ratio = torch.where(on, ratio_on, math.log1p(-INCLUSION) - log_off).sum(-1)
        pixels = net.decoder(torch.where(on, slab, 0.0))
        target = x.flatten(1).expand_as(pixels)
        log_likelihood = -binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)
        total = torch.logaddexp(total, torch.logsumexp(log_likelihood + ratio, 0))
    return total - math.log(num_draws)


def compiled_bounds(model: vsc.VAE, images: Tensor, num_draws: int) -> vsc.Bounds:
    """Return `vsc_pyro.bounds`, compiled; a warning that it is not compiled becomes an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "bounds is not compiled")
        return vsc.bounds(model, images, num_draws=num_draws, compile=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = measure.parser(__doc__, rounds=10)
    options.add_argument("--images", type=measure.whole, default=1000)
    options.add_argument("--draws", type=measure.whole, nargs="+", default=[100, 1000])
    args = options.parse_args(argv)
    if args.quick:
        args.images, args.draws = 10, [20]
    warnings.filterwarnings("ignore", "the code explains nothing")  # the model is not trained
    session = measure.Session("evaluation", args)
    _, (_, test) = session.mnist()
    data = test[: args.images]
    setting = Setting(hidden=8, latent_dim=3) if args.quick else Setting()
    place = Place(session.device, inductor=not args.quick)
    model, net = library_model(setting, place), hand_written(setting, place)
    generator = torch.Generator().manual_seed(0)
    images = data.draw(slice(None), generator).to(session.device)
    compiles = session.available({COMPILED: partial(check_compiler, place)} if place.inductor else {})
    for num_draws in args.draws:
        works = {
            "vsc_pyro.evaluate": partial(vsc.evaluate, model, images, num_draws=num_draws, compile=False),
            "vsc_pyro.bounds": partial(vsc.bounds, model, images, num_draws=num_draws, compile=False),
            **{name: partial(compiled_bounds, model, images, num_draws) for name in compiles},
            BY_HAND: partial(bounds_by_hand, net, images, num_draws),
        }
        result = session.compare(
            f"bound of {num_draws} draws, {len(images)} images, {setting}",
            {name: session.timed(work) for name, work in works.items()},
            [BY_HAND],
            setting=setting._asdict(),
            num_draws=num_draws,
            num_images=len(images),
        )
        add_rates(result["contestants"], len(images) * num_draws)
    return session.finish()


def add_rates(contestants: dict[str, Any], num_codes: int) -> None:
    """Print and record draws per second, and print the time of the first compiled call."""
    if COMPILED in contestants:
        first = contestants[COMPILED]["first_call_seconds"]
        print(f"first call of {COMPILED}, with the compiler or its cache on disk: {first:.1f} s")
    rows = []
    for name, found in contestants.items():
        found["draws_per_second"] = measure.summary(num_codes / t for t in found["rounds"])
        rows.append([name, measure.spread(found["draws_per_second"], 1e-3)])
    measure.table("draws per second", ["median (quartiles) of rounds", "thousands"], rows)


if __name__ == "__main__":
    main()
